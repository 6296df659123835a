"""Formats whose file lies in a folder with about.json beside it: each written, run in its own runtime and compared.

A format has a module: `write`, and `write_int8` where it has int8, fill a folder; `opened` runs one; LOAD says what
whoever loads the file has to know.
"""

import json
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from mnv3lib import inference, writing
from mnv3lib.data import Split
from mnv3lib.deploy.onnx_files import INPUT, TOLERANCE, Normalised, floats, quiet
from mnv3lib.errors import ExportError, InputError, one_line
from mnv3lib.networks import MobileNet

ABOUT = "about.json"
FILES = {  # that a format writes, with or without -int8, beside ABOUT
    "openvino": {"network.xml", "network.bin"},
    "executorch": {"network.pte"},
    "ncnn": {"network.param", "network.bin"},
    "tflite": {"network.tflite"},
}
CALIBRATION = 1000  # training images from which the ranges of int8 are taken


def module_of(file_format: str) -> ModuleType:
    """The module of a format, with or without -int8."""
    return import_module(f"mnv3lib.deploy.{file_format.removesuffix('-int8')}_files")


def fill(module: nn.Module, file_format: str, folder: Path, images: torch.Tensor) -> None:
    """Write the files of a format to `folder`: of a network in eval mode that takes `images`, float [n, 3, size, size].

    From the images int8 takes its ranges.
    """
    files = module_of(file_format)
    with quiet():
        (files.write_int8 if file_format.endswith("-int8") else files.write)(module, folder, images)


def write(
    network: MobileNet,
    path: Path,
    file_format: str,
    images: torch.Tensor,
    *,
    run: str = "",
    calibration: torch.Tensor | None = None,
    test: Split | None = None,
) -> dict:
    """Write `network` to the folder `path` and return what was found out.

    images: uint8 [n, size, size, 3], real ones, on which the format's own runtime is compared with PyTorch. For int8,
    `calibration` (uint8, too) gives the ranges and accuracy is measured on `test`. Keys: gap, of the logits, or, for
    int8, top1 and top1_int8 (percent). Raises ExportError, and writes nothing, if fp32 logits differ by more than
    TOLERANCE; InputError if the format's extra is missing, or if anything at `path` is not of this format.
    """
    check_ours(path, file_format)
    taken = INPUT.format(size=images.shape[1])
    if file_format == "ncnn":  # which takes one image at a time
        taken = taken.replace("[batch, ", "[")
    about = {"run": run, "format": file_format, "input": taken}
    about |= {"load": module_of(file_format).LOAD, "mnv3lib": version("mnv3lib"), "classes": network.classes}
    with writing.replacing_folder(path) as new:
        fill(
            Normalised(network).eval(),
            file_format,
            new.resolve(),
            together(images if calibration is None else calibration),
        )
        answer = module_of(file_format).opened(new.resolve())
        if test:
            facts = {"top1": top1(pytorch(network), test), "top1_int8": top1(answer, test)}
        else:
            given = together(images).numpy()
            facts = {"gap": float(np.abs(answer(given) - pytorch(network)(given)).max())}
            if not facts["gap"] <= TOLERANCE:
                raise ExportError(f"{path} is not written: its logits differ from PyTorch's by {facts['gap']:.1e}")
        (new / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return facts


def check_ours(path: Path, file_format: str) -> None:
    """Raise InputError if there is anything at `path` but what this format wrote, since all of it is replaced."""
    if not path.exists():
        return
    try:
        ours = {"run", "format", "mnv3lib"} <= json.loads((path / ABOUT).read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError):  # no such file, no JSON, or no object in it
        ours = False
    if not ours:
        raise InputError(f"{path} is nothing that mnv3 export wrote: name another place with --out")
    others = {file.name for file in path.iterdir()} - {ABOUT} - FILES[file_format.removesuffix("-int8")]
    if others:
        other = f"{one_line(min(others))} in it, which {file_format} does not write"
        raise InputError(f"{path} would be replaced with {other}: name another place with --out")


def pytorch(network: MobileNet) -> Callable[[np.ndarray], np.ndarray]:
    """PyTorch's own answers, as the formats' `opened` give theirs."""
    module = Normalised(network).eval()
    return torch.inference_mode()(lambda images: module(torch.from_numpy(images)).numpy())


def top1(answer: Callable[[np.ndarray], np.ndarray], split: Split) -> float:
    """The share of images, in percent, whose likeliest class is the right one."""
    guesses = np.concatenate([answer(part.numpy()).argmax(1) for part in floats(split.images)])
    return 100 * float((guesses == split.labels.numpy()).mean())


def together(images: torch.Tensor) -> torch.Tensor:
    """uint8 images [n, height, width, 3] as one float tensor [n, 3, height, width] in [0, 1]."""
    return torch.cat(list(floats(images)))


def sized(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 images [n, height, width, 3] resampled to `size` pixels a side where they differ."""
    if images.shape[1] == size:
        return images
    resized = inference.resize(images.permute(0, 3, 1, 2).float(), size)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

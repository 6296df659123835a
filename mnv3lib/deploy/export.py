"""A trained run out of PyTorch, in the formats of FORMATS; each file is tried on real images in its own runtime."""

import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from mnv3lib import data, inference, store, writing
from mnv3lib.data import Split
from mnv3lib.deploy import FORMATS, int8, onnx_files, timing
from mnv3lib.errors import InputError, choose

CALIBRATION = 1000  # training images from which the ranges of int8 are taken


def export(
    run: str, path: Path, file_format: str = "onnx", *, models: Path | None = None, data_folder: Path | None = None
) -> dict:
    """Write the run of that name to `path`, and return what was found out.

    file_format: of FORMATS. Keys: images (how many it was checked on), gap (of the logits, see onnx_files.write), and,
    for int8, top1 and top1_int8 (percent, both by onnxruntime on the test set).
    """
    choose("format", file_format, FORMATS)
    quantized = file_format == "onnx-int8"
    network = store.load(run, models)
    made = store.load_record(run, models)["recipe"]
    size = made["image_sizes"][-1]
    here = made["dataset"] != "cifar100" or quantized or data.available(data_folder)
    dataset = data.load(made["dataset"] if here else "digits", data_folder)  # real images in any case
    images = dataset.test.images[:200]
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.onnx" if quantized else path
        facts = {"gap": onnx_files.write(network, whole, _sized(images, size), run=run), "images": len(images)}
        if quantized:
            test = Split(_sized(dataset.test.images, size), dataset.test.labels)
            chosen = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))[:CALIBRATION]
            calibration = _sized(dataset.train.images[chosen], size)
            model = int8.quantized(network, torch.cat(list(onnx_files.floats(calibration))), network.mean, network.std)
            model.metadata_props.extend(onnx_files.metadata(whole))
            with writing.replacing(path) as temporary:
                temporary.write_bytes(model.SerializeToString())
            facts |= {"top1": top1(onnx_files.session(whole), test), "top1_int8": top1(onnx_files.session(path), test)}
    return facts


def top1(opened, split: Split) -> float:
    """The share of images, in percent, whose likeliest class is the right one, as an onnxruntime session has it."""
    return 100 * float((onnx_files.logits(opened, split.images).argmax(1) == split.labels.numpy()).mean())


def record(run: str, facts: dict, folder: Path, models: Path | None = None) -> Path:
    """Write what `export` found out about an int8 file of `run` to `folder`, with the digest of the run's weights."""
    path = Path(folder) / f"{run}.json"
    accuracies = {name: facts[name] for name in ("top1", "top1_int8")}
    content = {"run": run, "weights": _digest(run, models), **accuracies, "onnxruntime": version("onnxruntime")}
    content |= timing.stamp()
    with writing.replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def recorded(run: str, folder: Path, models: Path | None = None) -> dict | None:
    """What `record` wrote of the weights that `run` has now; None if there is nothing."""
    path = Path(folder) / f"{run}.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found["weights"] == _digest(run, models) else None
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path} is no record of an int8 file: delete it") from None


def _digest(run: str, models: Path | None) -> str:
    return hashlib.sha256((store.run_folder(run, models) / store.WEIGHTS).read_bytes()).hexdigest()


def _sized(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 images [n, height, width, 3] resampled to `size` pixels a side where they differ."""
    if images.shape[1] == size:
        return images
    resized = inference.resize(images.permute(0, 3, 1, 2).float(), size)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

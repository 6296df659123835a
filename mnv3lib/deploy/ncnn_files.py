"""ncnn, for phones: written by pnnx from PyTorch's graph, run by ncnn's Python package (the extra `ncnn`).

No torch at the top: a process that only runs such a file does without.
"""

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnv3lib.errors import ExportError, InputError, one_line

LOAD = (
    "input in0, output out0, one image at a time; switch opt.use_fp16_packed, use_fp16_storage and use_fp16_arithmetic "
    "off, or logits are off by a hundredth"
)
HALVES = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")


def write(module, folder: Path, images) -> None:
    """network.param and network.bin of a torch module; `images` (float tensors) are its example input."""
    import torch

    program = _extra("pnnx").EXEC_PATH
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        torch.jit.trace(module, images[:1]).save(f"{scratch}/network.pt")
        shape = f"inputshape=[1,3,{images.shape[2]},{images.shape[3]}]f32"
        places = (f"ncnnparam={folder / 'network.param'}", f"ncnnbin={folder / 'network.bin'}")
        command = [program, "network.pt", shape, "fp16=0", *places]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
    if done.returncode or not (folder / "network.bin").is_file():
        raise ExportError(f"pnnx cannot write the network: {one_line(done.stderr[-300:])}")


def opened(folder: Path, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """What such a folder says to float32 images [n, 3, size, size]: logits [n, classes]."""
    ncnn = _extra("ncnn")
    network = ncnn.Net()
    for switch in HALVES:
        setattr(network.opt, switch, False)
    if threads:
        network.opt.num_threads = threads
    network.load_param(str(folder / "network.param"))
    network.load_model(str(folder / "network.bin"))

    def one(image: np.ndarray) -> np.ndarray:
        run = network.create_extractor()
        run.input("in0", ncnn.Mat(image))  # which takes the memory as it lies, whatever the strides
        return np.array(run.extract("out0")[1])

    return lambda images: np.stack([one(image) for image in np.ascontiguousarray(images)])


def _extra(name: str):
    try:
        return __import__(name)
    except ImportError:
        raise InputError(f"{name} is not installed: pip install -e '.[ncnn]' in the checkout") from None

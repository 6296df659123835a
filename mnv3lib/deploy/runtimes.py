"""The ways to run a network: PyTorch's layouts, batch norm folded, compiled, and the runtimes of exported files."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mnv3lib.deploy import RUNTIMES, formats, int8, onnx_files, served
from mnv3lib.deploy.onnx_files import Normalised
from mnv3lib.deploy.served import Served
from mnv3lib.deploy.timing import forward
from mnv3lib.errors import InputError, choose
from mnv3lib.inference import fold

FILES = {"onnxruntime": "onnx", "onnxruntime-int8": "onnx-int8"}  # what runtimes run that have another name
ANYWHERE = ("eager", "channels_last", "folded", "compiled")  # the others are measured on the CPU alone


class Runner:
    """A network, ready to be run by any runtime on images of `size` pixels a side.

    Its files are written when they are first needed, and gone when nobody holds it any more. Those of a trained network
    are what `mnv3 export` writes, with the normalisation inside. calibration: float images as a file takes them, for
    the ranges of int8; without them noise, which makes no difference to the speed.
    """

    def __init__(self, network: nn.Module, size: int = 32, calibration: torch.Tensor | None = None):
        self.network, self.size = network, size
        noise = torch.rand if self._is_trained() else torch.randn
        self.calibration = noise(64, 3, size, size) if calibration is None else calibration
        self.place = tempfile.TemporaryDirectory()

    def contestant(self, runtime: str, images: torch.Tensor, threads: int | None = None) -> Callable[[], object]:
        """A callable that runs the network in eval mode on `images`, float [batch, 3, size, size].

        A Served but for the runtimes of ANYWHERE. threads: of it, which does not follow torch's here (None: one a
        core). Raises InputError for an unknown runtime or one that is not installed.
        """
        choose("runtime", runtime, RUNTIMES)
        if runtime == "compiled" and not compiler():
            raise InputError("compiled: torch.compile wants a C++ compiler: install g++, or leave it out")
        if runtime in ANYWHERE:
            layout = torch.contiguous_format if runtime == "eager" else torch.channels_last
            network = fold(self.network) if runtime in ("folded", "compiled") else deepcopy(self.network)
            network = network.to(images.device, memory_format=layout)
            images = images.contiguous(memory_format=layout)
            return forward(torch.compile(network) if runtime == "compiled" else network, images)
        batch = images.contiguous().numpy()
        if runtime == "default":
            return Served(_as_a_script, deepcopy(self.network), batch, threads)
        contestant = Served(served.file, runtime.removesuffix("-int8"), self.folder(runtime), batch, threads)
        contestant.place = self.place  # which goes with its last holder
        return contestant

    def folder(self, runtime: str) -> Path:
        """Where the file of a runtime is."""
        file_format = FILES.get(runtime, runtime)
        folder = Path(self.place.name) / file_format
        if not folder.is_dir():
            folder.mkdir()
            module = deepcopy(self.network).eval()
            if self._is_trained():
                module = Normalised(module)
            if file_format == "onnx":
                (folder / "network.onnx").write_bytes(onnx_files.as_onnx(module, self.size).SerializeToString())
            elif file_format == "onnx-int8":
                inside = (self.network.mean, self.network.std) if self._is_trained() else ()
                model = int8.quantized(self.network, self.calibration, *inside)
                (folder / "network.onnx").write_bytes(model.SerializeToString())
            else:
                formats.fill(module, file_format, folder, self.calibration)
        return folder

    def _is_trained(self) -> bool:
        return bool(getattr(self.network, "classes", None))


def _as_a_script(network: nn.Module, images: np.ndarray, threads: int | None):
    """For Served: the network in PyTorch, in a process where the C library keeps no freed memory."""
    if threads:
        torch.set_num_threads(threads)
    network = network.eval().to(memory_format=torch.contiguous_format)
    return images, torch.inference_mode()(lambda images: network(torch.from_numpy(images)).numpy())


def compiler() -> str | None:
    """The C++ compiler that torch.compile calls for a CPU (what CXX names, else the system's usual), if it is there."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def int8_instructions() -> bool | None:
    """Whether the processor adds up products of 8-bit numbers in one instruction, without which int8 is slow.

    None where torch cannot tell (it knows x86 and ARM).
    """
    known = torch.cpu.get_capabilities()
    found = [known[name] for name in ("avx_vnni", "avx512_vnni", "amx_int8", "dot", "i8mm") if name in known]
    return any(found) if found else None

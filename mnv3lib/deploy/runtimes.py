"""The ways to run a network: PyTorch's layouts, batch norm folded, compiled, onnxruntime, OpenVINO."""

import os
import shutil
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cached_property
from io import BytesIO

import torch
from torch import nn

from mnv3lib.deploy import RUNTIMES, int8, onnx_files, processes
from mnv3lib.deploy.timing import forward
from mnv3lib.errors import InputError, choose
from mnv3lib.inference import fold

ANYWHERE = ("eager", "channels_last", "folded", "compiled")  # the others are measured on the CPU alone


class Runner:
    """A network, ready to be run by any runtime on images of `size` pixels a side; it is exported once, when needed."""

    def __init__(self, network: nn.Module, size: int = 32):
        self.network, self.size = network, size

    def contestant(self, runtime: str, images: torch.Tensor, threads: int | None = None) -> Callable[[], object]:
        """A callable that runs the network in eval mode on `images`, float [batch, 3, size, size].

        threads: of onnxruntime, OpenVINO and the process of "default", which do not follow torch's here (None: one a
        core). Raises InputError for an unknown runtime or one that is not installed.
        """
        choose("runtime", runtime, RUNTIMES)
        if runtime == "default":
            return processes.start(_as_a_script, deepcopy(self.network), images.contiguous(), threads)
        if runtime == "compiled" and not compiler():
            raise InputError("compiled: torch.compile wants a C++ compiler: install g++, or leave it out")
        if runtime in ANYWHERE:
            layout = torch.contiguous_format if runtime == "eager" else torch.channels_last
            network = fold(self.network) if runtime in ("folded", "compiled") else deepcopy(self.network)
            network = network.to(images.device, memory_format=layout)
            images = images.contiguous(memory_format=layout)
            return forward(torch.compile(network) if runtime == "compiled" else network, images)
        batch = images.contiguous().numpy()
        if runtime == "openvino":
            return _openvino(self.onnx, batch, threads)
        opened = onnx_files.open_session(self.int8 if runtime == "onnxruntime-int8" else self.onnx, threads)
        return lambda: opened.run(None, {"images": batch})

    @cached_property
    def onnx(self) -> bytes:
        """The network as an ONNX file."""
        return onnx_files.as_onnx(deepcopy(self.network), self.size).SerializeToString()

    @cached_property
    def int8(self) -> bytes:
        """The same in int8; the ranges come from noise, which makes no difference to the speed."""
        images = torch.randn(16, 3, self.size, self.size)
        return int8.quantized(self.network, images).SerializeToString()


def _as_a_script(network: nn.Module, images: torch.Tensor, threads: int | None) -> Callable:
    """In a process of its own: what answers any message with a forward pass."""
    if threads:
        torch.set_num_threads(threads)
    call = forward(network.to(memory_format=torch.contiguous_format), images)
    return lambda _: call().numpy()


def _openvino(content: bytes, batch, threads: int | None) -> Callable[[], object]:
    try:
        import openvino
    except ImportError:
        raise InputError("openvino is not installed: pip install openvino, or leave it out") from None
    core = openvino.Core()
    model = core.read_model(BytesIO(content))
    model.reshape(list(batch.shape))
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or 0}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    return lambda: request.infer([batch], share_inputs=True, share_outputs=True)


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

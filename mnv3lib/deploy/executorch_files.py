"""ExecuTorch, for phones: one .pte file whose layers are XNNPACK's, in fp32 or int8 (the extra `executorch`).

No torch at the top, as in the other formats' modules, though ExecuTorch's Python runtime brings it along.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnv3lib.errors import InputError

MOST = 64  # images at a time. An example with fewer than 16 would make 15 the most.
LOAD = f"method forward, 1 to {MOST} images, contiguous: channels_last is read as if it were not, without a word"


def write(module, folder: Path, images) -> None:
    """network.pte of a torch module, for 1 to MOST images of the size of `images` (float tensors)."""
    _extra()
    _lower(_program(module, images), folder)


def write_int8(module, folder: Path, images) -> None:
    """The same with int8 weights, a scale a channel, and activations, whose ranges come from `images`."""
    import torch

    _extra()
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(_program(module, images).module(), quantizer)
    with torch.inference_mode():
        for part in images.split(MOST):
            prepared(part)
    _lower(_program(convert_pt2e(prepared), images), folder)


def opened(folder: Path, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """What such a folder says to float32 images [n, 3, size, size]: logits [n, classes].

    threads: of this process's whole ExecuTorch, which has one pool of them.
    """
    _extra()
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    if threads:
        _unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(folder / "network.pte")
    method = program.load_method("forward")

    def run(images: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(np.ascontiguousarray(images)).split(MOST)
        return np.concatenate([method.execute((part,))[0].numpy() for part in parts])

    run.program = program  # a method does not keep it alive
    return run


def _program(module, images):
    """The exported program, with the number of images left open from 1 to MOST."""
    import torch

    example = images[torch.arange(MOST) % len(images)].contiguous()
    batch = torch.export.Dim("batch", min=1, max=MOST)
    return torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)


def _lower(program, folder: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    (folder / "network.pte").write_bytes(lowered.to_executorch().buffer)


def _extra() -> None:
    try:
        import executorch.exir  # noqa: F401
        import torchao  # noqa: F401
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: pip install -e '.[executorch]' in the checkout") from None

"""OpenVINO, for PCs and servers: network.xml and network.bin, in fp32 or, by NNCF, int8 (the extra `openvino`).

No torch at the top: a process that only runs such a file does without.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnv3lib.errors import InputError

AT_A_TIME = 25  # NNCF averages the extremes of what it is given at a time; those of single images cut off too much
LOAD = (
    "network.xml, with network.bin beside it, any number of images; set INFERENCE_PRECISION_HINT to f32, or logits "
    "are off by a tenth where the processor has bfloat16"
)


def write(module, folder: Path, images) -> None:
    """network.xml and network.bin of a torch module, for any number of images of the size of `images` (float)."""
    _save(_converted(module, images), folder)


def write_int8(module, folder: Path, images) -> None:
    """The same in int8, but for the gates of squeeze-excitation; the ranges of activations come from `images`.

    Weights get half of int8's range (depthwise ones all of it): processors without VNNI add the products of two
    neighbours in 16 bits, and cut off without a word what does not fit. NNCF's default minds the first layer alone: V3
    Small 1.0 then loses half a point there. With half the range the top-1 of five networks was the same on both kinds,
    to 0.02 points, and ten lose as little as before, 0.4 points at most.
    """
    nncf = _extra("nncf")
    parts = [part.numpy() for part in images.split(AT_A_TIME)]
    model = nncf.quantize(
        _converted(module, images),
        nncf.Dataset(parts),
        subset_size=len(parts),
        preset=nncf.QuantizationPreset.MIXED,  # hard swish is seldom negative, and symmetric bytes would mostly idle
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )
    _save(model, folder)


def opened(folder: Path, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """What such a folder says to float32 images [n, 3, size, size]: logits [n, classes]."""
    core, requests = _extra("openvino").Core(), {}
    model = core.read_model(folder / "network.xml")
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or 0}

    def run(images: np.ndarray) -> np.ndarray:
        if images.shape not in requests:  # compiled for a number of images, it is faster
            model.reshape(list(images.shape))
            requests[images.shape] = core.compile_model(model, "CPU", hints).create_infer_request()
        return requests[images.shape].infer([np.ascontiguousarray(images)], share_inputs=True)[0]

    return run


def _converted(module, images):
    """The module as an OpenVINO model that leaves the number of images open.

    Not by way of our ONNX: NNCF does not know its gates, quantizes them, too, and loses more. And as read_model reads
    it, depthwise weights are behind a Reshape for which NNCF takes the wrong axis: they get scales along the kernel's
    width, and OpenVINO computes these layers in float.
    """
    import torch

    openvino = _extra("openvino")
    with torch.inference_mode():
        return openvino.convert_model(module, example_input=images[:2], input=[-1, *images.shape[1:]])


def _save(model, folder: Path) -> None:
    _extra("openvino").save_model(model, folder / "network.xml", compress_to_fp16=False)


def _extra(name: str):
    sys.modules.setdefault("openvino_telemetry", None)  # by which openvino and nncf would report what is done to Intel
    try:
        return __import__(name)
    except ImportError as error:
        wanted = "nncf" if error.name == "nncf" else "-e '.[openvino]' in the checkout"
        raise InputError(f"{error.name} is not installed: pip install {wanted}") from None

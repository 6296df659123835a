"""Trained networks outside PyTorch: ONNX files that are checked against PyTorch, and int8 ones.

Needs the extra `deploy`: onnx, onnxscript and onnxruntime, which are imported where they are used.
"""

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mnv3lib import data, inference, store, writing
from mnv3lib.data import Split
from mnv3lib.errors import ExportError, InputError, one_line
from mnv3lib.networks import MobileNet

TOLERANCE = 1e-4  # the largest difference of a logit between PyTorch and onnxruntime
CALIBRATION = 1000  # training images from which the ranges of int8 are taken
INPUT = "float32 [batch, 3, {size}, {size}], red, green and blue in [0, 1]; the normalisation is inside"


class Normalised(nn.Module):
    """A network with its normalisation in front: takes float images [n, 3, height, width] in [0, 1], gives logits."""

    def __init__(self, network: MobileNet):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(network.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(network.std).reshape(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - self.mean) / self.std)


def as_onnx(module: nn.Module, size: int):
    """`module` in eval mode as an onnx.ModelProto: images [batch, 3, size, size] to logits, the batch size open."""
    _deploy()
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    model = program.model_proto
    # What the exporter notes of its own run goes: stack traces with the paths of this machine are among it.
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    return model


def to_onnx(network: MobileNet, path: Path, images: torch.Tensor, *, run: str = "") -> float:
    """Write `network` as ONNX and return by how much its logits for `images` differ from PyTorch's at most.

    network: with classes, mean and std, as `mnv3lib.load` gives it. images: uint8 [n, size, size, 3], real ones; their
    size becomes the input's, the batch size stays open. The input of the file is as INPUT says; its metadata have run,
    classes (a JSON list), input and mnv3lib (the version). Raises ExportError, and writes nothing, if the difference
    is above TOLERANCE; InputError if the extra `deploy` is missing.
    """
    onnx, _ = _deploy()
    if not network.classes:
        raise InputError("the network has no names of classes: load a trained one with mnv3lib.load")
    size = images.shape[1]
    module = Normalised(network).eval()
    model = as_onnx(module, size)
    facts = {
        "run": run,
        "classes": json.dumps(network.classes),
        "input": INPUT.format(size=size),
        "mnv3lib": version("mnv3lib"),
    }
    onnx.helper.set_model_props(model, facts)
    model.doc_string = f"{network.architecture.model} {network.architecture.width:g}, trained by mnv3lib"
    with writing.replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        with torch.inference_mode():
            expected = torch.cat([module(part) for part in _floats(images)]).numpy()
        gap = float(np.abs(logits(session(temporary), images) - expected).max())
        if not gap <= TOLERANCE:
            raise ExportError(
                f"{path} is not written: its logits differ from PyTorch's by {gap:.1e}, more than {TOLERANCE:g}"
            )
    return gap


def to_int8(source: Path, path: Path, calibration: torch.Tensor) -> None:
    """Quantize a file that `to_onnx` wrote, as `quantize` does, and keep its metadata.

    calibration: uint8 [n, size, size, 3], training images. Whether accuracy is kept has to be measured (`top1`).
    """
    onnx, _ = _deploy()
    with writing.replacing(path) as temporary:
        quantize(source, temporary, lambda: _floats(calibration))
        model = onnx.load(temporary)
        onnx.helper.set_model_props(model, {entry.key: entry.value for entry in onnx.load(source).metadata_props})
        temporary.write_bytes(model.SerializeToString())


def quantize(source: Path, path: Path, batches: Callable[[], Iterator[torch.Tensor]]) -> None:
    """Write the ONNX file `source` to `path` with int8 convolutions and linear layers (static, a scale per channel).

    batches: gives the float images from which the ranges of the activations are taken: all but the largest 0.01 % of
    the values, which would stretch the steps for all others.
    Weights have 7 bits, since processors without VNNI overflow in sums of 8-bit products.
    """
    _deploy()
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.parts = batches()

        def get_next(self):
            part = next(self.parts, None)
            return None if part is None else {"images": part.numpy()}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            path,
            Reader(),
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            reduce_range=True,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": 99.99},
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


def session(path: Path, threads: int | None = None):
    """An onnxruntime.InferenceSession of a file that `to_onnx` or `to_int8` wrote, on the CPU.

    threads: default one a core. Raises InputError if it is no ONNX file or not one of ours.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")
    try:
        opened = open_session(path, threads)
        classes(opened)
    except InputError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        raise InputError(f"{path} is no ONNX file that mnv3 export wrote ({one_line(error, 120)})") from None
    return opened


def open_session(model: Path | bytes, threads: int | None = None):
    """An onnxruntime.InferenceSession of any ONNX file, or of what is in one, on the CPU."""
    _, onnxruntime = _deploy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def classes(opened) -> tuple[str, ...]:
    """The names of the classes in the metadata of an exported file."""
    return tuple(json.loads(opened.get_modelmeta().custom_metadata_map["classes"]))


def logits(opened, images: torch.Tensor) -> np.ndarray:
    """What a `session` says to uint8 images [n, size, size, 3]: float32 [n, classes]."""
    return np.concatenate([opened.run(None, {"images": part.numpy()})[0] for part in _floats(images)])


def top1(opened, split: Split) -> float:
    """The share of images, in percent, whose likeliest class is the right one."""
    return 100 * float((logits(opened, split.images).argmax(1) == split.labels.numpy()).mean())


def export(
    run: str, path: Path, *, int8: bool = False, models: Path | None = None, data_folder: Path | None = None
) -> dict:
    """Write the run of that name to `path`, and return what was found out.

    Keys: images (how many it was checked on), gap (see `to_onnx`), and, with int8, top1 and top1_int8 (percent, both
    by onnxruntime on the test set).
    """
    network = store.load(run, models)
    made = store.load_record(run, models)["recipe"]
    size = made["image_sizes"][-1]
    if made["dataset"] != "cifar100" or int8 or data.available(data_folder):
        dataset = data.load(made["dataset"], data_folder)
        images = dataset.test.images[:200]
    else:
        dataset, images = None, inference.photographs(inference.images_folder(), size)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.onnx" if int8 else path
        facts = {"gap": to_onnx(network, whole, _sized(images, size), run=run), "images": len(images)}
        if int8:
            test = Split(_sized(dataset.test.images, size), dataset.test.labels)
            to_int8(whole, path, _sized(_calibration(dataset.train.images), size))
            facts |= {"top1": top1(session(whole), test), "top1_int8": top1(session(path), test)}
    return facts


def _calibration(images: torch.Tensor) -> torch.Tensor:
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:CALIBRATION]
    return images[chosen]


def _sized(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 images [n, height, width, 3] resampled to `size` pixels a side where they differ."""
    resized = inference.resize(images.permute(0, 3, 1, 2).float(), size)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _floats(images: torch.Tensor, batch: int = 100) -> Iterator[torch.Tensor]:
    """uint8 images [n, height, width, 3] as float batches [batch, 3, height, width] in [0, 1]."""
    for part in images.split(batch):
        yield (part.permute(0, 3, 1, 2).float() / 255).contiguous()


@contextlib.contextmanager
def _quiet():
    """Keep onnxscript, onnx_ir and onnxruntime from saying what went as usual."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _deploy():
    """onnx and onnxruntime; InputError if the extra is not installed."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: pip install -e '.[deploy]' in the checkout") from None
    return onnx, onnxruntime

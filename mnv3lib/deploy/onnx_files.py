"""ONNX files of trained networks: written from PyTorch, checked against it, opened in onnxruntime.

Needs the extra `deploy`: onnx, onnxscript and onnxruntime, which are imported where they are used.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mnv3lib import writing
from mnv3lib.errors import ExportError, InputError, one_line
from mnv3lib.networks import MobileNet

TOLERANCE = 1e-4  # the largest difference of a logit between PyTorch and onnxruntime
INPUT = "float32 [batch, 3, {size}, {size}], red, green and blue in [0, 1]; the normalisation is inside"
BATCH = 25  # images at a time: with few, what a layer gives is still in the processor's cache when the next reads it


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
    extra()
    with quiet():
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


def write(network: MobileNet, path: Path, images: torch.Tensor, *, run: str = "") -> float:
    """Write `network` as ONNX and return by how much its logits for `images` differ from PyTorch's at most.

    network: with classes, mean and std, as `mnv3lib.load` gives it. images: uint8 [n, size, size, 3], real ones; their
    size becomes the input's, the batch size stays open. The input of the file is as INPUT says; its metadata have run,
    classes (a JSON list), input and mnv3lib (the version). Raises ExportError, and writes nothing, if the difference
    is above TOLERANCE; InputError if the extra `deploy` is missing.
    """
    onnx, _ = extra()
    if not network.classes:
        raise InputError("the network has no names of classes: load a trained one with mnv3lib.load")
    size = images.shape[1]
    module = Normalised(network).eval()
    model = as_onnx(module, size)
    facts = {"run": run, "classes": json.dumps(network.classes), "input": INPUT.format(size=size)}
    onnx.helper.set_model_props(model, facts | {"mnv3lib": version("mnv3lib")})
    model.doc_string = f"{network.architecture.model} {network.architecture.width:g}, trained by mnv3lib"
    with writing.replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        with torch.inference_mode():
            expected = torch.cat([module(part) for part in floats(images)]).numpy()
        gap = float(np.abs(logits(session(temporary), images) - expected).max())
        if not gap <= TOLERANCE:
            raise ExportError(
                f"{path} is not written: its logits differ from PyTorch's by {gap:.1e}, more than {TOLERANCE:g}"
            )
    return gap


def session(path: Path):
    """An onnxruntime.InferenceSession of a file that `mnv3 export` wrote, on the CPU; InputError if it is no such."""
    extra()
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")
    try:
        opened = open_session(path, spinning=False)
        classes(opened)
    except Exception as error:  # onnxruntime's exceptions have no common base but this
        raise InputError(f"{path} is no ONNX file that mnv3 export wrote ({one_line(error, 120)})") from None
    return opened


def open_session(model: Path | bytes, threads: int | None = None, spinning: bool = True):
    """An onnxruntime.InferenceSession of any ONNX file, or of what is in one, on the CPU.

    spinning: whether threads without work keep their core busy, onnxruntime's default. It answers a little sooner, and
    takes twice the processor time where other programs run.
    """
    _, onnxruntime = extra()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def classes(opened) -> tuple[str, ...]:
    """The names of the classes in the metadata of an exported file."""
    return tuple(json.loads(opened.get_modelmeta().custom_metadata_map["classes"]))


def metadata(path: Path):
    """The metadata in an exported file, as another onnx.ModelProto takes them."""
    onnx, _ = extra()
    return onnx.load(path).metadata_props


def logits(opened, images: torch.Tensor) -> np.ndarray:
    """What a `session` says to uint8 images [n, size, size, 3]: float32 [n, classes]."""
    return np.concatenate([opened.run(None, {"images": part.numpy()})[0] for part in floats(images)])


def floats(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """uint8 images [n, height, width, 3] as float batches [BATCH, 3, height, width] in [0, 1]."""
    for part in images.split(BATCH):
        yield (part.permute(0, 3, 1, 2).float() / 255).contiguous()


@contextlib.contextmanager
def quiet():
    """Keep onnxscript, onnx_ir and onnxruntime from saying what went as usual."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def extra():
    """onnx and onnxruntime; InputError if the extra is not installed."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: pip install -e '.[deploy]' in the checkout") from None
    return onnx, onnxruntime

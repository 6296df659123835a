"""ONNX files of trained networks: written from PyTorch, checked against it, opened in onnxruntime.

Needs the extra `deploy`: onnx, onnxscript and onnxruntime, which are imported where they are used.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from mnv3lib import inference, writing
from mnv3lib.errors import ExportError, InputError, one_line
from mnv3lib.networks import MobileNet

TOLERANCE = 1e-4  # the largest difference of a logit between PyTorch and onnxruntime
INPUT = "float32 [batch, 3, {size}, {size}], red, green and blue in [0, 1]; the normalisation is inside"
PICTURE = "uint8 [height, width, 3] of any size, red, green and blue, upright; cutting and scaling are inside"
OPSET, IR = 17, 8  # of what is written: the newest that onnxruntime 1.17, onnx2torch and tract take too
# The rule of inference.as_pixels. exclude_outside lets nothing beyond the border count, as Pillow does.
PREPROCESSING = """
<ir_version: 8, opset_import: ["": 18]>
preprocessing (uint8[height, width, 3] image) => (float[1, 3, {size}, {size}] images)
<int64[1] first = {{0}}, int64[1] two = {{2}}, int64[4] sizes = {{1, 3, {size}, {size}}}, float white = {{255}}>
{{
    shape = Shape <end = 2> (image)
    side = ReduceMin (shape)
    around = Sub (shape, side)
    start = Div (around, two)
    stop = Add (start, side)
    square = Slice (image, start, stop)
    planes = Transpose <perm = [2, 0, 1]> (square)
    whole = Unsqueeze (planes, first)
    scaled = Resize <mode = "cubic", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1> (whole, , , sizes)
    levels = Cast <to = 1> (scaled)
    images = Div (levels, white)
}}
"""
BATCH = 25  # images at a time: with few, what a layer gives is still in the processor's cache when the next reads it


class Normalised(nn.Module):
    """A network with its normalisation in front: takes float images [n, 3, height, width] in [0, 1], gives logits."""

    def __init__(self, network: MobileNet):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(network.mean).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(network.std).reshape(3, 1, 1))

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
    model = _portable(program.model_proto)
    # What the exporter notes of its own run goes: stack traces with the paths of this machine are among it.
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    return model


def _portable(model):
    """The same network, spelled so that every reader of ONNX reads it right.

    OpenCV takes a product with a HardSigmoid for a hard swish; ReduceMean, Reshape and what the exporter tells of
    shapes are read by some only as an earlier opset wrote them. HardSwish stays: from primitives it takes longer.
    """
    onnx, _ = extra()
    graph, node = model.graph, onnx.helper.make_node
    constants = {"gate_slope": 1 / 6, "gate_offset": 0.5, "gate_low": 0.0, "gate_high": 1.0}
    nodes = []
    for one in graph.node:
        given, name = one.input[0], one.output[0]
        if one.op_type == "ReduceMean":
            nodes.append(node("GlobalAveragePool", [given], [name]))
        elif one.op_type == "Reshape":
            nodes.append(node("Flatten", [given], [name]))
        elif one.op_type == "HardSigmoid":
            nodes.append(node("Mul", [given, "gate_slope"], [f"{name}_scaled"]))
            nodes.append(node("Add", [f"{name}_scaled", "gate_offset"], [f"{name}_moved"]))
            nodes.append(node("Clip", [f"{name}_moved", "gate_low", "gate_high"], [name]))
        else:
            nodes.append(one)
    used = {name for one in nodes for name in one.input}
    tensors = [one for one in graph.initializer if one.name in used]
    for name, value in constants.items():
        if name in used:
            tensors.append(onnx.numpy_helper.from_array(np.float32(value), name))
    graph = onnx.helper.make_graph(nodes, "mobilenet", graph.input, graph.output, tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR)


def with_preprocessing(model, size: int):
    """An onnx.ModelProto that takes a photograph as it is, and does `inference.as_pixels` itself before `model`."""
    onnx, _ = extra()
    before = onnx.parser.parse_model(PREPROCESSING.format(size=size))
    model.opset_import[0].version = before.opset_import[0].version  # its operators are the same there
    return onnx.compose.merge_models(before, model, [("images", "images")])


def write(network: MobileNet, path: Path, images: torch.Tensor, *, run: str = "", preprocessing: bool = False) -> float:
    """Write `network` as ONNX and return by how much its logits for `images` differ from PyTorch's at most.

    network: with classes, mean and std, as `mnv3lib.load` gives it. images: uint8 [n, size, size, 3], real ones; their
    size becomes the input's, the batch size stays open. The input of the file is as INPUT says, or, with
    `preprocessing`, as PICTURE does; its metadata have run, classes (a JSON list), input and mnv3lib (the version).
    Raises ExportError, and writes nothing, if the difference is above TOLERANCE; InputError if the extra `deploy` is
    missing.
    """
    onnx, _ = extra()
    if not network.classes:
        raise InputError("the network has no names of classes: load a trained one with mnv3lib.load")
    size = images.shape[1]
    module = Normalised(network).eval()
    model, taken = as_onnx(module, size), INPUT.format(size=size)
    if preprocessing:
        model, taken = with_preprocessing(model, size), PICTURE
    facts = {"run": run, "classes": json.dumps(network.classes), "input": taken, "mnv3lib": version("mnv3lib")}
    onnx.helper.set_model_props(model, facts)
    model.doc_string = f"{network.architecture.model} {network.architecture.width:g}, trained by mnv3lib"
    with writing.replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        opened = session(temporary)
        if preprocessing:
            pictures = mosaics(images)
            images = torch.stack([inference.as_pixels(Image.fromarray(picture), size) for picture in pictures])
            found = np.concatenate([opened.run(None, {"image": picture})[0] for picture in pictures])
        else:
            found = logits(opened, images)
        with torch.inference_mode():
            expected = torch.cat([module(part) for part in floats(images)]).numpy()
        gap = float(np.abs(found - expected).max())
        if not gap <= TOLERANCE:
            raise ExportError(
                f"{path} is not written: its logits differ from PyTorch's by {gap:.1e}, more than {TOLERANCE:g}"
            )
    return gap


def mosaics(images: torch.Tensor) -> list[np.ndarray]:
    """Pictures to cut and scale, [2 height, 3 width, 3], of six images each; an image that is left over is alone."""
    whole = len(images) // 6 * 6
    rows = [torch.cat([*three], 1) for three in images[:whole].unflatten(0, (-1, 3))] if whole else []
    pictures = [torch.cat(pair) for pair in zip(rows[::2], rows[1::2], strict=True)]
    return [picture.numpy() for picture in [*pictures, *images[whole:]]]


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


def opened(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What a file answers: float images [n, 3, size, size] to logits."""
    found = session(path)
    return lambda images: found.run(None, {"images": images})[0]


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

"""ONNX files that count in int8 from the image to the logits: a graph of our own for onnxruntime.

onnxruntime's own quantizer leaves hard swish and the gates of squeeze-excitation in float, and the way there and back
costs more than int8 saves. Here every tensor between the first QuantizeLinear and the logits is uint8: a byte q stands
for scale * (q - zero). It stands behind the image, or, of V3, behind the first layer and its hard swish. Three things
make that possible without a loss:

- ReLU and ReLU6 are no nodes. The convolution before writes with zero = 0 and the range of the ReLU, so the bytes end
  where the ReLU does.
- Hard swish is x * clip(x + 3, 0, 6) / 6. The convolution before writes x with a whole zero z and scale 3 / z, so its
  bytes begin at -3, below which hard swish is 0. Read with scale / 6 and zero 0, the same bytes are (x + 3) / 6; cut
  off at 2z (there is 1), they are the second factor. So it takes a Clip of bytes and one QLinearMul.
- A gate, clip(x + 3, 0, 6) / 6, is no node either. The layer before writes with scale 6/254 and zero 127, and its bytes
  are the gate when they are read with scale 1/254 and zero 0.

Bytes do badly where one channel before a hard swish is far wider than the others, and in the first one; see
`WideHardSwish`.

Weights are int8 with a scale for each channel. The operators with a Q are those of onnxruntime (com.microsoft).
"""

import math
import operator
from typing import NamedTuple

import numpy as np
import torch
from torch import fx, nn

from mnv3lib.blocks import ComposedHardswish
from mnv3lib.deploy import onnx_files
from mnv3lib.inference import fold

CUT = 1e-4  # the share of an activation's values that its range leaves out
FLAT = 1e-4  # the least range of an activation: one that never varies in the images may do so in others
LARGEST_BIAS = 2**29  # in units of a sum of products, which has to fit in 32 bits with it
CHANNELS = 16  # a multiple of these is what onnxruntime's loops take at a time; the rest goes one by one
LEAST_ZERO = 8  # the least z of a hard swish in bytes, a step being 3 / z
HARD_SWISH, RELU = (nn.Hardswish, ComposedHardswish), (nn.ReLU, nn.ReLU6)


def quantized(network: nn.Module, images: torch.Tensor, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
    """`network` in int8 as an onnx.ModelProto: float images [batch, 3, size, size] to logits.

    images: what the file takes, float [n, 3, size, size]; they give the ranges of the activations. mean, std: of the
    normalisation, which comes first. Whether accuracy is kept has to be measured.
    """
    onnx, _ = onnx_files.extra()
    traced = _traced(network)
    mean, std = (torch.tensor(values, dtype=torch.float32).reshape(3, 1, 1) for values in (mean, std))
    normal = (images - mean) / std
    found = ranges(traced, normal)
    if widen(traced, found, normal):
        found = ranges(traced, normal)
    writer = _Writer(traced, found)
    writer.write(mean.numpy(), std.numpy())
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        writer.nodes,
        "mobilenet_int8",
        [value("images", onnx.TensorProto.FLOAT, ["batch", *images.shape[1:]])],
        [value("logits", onnx.TensorProto.FLOAT, ["batch", writer.classes])],
        writer.constants,
    )
    operators = [onnx.helper.make_opsetid(domain, number) for domain, number in (("", 17), ("com.microsoft", 1))]
    return onnx.helper.make_model(graph, opset_imports=operators, ir_version=8)


def _traced(network: nn.Module) -> fx.GraphModule:
    """What the network does one after the other: batch norm folded, and without the layers that then do nothing."""
    folded = fold(network)
    tracer = fx.Tracer()
    tracer.is_leaf_module = lambda module, name: not list(module.children())
    traced = fx.GraphModule(folded, tracer.trace(folded))
    for node in traced.graph.nodes:
        if isinstance(_layer(traced, node), nn.Identity | nn.Dropout):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.recompile()
    return traced


def _layer(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(node.target) if node.op == "call_module" else None


def ranges(traced: fx.GraphModule, images: torch.Tensor) -> dict[str, tuple[float, float]]:
    """The lowest and highest value of each step of a network over its input `images`, without the CUT outermost.

    The limit on both sides is what CUT of the absolute values exceed, which would stretch the steps for all others,
    or the extreme value if it lies nearer. Only the largest values are kept, a batch at a time.
    """
    largest, lows, highs = {}, {}, {}

    class Watched(fx.Interpreter):
        def run_node(self, node):
            output = super().run_node(node)
            name, values = node.name, output.detach().flatten()
            low, high = values.aminmax()
            lows[name], highs[name] = min(low, lows.get(name, low)), max(high, highs.get(name, high))
            values = values.abs()
            if name in largest:
                values = torch.cat([largest[name], values[values > largest[name][-1]]])
            count = math.ceil(CUT * output.numel() / len(output) * len(images))
            largest[name] = values.topk(min(count, len(values))).values
            return output

    with torch.inference_mode():
        for batch in images.split(onnx_files.BATCH):
            Watched(traced).run(batch)
    return {name: (max(lows[name], -top[-1]).item(), min(highs[name], top[-1]).item()) for name, top in largest.items()}


class WideHardSwish(nn.Module):
    """A hard swish that is computed in float with the layer before it, and its channels divided by `by`.

    It stands where values reach so far that steps of bytes would be coarse beside the 3 and -3 of hard swish, and
    behind the layer that reads the images: most channels are small there, and every later layer sees what their steps
    leave.
    """

    def __init__(self, by: torch.Tensor):
        super().__init__()
        self.register_buffer("by", by)

    def forward(self, x):
        return nn.functional.hardswish(x) / self.by


def zero_of(high: float) -> int:
    """The z of a hard swish (see above) of values up to `high`."""
    return round(255 * 3 / (3 + max(high, 0)))


def widen(traced: fx.GraphModule, found: dict[str, tuple[float, float]], images: torch.Tensor) -> bool:
    """Make a WideHardSwish of each hard swish that should be one; False if there is none.

    Channels that reach far beyond the others are divided, those added to them too, and the layers that read them make
    up for it. Where others than convolutions read them nothing is divided.
    """
    steps = [step for step in traced.graph.nodes if isinstance(_layer(traced, step), HARD_SWISH)]
    for step in (steps := [step for step in steps if _is_wide(step.all_input_nodes[0], found)]):
        by, (readers, writers) = torch.ones(1), _stream(step)
        layers = [_layer(traced, one) for one in readers + writers]
        if all(isinstance(layer, nn.Conv2d) for layer in layers) and all(len(one.users) == 1 for one in writers):
            reach = _reach(traced, step, images)
            by = (reach / reach.median().clamp(min=FLAT)).clamp(min=1).reshape(-1, 1, 1, 1)
            with torch.no_grad():
                for layer in layers[: len(readers)]:
                    layer.weight *= by if layer.groups > 1 else by.transpose(0, 1)
                for layer in layers[len(readers) :]:
                    layer.weight /= by
                    layer.bias /= by.flatten()
            by = by.transpose(0, 1)
        traced.set_submodule(step.target, WideHardSwish(by))
    return bool(steps)


def _is_wide(before: fx.Node, found: dict[str, tuple[float, float]]) -> bool:
    """Whether a hard swish should be a WideHardSwish, by the layer before it."""
    return before.all_input_nodes[0].op == "placeholder" or zero_of(found[before.name][1]) < LEAST_ZERO


def _stream(step: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """What reads `step` and the sums it goes into, and what else is added to them."""
    sums, readers, added = [step], [], []
    for one in sums:
        for user in one.users:
            if user.target is not operator.add:
                readers.append(user)
            elif user not in sums:
                sums.append(user)
                added += user.all_input_nodes
    return readers, [one for one in added if one not in sums]


def _reach(traced: fx.GraphModule, step: fx.Node, images: torch.Tensor) -> torch.Tensor:
    """The largest value of each channel of `step`, without the CUT outermost."""

    class Watched(fx.Interpreter):
        def run_node(self, node):
            output = super().run_node(node)
            if node is step:
                tops.append(output.transpose(0, 1).flatten(1))
            return output

    tops = []
    with torch.inference_mode():
        for batch in images.split(onnx_files.BATCH):
            Watched(traced).run(batch)
    values = torch.cat(tops, 1)
    return values.topk(math.ceil(CUT * values.shape[1])).values[:, -1].clone()


class Bytes(NamedTuple):
    """A tensor of the graph: a byte q stands for scale * (q - zero)."""

    name: str
    scale: float
    zero: int


class Floats(NamedTuple):
    """A tensor of the graph that is not in bytes."""

    name: str


def over(low: float, high: float) -> tuple[float, int]:
    """Scale and zero with which bytes reach from `low` to `high`; 0 itself is always met."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, FLAT) / 255
    return scale, round(-low / scale)


class _Writer:
    """Writes the nodes of a graph in the order of a traced network."""

    def __init__(self, traced: fx.GraphModule, found: dict[str, tuple[float, float]]):
        self.traced, self.found = traced, found
        self.nodes, self.constants, self.known = [], [], {}

    def write(self, mean: np.ndarray, std: np.ndarray) -> None:
        made = {}
        for step in self.traced.graph.nodes:
            given = [made[one] for one in step.all_input_nodes]
            layer = _layer(self.traced, step)
            if step.op == "placeholder":
                made[step] = self.images(mean, std)
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                made[step] = self.weighted(step, layer, *given)
            elif isinstance(layer, RELU) or step.op == "output":
                made[step] = given[0]
            elif isinstance(layer, nn.Hardsigmoid):
                made[step] = Bytes(given[0].name, 1 / 254, 0)
            elif isinstance(layer, WideHardSwish):
                made[step] = self.wide(step, layer, *given)
            elif isinstance(layer, HARD_SWISH):
                made[step] = self.hard_swish(step, *given)
            elif isinstance(layer, nn.AdaptiveAvgPool2d):
                made[step] = self.combined("QLinearGlobalAveragePool", step, given, channels_last=0)
            elif isinstance(layer, nn.Flatten) or step.target == "flatten":
                made[step] = given[0]._replace(name=self.node("Flatten", [given[0].name], step.name))
            else:
                names = {operator.add: "QLinearAdd", operator.mul: "QLinearMul"}
                made[step] = self.combined(names[step.target], step, given)

    def images(self, mean: np.ndarray, std: np.ndarray) -> Floats:
        """The normalised images. A layer pads with zeros, which are the mean: it has to be taken off before."""
        normal = self.node("Sub", ["images", self.constant(mean)], "moved")
        return Floats(self.node("Div", [normal, self.constant(std)], "normalised"))

    def in_bytes(self, step: fx.Node, floats: str) -> Bytes:
        result = Bytes(step.name, *over(*self.found[step.name]))
        self.node("QuantizeLinear", [floats, *self.read(result)[1:]], step.name)
        return result

    def weighted(self, step: fx.Node, layer: nn.Conv2d | nn.Linear, given: Bytes | Floats) -> Bytes | Floats:
        """A convolution or linear layer; the last one gives floats.

        A channel's largest weight becomes 127, or less: processors without VNNI add the products of two neighbours in
        16 bits, where 255 times 128 fits (of the first layer the order is another; a depthwise one has no neighbours).
        The scale is also large enough for the bias. Channels of zeros fill up what is no multiple of CHANNELS, which
        takes less time than the rest would.
        """
        weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
        first, last = step.all_input_nodes[0].op == "placeholder", next(iter(step.users)).op == "output"
        weight = padded(weight, 0 if last else CHANNELS, 1 if depthwise or first else CHANNELS)
        bias = padded(bias, 0 if last else CHANNELS)
        if isinstance(_layer(self.traced, next(iter(step.users))), WideHardSwish):
            return self.in_float(step, layer, given, weight, bias)
        if isinstance(given, Floats):
            given = self.in_bytes(step.all_input_nodes[0], given.name)
        flat = weight.reshape(len(weight), -1)
        scale = np.abs(flat).max(1) / (64 if first else 127)
        if not depthwise:
            scale = np.maximum(scale, np.abs(flat[:, 1:] + flat[:, :-1]).max(1) / 127)
        scale = np.maximum(scale, np.maximum(np.abs(bias), 1e-9) / given.scale / LARGEST_BIAS).astype(np.float32)
        whole = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
        whole_bias = np.rint(bias / given.scale / scale).astype(np.int32)
        self.classes = len(bias)
        if isinstance(layer, nn.Linear):
            whole = whole.T
        weights = [self.constant(values) for values in (whole, scale, np.zeros(len(scale), np.int8))]
        result = Bytes(step.name, *self.limits(step))
        inputs, output = [*self.read(given), *weights], self.read(result)[1:]
        if isinstance(layer, nn.Linear):
            inputs += [self.constant(whole_bias), *([] if last else output)]
            self.node("QGemm", inputs, "logits" if last else step.name, domain="com.microsoft")
        else:
            inputs += [*output, self.constant(whole_bias)]
            self.node("QLinearConv", inputs, step.name, **places(layer, len(weight)))
        return result

    def in_float(self, step: fx.Node, layer: nn.Module, given: Bytes | Floats, weight, bias) -> Floats:
        if isinstance(given, Bytes):
            given = Floats(self.node("DequantizeLinear", self.read(given), f"{step.name}_given"))
        inputs = [given.name, *(self.constant(values.astype(np.float32)) for values in (weight, bias))]
        if isinstance(layer, nn.Linear):
            self.node("Gemm", inputs, step.name, transB=1)
        else:
            self.node("Conv", inputs, step.name, **places(layer, len(weight)))
        return Floats(step.name)

    def wide(self, step: fx.Node, layer: WideHardSwish, given: Floats) -> Bytes:
        floats = self.node("HardSwish", [given.name], f"{step.name}_floats")
        if layer.by.numel() > 1:
            factor = padded(1 / layer.by.numpy(), 0, CHANNELS)
            floats = self.node("Mul", [floats, self.constant(factor)], f"{step.name}_divided")
        return self.in_bytes(step, floats)

    def limits(self, step: fx.Node) -> tuple[float, int]:
        """Scale and zero of what a layer with weights gives, as the activation behind it wants them."""
        follower = next(iter(step.users))
        activation = _layer(self.traced, follower) if len(step.users) == 1 else None
        if isinstance(activation, RELU):
            return over(*self.found[follower.name])
        if isinstance(activation, nn.Hardsigmoid):
            return 6 / 254, 127
        if isinstance(activation, HARD_SWISH):
            zero = zero_of(self.found[step.name][1])
            return 3 / zero, zero
        return over(*self.found[step.name])

    def hard_swish(self, step: fx.Node, given: Bytes) -> Bytes:
        factor = given.name
        if 2 * given.zero < 255:
            factor = self.node("Clip", [factor, "", self.constant(np.uint8(2 * given.zero))], f"{step.name}_factor")
        return self.combined("QLinearMul", step, [given, Bytes(factor, given.scale / 6, 0)])

    def combined(self, operation: str, step: fx.Node, given: list[Bytes], **attributes) -> Bytes:
        result = Bytes(step.name, *over(*self.found[step.name]))
        inputs = [name for one in given for name in self.read(one)] + self.read(result)[1:]
        self.node(operation, inputs, step.name, domain="com.microsoft", **attributes)
        return result

    def read(self, given: Bytes) -> list[str]:
        """The three inputs of an operator that say what a tensor is."""
        return [given.name, self.constant(np.float32(given.scale)), self.constant(np.uint8(given.zero))]

    def node(self, operation: str, inputs: list[str], output: str, **attributes) -> str:
        onnx, _ = onnx_files.extra()
        self.nodes.append(onnx.helper.make_node(operation, inputs, [output], name=output, **attributes))
        return output

    def constant(self, value: np.ndarray) -> str:
        """The name of a constant; equal ones are kept once."""
        onnx, _ = onnx_files.extra()
        key = (value.tobytes(), value.shape, value.dtype)
        if key not in self.known:
            self.known[key] = f"constant_{len(self.known)}"
            self.constants.append(onnx.numpy_helper.from_array(np.array(value, order="C"), self.known[key]))
        return self.known[key]


def places(layer: nn.Conv2d, channels: int) -> dict:
    """The attributes of a convolution with `channels` outputs."""
    groups = channels if layer.groups > 1 else 1
    return {"strides": layer.stride, "pads": [*layer.padding, *layer.padding], "group": groups}


def padded(values: np.ndarray, *multiples: int) -> np.ndarray:
    """`values` with zeros at the end of its first axes, up to a multiple of each of `multiples`."""
    wanted = [-length % (multiple or 1) for length, multiple in zip(values.shape, multiples, strict=False)]
    return np.pad(values, [(0, more) for more in wanted] + [(0, 0)] * (values.ndim - len(wanted)))

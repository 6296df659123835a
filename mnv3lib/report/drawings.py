"""Block diagrams, tables of blocks and the longer figures of notebook 01, all read from real modules."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import nn

from mnv3lib import cost
from mnv3lib.blocks import (
    ComposedHardswish,
    ConvNormActivation,
    DepthwiseSeparable,
    InvertedResidual,
    SqueezeExcitation,
)
from mnv3lib.errors import InputError
from mnv3lib.networks import MobileNet
from mnv3lib.report.figures import COLOURS

# The papers' abbreviation and the name of each non-linearity.
NONLINEARITIES = {
    nn.ReLU: ("RE", "ReLU"),
    nn.ReLU6: ("R6", "ReLU6"),
    nn.Hardswish: ("HS", "h-swish"),
    ComposedHardswish: ("HS", "h-swish"),
}
# Colour, hatch and name of each kind of layer, the same in every figure.
KINDS = {
    "standard": (COLOURS[2], "", "first convolution"),
    "depthwise": (COLOURS[0], "////", "depthwise"),
    "pointwise": (COLOURS[1], "", "pointwise (1×1)"),
    "squeeze-excitation": (COLOURS[3], "xxxx", "squeeze-excitation"),
    "linear": (COLOURS[4], "....", "linear layers"),
    "batch norm": (COLOURS[5], "", "batch norm"),
}


class Step(NamedTuple):
    """One layer of a block: the convolution with what follows it, or a squeeze-excitation."""

    module: nn.Module
    activation: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    macs: int


@torch.no_grad()
def steps(block: nn.Module, input_shape: tuple[int, int, int]) -> list[Step]:
    """What a block does to a tensor of `input_shape` (channels, height, width), layer by layer, read from its modules.

    Raises InputError if the block is none of ConvNormActivation, DepthwiseSeparable and InvertedResidual.
    """
    if isinstance(block, InvertedResidual):
        children = list(block.layers)
    elif isinstance(block, DepthwiseSeparable):
        children = list(block)
    elif isinstance(block, ConvNormActivation):
        children = [block]
    else:
        raise InputError(f"cannot draw {type(block).__name__}: give one of the blocks of mnv3lib.blocks")
    shapes = {}

    def record(module, inputs, output):
        shapes[module] = tuple(inputs[0].shape[1:]), tuple(output.shape[1:])

    training = block.training
    with ExitStack() as hooks:
        for module in block.modules():
            if isinstance(module, nn.Conv2d | SqueezeExcitation):
                hooks.enter_context(module.register_forward_hook(record))
        block.eval()(torch.zeros(1, *input_shape, device=next(block.parameters()).device))
    block.train(training)

    done = []
    for child in children:
        if isinstance(child, SqueezeExcitation):
            macs = child.fc1.weight.numel() + child.fc2.weight.numel()
            done.append(Step(child, "hard sigmoid", *shapes[child], macs))
            continue
        if isinstance(child, nn.BatchNorm2d):  # V2's last one stands alone
            continue
        convolution = child[0] if isinstance(child, ConvNormActivation) else child
        activation = NONLINEARITIES[type(child[2])][1] if convolution is not child and len(child) > 2 else "linear"
        before, after = shapes[convolution]
        macs = convolution.weight.numel() * after[1] * after[2]
        done.append(Step(convolution, activation, before, after, macs))
    return done


GAP, SLAB = 2.15, 0.26  # of the drawing: distance between tensors, width of a tensor
TEXT = dict(ha="center", va="center", fontsize=8.5, linespacing=1.35)
ARROW = dict(arrowprops=dict(arrowstyle="-|>", color="0.25", lw=1.2, shrinkA=0, shrinkB=0))


def draw_block(block: nn.Module, input_shape: tuple[int, int, int], title: str = "") -> Figure:
    """A drawing of a block, read from its modules: kernels, channels, stride, activations, gate and residual.

    block: a ConvNormActivation, DepthwiseSeparable or InvertedResidual (else InputError); input_shape: channels,
    height, width. Tensors are bars as high as they have channels; layers without an activation are hatched, as in
    the V2 paper.
    """
    sequence = steps(block, input_shape)
    tensors = [sequence[0].input] + [step.output for step in sequence]
    most = max(shape[0] for shape in tensors)
    residual = getattr(block, "has_residual", None)
    gated = any(isinstance(step.module, SqueezeExcitation) for step in sequence)
    left, right = -0.75, GAP * len(sequence) + (1.25 if residual else 0.75)
    low, high = (-3.2 if gated else -1.75), 1.75
    figure, axes = plt.subplots(figsize=(0.86 * (right - left), 0.86 * (high - low) + 0.3))
    axes.set(xlim=(left, right), ylim=(low, high), aspect="equal")
    axes.axis("off")
    axes.set_title(title or f"{type(block).__name__}", fontsize=10.5)

    for index, (channels, height, width) in enumerate(tensors):
        tall = 0.3 + 1.7 * channels / most
        axes.add_patch(Rectangle((index * GAP - SLAB / 2, -tall / 2), SLAB, tall, fc="0.82", ec="0.25"))
        axes.text(index * GAP, -1.12, f"{channels} ch.\n{height}×{width}", **{**TEXT, "va": "top"})
    for index, step in enumerate(sequence):
        draw = _draw_gate if isinstance(step.module, SqueezeExcitation) else _draw_layer
        draw(axes, step, index * GAP + SLAB / 2, (index + 1) * GAP - SLAB / 2)
    end = GAP * len(sequence) + SLAB / 2
    if residual:
        start, plus = SLAB / 2 + 0.12, end + 0.35
        axes.plot([start, start, plus], [0, 1.35, 1.35], color="0.25", lw=1.2)
        axes.annotate("", (plus, 0.15), (plus, 1.35), **ARROW)
        axes.annotate("", (plus - 0.15, 0), (end, 0), **ARROW)
        axes.annotate("", (plus + 0.6, 0), (plus + 0.15, 0), **ARROW)
        axes.text(plus, 0, "+", bbox=dict(boxstyle="circle,pad=0.15", fc="white", ec="0.25"), **TEXT)
        axes.text((start + plus) / 2, 1.53, "residual: the input is added", **TEXT)
    elif residual is False:
        why = (
            "the stride is 2"
            if sequence[0].input[1] != sequence[-1].output[1]
            else "input and output differ in channels"
        )
        axes.text(GAP * len(sequence) / 2, 1.53, f"no residual: {why}", style="italic", **TEXT)
    return figure


def _draw_layer(axes, step: Step, left: float, right: float) -> None:
    convolution = step.module
    kernel = "×".join(map(str, convolution.kernel_size))
    if kernel == "1×1":
        kind, lines = "pointwise", ["conv 1×1"]
    else:
        kind = "depthwise" if convolution.groups > 1 else "standard"
        lines = [f"{'depthwise' if convolution.groups > 1 else 'conv'} {kernel}", f"stride {convolution.stride[0]}"]
    lines += [f"BN, {step.activation}", f"{_short(step.macs)} MACs"]
    middle, wide = (left + right) / 2, right - left - 0.44
    linear = step.activation == "linear"
    _draw_box(axes, kind, (middle - wide / 2, -0.55), wide, 1.1, "///" if linear else "")
    halo = dict(boxstyle="round,pad=0.1", fc="white", ec="none", alpha=0.85) if linear else None
    axes.text(middle, 0, "\n".join(lines), bbox=halo, **TEXT)
    axes.annotate("", (middle - wide / 2, 0), (left, 0), **ARROW)
    axes.annotate("", (right, 0), (middle + wide / 2, 0), **ARROW)


def _draw_gate(axes, step: Step, left: float, right: float) -> None:
    squeeze, middle, down = step.module, (left + right) / 2, left + 0.3
    up = middle + 0.25
    channels, squeezed = squeeze.fc1.in_channels, squeeze.fc1.out_channels
    _draw_box(axes, "squeeze-excitation", (middle - 1.2, -3.1), 2.4, 1.3)
    text = (
        f"squeeze-excitation\nmean over the map\n1×1, {channels} → {squeezed}, ReLU\n"
        f"1×1, {squeezed} → {channels}, hard sigmoid\n{_short(step.macs)} MACs"
    )
    axes.text(middle, -2.45, text, **TEXT)
    axes.annotate("", (down, -1.78), (down, 0), **ARROW)
    axes.annotate("", (up, -0.15), (up, -1.78), **ARROW)
    axes.text(up, 0, "×", bbox=dict(boxstyle="circle,pad=0.2", fc="white", ec=KINDS["squeeze-excitation"][0]), **TEXT)
    axes.text(up + 0.08, -1.0, "gate", **{**TEXT, "ha": "left"})
    axes.annotate("", (up - 0.15, 0), (left, 0), **ARROW)
    axes.annotate("", (right, 0), (up + 0.15, 0), **ARROW)


def _draw_box(axes, kind: str, corner: tuple[float, float], wide: float, high: float, hatch: str = "") -> None:
    colour = KINDS[kind][0]
    shape = dict(boxstyle="round,pad=0.02,rounding_size=0.08", fc=mpl.colors.to_rgba(colour, 0.18), ec=colour, lw=1.5)
    axes.add_patch(FancyBboxPatch(corner, wide, high, hatch=hatch, **shape))


def _short(count: int) -> str:
    """1234567 as 1.23M."""
    return next((f"{count / unit:.3g}{sign}" for unit, sign in ((1e6, "M"), (1e3, "k")) if count >= unit), str(count))


def blocks(network: MobileNet, size: int) -> pd.DataFrame:
    """The network as the papers print theirs, a row a block, for images of `size` x `size` pixels.

    Columns: block (its name in the network), input and output (height x width x channels), operator, expansion
    (channels of the depthwise convolution inside), SE, NL (RE, R6, HS), s (stride), residual, parameters, MACs.
    """
    layers = cost.layers(network, size)
    rows = []
    for name, part in layers.groupby(layers["layer"].str.extract(r"^(\w+\.\d+)", expand=False), sort=False):
        block = network.get_submodule(name)
        kernel, stride = part["kernel"].max(), part["stride"].max()
        operator = {
            ConvNormActivation: f"conv2d {kernel}×{kernel}",
            DepthwiseSeparable: f"depthwise separable {kernel}×{kernel}",
            InvertedResidual: f"bottleneck {kernel}×{kernel}",
            SqueezeExcitation: "squeeze-excitation",
            nn.Linear: "linear",
        }[type(block)]
        inner = part.loc[part["kind"] == "depthwise", "output"]
        following = list(network.classifier)[int(name.split(".")[1]) + 1 :][:1] if type(block) is nn.Linear else []
        active = [NONLINEARITIES[type(m)][0] for m in (*block.modules(), *following) if type(m) in NONLINEARITIES]
        row = {
            "block": name,
            "input": _shape(part["input"].iloc[0]),
            "operator": operator,
            "expansion": inner.iloc[0][0] if type(block) is InvertedResidual else "",
            "output": _shape(part["output"].iloc[-1]),
            "SE": "✓" if any(isinstance(m, SqueezeExcitation) for m in block.modules()) else "",
            "NL": active[0] if active else "",
            "s": "" if pd.isna(stride) else stride,
            "residual": "✓" if getattr(block, "has_residual", False) else "",
            "parameters": part["parameters"].sum(),
            "MACs": part["macs"].sum(),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, (*shape[1:], shape[0])))


def where_cost_sits(networks: Mapping[str, MobileNet], size: int) -> Figure:
    """Parameters and MACs of each block in percent of its network, by kind of layer; a column a network."""
    figure, grid = plt.subplots(2, len(networks), figsize=(10, 5.2), sharex="col", sharey="row", squeeze=False)
    for column, (label, network) in zip(grid.T, networks.items(), strict=True):
        layers = cost.layers(network, size)
        layers.loc[layers["layer"].str.contains(r"\.fc[12]$"), "kind"] = "squeeze-excitation"
        block = layers["layer"].str.extract(r"^(\w+\.\d+)", expand=False)
        for axes, quantity in zip(column, ("parameters", "macs"), strict=True):
            share = 100 * layers.pivot_table(quantity, block, "kind", "sum", 0, sort=False) / layers[quantity].sum()
            bottom = np.zeros(len(share))
            for kind, (colour, hatch, name) in KINDS.items():
                if kind in share:
                    style = dict(color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=name)
                    axes.bar(range(len(share)), share[kind], 0.9, bottom, **style)
                    bottom += share[kind].to_numpy()
        column[0].set_title(label, fontsize=10)
        column[1].set_xlabel("block, from the input on")
    grid[0, 0].set_ylabel("% of the parameters")
    grid[1, 0].set_ylabel("% of the MACs")
    handles = {
        name: handle for axes in grid.flat for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    return figure


def map_sizes(networks: Mapping[str, Mapping[int, MobileNet]], size: int) -> Figure:
    """How large the maps are along a network, for each number of lowered strides; a panel a network."""
    figure, panels = plt.subplots(1, len(networks), figsize=(10, 4), sharey=True, squeeze=False)
    for axes, (label, variants) in zip(panels.flat, networks.items(), strict=True):
        for (count, network), line in zip(variants.items(), ("o-", "s--", "^-.", "D:", "v-"), strict=False):
            layers = cost.layers(network, size)
            macs = _short(layers["macs"].sum())
            layers = layers[layers["layer"].str.startswith("features") & (layers["kind"] != "batch norm")]
            layers = layers[~layers["layer"].str.contains(r"\.fc[12]$")]
            sides = [size, *(shape[1] for shape in layers["output"])]
            axes.plot(sides, line, markersize=3.5)
            text = f" {count} lowered: {sides[-1]}×{sides[-1]}\n {macs} MACs"
            axes.text(len(layers), sides[-1], text, va="center", fontsize=8.5)
        axes.set(title=label, xlabel="convolution, from the input on", xlim=(0, len(layers) * 1.45))
    panels[0, 0].set_ylabel("side of the map (pixels)")
    panels[0, 0].set_yscale("log", base=2)
    panels[0, 0].yaxis.set_major_formatter("{x:g}")
    return figure


@torch.no_grad()
def gates(network: MobileNet, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gate of each squeeze-excitation, [images, channels] in [0, 1], by the name of its block.

    images: normalised, [images, 3, height, width].
    """
    found = {}
    names = {m.scale_activation: name for name, m in network.named_modules() if isinstance(m, SqueezeExcitation)}

    def record(module, inputs, output):
        found[".".join(names[module].split(".")[:2])] = output.flatten(1).clone()

    with ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(record))
        network.eval()(images)
    return found


def draw_gates(found: Mapping[str, torch.Tensor]) -> Figure:
    """The gates that `gates` found: mean and range over the images, a panel a block, channels by their mean."""
    rows = -(-len(found) // 3)
    figure, grid = plt.subplots(rows, 3, figsize=(9, 2.1 * rows + 0.4), sharey=True, squeeze=False)
    for axes, (name, gate) in zip(grid.flat, found.items(), strict=False):
        gate = gate[:, gate.mean(0).argsort()]
        channel = np.arange(gate.shape[1]) + 1
        axes.fill_between(channel, gate.amin(0), gate.amax(0), alpha=0.35, label="range over the images")
        axes.plot(channel, gate.mean(0), label="mean")
        axes.set_title(f"{name}: {gate.shape[1]} channels", fontsize=9)
        axes.set_ylim(-0.03, 1.03)
    for axes in grid.flat[len(found) :]:
        axes.axis("off")
    figure.supxlabel("channel, ordered by its mean gate", fontsize=10)
    figure.supylabel("gate", fontsize=10)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure

"""MobileNet V1, V2, V3 Small and V3 Large: the papers' tables as data, and one builder for all of them.

Papers: V1 arXiv 1704.04861, V2 arXiv 1801.04381, V3 arXiv 1905.02244.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from mnv3lib.blocks import (
    ConvNormActivation,
    DepthwiseSeparable,
    InvertedResidual,
    SqueezeExcitation,
    activation,
    make_divisible,
)
from mnv3lib.errors import InputError
from mnv3lib.recipe import Architecture


class Row(NamedTuple):
    """One block at width 1: `expansion` and `out` count channels."""

    kernel: int
    expansion: int
    out: int
    se: bool
    nonlinearity: str
    stride: int


NONLINEARITY = {"RE": "relu", "HS": "hard_swish"}


def _v1(table: str) -> list[Row]:
    """Table 1 of the V1 paper: output channels and stride of each depthwise separable block."""
    rows = []
    for line in table.strip().splitlines()[1:]:
        out, stride, repeats = map(int, line.split())
        rows += [Row(3, rows[-1].out if rows else 32, out, False, "relu", stride)] * repeats
    return rows


def _v2(table: str) -> list[Row]:
    """Table 2 of the V2 paper: expansion factor t, channels c, repeats n, stride s of the first repeat."""
    rows, inputs = [], 32
    for line in table.strip().splitlines()[1:]:
        t, c, n, s = map(int, line.split())
        for repeat in range(n):
            rows.append(Row(3, t * inputs, c, False, "relu6", s if repeat == 0 else 1))
            inputs = c
    return rows


def _v3(table: str) -> list[Row]:
    """Tables 1 and 2 of the V3 paper, line by line."""
    rows = []
    for line in table.strip().splitlines()[1:]:
        kernel, expansion, out, se, nonlinearity, stride = line.split()
        rows.append(Row(int(kernel), int(expansion), int(out), se == "SE", NONLINEARITY[nonlinearity], int(stride)))
    return rows


@dataclass(frozen=True)
class Paper:
    """What a paper says of one network at width 1; `last` is the last 1x1 convolution, 0 where there is none."""

    rows: list[Row]
    stem: int
    nonlinearity: str
    last: int = 0
    penultimate: int = 0
    dropout: float = 0.0
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1


V3 = dict(stem=16, nonlinearity="hard_swish", dropout=0.2, norm_eps=1e-3, norm_momentum=0.01)
PAPERS = {
    # V1 paper, table 1. The last stride there is 2 on a map of 7x7 that stays 7x7: a misprint for 1.
    "v1": Paper(
        _v1("""
            out   stride  repeats
            64    1       1
            128   2       1
            128   1       1
            256   2       1
            256   1       1
            512   2       1
            512   1       5
            1024  2       1
            1024  1       1
        """),
        stem=32,
        nonlinearity="relu",
    ),
    # V2 paper, table 2.
    "v2": Paper(
        _v2("""
            t   c    n   s
            1   16   1   1
            6   24   2   2
            6   32   3   2
            6   64   4   2
            6   96   3   1
            6   160  3   2
            6   320  1   1
        """),
        stem=32,
        nonlinearity="relu6",
        penultimate=1280,
        dropout=0.2,
    ),
    # V3 paper, table 1.
    "v3_large": Paper(
        _v3("""
            kernel  expansion  out  se  nonlinearity  stride
            3       16         16   -   RE            1
            3       64         24   -   RE            2
            3       72         24   -   RE            1
            5       72         40   SE  RE            2
            5       120        40   SE  RE            1
            5       120        40   SE  RE            1
            3       240        80   -   HS            2
            3       200        80   -   HS            1
            3       184        80   -   HS            1
            3       184        80   -   HS            1
            3       480        112  SE  HS            1
            3       672        112  SE  HS            1
            5       672        160  SE  HS            2
            5       960        160  SE  HS            1
            5       960        160  SE  HS            1
        """),
        last=960,
        penultimate=1280,
        **V3,
    ),
    # V3 paper, table 2.
    "v3_small": Paper(
        _v3("""
            kernel  expansion  out  se  nonlinearity  stride
            3       16         16   SE  RE            2
            3       72         24   -   RE            2
            3       88         24   -   RE            1
            5       96         40   SE  HS            2
            5       240        40   SE  HS            1
            5       240        40   SE  HS            1
            5       120        48   SE  HS            1
            5       144        48   SE  HS            1
            5       288        96   SE  HS            2
            5       576        96   SE  HS            1
            5       576        96   SE  HS            1
        """),
        last=576,
        penultimate=1024,
        **V3,
    ),
}


class MobileNet(nn.Module):
    """A MobileNet of any version.

    Input: normalised images, float32 [batch, 3, height, width]. Output: logits [batch, num_classes]. Any size of input
    from 1x1 on works. The parameter keys of V2 and V3 are torchvision's.
    """

    # What goes with the weights: names of the classes, mean and deviation per channel in [0, 1], and the pixels a side
    # of the images that it was trained for.
    classes: tuple[str, ...] = ()
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    size: int = 32

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        paper = PAPERS[architecture.model]
        nonlinearity = partial(_nonlinearity, architecture)
        momentum = paper.norm_momentum if architecture.norm_momentum is None else architecture.norm_momentum
        norm = partial(nn.BatchNorm2d, eps=paper.norm_eps, momentum=momentum)
        layer = partial(ConvNormActivation, norm=norm, nonlinearity=nonlinearity(paper.nonlinearity))
        dropout = paper.dropout if architecture.dropout is None else architecture.dropout
        strides = _lowered([2] + [row.stride for row in paper.rows], architecture.lowered_strides)

        channels = _scaled(paper.stem, architecture)
        features = [layer(3, channels, 3, strides[0])]
        inputs_at_width_1 = paper.stem
        for row, stride in zip(paper.rows, strides[1:], strict=True):
            outputs = _scaled(row.out, architecture)
            options = dict(
                kernel=row.kernel,
                stride=stride,
                se={"paper": row.se, "none": False, "all": True}[architecture.squeeze_excitation],
                norm=norm,
                nonlinearity=nonlinearity(row.nonlinearity),
            )
            if architecture.model == "v1":
                block = DepthwiseSeparable(channels, outputs, **options)
            else:
                # The paper scales the block's input and keeps the ratio; torchvision scales each column by itself.
                expanded = make_divisible(channels * row.expansion / inputs_at_width_1)
                block = InvertedResidual(channels, expanded, outputs, flat=architecture.model == "v2", **options)
            features.append(block)
            channels, inputs_at_width_1 = outputs, row.out

        penultimate = architecture.penultimate
        if penultimate is None:
            penultimate = make_divisible(paper.penultimate * max(1.0, architecture.width)) if paper.penultimate else 0
        # V2's penultimate layer is a convolution before the pooling; V3 moved it behind (figure 5 of the V3 paper).
        last = penultimate if architecture.model == "v2" else paper.last and _scaled(paper.last, architecture)
        if last:
            features.append(layer(channels, last, 1))
            channels = last
        if architecture.se_last:
            features.append(SqueezeExcitation(channels))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

        head = []
        if paper.last and penultimate:
            head = [nn.Linear(channels, penultimate), activation(nonlinearity(paper.nonlinearity))]
            channels = penultimate
        self.classifier = nn.Sequential(*head, nn.Dropout(dropout), nn.Linear(channels, architecture.num_classes))

        INITIALIZE[architecture.initialization](self)
        residual = [one for one in self.features if isinstance(one, InvertedResidual) and one.has_residual]
        for number, block in enumerate(residual, start=1):
            block.stochastic_depth = architecture.stochastic_depth * number / len(residual)
            if architecture.zero_init_residual:
                nn.init.zeros_(block.last_norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _scaled(channels: int, architecture: Architecture) -> int:
    return make_divisible(channels * architecture.width)


def _nonlinearity(architecture: Architecture, name: str) -> str:
    if architecture.nonlinearity != "paper":
        name = architecture.nonlinearity
    return "hard_swish_composed" if name == "hard_swish" and architecture.hard_swish == "composed" else name


def _lowered(strides: list[int], count: int) -> list[int]:
    """The strides with the first `count` twos made one."""
    twos = [index for index, stride in enumerate(strides) if stride == 2][:count]
    return [1 if index in twos else stride for index, stride in enumerate(strides)]


def _with_weights(network: nn.Module) -> Iterator[nn.Module]:
    """The convolutions and linear layers, with their biases set to zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            yield module


def _kaiming_normal(network: nn.Module) -> None:
    """As torchvision: Kaiming normal by fan-out for convolutions, normal with deviation 0.01 for linear layers."""
    for module in _with_weights(network):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        else:
            nn.init.normal_(module.weight, 0, 0.01)


def _truncated_normal(network: nn.Module) -> None:
    """As the official code: normal with deviation 0.09, cut at two deviations; biases zero."""
    for module in _with_weights(network):
        nn.init.trunc_normal_(module.weight, std=0.09, a=-0.18, b=0.18)


INITIALIZE = {
    "torch": lambda network: None,
    "kaiming_normal": _kaiming_normal,
    "truncated_normal": _truncated_normal,
}


def build(*args, **kwargs) -> MobileNet:
    """A freshly initialised network, e.g. `build("v3_small", width=0.5, num_classes=100, lowered_strides=3)`.

    Takes the fields of Architecture, which documents them. Weights are drawn from torch's global generator.
    Raises InputError (a ValueError) on an unknown field or an impossible value.
    """
    try:
        bound = inspect.signature(Architecture).bind(*args, **kwargs)
    except TypeError as error:
        fields = ", ".join(field.name for field in dataclasses.fields(Architecture))
        raise InputError(f"build: {error}; the arguments are {fields}") from None
    return MobileNet(Architecture(*bound.args, **bound.kwargs))


build.__signature__ = inspect.signature(Architecture).replace(return_annotation=MobileNet)


@contextmanager
def evaluating(network: nn.Module):
    """Eval mode; afterwards each module is in its own mode again, frozen norms in eval mode too, whatever happened."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode

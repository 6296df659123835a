"""The building blocks of MobileNet V1, V2 and V3.

All of them take and return tensors of shape [batch, channels, height, width]. Parameter names follow torchvision where
torchvision has the block, so that weights go either way.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


def make_divisible(channels: float) -> int:
    """Round a scaled channel count to a multiple of 8, never to less than 90 % of it.

    The rule of the official code of V2 and V3; the papers speak of rounding only in passing.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class ComposedHardswish(nn.Module):
    """Hard swish from primitives: x * ReLU6(x + 3) / 6 (V3 paper, section 5.2)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * F.relu6(x + 3) / 6


ACTIVATIONS = {
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": partial(nn.ReLU6, inplace=True),
    "hard_swish": partial(nn.Hardswish, inplace=True),
    "hard_swish_composed": ComposedHardswish,
}


def activation(name: str) -> nn.Module:
    """The non-linearity called `name`, one of ACTIVATIONS."""
    return ACTIVATIONS[name]()


class ConvNormActivation(nn.Sequential):
    """Convolution without bias, batch normalisation and, unless `nonlinearity` is None, an activation.

    Padding keeps the size at stride 1; stride 2 halves it, rounding up. `groups=channels` makes it depthwise.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, norm, nonlinearity):
        layers = [
            nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False),
            norm(outputs),
        ]
        if nonlinearity is not None:
            layers.append(activation(nonlinearity))
        super().__init__(*layers)


class SqueezeExcitation(nn.Module):
    """Squeeze-excitation with a hard sigmoid gate; the squeeze is a quarter of the channels (V3 paper, section 5.3)."""

    def __init__(self, channels: int):
        super().__init__()
        squeezed = make_divisible(channels // 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.scale_activation = nn.Hardsigmoid(inplace=True)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """The factor for each channel, in [0, 1], of shape [batch, channels, 1, 1]."""
        return self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)


class DepthwiseSeparable(nn.Sequential):
    """V1's block: a depthwise convolution, then a pointwise one, each normalised and activated (V1 paper, figure 3)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, *, se: bool, norm, nonlinearity):
        layers = [
            ConvNormActivation(inputs, inputs, kernel, stride, inputs, norm=norm, nonlinearity=nonlinearity),
            ConvNormActivation(inputs, outputs, 1, norm=norm, nonlinearity=nonlinearity),
        ]
        if se:
            layers.insert(1, SqueezeExcitation(inputs))
        super().__init__(*layers)


class InvertedResidual(nn.Module):
    """The block of V2 (figure 3) and V3 (figure 4): expand, depthwise, squeeze-excite, project without activation.

    There is no expansion layer where `expanded` equals `inputs`; the input is added where shape allows it. `flat` names
    the parameters as torchvision's V2 does (`conv.2.weight`), otherwise as its V3 (`block.2.0.weight`). With
    `stochastic_depth`, a probability, images skip it in training.
    """

    def __init__(
        self, inputs: int, expanded: int, outputs: int, kernel: int, stride: int, *, se: bool, norm, nonlinearity, flat
    ):
        super().__init__()
        self.has_residual = stride == 1 and inputs == outputs
        self.stochastic_depth = 0.0
        layers = []
        if expanded != inputs:
            layers.append(ConvNormActivation(inputs, expanded, 1, norm=norm, nonlinearity=nonlinearity))
        layers.append(
            ConvNormActivation(expanded, expanded, kernel, stride, expanded, norm=norm, nonlinearity=nonlinearity)
        )
        if se:
            layers.append(SqueezeExcitation(expanded))
        project = ConvNormActivation(expanded, outputs, 1, norm=norm, nonlinearity=None)
        layers.extend(project if flat else [project])
        self.name = "conv" if flat else "block"
        self.add_module(self.name, nn.Sequential(*layers))

    @property
    def layers(self) -> nn.Sequential:
        return getattr(self, self.name)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation before the addition, the one that `zero_init_residual` sets to zero."""
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)][-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layers(x)
        return x + self.drop(out) if self.has_residual else out

    def drop(self, out: torch.Tensor) -> torch.Tensor:
        """Stochastic depth: in training, zeros for some of the images, and the others scaled up by as much.

        It is torchvision's, which is slow to import.
        """
        if not (self.training and self.stochastic_depth):
            return out
        return out * F.dropout(out.new_ones(len(out), 1, 1, 1), self.stochastic_depth)

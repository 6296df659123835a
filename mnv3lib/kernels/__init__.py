"""A training step on a CPU, faster than torch's own operators make it.

`forward` answers as the network does. Where Numba is installed, batch norm, activation, depthwise and pointwise
convolution and squeeze-excitation are its loops: they go through memory half as often, keep what a convolution gives
and not what is made of it, and sum in float64. The rest is torch's (by_torch.py), which without Numba is all.

It is for training in float32 and channels_last alone: evaluation, export and tracing call the network itself and never
come here. From top to bottom: this file takes a network apart, functions.py has what autograd sees, calling.py lends
the threads, norms.py, depthwise.py and pointwise.py are the loops, and vectors.py is what they are made of.
"""

from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mnv3lib.blocks import InvertedResidual, SqueezeExcitation
from mnv3lib.kernels import calling
from mnv3lib.kernels.by_torch import Convolution
from mnv3lib.kernels.functions import NONE, Activated, Affine, Depthwise, Gated, Later, Pointwise, affine_of
from mnv3lib.networks import MobileNet


def way(network: nn.Module | None = None) -> str:
    """Which way a training step, of `network`, goes on the CPU: "torch", or Numba with its version."""
    served = network is None or _all_learns(network)
    return f"numba {version('numba')}" if calling.chosen() and served else "torch"


def serve(network: nn.Module, images: torch.Tensor) -> bool:
    """Whether the kernels are for this call; where they are not, `forward` is a plain call of the network."""
    return (
        isinstance(network, MobileNet)
        and network.training
        and torch.is_grad_enabled()
        and images.device.type == "cpu"
        and images.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and _all_learns(network)
        and all(parameter.dtype == torch.float32 for parameter in network.parameters())
        and not any(_has_hooks(module) for module in network.modules())
    )


def _all_learns(network: nn.Module) -> bool:
    """Whether no parameter is frozen: the loops make the gradients of all."""
    return all(parameter.requires_grad for parameter in network.parameters())


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to see what goes in or out of `module`, which the kernels would not show."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def forward(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The logits [batch, num_classes] that `network(images)` gives, in training; images: [batch, 3, height, width]."""
    if not serve(network, images):
        return network(images)
    images = images.contiguous(memory_format=torch.channels_last)
    features = _finished(_run(network.features, images))
    return network.classifier(_pool(features).flatten(1))


class _Summed(NamedTuple):
    """What one of our convolutions gives, and the sums of it and of its squares, float64 [2 x channels]."""

    z: torch.Tensor
    sums: torch.Tensor
    later: Later


class _Pending(NamedTuple):
    """What a batch norm, perhaps an activation and a gate will make of `z`; what comes next may do it on its way."""

    z: torch.Tensor
    norm: nn.BatchNorm2d
    affine: Affine
    activation: int
    later: Later | None
    mlp: nn.Sequential | None = None  # squeeze-excitation's, from pooled channels to their gate


ACTIVATIONS = {nn.ReLU: 1, nn.ReLU6: 2, nn.Hardswish: 3}  # as norms.py numbers them


def _run(module: nn.Module, x: torch.Tensor | _Summed | _Pending) -> torch.Tensor | _Summed | _Pending:
    """What `module(x)` gives."""
    if isinstance(module, InvertedResidual):
        x = _finished(x)
        out = _run(module.layers, x)
        if not module.has_residual:
            return out
        return x + module.drop(_finished(out)) if module.stochastic_depth else _finished(out, x)
    if isinstance(module, nn.Sequential):
        for layer in module:
            x = _run(layer, x)
        return x
    if isinstance(x, _Pending) and x.mlp is None:
        if x.activation == NONE and type(module) in ACTIVATIONS:
            return x._replace(activation=ACTIVATIONS[type(module)])
        if isinstance(module, SqueezeExcitation):
            return x._replace(mlp=_mlp(module))
    if isinstance(module, nn.Conv2d) and module.bias is None:
        if calling.chosen() and _is_depthwise(module):
            return _own(Depthwise, module, x)
        if calling.chosen() and _is_pointwise(module):
            return _own(Pointwise, module, x)
        return Convolution.apply(_finished(x), module.weight, module.stride, module.padding, module.groups)
    sums, later = (x.sums.numpy(), x.later) if isinstance(x, _Summed) else (None, None)
    x = _finished(x)
    if isinstance(module, nn.BatchNorm2d) and calling.chosen() and _is_usual(module, x):
        return _Pending(x, module, affine_of(module, x, sums), NONE, later)
    if isinstance(module, SqueezeExcitation):
        return x * _mlp(module)(_pool(x))
    if isinstance(module, nn.Hardswish):
        return F.hardswish(x)  # in place it would first copy its input for the gradient
    return module(x)


def _pool(x: torch.Tensor) -> torch.Tensor:
    """The mean over the map. The gradient of adaptive pooling is not in channels_last, which slows what adds to it."""
    return F.avg_pool2d(x, x.shape[2:])


def _mlp(module: SqueezeExcitation) -> nn.Sequential:
    """From pooled channels to their gate."""
    return nn.Sequential(module.fc1, module.activation, module.fc2, module.scale_activation)


def _finished(x: torch.Tensor | _Summed | _Pending, other: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor, plus `other`."""
    if isinstance(x, _Pending):
        given = x.z, x.norm.weight, x.norm.bias, x.affine, x.activation, x.later
        if x.mlp is None:
            return Activated.apply(*given, other)
        x = Gated.apply(*given, x.mlp, *x.mlp.parameters())
    x = x.z if isinstance(x, _Summed) else x
    return x if other is None else x + other


def _is_usual(norm: nn.BatchNorm2d, z: torch.Tensor) -> bool:
    several = z.numel() > z.shape[1]  # of one value a channel torch's own complains
    usual = norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None
    return several and usual and z.shape[1] % calling.loops().CHANNELS == 0


def _is_depthwise(convolution: nn.Conv2d) -> bool:
    size, channels = convolution.kernel_size[0], convolution.in_channels
    return (
        convolution.groups == channels == convolution.out_channels
        and size in (3, 5)
        and convolution.kernel_size == (size, size)
        and convolution.padding == (size // 2, size // 2)
        and convolution.stride in ((1, 1), (2, 2))
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and channels % calling.loops().CHANNELS == 0
    )


def _is_pointwise(convolution: nn.Conv2d) -> bool:
    several = calling.loops().CHANNELS
    return (
        convolution.kernel_size == (1, 1)
        and convolution.stride == (1, 1)
        and convolution.padding == (0, 0)
        and convolution.groups == 1
        and convolution.in_channels % several == convolution.out_channels % several == 0
    )


def _own(function: type, convolution: nn.Conv2d, x: torch.Tensor | _Summed | _Pending) -> _Summed:
    """What Depthwise or Pointwise give."""
    norm, later = (None, None, None, NONE, None), Later()
    if isinstance(x, _Pending) and (x.mlp is None or function is Pointwise):
        norm = x.norm.weight, x.norm.bias, x.affine, x.activation, x.later
        mlp = () if x.mlp is None else (x.mlp, *x.mlp.parameters())
        return _Summed(*function.apply(x.z, convolution.weight, convolution.stride[0], *norm, later, *mlp), later)
    return _Summed(*function.apply(_finished(x), convolution.weight, convolution.stride[0], *norm, later), later)

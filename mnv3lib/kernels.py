"""A training step on a CPU, faster than torch's own operators make it.

`forward` answers as the network does and has its gradients made where torch is slow:

- the weight gradient of a 5x5 depthwise convolution: oneDNN's fast kernel is for kernels up to three wide, so it is
  made in two calls of width three;
- the weight gradient of a pointwise convolution with few outputs, with the roles of input and gradient swapped;
- hard swish, which in place would first copy its input for the gradient.

It is for training in float32 and channels_last alone: evaluation, export and tracing call the network itself and never
come here.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mnv3lib.blocks import InvertedResidual
from mnv3lib.networks import MobileNet

NARROW = 32  # outputs up to which a pointwise weight gradient is faster with swapped roles, by measurement


def serve(network: nn.Module, images: torch.Tensor) -> bool:
    """Whether the kernels are for this call; where they are not, `forward` is a plain call of the network."""
    return (
        isinstance(network, MobileNet)
        and network.training
        and torch.is_grad_enabled()
        and images.device.type == "cpu"
        and images.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and all(parameter.dtype == torch.float32 for parameter in network.parameters())
        and not any(_has_hooks(module) for module in network.modules())
    )


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
    return network.classifier(network.avgpool(_run(network.features, images)).flatten(1))


def _run(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What `module(x)` gives."""
    if isinstance(module, InvertedResidual):
        out = _run(module.layers, x)
        return x + out if module.has_residual else out
    if isinstance(module, nn.Sequential):
        for layer in module:
            x = _run(layer, x)
        return x
    if isinstance(module, nn.Hardswish):
        return F.hardswish(x)
    if isinstance(module, nn.Conv2d) and module.bias is None:
        return _Convolution.apply(x, module.weight, module.stride, module.padding, module.groups)
    return module(x)


class _Convolution(torch.autograd.Function):
    """A convolution without bias whose weight gradient takes the fastest way."""

    @staticmethod
    def forward(ctx, x, weight, stride, padding, groups):
        ctx.save_for_backward(x, weight)
        ctx.options = stride, padding, groups
        return F.conv2d(x, weight, None, stride, padding, 1, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        stride, padding, groups = ctx.options
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        outputs, inputs, height, width = weight.shape
        depthwise_5x5 = groups == x.shape[1] == outputs and height == width == 5
        weight_gradient = None
        if needs_weight and depthwise_5x5 and x.shape[3] >= 4 and x.shape[3] % 2 == 0:
            weight_gradient = _depthwise_5x5(grad, x, weight, stride[0])
        elif needs_weight and height == width == 1 and outputs <= NARROW and outputs < inputs:
            swapped = weight.new_empty(inputs, outputs, 1, 1)
            weight_gradient = _backward(x, grad, swapped, stride, padding, groups, False, True)[1].transpose(0, 1)
        rest = needs_weight and weight_gradient is None
        input_gradient, by_torch = _backward(grad, x, weight, stride, padding, groups, needs_input, rest)
        return input_gradient, by_torch if rest else weight_gradient, None, None, None


def _backward(grad, x, weight, stride, padding, groups, needs_input, needs_weight):
    """(input gradient, weight gradient) by torch; what is not needed is None."""
    options = [*stride], [*padding], [1, 1], False, [0, 0], groups, [needs_input, needs_weight, False]
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *options)[:2]


def _depthwise_5x5(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
    """The weight gradient [channels, 1, 5, 5] from calls with kernels of three columns; for maps of even width.

    The middle columns are those of a 5x3 kernel. The outer ones are two pixels from the middle; where a pair of pixels
    is taken for one of twice the channels, they are one away.
    """
    channels = x.shape[1]
    middle = _backward(grad, x, weight[..., :3], (stride, stride), (2, 1), channels, False, True)[1]
    x, several = _pairs(x), 2 * channels
    if stride == 1:
        grad = _pairs(grad)
    else:
        x, several = x[:, :channels], channels  # an output has its outer columns from even pixels alone
    outer = _backward(grad, x, weight.new_empty(several, 1, 5, 3), (stride, 1), (2, 1), several, False, True)[1]
    outer = outer.unflatten(0, (-1, channels)).sum(0)
    return torch.cat([outer[..., :1], middle, outer[..., 2:]], dim=3)


def _pairs(x: torch.Tensor) -> torch.Tensor:
    """x [batch, channels, height, width] as [batch, 2 channels, height, width / 2], the even pixels' channels first."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height, width // 2, 2 * channels).permute(0, 3, 1, 2)

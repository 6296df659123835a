"""Convolutions by torch, with the weight gradients of two kinds made otherwise than torch makes them.

- 5x5 depthwise: oneDNN's fast kernel is for kernels up to three wide, so it is called twice with such;
- pointwise: the roles of input and gradient are swapped where that is faster.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

NARROW = 32  # channels: with fewer on one side a pointwise weight gradient wants the narrow side as inputs


class Convolution(torch.autograd.Function):
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
        outputs, inputs, height, width = weight.shape
        depthwise_5x5 = groups == x.shape[1] == outputs and height == width == 5
        weight_gradient = None
        if depthwise_5x5 and x.shape[3] >= 4 and x.shape[3] % 2 == 0:
            weight_gradient = _depthwise_5x5(grad, x, weight, stride[0])
        elif height == width == 1 and _swapped(outputs, inputs):
            swapped = weight.new_empty(inputs, outputs, 1, 1)
            weight_gradient = _backward(x, grad, swapped, stride, padding, groups, False, True)[1].transpose(0, 1)
        rest = weight_gradient is None
        input_gradient, by_torch = _backward(grad, x, weight, stride, padding, groups, ctx.needs_input_grad[0], rest)
        return input_gradient, by_torch if rest else weight_gradient, None, None, None


def _swapped(outputs: int, inputs: int) -> bool:
    """Whether a pointwise weight gradient is faster with swapped roles, by measurement."""
    return outputs < inputs if min(outputs, inputs) < NARROW else outputs > inputs


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

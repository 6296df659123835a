"""A training step on a CPU, faster than torch's own operators make it.

`forward` answers as the network does. Where Numba is installed, batch norm, activation, depthwise and pointwise
convolution and squeeze-excitation are its loops (compiled.py, pointwise.py): they go through memory half as often, keep
what a convolution gives and not what is made of it, and sum in float64. The rest is torch's, with the weight gradients
of two kinds of convolution made otherwise, which without Numba is all that is gained:

- 5x5 depthwise: oneDNN's fast kernel is for kernels up to three wide, so it is called twice with such;
- pointwise: the roles of input and gradient are swapped where that is faster.

It is for training in float32 and channels_last alone: evaluation, export and tracing call the network itself and never
come here.
"""

import ctypes
import os
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mnv3lib.blocks import InvertedResidual, SqueezeExcitation
from mnv3lib.networks import MobileNet

NARROW = 32  # channels: with fewer on one side a pointwise weight gradient wants the narrow side as inputs


@cache
def _loops():
    """The module of compiled loops; None without Numba, or where MNV3_KERNELS is `torch`."""
    if os.environ.get("MNV3_KERNELS") == "torch":
        return None
    try:
        from mnv3lib.kernels import compiled
    except ImportError:
        return None
    return compiled


def _chosen() -> bool:
    """Whether the loops serve: with one thread, or where torch's threads can be lent.

    Threads of their own would come too late, since torch's wait for their next layer without giving up their core.
    """
    return _loops() is not None and (torch.get_num_threads() == 1 or _team() is not None)


def way() -> str:
    """Which way a training step goes on the CPU: "torch", or Numba with its version."""
    return f"numba {version('numba')}" if _chosen() else "torch"


def serve(network: nn.Module, images: torch.Tensor) -> bool:
    """Whether the kernels are for this call; where they are not, `forward` is a plain call of the network."""
    return (
        isinstance(network, MobileNet)
        and network.training
        and torch.is_grad_enabled()
        and images.device.type == "cpu"
        and images.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in network.parameters())
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
    features = _finished(_run(network.features, images))
    return network.classifier(_pool(features).flatten(1))


class _Summed(NamedTuple):
    """What a depthwise convolution gives, and the sums of it and of its squares, float64 [2 x channels]."""

    z: torch.Tensor
    sums: torch.Tensor
    later: "_Later"


class _Pending(NamedTuple):
    """What a batch norm, perhaps an activation and a gate will make of `z`; what comes next may do it on its way."""

    z: torch.Tensor
    norm: nn.BatchNorm2d
    affine: "_Affine"
    activation: int
    later: "_Later | None"
    mlp: nn.Sequential | None = None  # squeeze-excitation's, from pooled channels to their gate


NONE = 0
ACTIVATIONS = {nn.ReLU: 1, nn.ReLU6: 2, nn.Hardswish: 3}  # as compiled.py numbers them


def _run(module: nn.Module, x: torch.Tensor | _Summed | _Pending) -> torch.Tensor | _Summed | _Pending:
    """What `module(x)` gives."""
    if isinstance(module, InvertedResidual):
        x = _finished(x)
        out = _run(module.layers, x)
        return _finished(out, x) if module.has_residual else out
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
        if _chosen() and _is_depthwise(module):
            return _own(_Depthwise, module, x)
        if _chosen() and _is_pointwise(module):
            return _own(_Pointwise, module, x)
        return _Convolution.apply(_finished(x), module.weight, module.stride, module.padding, module.groups)
    sums, later = (x.sums.numpy(), x.later) if isinstance(x, _Summed) else (None, None)
    x = _finished(x)
    if isinstance(module, nn.BatchNorm2d) and _chosen() and _is_usual(module, x):
        return _Pending(x, module, _affine(module, x, sums), NONE, later)
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
            return _Activated.apply(*given, other)
        x = _Gated.apply(*given, x.mlp, *x.mlp.parameters())
    x = x.z if isinstance(x, _Summed) else x
    return x if other is None else x + other


# Batch norm with its activation


class _Affine(NamedTuple):
    """Batch norm as scale * z + shift: these and the mean, float32 [3, channels], and one over the deviation."""

    norm: np.ndarray
    inverse: np.ndarray


class _Later:
    """The way from a gradient behind norm and activation to the one before, left to the convolution there."""

    arrays = None

    def take(self, grad: torch.Tensor) -> tuple:
        """What the convolution's loop needs for it; `grad` may be the convolution's own gradient, too."""
        arrays, self.arrays = self.arrays, None
        if arrays is None:
            factors = _norm(None, grad.shape[1])
            arrays = _flat(grad), _flat(grad), factors, NONE, factors, False, NOTHING, NOTHING
        return arrays


def _is_usual(norm: nn.BatchNorm2d, z: torch.Tensor) -> bool:
    several = z.numel() > z.shape[1]  # of one value a channel torch's own complains
    usual = norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None
    return several and usual and z.shape[1] % _loops().LANES == 0


def _affine(module: nn.BatchNorm2d, z: torch.Tensor, sums: np.ndarray | None = None) -> _Affine:
    """Bring the running statistics up to date with z; `sums` [2 x channels]: its moments, if they are known."""
    batch, channels, height, width = z.shape
    if sums is None:
        flat, parts = _flat(z), np.zeros((_parts(batch), 2 * channels))
        with torch.profiler.record_function("batch_norm, moments"):
            _share(
                batch,
                lambda part, first, last: _loops().moments(flat, parts[part], first, last, height * width, channels),
            )
        sums = parts.sum(0)
    norm, inverse = np.empty(3 * channels, np.float32), np.empty(channels)
    given = (tensor.detach().numpy() for tensor in (module.weight, module.bias))
    running = module.running_mean.numpy(), module.running_var.numpy()
    count = batch * height * width
    _loops().settle(sums, count, *given, module.eps, module.momentum, *running, norm, inverse, channels)
    module.num_batches_tracked += 1
    return _Affine(norm, inverse)


class _Activated(torch.autograd.Function):
    """activation(norm(z)) + other"""

    @staticmethod
    def forward(ctx, z, weight, bias, affine, activation, later, other):
        ctx.save_for_backward(z)
        ctx.affine, ctx.activation, ctx.later, ctx.added = affine, activation, later, other is not None
        return _normalised(z, affine, activation, None, other)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        batch, channels, height, width = z.shape
        parts = np.zeros((_parts(batch), 2 * channels))
        arrays = _flat(z), _flat(grad), ctx.affine.norm, ctx.activation
        _share(
            batch,
            lambda part, first, last: _loops().gradient_sums(
                *arrays, parts[part], first, last, height * width, channels
            ),
        )
        sums = parts.sum(0).reshape(2, channels)
        z_gradient = _norm_gradient(z, grad, ctx.affine, ctx.activation, sums, later=ctx.later)
        return z_gradient, *_parameter_gradients(ctx.affine, sums), None, None, None, grad if ctx.added else None


class _Gated(torch.autograd.Function):
    """Squeeze-excitation of a = activation(norm(z)): a * mlp(the mean of a over the map)."""

    @staticmethod
    def forward(ctx, z, weight, bias, affine, activation, later, mlp, *parameters):
        ctx.save_for_backward(z)
        ctx.affine, ctx.activation, ctx.later = affine, activation, later
        _open(ctx, z, mlp)
        return _normalised(z, affine, activation, ctx.gate, None)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        batch, channels, height, width = z.shape
        arrays = _flat(z), _flat(grad), ctx.affine.norm, ctx.activation
        each = np.zeros(batch * 5 * channels)
        _share(
            batch,
            lambda part, first, last: _loops().gated_gradient_sums(
                *arrays, each, first, last, height * width, channels
            ),
        )
        of_norm, of_mlp = _before_gate(ctx, z, grad, each, ctx.later)
        return *of_norm, None, None, None, None, *of_mlp


@torch.profiler.record_function("squeeze-excitation, forward")
def _open(ctx, z, mlp):
    """Keep in `ctx` the gate that `mlp` makes of the mean of activation(norm(z)), and what its gradient needs."""
    batch, channels, height, width = z.shape
    arrays, sums = (_flat(z), ctx.affine.norm, ctx.activation), np.zeros(batch * channels)
    _share(batch, lambda part, first, last: _loops().pool(*arrays, sums, first, last, height * width, channels))
    ctx.pooled = torch.from_numpy(sums / (height * width)).float().view(batch, channels, 1, 1).requires_grad_()
    ctx.mlp = mlp
    with torch.enable_grad():
        ctx.gate = mlp(ctx.pooled)


@torch.profiler.record_function("squeeze-excitation, backward")
def _before_gate(ctx, z, grad, each, later, out=None):
    """Gradients of z and of the norm's weight and bias, and of the mlp's parameters; `each`: gated_gradient_sums'."""
    batch, channels, height, width = z.shape
    each = each.reshape(batch, 5, channels)
    gate_gradient = torch.from_numpy(each[:, 0]).float().view(ctx.gate.shape)
    with torch.enable_grad():
        pooled, *of_mlp = torch.autograd.grad(ctx.gate, [ctx.pooled, *ctx.mlp.parameters()], gate_gradient)
    pooled = pooled / (height * width)
    gates, pools = (tensor.detach().view(batch, 1, channels).numpy() for tensor in (ctx.gate, pooled))
    sums = (gates * each[:, 1:3] + pools * each[:, 3:]).sum(0)
    z_gradient = _norm_gradient(z, grad, ctx.affine, ctx.activation, sums, ctx.gate, pooled, later, out)
    return (z_gradient, *_parameter_gradients(ctx.affine, sums)), of_mlp


def _normalised(z, affine, activation, gate, other):
    batch, channels, height, width = z.shape
    out = torch.empty_like(z, memory_format=torch.channels_last)
    arrays = _flat(z), affine.norm, activation
    of_gate, added = _optional(gate), _optional(other)
    result = _flat(out)
    _share(
        batch,
        lambda part, first, last: _loops().normalise(
            *arrays, *of_gate, *added, result, first, last, height * width, channels
        ),
    )
    return out


def _norm_gradient(z, grad, affine, activation, sums, gate=None, pooled=None, later=None, out=None):
    """The gradient of z; `sums` [2, channels]: of the gradient behind the norm, and of it times (z - mean).

    With `later` it is `grad` itself, and `later` has what is missing.
    """
    batch, channels, height, width = z.shape
    count = batch * height * width
    scale = affine.norm[:channels].astype(np.float64)
    factors = np.concatenate((scale, -scale * affine.inverse**2 * sums[1] / count, -scale * sums[0] / count))
    arrays = _flat(z), _flat(grad), affine.norm, activation, factors.astype(np.float32)
    arrays = *arrays, *_optional(gate), _optional(pooled)[1]
    if later is not None:
        later.arrays = arrays
        return grad
    out = torch.empty_like(z, memory_format=torch.channels_last) if out is None else out
    result = _flat(out)
    _share(batch, lambda part, first, last: _loops().gradient(*arrays, result, first, last, height * width, channels))
    return out


def _parameter_gradients(affine, sums):
    """Of the norm's weight and bias."""
    return torch.from_numpy(sums[1] * affine.inverse).float(), torch.from_numpy(sums[0]).float()


# Depthwise convolution, with the norm and the activation before it


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
        and channels % _loops().LANES == 0
    )


def _own(function: type, convolution: nn.Conv2d, x: torch.Tensor | _Summed | _Pending) -> _Summed:
    """What _Depthwise or _Pointwise give."""
    norm, later = (None, None, None, NONE, None), _Later()
    if isinstance(x, _Pending) and (x.mlp is None or function is _Pointwise):
        norm = x.norm.weight, x.norm.bias, x.affine, x.activation, x.later
        mlp = () if x.mlp is None else (x.mlp, *x.mlp.parameters())
        return _Summed(*function.apply(x.z, convolution.weight, convolution.stride[0], *norm, later, *mlp), later)
    return _Summed(*function.apply(_finished(x), convolution.weight, convolution.stride[0], *norm, later), later)


class _Depthwise(torch.autograd.Function):
    """The depthwise convolution of activation(norm(z)), or of z where `affine` is None; with the moments of it."""

    @staticmethod
    def forward(ctx, z, kernel, stride, weight, bias, affine, activation, before, later):
        batch, channels, height, width = z.shape
        ctx.save_for_backward(z, kernel)
        ctx.stride, ctx.affine, ctx.activation, ctx.before, ctx.later = stride, affine, activation, before, later
        out = torch.empty(
            (batch, channels, (height - 1) // stride + 1, (width - 1) // stride + 1),
            memory_format=torch.channels_last,
        )
        parts = np.zeros((_parts(batch), 2 * channels))
        arrays = _flat(z), _norm(affine, channels), activation, _blocks(kernel), _flat(out)
        loop = _loops().depthwise(kernel.shape[2], stride)
        _share(batch, lambda part, first, last: loop(*arrays, parts[part], first, last, height, width, channels))
        sums = torch.from_numpy(parts.sum(0))
        ctx.mark_non_differentiable(sums)
        return out, sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        z, kernel = ctx.saved_tensors
        batch, channels, height, width = z.shape
        size = kernel.shape[2]
        out = torch.empty_like(z, memory_format=torch.channels_last)
        parts = np.zeros((_parts(batch), 2 * channels))
        kernels = np.zeros((_parts(batch), kernel.numel()))
        arrays = _flat(z), _norm(ctx.affine, channels), ctx.activation, _blocks(kernel.flip(2, 3))
        behind = ctx.later.take(grad)
        loop, result = _loops().depthwise_gradient(size, ctx.stride), _flat(out)
        _share(
            batch,
            lambda part, first, last: loop(
                *arrays, *behind, result, parts[part], kernels[part], first, last, height, width, channels
            ),
        )
        lanes = _loops().LANES
        kernel_gradient = torch.from_numpy(kernels.sum(0)).float().view(channels // lanes, size * size, lanes)
        kernel_gradient = kernel_gradient.transpose(1, 2).reshape(kernel.shape)
        return _before(ctx, z, out, kernel_gradient, parts.sum(0))


def _before(ctx, z, out, kernel_gradient, sums):
    """The gradients that a convolution returns, with `out` before the activation, and its `sums` [2 x channels]."""
    if ctx.affine is None:
        return out, kernel_gradient, None, None, None, None, None, None, None
    sums = sums.reshape(2, -1)
    z_gradient = _norm_gradient(z, out, ctx.affine, NONE, sums, later=ctx.before, out=out)
    return z_gradient, kernel_gradient, None, *_parameter_gradients(ctx.affine, sums), None, None, None, None


# Pointwise convolution, with the norm and the activation before it


def _is_pointwise(convolution: nn.Conv2d) -> bool:
    lanes = _loops().LANES
    return (
        convolution.kernel_size == (1, 1)
        and convolution.stride == (1, 1)
        and convolution.padding == (0, 0)
        and convolution.groups == 1
        and convolution.in_channels % lanes == convolution.out_channels % lanes == 0
    )


class _Pointwise(torch.autograd.Function):
    """The pointwise convolution of activation(norm(z)), or of z where `affine` is None; with the moments of it.

    With `mlp`, it is that of squeeze-excitation of activation(norm(z)).
    """

    @staticmethod
    def forward(ctx, z, kernel, stride, weight, bias, affine, activation, before, later, mlp=None, *parameters):
        batch, channels, height, width = z.shape
        outputs = len(kernel)
        ctx.save_for_backward(z, kernel)
        ctx.affine, ctx.activation, ctx.before, ctx.later = affine, activation, before, later
        ctx.mlp = ctx.gate = None
        if mlp is not None:
            _open(ctx, z, mlp)
        out = torch.empty((batch, outputs, height, width), memory_format=torch.channels_last)
        parts = np.zeros((_parts(batch), 2 * outputs))
        arrays = _flat(z), affine is not None, _norm(affine, channels), activation, *_optional(ctx.gate)
        arrays = *arrays, _eights(kernel), _flat(out)
        _share(
            batch,
            lambda part, first, last: _products().pointwise(
                *arrays, parts[part], first, last, height * width, channels, outputs
            ),
        )
        sums = torch.from_numpy(parts.sum(0))
        ctx.mark_non_differentiable(sums)
        return out, sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        z, kernel = ctx.saved_tensors
        batch, channels, height, width = z.shape
        outputs = len(kernel)
        out = torch.empty_like(z, memory_format=torch.channels_last)
        parts = np.zeros((_parts(batch), 2 * channels))
        each = None if ctx.mlp is None else np.zeros(batch * 5 * channels)
        kernels = np.zeros((_parts(batch), kernel.numel()))
        arrays = _flat(z), ctx.affine is not None, _norm(ctx.affine, channels), ctx.activation, *_optional(ctx.gate)
        arrays = *arrays, _eights(kernel.transpose(0, 1)), *ctx.later.take(grad), _flat(out)
        _share(
            batch,
            lambda part, first, last: _products().pointwise_gradient(
                *arrays,
                parts[part] if each is None else each,
                kernels[part],
                first,
                last,
                height * width,
                channels,
                outputs,
            ),
        )
        kernel_gradient = torch.from_numpy(kernels.sum(0)).float()
        if outputs > channels:
            kernel_gradient = kernel_gradient.view(channels, outputs).t()
        kernel_gradient = kernel_gradient.reshape(kernel.shape)
        if each is not None:
            of_norm, of_mlp = _before_gate(ctx, z, out, each, ctx.before, out)
            return of_norm[0], kernel_gradient, None, *of_norm[1:], None, None, None, None, None, *of_mlp
        return _before(ctx, z, out, kernel_gradient, parts.sum(0))


def _eights(kernel: torch.Tensor) -> np.ndarray:
    """The kernel [outputs, inputs, 1, 1] as [outputs / 8, inputs, 8]."""
    return kernel.detach().reshape(-1, _loops().LANES, kernel.shape[1]).transpose(1, 2).reshape(-1).numpy()


def _products():
    """The module of the loops of pointwise convolutions."""
    from mnv3lib.kernels import pointwise

    return pointwise


def _norm(affine: _Affine | None, channels: int) -> np.ndarray:
    """Scale, shift and mean; of the identity where there is no norm."""
    if affine is None:
        return np.repeat(np.array([1, 0, 0], np.float32), channels)
    return affine.norm


def _blocks(kernel: torch.Tensor) -> np.ndarray:
    """The kernel [channels, 1, size, size] as [channels / 8, size, size, 8]."""
    lanes = _loops().LANES
    return kernel.detach().reshape(-1, lanes, kernel[0].numel()).transpose(1, 2).reshape(-1).numpy()


# What calls of compiled loops share


def _flat(x: torch.Tensor) -> np.ndarray:
    """The numbers as [image, pixel, channel] in a row: a view of a tensor in channels_last, else a copy."""
    return x.detach().permute(0, 2, 3, 1).reshape(-1).numpy()


NOTHING = np.zeros(1, np.float32)


def _optional(x: torch.Tensor | None) -> tuple[bool, np.ndarray]:
    return (False, NOTHING) if x is None else (True, _flat(x))


def _parts(images: int) -> int:
    return min(torch.get_num_threads(), images)


def _share(images: int, work) -> None:
    """Call work(part, first, last) for each part of the images, on torch's threads if there are several."""
    parts = _parts(images)
    edges = [images * part // parts for part in range(parts + 1)]
    if parts == 1:
        work(0, 0, images)
        return
    left, failed = iter(range(parts)), []

    def take(_):
        try:
            for part in left:  # whichever is next, since OpenMP may give fewer threads than it is asked for
                work(part, edges[part], edges[part + 1])
        except BaseException as error:
            failed.append(error)

    _team()(_TASK(take), None, parts, 0)
    if failed:
        raise failed[0]


_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _team():
    """OpenMP's function that has each thread of a team do a task, of the library that torch runs on; else None."""
    try:
        function = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    function.argtypes = _TASK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    function.restype = None
    return function


# Convolution by torch


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

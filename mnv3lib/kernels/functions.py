"""What autograd sees of the compiled loops: batch norm, squeeze-excitation, depthwise and pointwise convolution."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mnv3lib.kernels import calling
from mnv3lib.kernels.calling import NOTHING, flat, optional, parts_of, share

NONE = 0  # no activation; the others are numbered in norms.py


class Affine(NamedTuple):
    """Batch norm as scale * z + shift: these and the mean, float32 [3, channels], and one over the deviation."""

    norm: np.ndarray
    inverse: np.ndarray


class Later:
    """What of a batch norm's backward pass is put off, so that the convolution before it does it in its own loop.

    It is the step from the gradient behind norm, activation and gate to the one before the norm.
    """

    arrays = None

    def take(self, grad: torch.Tensor) -> tuple:
        """What the convolution's loop needs for it; `grad` may be the convolution's own gradient, too."""
        arrays, self.arrays = self.arrays, None
        if arrays is None:
            factors = _norm(None, grad.shape[1])
            arrays = flat(grad), flat(grad), factors, NONE, factors, False, NOTHING, NOTHING
        return arrays


def affine_of(module: nn.BatchNorm2d, z: torch.Tensor, sums: np.ndarray | None = None) -> Affine:
    """Bring the running statistics up to date with z; `sums` [2 x channels]: its moments, if they are known."""
    batch, channels, height, width = z.shape
    if sums is None:
        values, parts = flat(z), np.zeros((parts_of(batch), 2 * channels))
        with torch.profiler.record_function("batch_norm, moments"):
            share(
                batch,
                lambda part, first, last: calling.loops().moments(
                    values, parts[part], first, last, height * width, channels
                ),
            )
        sums = parts.sum(0)
    norm, inverse = np.empty(3 * channels, np.float32), np.empty(channels)
    given = (tensor.detach().numpy() for tensor in (module.weight, module.bias))
    running = module.running_mean.numpy(), module.running_var.numpy()
    count = batch * height * width
    calling.loops().settle(sums, count, *given, module.eps, module.momentum, *running, norm, inverse, channels)
    module.num_batches_tracked += 1
    return Affine(norm, inverse)


class Activated(torch.autograd.Function):
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
        parts = np.zeros((parts_of(batch), 2 * channels))
        arrays = flat(z), flat(grad), ctx.affine.norm, ctx.activation
        share(
            batch,
            lambda part, first, last: calling.loops().gradient_sums(
                *arrays, parts[part], first, last, height * width, channels
            ),
        )
        sums = parts.sum(0).reshape(2, channels)
        z_gradient = _norm_gradient(z, grad, ctx.affine, ctx.activation, sums, later=ctx.later)
        return z_gradient, *_parameter_gradients(ctx.affine, sums), None, None, None, grad if ctx.added else None


class Gated(torch.autograd.Function):
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
        arrays = flat(z), flat(grad), ctx.affine.norm, ctx.activation
        each = np.zeros(batch * 5 * channels)
        share(
            batch,
            lambda part, first, last: calling.loops().gated_gradient_sums(
                *arrays, each, first, last, height * width, channels
            ),
        )
        of_norm, of_mlp = _before_gate(ctx, z, grad, each, ctx.later)
        return *of_norm, None, None, None, None, *of_mlp


@torch.profiler.record_function("squeeze-excitation, forward")
def _open(ctx, z, mlp):
    """Keep in `ctx` the gate that `mlp` makes of the mean of activation(norm(z)), and what its gradient needs."""
    batch, channels, height, width = z.shape
    arrays, sums = (flat(z), ctx.affine.norm, ctx.activation), np.zeros(batch * channels)
    share(batch, lambda part, first, last: calling.loops().pool(*arrays, sums, first, last, height * width, channels))
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
    arrays = flat(z), affine.norm, activation
    of_gate, added = optional(gate), optional(other)
    result = flat(out)
    share(
        batch,
        lambda part, first, last: calling.loops().normalise(
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
    arrays = flat(z), flat(grad), affine.norm, activation, factors.astype(np.float32)
    arrays = *arrays, *optional(gate), optional(pooled)[1]
    if later is not None:
        later.arrays = arrays
        return grad
    out = torch.empty_like(z, memory_format=torch.channels_last) if out is None else out
    result = flat(out)
    share(
        batch,
        lambda part, first, last: calling.loops().gradient(*arrays, result, first, last, height * width, channels),
    )
    return out


def _parameter_gradients(affine, sums):
    """Of the norm's weight and bias."""
    return torch.from_numpy(sums[1] * affine.inverse).float(), torch.from_numpy(sums[0]).float()


# Depthwise convolution, with the norm and the activation before it


class Depthwise(torch.autograd.Function):
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
        parts = np.zeros((parts_of(batch), 2 * channels))
        arrays = flat(z), _norm(affine, channels), activation, _in_lanes(kernel), flat(out)
        loop = calling.loops().depthwise(kernel.shape[2], stride)
        share(batch, lambda part, first, last: loop(*arrays, parts[part], first, last, height, width, channels))
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
        parts = np.zeros((parts_of(batch), 2 * channels))
        turned, lanes = _in_lanes(kernel.flip(2, 3)), calling.loops().LANES
        kernels = np.zeros((parts_of(batch), turned.size))
        arrays = flat(z), _norm(ctx.affine, channels), ctx.activation, turned
        behind = ctx.later.take(grad)
        loop, result = calling.loops().depthwise_gradient(size, ctx.stride), flat(out)
        share(
            batch,
            lambda part, first, last: loop(
                *arrays, *behind, result, parts[part], kernels[part], first, last, height, width, channels
            ),
        )
        kernel_gradient = torch.from_numpy(kernels.sum(0)).float().view(-1, size * size, lanes).transpose(1, 2)
        kernel_gradient = kernel_gradient.reshape(-1, size * size)[:channels].view(kernel.shape)
        return _before(ctx, z, out, kernel_gradient, parts.sum(0))


def _before(ctx, z, out, kernel_gradient, sums):
    """The gradients that a convolution returns, with `out` before the activation, and its `sums` [2 x channels]."""
    if ctx.affine is None:
        return out, kernel_gradient, None, None, None, None, None, None, None
    sums = sums.reshape(2, -1)
    z_gradient = _norm_gradient(z, out, ctx.affine, NONE, sums, later=ctx.before, out=out)
    return z_gradient, kernel_gradient, None, *_parameter_gradients(ctx.affine, sums), None, None, None, None


# Pointwise convolution, with the norm and the activation before it


class Pointwise(torch.autograd.Function):
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
        parts = np.zeros((parts_of(batch), 2 * outputs))
        arrays = flat(z), affine is not None, _norm(affine, channels), activation, *optional(ctx.gate)
        arrays = *arrays, _in_lanes(kernel), flat(out)
        share(
            batch,
            lambda part, first, last: calling.loops().pointwise(
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
        parts = np.zeros((parts_of(batch), 2 * channels))
        each = None if ctx.mlp is None else np.zeros(batch * 5 * channels)
        kernels = np.zeros((parts_of(batch), kernel.numel()))
        arrays = flat(z), ctx.affine is not None, _norm(ctx.affine, channels), ctx.activation, *optional(ctx.gate)
        arrays = *arrays, _in_lanes(kernel.transpose(0, 1)), *ctx.later.take(grad), flat(out)
        share(
            batch,
            lambda part, first, last: calling.loops().pointwise_gradient(
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


def _norm(affine: Affine | None, channels: int) -> np.ndarray:
    """Scale, shift and mean; of the identity where there is no norm."""
    if affine is None:
        return np.repeat(np.array([1, 0, 0], np.float32), channels)
    return affine.norm


def _in_lanes(kernel: torch.Tensor) -> np.ndarray:
    """The kernel [outputs, ...] as [outputs / lanes, ..., lanes], with zeros where there is no output."""
    lanes, rows = calling.loops().LANES, kernel.detach().flatten(1)
    rows = F.pad(rows, (0, 0, 0, -len(rows) % lanes))
    return rows.view(-1, lanes, rows.shape[1]).transpose(1, 2).reshape(-1).numpy()

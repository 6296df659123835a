"""The loops of a training step on a CPU, compiled by Numba: batch norm with its activation, and depthwise convolution.

Arrays are flat views of tensors in channels_last, [image, pixel, channel]. A loop works on the images from `first` to
`last`, so that threads share them out, and on eight channels at a time, which Numba is told to hold in one register.
Sums over images are float64; a few pixels, a row at most, are added up in float32 first.
"""

from functools import cache

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 8


class Vector(types.Type):
    """Eight numbers, of eight channels that lie side by side."""

    def __init__(self, element, llvm):
        self.element, self.llvm = element, ir.VectorType(llvm, LANES)
        super().__init__(f"Vector({element})")


SINGLE, DOUBLE = Vector(types.float32, ir.FloatType()), Vector(types.float64, ir.DoubleType())


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, kind.llvm)


def _vector(array):
    return SINGLE if array.dtype == types.float32 else DOUBLE


def _address(context, builder, signature, args):
    array = context.make_array(signature.args[0])(context, builder, args[0])
    start = builder.gep(array.data, [args[1]])
    return builder.bitcast(start, _vector(signature.args[0]).llvm.as_pointer())


@intrinsic
def load(typing, array, index):
    """The vector from `index` on."""

    def make(context, builder, signature, args):
        return builder.load(_address(context, builder, signature, args), align=4)

    return _vector(array)(array, types.intp), make


@intrinsic
def store(typing, array, index, vector):
    def make(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature, args), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), make


def _prefetching(write):
    def prefetch(typing, array, index):
        """Have the cache line with `index` brought near, to be read or written."""

        def make(context, builder, signature, args):
            number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
            kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            address = builder.bitcast(_address(context, builder, signature, args), pointer)
            builder.call(function, [address, number(write), number(2), number(1)])
            return context.get_dummy_value()

        return types.void(array, types.intp), make

    return intrinsic(prefetch)


prefetch, prefetch_to_write = _prefetching(0), _prefetching(1)


@intrinsic
def all_of(typing, number):
    """A vector of one number, as float32."""

    def make(context, builder, signature, args):
        single = builder.fptrunc(args[0], ir.FloatType()) if args[0].type == ir.DoubleType() else args[0]
        one = builder.insert_element(ir.Constant(SINGLE.llvm, ir.Undefined), single, ir.Constant(ir.IntType(32), 0))
        same = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(SINGLE.llvm, ir.Undefined), same)

    return SINGLE(number), make


@intrinsic
def widen(typing, vector):
    """As float64."""
    return DOUBLE(vector), lambda context, builder, signature, args: builder.fpext(args[0], DOUBLE.llvm)


@intrinsic
def add(typing, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def subtract(typing, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fsub(*args)


@intrinsic
def multiply(typing, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fmul(*args)


@intrinsic
def multiply_add(typing, a, b, c):
    """a * b + c, in one instruction where the processor has it."""

    def make(context, builder, signature, args):
        return builder.fadd(builder.fmul(*args[:2], flags=["contract"]), args[2], flags=["contract"])

    return a(a, b, c), make


def _read(context, builder, array, value, index, plus=0):
    """The vector of `array` from index + plus on."""
    index = builder.add(index, ir.Constant(index.type, plus))
    start = builder.gep(context.make_array(array)(context, builder, value).data, [index])
    return builder.load(builder.bitcast(start, _vector(array).llvm.as_pointer()), align=4)


def _line(builder, row, step):
    """Where a row begins in a ring of RING."""
    return builder.mul(builder.and_(row, ir.Constant(row.type, RING - 1)), step)


def _fused(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=["contract"]), c, flags=["contract"])


@intrinsic(prefer_literal=True)
def stencil(typing, ring, row, step, start, kernel, first, size, ky, kx, every, apart):
    """Four outputs, `apart` pixels from each other, of the kernel's taps from ky and kx on, `every` rows and columns.

    The taps lie on rows and pixels side by side. All from `size` on are constants, each its own code.
    """
    constants = size, ky, kx, every, apart
    size, ky, kx, every, apart = (constant.literal_value for constant in constants)
    rows, columns, outputs = range(ky, size, every), range(kx, size, every), range(4)

    def make(context, builder, signature, args):
        ring, row, step, start, kernel, first = args[:6]
        arrays, sums = signature.args, [ir.Constant(SINGLE.llvm, None) for _ in outputs]
        for down, ky in enumerate(rows):
            line = builder.add(_line(builder, builder.add(row, ir.Constant(row.type, down)), step), start)
            for right, kx in enumerate(columns):
                weight = _read(context, builder, arrays[4], kernel, first, (ky * size + kx) * LANES)
                for output in outputs:
                    x = _read(context, builder, arrays[0], ring, line, (right + output * apart) * LANES)
                    sums[output] = _fused(builder, weight, x, sums[output])
        return context.make_tuple(builder, signature.return_type, sums)

    number = types.intp
    return types.UniTuple(SINGLE, 4)(ring, number, number, number, kernel, number, *constants), make


# A kernel's gradient, held in registers; `size` is a constant.


@intrinsic(prefer_literal=True)
def no_weights(typing, size):
    several = types.UniTuple(SINGLE, size.literal_value**2)

    def make(context, builder, signature, args):
        return context.make_tuple(builder, several, [ir.Constant(SINGLE.llvm, None)] * len(several))

    return several(size), make


@intrinsic(prefer_literal=True)
def with_share(typing, sums, gradient, ring, row, step, start, size):
    """With an output's share added."""
    taps = range(size.literal_value)

    def make(context, builder, signature, args):
        before, gradient, ring, row, step, start = args[:6]
        after = []
        for ky in taps:
            line = builder.add(_line(builder, builder.add(row, ir.Constant(row.type, ky)), step), start)
            for kx in taps:
                x = _read(context, builder, signature.args[2], ring, line, kx * LANES)
                after.append(_fused(builder, gradient, x, builder.extract_value(before, len(after))))
        return context.make_tuple(builder, sums, after)

    return sums(sums, SINGLE, ring, types.intp, types.intp, types.intp, size), make


@intrinsic
def add_weights(typing, array, index, sums):
    """Added to memory."""

    def make(context, builder, signature, args):
        array, index, values = args
        for tap in range(len(sums)):
            now = _read(context, builder, signature.args[0], array, index, tap * LANES)
            now = builder.fadd(now, builder.fpext(builder.extract_value(values, tap), DOUBLE.llvm))
            at = builder.add(index, ir.Constant(index.type, tap * LANES))
            builder.store(now, _address(context, builder, signature, (array, at)), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, sums), make


def _choice(comparison):
    def make(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(comparison, args[0], args[1]), args[2], args[3])

    return make


@intrinsic
def if_less(typing, a, b, then, otherwise):
    """`then` where a < b, else `otherwise`, so also where one of them is no number."""
    return then(a, b, then, otherwise), _choice("<")


@intrinsic
def if_at_most(typing, a, b, then, otherwise):
    return then(a, b, then, otherwise), _choice("<=")


RING = 8  # rows of a map that are at hand
inline = numba.njit(inline="always")


@inline
def chunk(channels):
    """Pixels whose channels are gone over together: many are quick, but of few lines memory is read in order."""
    return max(2, 128 // channels)


def compiled(loop):
    """Compiled at its first call, and kept for later processes: beside this file, else in the user's cache."""
    try:
        return numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # neither can be written to
        return numba.njit(nogil=True)(loop)


NONE, RELU, RELU6, HARD_SWISH = range(4)


@inline
def _activate(y, activation):
    if activation == HARD_SWISH:
        return multiply(y, multiply(_between(add(y, all_of(3.0))), all_of(1 / 6)))
    if activation == RELU6:
        y = _between(y)
    elif activation == RELU:
        y = if_less(y, all_of(0.0), all_of(0.0), y)
    return y


@inline
def _between(y):
    """y, but not below 0 and not above 6."""
    y = if_less(y, all_of(0.0), all_of(0.0), y)
    return if_less(all_of(6.0), y, all_of(6.0), y)


@inline
def _slope(y, grad, activation):
    """`grad` times the derivative of the activation at y, where that is no number as in torch."""
    if activation == HARD_SWISH:
        middle = multiply(grad, multiply_add(y, all_of(1 / 3), all_of(0.5)))
        grad = if_at_most(y, all_of(-3.0), all_of(0.0), if_at_most(all_of(3.0), y, grad, middle))
    elif activation == RELU6:
        grad = if_less(all_of(0.0), y, if_less(y, all_of(6.0), grad, all_of(0.0)), all_of(0.0))
    elif activation == RELU:
        grad = if_at_most(y, all_of(0.0), all_of(0.0), grad)
    return grad


@compiled
def moments(z, sums, first, last, pixels, channels):
    """Add the sum and the sum of squares of each channel of z to `sums` [2, channels]."""
    some = chunk(channels)
    for start in range(first * pixels, last * pixels, some):
        for c in range(0, channels, LANES):
            s = q = all_of(0.0)
            for pixel in range(start, min(start + some, last * pixels)):
                x = load(z, pixel * channels + c)
                s, q = add(s, x), multiply_add(x, x, q)
            store(sums, c, add(load(sums, c), widen(s)))
            store(sums, channels + c, add(load(sums, channels + c), widen(q)))


@compiled
def settle(sums, count, weight, bias, eps, momentum, running_mean, running_var, norm, inverse, channels):
    """From the moments of `count` values a channel: the running statistics' next values, and the norm.

    norm: float32 [3, channels], scale and shift of z and its mean; inverse: one over the deviation, float64.
    """
    for c in range(channels):
        mean = sums[c] / count
        variance = sums[channels + c] / count - mean * mean
        if variance < 0:
            variance = 0.0
        running_mean[c] += momentum * (mean - running_mean[c])
        running_var[c] += momentum * (variance * count / (count - 1) - running_var[c])
        inverse[c] = 1 / np.sqrt(variance + eps)
        scale = weight[c] * inverse[c]
        norm[c], norm[channels + c], norm[2 * channels + c] = scale, bias[c] - mean * scale, mean


@compiled
def normalise(z, norm, activation, gated, gate, added, other, out, first, last, pixels, channels):
    """out = activation(norm(z)), times gate [image, channel] if `gated`, plus `other` if `added`."""
    some = chunk(channels)
    for n in range(first, last):
        for start in range(n * pixels, (n + 1) * pixels, some):
            for c in range(0, channels, LANES):
                factor, constant = load(norm, c), load(norm, channels + c)
                of_image = load(gate, n * channels + c) if gated else factor
                for pixel in range(start, min(start + some, (n + 1) * pixels)):
                    i = pixel * channels + c
                    y = _activate(multiply_add(load(z, i), factor, constant), activation)
                    if gated:
                        y = multiply(y, of_image)
                    if added:
                        y = add(y, load(other, i))
                    store(out, i, y)


@compiled
def pool(z, norm, activation, sums, first, last, pixels, channels):
    """Add up activation(norm(z)) for each image and channel in `sums` [image, channel]."""
    some = chunk(channels)
    for n in range(first, last):
        for start in range(n * pixels, (n + 1) * pixels, some):
            for c in range(0, channels, LANES):
                factor, constant, s = load(norm, c), load(norm, channels + c), all_of(0.0)
                for pixel in range(start, min(start + some, (n + 1) * pixels)):
                    y = multiply_add(load(z, pixel * channels + c), factor, constant)
                    s = add(s, _activate(y, activation))
                store(sums, n * channels + c, add(load(sums, n * channels + c), widen(s)))


@compiled
def gradient_sums(z, grad, norm, activation, sums, first, last, pixels, channels):
    """Add g and g * (z - mean) to `sums` [2, channels], where g is `grad` before the activation."""
    some = chunk(channels)
    for start in range(first * pixels, last * pixels, some):
        for c in range(0, channels, LANES):
            factor, constant, middle = load(norm, c), load(norm, channels + c), load(norm, 2 * channels + c)
            s = q = all_of(0.0)
            for pixel in range(start, min(start + some, last * pixels)):
                x = load(z, pixel * channels + c)
                y = multiply_add(x, factor, constant)
                g = _slope(y, load(grad, pixel * channels + c), activation)
                s, q = add(s, g), multiply_add(g, subtract(x, middle), q)
            store(sums, c, add(load(sums, c), widen(s)))
            store(sums, channels + c, add(load(sums, channels + c), widen(q)))


@inline
def add_five_sums(z, grad, norm, activation, sums, n, c, start, stop, channels):
    """What gated_gradient_sums adds for pixels of image n and the channels from c on."""
    factor, constant, middle = load(norm, c), load(norm, channels + c), load(norm, 2 * channels + c)
    s0 = s1 = s2 = s3 = s4 = all_of(0.0)
    for pixel in range(start, stop):
        x, g = load(z, pixel * channels + c), load(grad, pixel * channels + c)
        y = multiply_add(x, factor, constant)
        d = _slope(y, all_of(1.0), activation)
        x, before = subtract(x, middle), _slope(y, g, activation)
        s0 = multiply_add(g, _activate(y, activation), s0)
        s1, s2 = add(s1, before), multiply_add(before, x, s2)
        s3, s4 = add(s3, d), multiply_add(d, x, s4)
    o = n * 5 * channels + c
    for s in (s0, s1, s2, s3, s4):
        store(sums, o, add(load(sums, o), widen(s)))
        o += channels


@compiled
def gated_gradient_sums(z, grad, norm, activation, sums, first, last, pixels, channels):
    """For each image, five sums of each channel, to `sums` [image, 5, channels].

    With d the derivative of the activation and a its result: grad * a, grad * d, grad * d * (z - mean), d,
    d * (z - mean).
    """
    some = chunk(channels)
    for n in range(first, last):
        for start in range(n * pixels, (n + 1) * pixels, some):
            stop = min(start + some, (n + 1) * pixels)
            for c in range(0, channels, LANES):
                add_five_sums(z, grad, norm, activation, sums, n, c, start, stop, channels)


@inline
def _before_norm(x, g, factor, constant, middle, activation, gated, times, plus, a, b, rest):
    """The gradient of x from that of activation(norm(x)), times a gate and plus its mean's if `gated`."""
    if gated:
        g = multiply_add(g, times, plus)
    g = _slope(multiply_add(x, factor, constant), g, activation)
    return multiply_add(g, a, multiply_add(subtract(x, middle), b, rest))


@compiled
def gradient(z, grad, norm, activation, factors, gated, gate, pooled, out, first, last, pixels, channels):
    """out = the gradient of z: a * g + b * (z - mean) + rest, with a, b and rest in `factors` [3, channels].

    g is `grad`, or grad * gate + pooled with these [image, channel], before the activation.
    """
    some = chunk(channels)
    for n in range(first, last):
        for start in range(n * pixels, (n + 1) * pixels, some):
            for c in range(0, channels, LANES):
                factor, constant, middle = load(norm, c), load(norm, channels + c), load(norm, 2 * channels + c)
                a, b, rest = load(factors, c), load(factors, channels + c), load(factors, 2 * channels + c)
                times = load(gate, n * channels + c) if gated else a
                plus = load(pooled, n * channels + c) if gated else a
                for pixel in range(start, min(start + some, (n + 1) * pixels)):
                    i = pixel * channels + c
                    x, g = load(z, i), load(grad, i)
                    g = _before_norm(x, g, factor, constant, middle, activation, gated, times, plus, a, b, rest)
                    store(out, i, g)


# Depthwise convolution, eight channels of an image at a time, row by row. What a row is made of lies in a ring of the
# rows that are at hand, [RING, width + 2 pad, 8], with zeros around.


@inline
def _clear(ring, start, step):
    for i in range(start, start + step, LANES):
        store(ring, i, all_of(0.0))


@inline
def fetch(array, write, start, count):
    """Have so many numbers from `start` on brought near."""
    for i in range(start, min(start + count, len(array)), 16):
        if write:
            prefetch_to_write(array, i)
        else:
            prefetch(array, i)


@inline
def _fetch(array, write, n, y, c, width, pixels, channels):
    """Have a share of the next image brought near, as large as a row of eight channels."""
    fetch(array, write, ((n + 1) * channels + c) * pixels + y * width * LANES, width * LANES)


@inline
def _activated_row(z, norm, activation, ring, pad, step, n, y, c, height, width, channels):
    """activation(norm(z)) of a row to the ring; zeros where there is no such row."""
    start = (y & (RING - 1)) * step
    if 0 <= y < height:
        _fetch(z, False, n, y, c, width, height * width, channels)
        factor, constant = load(norm, c), load(norm, channels + c)
        for x in range(width):
            i = ((n * height + y) * width + x) * channels + c
            inside = _activate(multiply_add(load(z, i), factor, constant), activation)
            store(ring, start + (pad + x) * LANES, inside)
    else:
        _clear(ring, start, step)


@inline
def _filter_row(ring, row, step, start, kernel, first, line, to, outputs, size, ky, kx, every, apart, spread):
    """A row of outputs, each `apart` pixels of the ring from the last, and `spread` pixels of `line`; see stencil."""
    for x in range(0, outputs, 4):  # up to three more than wanted
        begin = start + x * apart * LANES
        w0, w1, w2, w3 = stencil(ring, row, step, begin, kernel, first, size, ky, kx, every, apart)
        i = (to + x * spread) * LANES
        store(line, i, w0)
        store(line, i + spread * LANES, w1)
        store(line, i + 2 * spread * LANES, w2)
        store(line, i + 3 * spread * LANES, w3)


@cache
def depthwise(size, stride):
    """The loop for kernels of this size and stride; padding is half of the size, rounded down."""
    pad = size // 2

    @compiled
    def depthwise(z, norm, activation, kernel, out, sums, first, last, height, width, channels):
        """out = the depthwise convolution of activation(norm(z)), and the moments of out to `sums`.

        kernel: [channels / 8, size, size, 8].
        """
        step = (width + 2 * pad) * LANES
        out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
        out_pixels = out_height * out_width
        ring = np.zeros(RING * step + 16 * LANES, np.float32)
        line = np.empty((out_width + 4) * LANES, np.float32)
        for n in range(first, last):
            for c in range(0, channels, LANES):
                s, q, ready = load(sums, c), load(sums, channels + c), -pad
                for y in range(out_height):
                    _fetch(out, True, n, y, c, out_width, out_pixels, channels)
                    for r in range(ready, y * stride - pad + size):
                        _activated_row(z, norm, activation, ring, pad, step, n, r, c, height, width, channels)
                    ready = y * stride - pad + size
                    start, taps = y * stride - pad, c * size * size
                    _filter_row(ring, start, step, 0, kernel, taps, line, 0, out_width, size, 0, 0, 1, stride, 1)
                    a = b = all_of(0.0)
                    for x in range(out_width):
                        o = load(line, x * LANES)
                        store(out, (n * out_pixels + y * out_width + x) * channels + c, o)
                        a, b = add(a, o), multiply_add(o, o, b)
                    s, q = add(s, widen(a)), add(q, widen(b))
                store(sums, c, s)
                store(sums, channels + c, q)

    return depthwise


@cache
def depthwise_gradient(size, stride):
    """The loop for kernels of this size and stride."""
    pad = size // 2
    # With stride 2 an input pixel has its gradient from every second tap, beginning with 0 or 1 in each dimension.
    two = stride == 2
    to_0, to_1 = pad % stride, (pad + 1) % stride  # the first pixel whose first tap is 0, or 1
    start_0, start_1 = (((to - pad + kx) // stride + pad) * LANES for kx, to in enumerate((to_0, to_1)))

    @compiled
    def depthwise_gradient(
        z,
        norm,
        activation,
        kernel,
        behind,
        grad,
        norm_behind,
        activation_behind,
        factors,
        gated,
        gate,
        pooled,
        out,
        sums,
        weight,
        first,
        last,
        height,
        width,
        channels,
    ):
        """out = the gradient before the activation of z, its sums (see gradient_sums) and the weights' to `weight`.

        `grad` is the gradient behind norm and activation of the convolution's output `behind`, as `gradient` takes it.
        kernel: turned by 180 degrees, else as `depthwise` takes it. weight: float64 [channels / 8, size, size, 8].
        """
        step = (width + 2 * pad) * LANES
        out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
        pixels, out_pixels = height * width, out_height * out_width
        block = np.zeros(RING * step + 16 * LANES, np.float32)
        grads = np.zeros_like(block)
        line = np.empty((width + 8) * LANES, np.float32)
        some = (width + stride - 1) // stride
        for n in range(first, last):
            for c in range(0, channels, LANES):
                factor, constant, middle = load(norm, c), load(norm, channels + c), load(norm, 2 * channels + c)
                f, k, m = load(norm_behind, c), load(norm_behind, channels + c), load(norm_behind, 2 * channels + c)
                a, b, rest = load(factors, c), load(factors, channels + c), load(factors, 2 * channels + c)
                times = load(gate, n * channels + c) if gated else a
                plus = load(pooled, n * channels + c) if gated else a
                s, q, taps = load(sums, c), load(sums, channels + c), c * size * size
                ready, y, below = -pad, 0, -pad
                while y < height:  # bring in a row of `behind` and the rows of z under its kernel, and go on with z's
                    start = (below & (RING - 1)) * step
                    if 0 <= below < out_height:
                        _fetch(behind, False, n, below, c, out_width, out_pixels, channels)
                        _fetch(grad, False, n, below, c, out_width, out_pixels, channels)
                        for x in range(out_width):
                            i = (n * out_pixels + below * out_width + x) * channels + c
                            o, g = load(behind, i), load(grad, i)
                            g = _before_norm(o, g, f, k, m, activation_behind, gated, times, plus, a, b, rest)
                            store(grads, start + (pad + x) * LANES, g)
                        row = below * stride - pad
                        for r in range(ready, row + size):
                            _activated_row(z, norm, activation, block, pad, step, n, r, c, height, width, channels)
                        ready, w = row + size, no_weights(size)
                        for x in range(out_width):
                            g = load(grads, start + (pad + x) * LANES)
                            w = with_share(w, g, block, row, step, x * stride * LANES, size)
                        add_weights(weight, taps, w)
                    else:
                        _clear(grads, start, step)
                    while y < height and (y + pad) // stride <= below:
                        _fetch(out, True, n, y, c, width, pixels, channels)
                        row = (y - pad + stride - 1) // stride
                        if (y + pad) % stride == 0:
                            _filter_row(
                                grads, row, step, start_0, kernel, taps, line, to_0, some, size, 0, 0, stride, 1, stride
                            )
                            if two:
                                _filter_row(
                                    grads, row, step, start_1, kernel, taps, line, to_1, some, size, 0, 1, 2, 1, 2
                                )
                        elif two:
                            _filter_row(grads, row, step, start_0, kernel, taps, line, to_0, some, size, 1, 0, 2, 1, 2)
                            _filter_row(grads, row, step, start_1, kernel, taps, line, to_1, some, size, 1, 1, 2, 1, 2)
                        d = e = all_of(0.0)
                        for x in range(width):
                            i = (n * pixels + y * width + x) * channels + c
                            before, g = load(z, i), load(line, x * LANES)
                            g = _slope(multiply_add(before, factor, constant), g, activation)
                            store(out, i, g)
                            d, e = add(d, g), multiply_add(g, subtract(before, middle), e)
                        s, q = add(s, widen(d)), add(q, widen(e))
                        y += 1
                    below += 1
                store(sums, c, s)
                store(sums, channels + c, q)

    return depthwise_gradient

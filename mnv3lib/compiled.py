"""The loops of a training step on a CPU, compiled by Numba: batch norm with its activation, and depthwise convolution.

Arrays are flat views of tensors in channels_last, [image, pixel, channel]. A loop works on the images from `first` to
`last`, so that threads share them out, and on eight channels at a time, which Numba is told to hold in one register.
Sums over images and pixels are float64.
"""

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
            builder.call(function, [address, number(write), number(3), number(1)])
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


CHUNK = 2  # pixels that stay in the nearest cache while a loop goes over their channels
inline = numba.njit(inline="always")


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
    for start in range(first * pixels, last * pixels, CHUNK):
        for c in range(0, channels, LANES):
            s, q = load(sums, c), load(sums, channels + c)
            for pixel in range(start, min(start + CHUNK, last * pixels)):
                x = widen(load(z, pixel * channels + c))
                s, q = add(s, x), multiply_add(x, x, q)
            store(sums, c, s)
            store(sums, channels + c, q)


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
    for n in range(first, last):
        for start in range(n * pixels, (n + 1) * pixels, CHUNK):
            for c in range(0, channels, LANES):
                factor, constant = load(norm, c), load(norm, channels + c)
                of_image = load(gate, n * channels + c) if gated else factor
                for pixel in range(start, min(start + CHUNK, (n + 1) * pixels)):
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
    for n in range(first, last):
        for start in range(n * pixels, (n + 1) * pixels, CHUNK):
            for c in range(0, channels, LANES):
                factor, constant, s = load(norm, c), load(norm, channels + c), load(sums, n * channels + c)
                for pixel in range(start, min(start + CHUNK, (n + 1) * pixels)):
                    y = multiply_add(load(z, pixel * channels + c), factor, constant)
                    s = add(s, widen(_activate(y, activation)))
                store(sums, n * channels + c, s)


@compiled
def gradient_sums(z, grad, norm, activation, sums, first, last, pixels, channels):
    """Add g and g * (z - mean) to `sums` [2, channels], where g is `grad` before the activation."""
    for start in range(first * pixels, last * pixels, CHUNK):
        for c in range(0, channels, LANES):
            factor, constant, middle = load(norm, c), load(norm, channels + c), load(norm, 2 * channels + c)
            s, q = load(sums, c), load(sums, channels + c)
            for pixel in range(start, min(start + CHUNK, last * pixels)):
                x = load(z, pixel * channels + c)
                y = multiply_add(x, factor, constant)
                g = _slope(y, load(grad, pixel * channels + c), activation)
                s, q = add(s, widen(g)), add(q, widen(multiply(g, subtract(x, middle))))
            store(sums, c, s)
            store(sums, channels + c, q)


@compiled
def gated_gradient_sums(z, grad, norm, activation, sums, first, last, pixels, channels):
    """For each image, five sums of each channel, to `sums` [image, 5, channels].

    With d the derivative of the activation and a its result: grad * a, grad * d, grad * d * (z - mean), d,
    d * (z - mean).
    """
    for n in range(first, last):
        for start in range(n * pixels, (n + 1) * pixels, CHUNK):
            for c in range(0, channels, LANES):
                factor, constant, middle = load(norm, c), load(norm, channels + c), load(norm, 2 * channels + c)
                o = n * 5 * channels + c
                s0, s1, s2 = load(sums, o), load(sums, o + channels), load(sums, o + 2 * channels)
                s3, s4 = load(sums, o + 3 * channels), load(sums, o + 4 * channels)
                for pixel in range(start, min(start + CHUNK, (n + 1) * pixels)):
                    x, g = load(z, pixel * channels + c), load(grad, pixel * channels + c)
                    y = multiply_add(x, factor, constant)
                    d = _slope(y, all_of(1.0), activation)
                    x, before = subtract(x, middle), _slope(y, g, activation)
                    s0 = add(s0, widen(multiply(g, _activate(y, activation))))
                    s1, s2 = add(s1, widen(before)), add(s2, widen(multiply(before, x)))
                    s3, s4 = add(s3, widen(d)), add(s4, widen(multiply(d, x)))
                store(sums, o, s0)
                store(sums, o + channels, s1)
                store(sums, o + 2 * channels, s2)
                store(sums, o + 3 * channels, s3)
                store(sums, o + 4 * channels, s4)


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
    for n in range(first, last):
        for start in range(n * pixels, (n + 1) * pixels, CHUNK):
            for c in range(0, channels, LANES):
                factor, constant, middle = load(norm, c), load(norm, channels + c), load(norm, 2 * channels + c)
                a, b, rest = load(factors, c), load(factors, channels + c), load(factors, 2 * channels + c)
                times = load(gate, n * channels + c) if gated else a
                plus = load(pooled, n * channels + c) if gated else a
                for pixel in range(start, min(start + CHUNK, (n + 1) * pixels)):
                    i = pixel * channels + c
                    x, g = load(z, i), load(grad, i)
                    g = _before_norm(x, g, factor, constant, middle, activation, gated, times, plus, a, b, rest)
                    store(out, i, g)


# Depthwise convolution. An image's eight channels lie in a block [height + 2 pad, width + 2 pad, 8] with zeros around.


@inline
def _taps(block, start, step, row, kernel, k, size, apart, outputs):
    x = 0
    while x + 4 <= outputs:
        s0 = s1 = s2 = s3 = all_of(0.0)
        for ky in range(size):
            for kx in range(size):
                w = load(kernel, k + (ky * size + kx) * LANES)
                i = start + x * apart + ky * step + kx * LANES
                s0 = multiply_add(w, load(block, i), s0)
                s1 = multiply_add(w, load(block, i + apart), s1)
                s2 = multiply_add(w, load(block, i + 2 * apart), s2)
                s3 = multiply_add(w, load(block, i + 3 * apart), s3)
        store(row, x * LANES, s0)
        store(row, (x + 1) * LANES, s1)
        store(row, (x + 2) * LANES, s2)
        store(row, (x + 3) * LANES, s3)
        x += 4
    while x < outputs:
        s0 = all_of(0.0)
        for ky in range(size):
            for kx in range(size):
                i = start + x * apart + ky * step + kx * LANES
                s0 = multiply_add(load(kernel, k + (ky * size + kx) * LANES), load(block, i), s0)
        store(row, x * LANES, s0)
        x += 1


@inline
def _filter_row(block, start, step, row, kernel, k, size, stride, outputs):
    """row[x] = the sum over the kernel's taps of block, for a row of output pixels; four at a time."""
    if size == 3:  # a number that the compiler knows, so that it unrolls the loops
        _taps(block, start, step, row, kernel, k, 3, stride * LANES, outputs)
    else:
        _taps(block, start, step, row, kernel, k, 5, stride * LANES, outputs)


@inline
def _fetch(array, start, count):
    for i in range(start, start + count, 16):
        prefetch(array, i)


@inline
def _fetch_to_write(array, start, count):
    for i in range(start, start + count, 16):
        prefetch_to_write(array, i)


@compiled
def depthwise(z, norm, activation, kernel, size, stride, out, sums, first, last, height, width, channels):
    """out = the depthwise convolution of activation(norm(z)), and the moments of out to `sums`.

    kernel: [channels / 8, size, size, 8]; padding is half of `size`, rounded down.
    """
    pad = size // 2
    step = (width + 2 * pad) * LANES
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    block = np.zeros((height + 2 * pad) * step, np.float32)
    row = np.empty(out_width * LANES, np.float32)
    for n in range(first, last):
        _fetch(z, n * height * width * channels, height * width * channels)
        _fetch_to_write(out, n * out_height * out_width * channels, out_height * out_width * channels)
        for c in range(0, channels, LANES):
            factor, constant = load(norm, c), load(norm, channels + c)
            for y in range(height):
                for x in range(width):
                    i = ((n * height + y) * width + x) * channels + c
                    inside = _activate(multiply_add(load(z, i), factor, constant), activation)
                    store(block, (y + pad) * step + (x + pad) * LANES, inside)
            s, q = load(sums, c), load(sums, channels + c)
            for y in range(out_height):
                _filter_row(block, y * stride * step, step, row, kernel, c * size * size, size, stride, out_width)
                for x in range(out_width):
                    o = load(row, x * LANES)
                    store(out, ((n * out_height + y) * out_width + x) * channels + c, o)
                    s, q = add(s, widen(o)), multiply_add(widen(o), widen(o), q)
            store(sums, c, s)
            store(sums, channels + c, q)


@compiled
def depthwise_gradient(
    z,
    norm,
    activation,
    kernel,
    size,
    stride,
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
    pad = size // 2
    step = (width + 2 * pad) * LANES
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    block = np.zeros((height + 2 * pad) * step, np.float32)
    grads = np.zeros((height + 2 * pad) * step, np.float32)  # with zeros between them too, where stride is 2
    row = np.empty(width * LANES, np.float32)
    rows = max(1, 64 // out_width)  # that are added up in float32
    for n in range(first, last):
        _fetch(z, n * height * width * channels, height * width * channels)
        _fetch(grad, n * out_height * out_width * channels, out_height * out_width * channels)
        _fetch(behind, n * out_height * out_width * channels, out_height * out_width * channels)
        _fetch_to_write(out, n * height * width * channels, height * width * channels)
        for c in range(0, channels, LANES):
            factor, constant, middle = load(norm, c), load(norm, channels + c), load(norm, 2 * channels + c)
            for y in range(height):
                for x in range(width):
                    i = ((n * height + y) * width + x) * channels + c
                    inside = _activate(multiply_add(load(z, i), factor, constant), activation)
                    store(block, (y + pad) * step + (x + pad) * LANES, inside)
            f, k, m = load(norm_behind, c), load(norm_behind, channels + c), load(norm_behind, 2 * channels + c)
            a, b, rest = load(factors, c), load(factors, channels + c), load(factors, 2 * channels + c)
            times = load(gate, n * channels + c) if gated else a
            plus = load(pooled, n * channels + c) if gated else a
            for y in range(out_height):
                for x in range(out_width):
                    i = ((n * out_height + y) * out_width + x) * channels + c
                    o, g = load(behind, i), load(grad, i)
                    g = _before_norm(o, g, f, k, m, activation_behind, gated, times, plus, a, b, rest)
                    store(grads, (y * stride + pad) * step + (x * stride + pad) * LANES, g)

            for ky in range(size):
                for start in range(0, out_height, rows):
                    w0 = w1 = w2 = w3 = w4 = all_of(0.0)
                    for y in range(start, min(start + rows, out_height)):
                        i = (y * stride + ky) * step
                        j = (y * stride + pad) * step + pad * LANES
                        for _ in range(out_width):
                            g = load(grads, j)
                            w0 = multiply_add(g, load(block, i), w0)
                            w1 = multiply_add(g, load(block, i + LANES), w1)
                            w2 = multiply_add(g, load(block, i + 2 * LANES), w2)
                            if size == 5:
                                w3 = multiply_add(g, load(block, i + 3 * LANES), w3)
                                w4 = multiply_add(g, load(block, i + 4 * LANES), w4)
                            i += stride * LANES
                            j += stride * LANES
                    i = (c * size + ky * LANES) * size
                    store(weight, i, add(load(weight, i), widen(w0)))
                    store(weight, i + LANES, add(load(weight, i + LANES), widen(w1)))
                    store(weight, i + 2 * LANES, add(load(weight, i + 2 * LANES), widen(w2)))
                    if size == 5:
                        store(weight, i + 3 * LANES, add(load(weight, i + 3 * LANES), widen(w3)))
                        store(weight, i + 4 * LANES, add(load(weight, i + 4 * LANES), widen(w4)))

            s, q = load(sums, c), load(sums, channels + c)
            for y in range(height):
                _filter_row(grads, y * step, step, row, kernel, c * size * size, size, 1, width)
                for x in range(width):
                    i = ((n * height + y) * width + x) * channels + c
                    before = load(z, i)
                    g = load(row, x * LANES)
                    g = _slope(multiply_add(before, factor, constant), g, activation)
                    store(out, i, g)
                    s, q = add(s, widen(g)), add(q, widen(multiply(g, subtract(before, middle))))
            store(sums, c, s)
            store(sums, channels + c, q)

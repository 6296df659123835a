"""The loops of a depthwise convolution in training, with the norms about it, compiled by Numba.

LANES channels of an image at a time, row by row. What a row is made of lies in a ring of the rows that are at hand,
[RING, width + 2 pad, LANES], with zeros around. Arrays are as in norms.py.
"""

from functools import cache

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mnv3lib.kernels.norms import activate, before_norm, slope
from mnv3lib.kernels.vectors import (
    DOUBLE,
    LANES,
    SINGLE,
    add,
    address,
    all_of,
    compiled,
    fused,
    inline,
    load,
    multiply_add,
    prefetch,
    prefetch_to_write,
    read,
    store,
    subtract,
    three,
    widen,
)

RING = 8  # rows of a map that are at hand


def _line(builder, row, step):
    """Where a row begins in a ring of RING."""
    return builder.mul(builder.and_(row, ir.Constant(row.type, RING - 1)), step)


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
                weight = read(context, builder, arrays[4], kernel, first, (ky * size + kx) * LANES)
                for output in outputs:
                    x = read(context, builder, arrays[0], ring, line, (right + output * apart) * LANES)
                    sums[output] = fused(builder, weight, x, sums[output])
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
                x = read(context, builder, signature.args[2], ring, line, kx * LANES)
                after.append(fused(builder, gradient, x, builder.extract_value(before, len(after))))
        return context.make_tuple(builder, sums, after)

    return sums(sums, SINGLE, ring, types.intp, types.intp, types.intp, size), make


@intrinsic
def add_weights(typing, array, index, sums):
    """Added to memory."""

    def make(context, builder, signature, args):
        array, index, values = args
        for tap in range(len(sums)):
            now = read(context, builder, signature.args[0], array, index, tap * LANES)
            now = builder.fadd(now, builder.fpext(builder.extract_value(values, tap), DOUBLE.llvm))
            at = builder.add(index, ir.Constant(index.type, tap * LANES))
            builder.store(now, address(context, builder, signature, (array, at)), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, sums), make


@inline
def _clear(ring, start, step):
    for i in range(start, start + step, LANES):
        store(ring, i, all_of(0.0), LANES)


@inline
def _ahead(n, c, y, width, pixels, channels):
    """Where in the next image the share of a row of LANES channels begins: each row fetches as much, side by side."""
    return ((n + 1) * channels + c) * pixels + y * width * LANES


@inline
def _activated_row(z, norm, activation, ring, pad, step, n, y, c, height, width, channels):
    """activation(norm(z)) of a row to the ring; zeros where there is no such row."""
    start = (y & (RING - 1)) * step
    if 0 <= y < height:
        left = channels - c
        factor, constant = load(norm, c, left), load(norm, channels + c, left)
        ahead = _ahead(n, c, y, width, height * width, channels)
        for x in range(width):
            prefetch(z, ahead + x * LANES)
            i = ((n * height + y) * width + x) * channels + c
            inside = activate(multiply_add(load(z, i, left), factor, constant), activation)
            store(ring, start + (pad + x) * LANES, inside, LANES)
    else:
        _clear(ring, start, step)


@inline
def _filter_row(ring, row, step, start, kernel, first, line, to, outputs, size, ky, kx, every, apart, spread):
    """A row of outputs, each `apart` pixels of the ring from the last, and `spread` pixels of `line`; see stencil."""
    for x in range(0, outputs, 4):  # up to three more than wanted
        begin = start + x * apart * LANES
        w0, w1, w2, w3 = stencil(ring, row, step, begin, kernel, first, size, ky, kx, every, apart)
        i = (to + x * spread) * LANES
        store(line, i, w0, LANES)
        store(line, i + spread * LANES, w1, LANES)
        store(line, i + 2 * spread * LANES, w2, LANES)
        store(line, i + 3 * spread * LANES, w3, LANES)


@cache
def depthwise(size, stride):
    """The loop for kernels of this size and stride; padding is half of the size, rounded down."""
    pad = size // 2

    @compiled
    def depthwise(z, norm, activation, kernel, out, sums, first, last, height, width, channels):
        """out = the depthwise convolution of activation(norm(z)), and the moments of out to `sums`.

        kernel: [channels / LANES, size, size, LANES], with zeros where there is no channel.
        """
        step = (width + 2 * pad) * LANES
        out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
        out_pixels = out_height * out_width
        ring = np.zeros(RING * step + 16 * LANES, np.float32)
        line = np.empty((out_width + 4) * LANES, np.float32)
        for n in range(first, last):
            for c in range(0, channels, LANES):
                left = channels - c
                s, q, ready = load(sums, c, left), load(sums, channels + c, left), -pad
                for y in range(out_height):
                    for r in range(ready, y * stride - pad + size):
                        _activated_row(z, norm, activation, ring, pad, step, n, r, c, height, width, channels)
                    ready = y * stride - pad + size
                    start, taps = y * stride - pad, c * size * size
                    _filter_row(ring, start, step, 0, kernel, taps, line, 0, out_width, size, 0, 0, 1, stride, 1)
                    a = b = all_of(0.0)
                    ahead = _ahead(n, c, y, out_width, out_pixels, channels)
                    for x in range(out_width):
                        prefetch_to_write(out, ahead + x * LANES)
                        o = load(line, x * LANES, LANES)
                        store(out, (n * out_pixels + y * out_width + x) * channels + c, o, left)
                        a, b = add(a, o), multiply_add(o, o, b)
                    s, q = add(s, widen(a)), add(q, widen(b))
                store(sums, c, s, left)
                store(sums, channels + c, q, left)

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
        kernel: turned by 180 degrees, else as `depthwise` takes it. weight: the same, float64.
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
                left = channels - c
                factor, constant, middle = three(norm, c, channels)
                f, k, m = three(norm_behind, c, channels)
                a, b, rest = three(factors, c, channels)
                times = load(gate, n * channels + c, left) if gated else a
                plus = load(pooled, n * channels + c, left) if gated else a
                s, q, taps = load(sums, c, left), load(sums, channels + c, left), c * size * size
                ready, y, below, w = -pad, 0, -pad, no_weights(size)
                while y < height:  # bring in a row of `behind` and the rows of z under its kernel, and go on with z's
                    start = (below & (RING - 1)) * step
                    if 0 <= below < out_height:
                        for x in range(out_width):
                            i = (n * out_pixels + below * out_width + x) * channels + c
                            o, g = load(behind, i, left), load(grad, i, left)
                            g = before_norm(o, g, f, k, m, activation_behind, gated, times, plus, a, b, rest)
                            store(grads, start + (pad + x) * LANES, g, LANES)
                        row = below * stride - pad
                        for r in range(ready, row + size):
                            _activated_row(z, norm, activation, block, pad, step, n, r, c, height, width, channels)
                        ready = row + size
                        ahead = _ahead(n, c, below, out_width, out_pixels, channels)
                        for x in range(out_width):
                            prefetch(behind, ahead + x * LANES)
                            prefetch(grad, ahead + x * LANES)
                            g = load(grads, start + (pad + x) * LANES, LANES)
                            w = with_share(w, g, block, row, step, x * stride * LANES, size)
                    else:
                        _clear(grads, start, step)
                    while y < height and (y + pad) // stride <= below:
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
                        ahead = _ahead(n, c, y, width, pixels, channels)
                        for x in range(width):
                            prefetch_to_write(out, ahead + x * LANES)
                            i = (n * pixels + y * width + x) * channels + c
                            before, g = load(z, i, left), load(line, x * LANES, LANES)
                            g = slope(multiply_add(before, factor, constant), g, activation)
                            store(out, i, g, left)
                            d, e = add(d, g), multiply_add(g, subtract(before, middle), e)
                        s, q = add(s, widen(d)), add(q, widen(e))
                        y += 1
                    below += 1
                add_weights(weight, taps, w)
                store(sums, c, s, left)
                store(sums, channels + c, q, left)

    return depthwise_gradient

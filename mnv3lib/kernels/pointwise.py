"""The loops of a pointwise convolution in training, compiled by Numba: products of small matrices.

What a norm and an activation make of the input is made for a few pixels at a time, which stay in the cache while they
are multiplied; so is the gradient behind the norm that follows. Arrays are as in norms.py.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mnv3lib.kernels.norms import activate, add_five_sums, before_norm, slope
from mnv3lib.kernels.vectors import (
    DOUBLE,
    LANES,
    LINE,
    SINGLE,
    add,
    all_of,
    compiled,
    fetch,
    fused,
    inline,
    load,
    load_from,
    multiply,
    multiply_add,
    store,
    store_to,
    subtract,
    three,
    vector_of,
    widen,
)

SOME = 128  # pixels at a time


def _pointer(context, builder, kind, array, index):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic(prefer_literal=True)
def product(typing, a, at, row, deep, b, first, side, down, depth, left, rows, vectors):
    """The product of a block of `a` and one of `b`, `rows` times `vectors` vectors, held in registers.

    Neighbours in `a` are `row` and `deep` apart; those in `b` are vectors, `side` and `down` apart. Of the last vector
    `left` lanes are wanted.
    """
    constants = rows, vectors
    rows, vectors = rows.literal_value, vectors.literal_value

    def make(context, builder, signature, args):
        a, at, row, deep, b, first, side, down, depth, left = args[:10]
        lines = [builder.mul(row, ir.Constant(row.type, number)) for number in range(rows)]
        columns = [builder.mul(side, ir.Constant(side.type, number)) for number in range(vectors)]
        lanes = [ir.Constant(left.type, LANES)] * (vectors - 1) + [left]
        zero, one = (ir.Constant(depth.type, number) for number in (0, 1))
        starts = [
            zero,
            *(
                _pointer(context, builder, *each)
                for each in ((signature.args[0], a, at), (signature.args[4], b, first))
            ),
        ]
        starts += [ir.Constant(SINGLE.llvm, None)] * (rows * vectors)
        before, body, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(body)
        builder.position_at_end(body)
        now = [builder.phi(start.type) for start in starts]
        count, left, right, *sums = now
        several = [
            load_from(builder, builder.bitcast(builder.gep(right, [column]), SINGLE.llvm.as_pointer()), some)
            for column, some in zip(columns, lanes, strict=True)
        ]
        for number, line in enumerate(lines):
            single = _same(builder, builder.load(builder.gep(left, [line]), align=4))
            for place, vector in enumerate(several, number * vectors):
                sums[place] = fused(builder, single, vector, sums[place])
        following = [builder.add(count, one), builder.gep(left, [deep]), builder.gep(right, [down]), *sums]
        for phi, start, value in zip(now, starts, following, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, body)
        builder.cbranch(builder.icmp_signed("<", following[0], depth), body, after)
        builder.position_at_end(after)
        return context.make_tuple(builder, signature.return_type, sums)

    number = types.intp
    result = types.UniTuple(SINGLE, rows * vectors)
    return result(a, number, number, number, b, number, number, number, number, number, *constants), make


def _same(builder, number):
    """A vector of one number."""
    whatever, index = ir.Constant(SINGLE.llvm, ir.Undefined), ir.IntType(32)
    one = builder.insert_element(whatever, number, ir.Constant(index, 0))
    return builder.shuffle_vector(one, whatever, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))


@intrinsic(prefer_literal=True)
def put(typing, out, at, row, block, left, rows, vectors):
    """Write a block of `product`, lines `row` apart; where `out` is float64 add it."""
    constants = rows, vectors
    places = [(line, vector) for line in range(rows.literal_value) for vector in range(vectors.literal_value)]

    def make(context, builder, signature, args):
        out, at, row, block, left = args[:5]
        start = _pointer(context, builder, signature.args[0], out, at)
        for number, (line, vector) in enumerate(places):
            apart = builder.mul(row, ir.Constant(row.type, line))
            place = builder.gep(start, [builder.add(apart, ir.Constant(row.type, vector * LANES))])
            place = builder.bitcast(place, vector_of(signature.args[0]).llvm.as_pointer())
            some = left if vector == constants[1].literal_value - 1 else ir.Constant(left.type, LANES)
            value = builder.extract_value(block, number)
            if place.type.pointee == DOUBLE.llvm:
                value = builder.fadd(load_from(builder, place, some), builder.fpext(value, DOUBLE.llvm))
            store_to(builder, value, place, some)
        return context.get_dummy_value()

    return types.void(out, types.intp, types.intp, block, types.intp, *constants), make


@inline
def _columns(a, at, row, deep, count, b, first, side, down, depth, out, to, wide, left, vectors, ahead, blocks, done):
    left -= (vectors - 1) * LANES
    for r in range(0, count - 7, 8):
        for array, start, numbers in ahead:
            share = (numbers // blocks // LINE + 1) * LINE
            fetch(array, start + (done + r // 8) * share, share)
        block = product(a, at + r * row, row, deep, b, first, side, down, depth, left, 8, vectors)
        put(out, to + r * wide, wide, block, left, 8, vectors)
    for r in range(count - count % 8, count):
        block = product(a, at + r * row, row, deep, b, first, side, down, depth, left, 1, vectors)
        put(out, to + r * wide, wide, block, left, 1, vectors)


@compiled
def times(a, at, row, deep, count, b, side, down, depth, out, to, wide, ahead):
    """out [count, wide] = a [count, depth] times b [depth, wide], or added to it where `out` is float64.

    Meanwhile what is needed next is brought near, a share with each block: `ahead` has arrays, where to start in them
    and how many numbers.
    """
    rows = count // 8
    blocks, done, c = max(1, rows * ((wide + 3 * LANES - 1) // (3 * LANES))), 0, 0
    while c < wide:
        left, first, o = wide - c, c // LANES * side, to + c
        vectors = (left + LANES - 1) // LANES
        if vectors == 3 or vectors > 4:
            _columns(a, at, row, deep, count, b, first, side, down, depth, out, o, wide, left, 3, ahead, blocks, done)
            c += 3 * LANES
        elif vectors > 1:
            _columns(a, at, row, deep, count, b, first, side, down, depth, out, o, wide, left, 2, ahead, blocks, done)
            c += 2 * LANES
        else:
            _columns(a, at, row, deep, count, b, first, side, down, depth, out, o, wide, left, 1, ahead, blocks, done)
            c += LANES
        done += rows


@inline
def _next(array, start, channels):
    """The next pixels after `start`, for `times` to bring near."""
    return array, (start + SOME) * channels, SOME * channels


@inline
def _activated(x, norm, activation, gated, gate, block, start, count, pixels, channels):
    """activation(norm(x)) of some pixels to `block`, times the gate of their image if `gated`."""
    p = 0
    while p < count:
        image = (start + p) // pixels
        stop = min(count, (image + 1) * pixels - start) if gated else count
        for c in range(0, channels, LANES):
            left = channels - c
            factor, constant = load(norm, c, left), load(norm, channels + c, left)
            of_image = load(gate, image * channels + c, left) if gated else factor
            for q in range(p, stop):
                y = activate(multiply_add(load(x, (start + q) * channels + c, left), factor, constant), activation)
                if gated:
                    y = multiply(y, of_image)
                store(block, q * channels + c, y, left)
        p = stop


@compiled
def pointwise(x, normed, norm, activation, gated, gate, kernel, out, sums, first, last, pixels, inputs, outputs):
    """out = the pointwise convolution of x, and the moments of out to `sums`; kernel: [outputs / LANES, inputs,
    LANES], with zeros where there is no output.

    If `normed` it is that of activation(norm(x)), and times gate [image, channel] if `gated`.
    """
    block = np.empty(SOME * inputs, np.float32)
    for start in range(first * pixels, last * pixels, SOME):
        count = min(SOME, last * pixels - start)
        ahead = _next(x, start, inputs), _next(out, start, outputs)
        if normed:
            _activated(x, norm, activation, gated, gate, block, start, count, pixels, inputs)
            given = block
        else:
            given = x[start * inputs :]
        to = start * outputs
        times(given, 0, inputs, 1, count, kernel, inputs * LANES, LANES, inputs, out, to, outputs, ahead)
        for c in range(0, outputs, LANES):
            left = outputs - c
            s = q = all_of(0.0)
            for p in range(start, start + count):
                o = load(out, p * outputs + c, left)
                s, q = add(s, o), multiply_add(o, o, q)
            store(sums, c, add(load(sums, c, left), widen(s)), left)
            store(sums, outputs + c, add(load(sums, outputs + c, left), widen(q)), left)


@compiled
def pointwise_gradient(
    x,
    normed,
    norm,
    activation,
    gated,
    gate,
    kernel,
    behind,
    grad,
    norm_behind,
    activation_behind,
    factors,
    gated_behind,
    gate_behind,
    pooled,
    out,
    sums,
    weight,
    first,
    last,
    pixels,
    inputs,
    outputs,
):
    """out = the gradient before the activation of x, its sums (see gradient_sums) and the weights' to `weight`.

    If `gated` it is the one behind the gate, with the sums of gated_gradient_sums.

    `grad` is the gradient behind norm and activation of the convolution's output `behind`, as `gradient` takes it.
    kernel: [inputs / LANES, outputs, LANES]. weight: float64 [outputs, inputs], the other way round if `outputs` are
    more.
    """
    grads, block = np.empty(SOME * outputs, np.float32), np.empty(SOME * inputs, np.float32)
    for start in range(first * pixels, last * pixels, SOME):
        count = min(SOME, last * pixels - start)
        for c in range(0, outputs, LANES):
            left = outputs - c
            f, k, m = three(norm_behind, c, outputs)
            a, b, rest = three(factors, c, outputs)
            scale = plus = a
            for p in range(start, start + count):
                i = p * outputs + c
                if gated_behind:
                    image = p // pixels * outputs + c
                    scale, plus = load(gate_behind, image, left), load(pooled, image, left)
                o, g = load(behind, i, left), load(grad, i, left)
                g = before_norm(o, g, f, k, m, activation_behind, gated_behind, scale, plus, a, b, rest)
                store(grads, (p - start) * outputs + c, g, left)
        if normed:
            _activated(x, norm, activation, gated, gate, block, start, count, pixels, inputs)
            given = block
        else:
            given = x[start * inputs :]
        ahead = _next(behind, start, outputs), _next(grad, start, outputs)
        if outputs > inputs:  # the more vectors, the better
            times(given, 0, 1, inputs, inputs, grads, LANES, outputs, count, weight, 0, outputs, ahead)
        else:
            times(grads, 0, 1, outputs, outputs, given, LANES, inputs, count, weight, 0, inputs, ahead)
        ahead = _next(x, start, inputs), _next(out, start, inputs)
        times(grads, 0, outputs, 1, count, kernel, outputs * LANES, LANES, outputs, out, start * inputs, inputs, ahead)
        p = start
        while gated and p < start + count:
            image = p // pixels
            stop = min(start + count, (image + 1) * pixels)
            for c in range(0, inputs, LANES):
                left = inputs - c
                add_five_sums(x, out, norm, activation, sums, image, c, p, stop, inputs)
            p = stop
        if normed and not gated:
            for c in range(0, inputs, LANES):
                left = inputs - c
                factor, constant, middle = three(norm, c, inputs)
                s = q = all_of(0.0)
                for p in range(start, start + count):
                    i = p * inputs + c
                    z = load(x, i, left)
                    g = slope(multiply_add(z, factor, constant), load(out, i, left), activation)
                    store(out, i, g, left)
                    s, q = add(s, g), multiply_add(g, subtract(z, middle), q)
                store(sums, c, add(load(sums, c, left), widen(s)), left)
                store(sums, inputs + c, add(load(sums, inputs + c, left), widen(q)), left)

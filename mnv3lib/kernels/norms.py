"""The loops of batch norm, its activation and squeeze-excitation in training, compiled by Numba.

Arrays are flat views of tensors in channels_last, [image, pixel, channel]. A loop works on the images from `first` to
`last`, so that threads share them out, and on a vector of channels at a time. Sums over images are float64; a few
pixels, a row at most, are added up in float32 first.
"""

import numpy as np

from mnv3lib.kernels.vectors import (
    LANES,
    add,
    all_of,
    compiled,
    if_at_most,
    if_less,
    inline,
    load,
    multiply,
    multiply_add,
    store,
    subtract,
    three,
    widen,
)

NONE, RELU, RELU6, HARD_SWISH = range(4)


@inline
def chunk(channels):
    """Pixels whose channels are gone over together: many are quick, but of few lines memory is read in order."""
    return max(2, 128 // channels)


@inline
def activate(y, activation):
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
def slope(y, grad, activation):
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
            left = channels - c
            s = q = all_of(0.0)
            for pixel in range(start, min(start + some, last * pixels)):
                x = load(z, pixel * channels + c, left)
                s, q = add(s, x), multiply_add(x, x, q)
            store(sums, c, add(load(sums, c, left), widen(s)), left)
            store(sums, channels + c, add(load(sums, channels + c, left), widen(q)), left)


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
                left = channels - c
                factor, constant = load(norm, c, left), load(norm, channels + c, left)
                of_image = load(gate, n * channels + c, left) if gated else factor
                for pixel in range(start, min(start + some, (n + 1) * pixels)):
                    i = pixel * channels + c
                    y = activate(multiply_add(load(z, i, left), factor, constant), activation)
                    if gated:
                        y = multiply(y, of_image)
                    if added:
                        y = add(y, load(other, i, left))
                    store(out, i, y, left)


@compiled
def pool(z, norm, activation, sums, first, last, pixels, channels):
    """Add up activation(norm(z)) for each image and channel in `sums` [image, channel]."""
    some = chunk(channels)
    for n in range(first, last):
        for start in range(n * pixels, (n + 1) * pixels, some):
            for c in range(0, channels, LANES):
                left = channels - c
                factor, constant, s = load(norm, c, left), load(norm, channels + c, left), all_of(0.0)
                for pixel in range(start, min(start + some, (n + 1) * pixels)):
                    y = multiply_add(load(z, pixel * channels + c, left), factor, constant)
                    s = add(s, activate(y, activation))
                store(sums, n * channels + c, add(load(sums, n * channels + c, left), widen(s)), left)


@compiled
def gradient_sums(z, grad, norm, activation, sums, first, last, pixels, channels):
    """Add g and g * (z - mean) to `sums` [2, channels], where g is `grad` before the activation."""
    some = chunk(channels)
    for start in range(first * pixels, last * pixels, some):
        for c in range(0, channels, LANES):
            left = channels - c
            factor, constant, middle = three(norm, c, channels)
            s = q = all_of(0.0)
            for pixel in range(start, min(start + some, last * pixels)):
                x = load(z, pixel * channels + c, left)
                y = multiply_add(x, factor, constant)
                g = slope(y, load(grad, pixel * channels + c, left), activation)
                s, q = add(s, g), multiply_add(g, subtract(x, middle), q)
            store(sums, c, add(load(sums, c, left), widen(s)), left)
            store(sums, channels + c, add(load(sums, channels + c, left), widen(q)), left)


@inline
def add_five_sums(z, grad, norm, activation, sums, n, c, start, stop, channels):
    """What gated_gradient_sums adds for pixels of image n and the channels from c on."""
    left, (factor, constant, middle) = channels - c, three(norm, c, channels)
    s0 = s1 = s2 = s3 = s4 = all_of(0.0)
    for pixel in range(start, stop):
        x, g = load(z, pixel * channels + c, left), load(grad, pixel * channels + c, left)
        y = multiply_add(x, factor, constant)
        d = slope(y, all_of(1.0), activation)
        x, before = subtract(x, middle), slope(y, g, activation)
        s0 = multiply_add(g, activate(y, activation), s0)
        s1, s2 = add(s1, before), multiply_add(before, x, s2)
        s3, s4 = add(s3, d), multiply_add(d, x, s4)
    o = n * 5 * channels + c
    for s in (s0, s1, s2, s3, s4):
        store(sums, o, add(load(sums, o, left), widen(s)), left)
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
def before_norm(x, g, factor, constant, middle, activation, gated, times, plus, a, b, rest):
    """The gradient of x from that of activation(norm(x)), times a gate and plus its mean's if `gated`."""
    if gated:
        g = multiply_add(g, times, plus)
    g = slope(multiply_add(x, factor, constant), g, activation)
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
                left = channels - c
                factor, constant, middle = three(norm, c, channels)
                a, b, rest = three(factors, c, channels)
                times = load(gate, n * channels + c, left) if gated else a
                plus = load(pooled, n * channels + c, left) if gated else a
                for pixel in range(start, min(start + some, (n + 1) * pixels)):
                    i = pixel * channels + c
                    x, g = load(z, i, left), load(grad, i, left)
                    g = before_norm(x, g, factor, constant, middle, activation, gated, times, plus, a, b, rest)
                    store(out, i, g, left)

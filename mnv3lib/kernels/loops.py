"""The compiled loops, all of them."""

from mnv3lib.kernels.depthwise import depthwise, depthwise_gradient
from mnv3lib.kernels.norms import gated_gradient_sums, gradient, gradient_sums, moments, normalise, pool, settle
from mnv3lib.kernels.pointwise import pointwise, pointwise_gradient
from mnv3lib.kernels.vectors import CHANNELS, LANES

__all__ = [
    "CHANNELS",
    "LANES",
    "depthwise",
    "depthwise_gradient",
    "gated_gradient_sums",
    "gradient",
    "gradient_sums",
    "moments",
    "normalise",
    "pointwise",
    "pointwise_gradient",
    "pool",
    "settle",
]

"""MobileNet V1, V2 and V3 on CIFAR-100: the networks, the training loop and the report."""

from mnv3lib.errors import InputError
from mnv3lib.networks import Architecture, MobileNet, build
from mnv3lib.prediction import predict
from mnv3lib.recipe import Recipe
from mnv3lib.store import load

__all__ = ["Architecture", "InputError", "MobileNet", "Recipe", "build", "load", "predict"]

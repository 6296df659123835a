"""Channels that training has switched off: they say the same of every image."""

from contextlib import ExitStack

import pandas as pd
import torch

from mnv3lib import data
from mnv3lib.blocks import ConvNormActivation
from mnv3lib.data import Dataset
from mnv3lib.inference import resize
from mnv3lib.networks import MobileNet
from mnv3lib.training import Fit

LIMIT = 1e-3  # batch norm gives a channel a deviation of about one


@torch.inference_mode()
def count(network: MobileNet, inputs: torch.Tensor) -> pd.DataFrame:
    """A row an activated convolution with its norm: layer, nonlinearity, channels, dead.

    inputs: normalised images, float [n, 3, size, size], some hundred. A channel is dead if its output, after the
    activation, differs by less than LIMIT between all images and places. No gradient passes a ReLU that is never
    positive, so its channel stays dead (Lu et al. 2019, "Dying ReLU and Initialization", arXiv:1903.06733). The network
    is left in eval mode.
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, ConvNormActivation) and len(module) == 3
    }
    ranges = {}

    def follow(name):
        def hook(module, _, output):
            ranges[name] = output.amax((0, 2, 3)) - output.amin((0, 2, 3))

        return hook

    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_hook(follow(name)))
        network.eval()(inputs)
    return pd.DataFrame(
        {
            "layer": name,
            "nonlinearity": type(module[2]).__name__,
            "channels": len(ranges[name]),
            "dead": int((ranges[name] < LIMIT).sum()),
        }
        for name, module in layers.items()
    )


def of_run(fit: Fit, dataset: Dataset) -> dict:
    """What a run's record has of it: how many are dead behind each kind of activation, on 500 training images."""
    network, size = fit.network, fit.recipe.image_sizes[-1]
    split = data.parts(dataset, fit.recipe.split)[0]
    inputs = resize(data.normalise(split.images[:500], network.mean, network.std), size)
    counted = count(network, inputs.to(next(network.parameters()).device))
    return {"dead_channels": counted.groupby("nonlinearity")["dead"].sum().to_dict()}

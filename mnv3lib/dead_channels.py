"""Channels that training has switched off: they say the same of every image."""

import pandas as pd
import torch

from mnv3lib import data
from mnv3lib.blocks import ConvNormActivation
from mnv3lib.networks import MobileNet

LIMIT = 1e-3  # batch norm gives a channel a deviation of about one


@torch.inference_mode()
def count(network: MobileNet, images: torch.Tensor, portion: int = 250) -> pd.DataFrame:
    """A row an activated convolution with its norm: layer, nonlinearity, channels, dead.

    images: uint8 [n, size, size, 3]. A channel is dead if its output, after the activation, differs by less than LIMIT
    between all images and places. No gradient passes a ReLU that is never positive, so its channel stays dead (Lu et
    al. 2019, "Dying ReLU and Initialization", arXiv:1903.06733).
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, ConvNormActivation) and len(module) == 3
    }
    lowest, highest = {}, {}

    def follow(name):
        def hook(module, inputs, output):
            low, high = output.amin((0, 2, 3)), output.amax((0, 2, 3))
            lowest[name] = torch.minimum(lowest.get(name, low), low)
            highest[name] = torch.maximum(highest.get(name, high), high)

        return hook

    handles = [module.register_forward_hook(follow(name)) for name, module in layers.items()]
    try:
        network.eval()
        for some in images.split(portion):
            network(data.normalise(some, network.mean, network.std))
    finally:
        for handle in handles:
            handle.remove()
    return pd.DataFrame(
        {
            "layer": name,
            "nonlinearity": type(module[2]).__name__,
            "channels": len(lowest[name]),
            "dead": int((highest[name] - lowest[name] < LIMIT).sum()),
        }
        for name, module in layers.items()
    )

"""What networks do with their channels: those that training has switched off, and the gates that weigh the others."""

from collections.abc import Callable
from contextlib import ExitStack

import pandas as pd
import torch
from torch import nn

from mnv3lib import data
from mnv3lib.blocks import ConvNormActivation, SqueezeExcitation
from mnv3lib.data import Dataset
from mnv3lib.inference import resize
from mnv3lib.networks import MobileNet, evaluating
from mnv3lib.training import Fit

LIMIT = 1e-3  # batch norm gives a channel a deviation of about one


def count(network: MobileNet, inputs: torch.Tensor) -> pd.DataFrame:
    """A row an activated convolution with its norm: layer, nonlinearity, channels, dead.

    inputs: normalised images, float [n, 3, size, size], some hundred. A channel is dead if its output, after the
    activation, differs by less than LIMIT between all images and places. No gradient passes a ReLU that is never
    positive, so its channel stays dead (Lu et al. 2019, "Dying ReLU and Initialization", arXiv:1903.06733).
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, ConvNormActivation) and len(module) == 3
    }
    ranges = _outputs(network, inputs, layers, lambda output: output.amax((0, 2, 3)) - output.amin((0, 2, 3)))
    counted = {
        name: (type(layers[name][2]).__name__, len(one), int((one < LIMIT).sum())) for name, one in ranges.items()
    }
    table = pd.DataFrame.from_dict(counted, "index", columns=["nonlinearity", "channels", "dead"])
    return table.rename_axis("layer").reset_index()


def gates(network: MobileNet, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gate of each squeeze-excitation, [n, channels] in [0, 1], by the name of its block ("features.4").

    inputs: normalised images, float [n, 3, size, size].
    """
    layers = {
        ".".join(name.split(".")[:2]): module.scale_activation
        for name, module in network.named_modules()
        if isinstance(module, SqueezeExcitation)
    }
    return _outputs(network, inputs, layers, lambda output: output.flatten(1))


@torch.inference_mode()
def _outputs(network: MobileNet, inputs: torch.Tensor, layers: dict[str, nn.Module], reduce: Callable) -> dict:
    """What `reduce` makes of the output of each of `layers`, by their names; the whole outputs are not kept."""
    found = {}
    with ExitStack() as hooks:
        for name, module in layers.items():

            def hook(module, _, output, name=name):
                found[name] = reduce(output)

            hooks.enter_context(module.register_forward_hook(hook))
        hooks.enter_context(evaluating(network))
        network(inputs)
    return found


def of_run(fit: Fit, dataset: Dataset) -> dict:
    """What a run's record has of it: how many are dead behind each kind of activation, on 500 training images.

    Of images above 32 px it takes fewer, as many as take no more memory.
    """
    network, size = fit.network, fit.recipe.image_sizes[-1]
    split = data.parts(dataset, fit.recipe.split)[0]
    few = min(500, 500 * 32**2 // size**2 + 1)
    # Images of one's own lie class by class, and so are drawn.
    images = data.some(split.images, few) if dataset.digest else split.images[:few]
    inputs = resize(data.normalise(images, network.mean, network.std), size)
    counted = count(network, inputs.to(next(network.parameters()).device))
    return {"dead_channels": counted.groupby("nonlinearity")["dead"].sum().to_dict()}

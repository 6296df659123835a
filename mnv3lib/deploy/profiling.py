"""What a network's latency is made of: the time of each layer, batch norm folded away, the maps of hard swish."""

import copy
import re
from collections import defaultdict
from contextlib import ExitStack
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from mnv3lib import cost
from mnv3lib.blocks import ConvNormActivation, SqueezeExcitation
from mnv3lib.deploy.int8 import HARD_SWISH
from mnv3lib.deploy.timing import ROUNDS, forward, now, steady, turn
from mnv3lib.errors import InputError

KINDS = {  # of what cost.layers does not count
    **dict.fromkeys((nn.ReLU, nn.ReLU6, *HARD_SWISH), "activation"),
    nn.AdaptiveAvgPool2d: "pooling",
    SqueezeExcitation: "squeeze-excitation",
}


def original_last_stage(network: nn.Module) -> nn.Module:
    """A copy of a V3 network that ends as V2 does (V3 paper, figure 5, above), with fresh weights in what is changed.

    The expansion to the penultimate layer's channels is made on the whole map, after one more depthwise and projection
    layer; the paper's redesign makes it after the pooling and drops those layers (section 5.1).
    """
    changed = copy.deepcopy(network)
    last, head = changed.features[-1], changed.classifier
    if not changed.architecture.model.startswith("v3") or not isinstance(head[0], nn.Linear):
        raise InputError("the last stage was redesigned in V3: choose v3_small or v3_large with its penultimate layer")
    inputs, expanded, wide = last[0].in_channels, last[0].out_channels, head[0].out_features
    norm = partial(nn.BatchNorm2d, eps=last[1].eps, momentum=last[1].momentum)
    layer = partial(ConvNormActivation, norm=norm, nonlinearity="hard_swish")
    changed.features[-1] = nn.Sequential(
        last,
        layer(expanded, expanded, 3, groups=expanded),
        ConvNormActivation(expanded, 2 * inputs, 1, norm=norm, nonlinearity=None),
        layer(2 * inputs, wide, 1),
    )
    changed.classifier = head[2:]  # without the linear layer and its activation
    return changed


def layer_times(
    network: nn.Module, images: torch.Tensor, *, threads: int | None = None, seconds: float = 1.0
) -> pd.DataFrame:
    """Where the time of a forward pass goes: a row a layer with layer, kind, macs (one image) and median_ms.

    kind: pointwise, depthwise, standard, linear, batch norm, activation, pooling, squeeze-excitation (all that is
    within it), and in the last row the rest: additions, what Python needs between the layers, and the clock itself.
    """
    table = cost.layers(network, images.shape[-1]).set_index("layer")
    kinds, ticks = {}, defaultdict(list)  # of each layer, when it began and ended in turn
    call = forward(network, images)
    with ExitStack() as hooks, steady(threads):
        for name, layer in network.named_modules():
            kind = table["kind"].get(name) or KINDS.get(type(layer))
            if kind and not any(name.startswith(f"{outer}.") for outer in kinds):
                kinds[name] = kind

                def tick(*_, name=name):
                    ticks[name].append(now())

                hooks.enter_context(layer.register_forward_pre_hook(tick))
                hooks.enter_context(layer.register_forward_hook(tick))
        warm_up = turn(call, seconds / ROUNDS, now)
        whole = turn(call, seconds, now)
    times = {name: np.subtract(ticks[name][1::2], ticks[name][::2])[len(warm_up) :] for name in kinds}
    measured = 1000 * pd.DataFrame(times)
    measured["rest"] = 1000 * pd.Series(whole) - measured.sum(axis=1)
    found = pd.DataFrame({"layer": [*kinds, "rest"], "kind": [*kinds.values(), "rest"]})
    within = [table["macs"].filter(regex=rf"^{re.escape(name)}(\.|$)") for name in found["layer"]]
    return found.assign(macs=[int(macs.sum()) for macs in within], median_ms=measured.median().to_numpy())


def hard_swish_maps(network: nn.Module, size: int = 32) -> list[tuple[int, int, int]]:
    """[channels, height, width] of what goes into each hard swish of `network`, in order, for `size` px images."""
    shapes = []

    def note(module, inputs):
        if isinstance(module, HARD_SWISH):
            shapes.append(tuple(inputs[0].shape[1:]))

    with register_module_forward_pre_hook(note):
        forward(network, torch.zeros(1, 3, size, size))()
    return shapes

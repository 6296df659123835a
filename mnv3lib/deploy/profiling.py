"""What a network's latency is made of: the time of each layer, batch norm folded away, the maps of hard swish."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import pandas as pd
import torch
from torch import nn

from mnv3lib import cost
from mnv3lib.blocks import ComposedHardswish, ConvNormActivation, SqueezeExcitation
from mnv3lib.deploy.timing import ROUNDS, forward, now, steady, turn
from mnv3lib.errors import InputError

HARD_SWISH = (nn.Hardswish, ComposedHardswish)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, *HARD_SWISH)


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
    network: nn.Module,
    images: torch.Tensor,
    *,
    threads: int | None = None,
    seconds: float = 1.0,
    clock: Callable[[], float] = now,
) -> pd.DataFrame:
    """Where the time of a forward pass goes: a row a layer with layer, kind, macs (one image) and median_ms.

    kind: pointwise, depthwise, standard, linear, batch norm, activation, pooling, squeeze-excitation (all that is
    within it), and in the last row the rest: additions, what Python needs between the layers, and the clock itself.
    """
    table = cost.layers(network, images.shape[-1]).set_index("layer")
    kinds, started, times = {}, {}, {}
    for name, module in network.named_modules():
        kind = table["kind"].get(name) or _kind(module)
        if kind is None or any(name.startswith(f"{outer}.") for outer in kinds):
            continue
        kinds[name], times[name] = kind, []

    def start(name):
        return lambda *_: started.__setitem__(name, clock())

    def stop(name):
        return lambda *_: times[name].append(clock() - started[name])

    call = forward(network, images)
    with ExitStack() as hooks, steady(threads):
        for name in kinds:
            layer = network.get_submodule(name)
            hooks.enter_context(layer.register_forward_pre_hook(start(name)))
            hooks.enter_context(layer.register_forward_hook(stop(name)))
        warm_up = turn(call, seconds / ROUNDS, clock)
        whole = turn(call, seconds, clock)
    measured = 1000 * pd.DataFrame({name: taken[len(warm_up) :] for name, taken in times.items()})
    measured["rest"] = 1000 * pd.Series(whole) - measured.sum(axis=1)

    def macs(name: str) -> int:
        within = (table.index == name) | table.index.str.startswith(f"{name}.")
        return int(table.loc[within, "macs"].sum())

    return pd.DataFrame(
        {"layer": name, "kind": kind, "macs": macs(name), "median_ms": measured[name].median()}
        for name, kind in (kinds | {"rest": "rest"}).items()
    )


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, SqueezeExcitation):
        return "squeeze-excitation"
    if isinstance(module, ACTIVATIONS):
        return "activation"
    return "pooling" if isinstance(module, nn.AdaptiveAvgPool2d) else None


def hard_swish_maps(network: nn.Module, size: int = 32) -> list[tuple[int, int, int]]:
    """[channels, height, width] of what goes into each hard swish of `network`, in order, for `size` px images."""
    shapes = []
    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, HARD_SWISH):
                hooks.enter_context(
                    module.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[1:])))
                )
        forward(network, torch.zeros(1, 3, size, size))()
    return shapes

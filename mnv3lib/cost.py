"""What a network costs: parameters and multiply-accumulates (MACs), layer by layer."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import nn

from mnv3lib.networks import evaluating

if TYPE_CHECKING:
    import pandas

COUNTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


@torch.no_grad()
def layers(network: nn.Module, size: int = 32) -> "pandas.DataFrame":
    """One row per convolution, linear layer and batch normalisation, in the order in which they run.

    Columns: layer (its name in the network), kind, input and output (shape without the batch), kernel, stride, groups,
    parameters, macs (for one image of `size` x `size` pixels). As in the papers, batch normalisation has no MACs (it
    folds into the convolution before it) and additions, activations and pooling are not counted.
    """
    import pandas  # slow to import

    rows = []

    def record(name):
        def hook(module, inputs, output):
            shape = tuple(output.shape[1:])
            convolution = isinstance(module, nn.Conv2d)
            row = {
                "layer": name,
                "kind": _kind(module),
                "input": tuple(inputs[0].shape[1:]),
                "output": shape,
                "kernel": module.kernel_size[0] if convolution else None,
                "stride": module.stride[0] if convolution else None,
                "groups": module.groups if convolution else None,
                "parameters": sum(parameter.numel() for parameter in module.parameters()),
                "macs": 0,
            }
            if convolution:
                row["macs"] = module.weight.numel() * shape[1] * shape[2]
            elif isinstance(module, nn.Linear):
                row["macs"] = module.weight.numel()
            rows.append(row)

        return hook

    parameter = next(network.parameters())
    with ExitStack() as hooks:
        hooks.enter_context(evaluating(network))
        for name, module in network.named_modules():
            if isinstance(module, COUNTED):
                hooks.enter_context(module.register_forward_hook(record(name)))
        network(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
    return pandas.DataFrame(rows).astype({"kernel": "Int64", "stride": "Int64", "groups": "Int64"})


def pareto_front(table: "pandas.DataFrame", cost: str) -> "pandas.DataFrame":
    """The rows that no other beats in top1 at no more `cost`, a column; cheapest first. Missing values are dropped."""
    known = table.dropna(subset=[cost, "top1"]).sort_values([cost, "top1"], ascending=[True, False])
    return known[known["top1"] > known["top1"].cummax().shift(fill_value=-1.0)]


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.BatchNorm2d):
        return "batch norm"
    if module.groups > 1:
        return "depthwise"
    return "pointwise" if module.kernel_size == (1, 1) else "standard"


def totals(network: nn.Module, size: int = 32) -> tuple[int, int]:
    """(parameters, MACs for one image of `size` x `size` pixels)."""
    table = layers(network, size)
    return int(table["parameters"].sum()), int(table["macs"].sum())

"""The cost table: torch's own counter finds the same totals, and counting leaves no trace."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mnv3lib import build, cost

CASES = [
    ("v1", dict(), 32),
    ("v1", dict(width=0.5, num_classes=10, lowered_strides=0, squeeze_excitation="all"), 224),
    ("v2", dict(), 32),
    ("v2", dict(width=1.4, lowered_strides=1, penultimate=0), 47),
    ("v3_small", dict(), 32),
    ("v3_small", dict(width=0.25, lowered_strides=5, se_last=True, hard_swish="composed"), 24),
    ("v3_large", dict(num_classes=1000, lowered_strides=0), 224),
    ("v3_large", dict(width=0.35, squeeze_excitation="none", nonlinearity="relu", penultimate=64), 33),
]


@pytest.mark.parametrize(("model", "options", "size"), CASES, ids=[f"{case[0]}-{case[2]}" for case in CASES])
def test_totals_are_those_of_torchs_counter(model, options, size):
    network = build(model, **options).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, size, size))
    parameters, macs = cost.totals(network, size)
    assert 2 * macs == counter.get_total_flops()
    assert parameters == sum(parameter.numel() for parameter in network.parameters())


def test_rows_are_the_layers_in_order():
    network = build("v3_small", width=0.5, num_classes=10, lowered_strides=0)
    table = cost.layers(network, 64).set_index("layer")
    counted = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    assert sorted(table.index) == sorted(name for name, m in network.named_modules() if isinstance(m, counted))

    stem = table.loc["features.0.0"]
    assert (stem["kind"], stem["input"], stem["output"]) == ("standard", (3, 64, 64), (8, 32, 32))
    assert (stem["kernel"], stem["stride"], stem["groups"]) == (3, 2, 1)
    assert (stem["parameters"], stem["macs"]) == (3 * 8 * 9, 3 * 8 * 9 * 32 * 32)

    norm = table.loc["features.0.1"]
    assert (norm["kind"], norm["parameters"], norm["macs"]) == ("batch norm", 2 * 8, 0)

    depthwise = table.loc["features.1.block.0.0"]
    assert (depthwise["kind"], depthwise["groups"], depthwise["output"]) == ("depthwise", 8, (8, 16, 16))
    assert (depthwise["parameters"], depthwise["macs"]) == (8 * 9, 8 * 9 * 16 * 16)

    squeeze = table.loc["features.1.block.1.fc1"]
    assert (squeeze["kind"], squeeze["input"], squeeze["macs"]) == ("pointwise", (8, 1, 1), 8 * 8)

    logits = table.loc["classifier.3"]
    assert (logits["kind"], logits["input"], logits["output"]) == ("linear", (1024,), (10,))
    assert (logits["parameters"], logits["macs"]) == (1024 * 10 + 10, 1024 * 10)
    assert table["kernel"].isna().sum() == (table["kind"].isin(["linear", "batch norm"])).sum()

    # Each layer takes what the one before it gave, but for the branches of squeeze-excitation and the pooling.
    trunk = table[~table.index.str.contains("fc|classifier")]
    assert list(trunk["input"])[1:] == list(trunk["output"])[:-1]


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training):
    network = build("v2", width=0.25).train(training)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    cost.layers(network)
    assert all(module.training is training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_hooks_go_when_the_network_fails():
    network = build("v2", width=0.25)
    network.classifier[-1] = nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        cost.layers(network)
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())


def test_measured_where_the_network_is():
    network = build("v3_small", width=0.25)
    assert cost.totals(network.double()) == cost.totals(network.to("meta"))

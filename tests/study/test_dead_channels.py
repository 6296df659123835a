"""Dead channels are counted where they are, and nowhere else; gates are those that multiply."""

import dataclasses

import pytest
import torch
from torch import nn

from mnv3lib import build, data, training
from mnv3lib.blocks import InvertedResidual, SqueezeExcitation
from mnv3lib.study import dead_channels

INPUTS = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def fresh(model, width):
    """A network with random weights whose batch norms know INPUTS: no channel of it is dead."""
    torch.manual_seed(0)
    network = build(model, width=width)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(INPUTS)
    return network


@pytest.mark.parametrize(("model", "width", "layers"), [("v1", 0.25, 27), ("v2", 0.35, 35), ("v3_small", 0.25, 23)])
def test_every_activated_convolution_counts_and_a_fresh_network_has_no_dead_channel(model, width, layers):
    network = fresh(model, width)
    counted = dead_channels.count(network, INPUTS)
    activated = sum(isinstance(one, nn.ReLU | nn.ReLU6 | nn.Hardswish) for one in network.features.modules())
    inner = sum(name.endswith("fc1") for name, _ in network.named_modules())  # squeeze-excitation has a ReLU of its own
    assert len(counted) == layers == activated - inner
    assert counted["dead"].sum() == 0


def test_a_channel_is_dead_when_its_activation_never_moves():
    network = fresh("v3_small", 0.25)
    for layer in (network.features[2].block[0], network.features[5].block[0]):
        layer[1].bias.data[:3] = -100.0
        layer[1].bias.data[3] = -1.0  # below zero for most images and places, not for all
    counted = dead_channels.count(network, INPUTS).set_index("layer")
    assert counted.loc["features.2.block.0"].to_list() == ["ReLU", 40, 3]
    assert counted.loc["features.5.block.0"].to_list() == ["Hardswish", 96, 3]
    assert not any(module._forward_hooks for module in network.modules())


def test_a_record_counts_on_all_classes_of_images_of_ones_own(monkeypatch, few_digits, tiny):
    """They lie class by class, and a channel that answers to the last class alone is not dead."""
    labels = torch.arange(3).repeat_interleave(700)
    images = labels.to(torch.uint8)[:, None, None, None].expand(-1, 32, 32, 3)
    own = dataclasses.replace(few_digits, train=data.Split(images, labels), digest="0123456789ab")
    seen = []
    monkeypatch.setattr(dead_channels, "resize", lambda images, size: seen.append(images) or images)
    network = fresh("v3_small", 0.25)
    network.mean, network.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    dead_channels.of_run(training.Fit(tiny(split="full"), network, [], {}, {}), own)
    assert len(seen[0].unique()) == 3


def test_gates_are_those_that_multiply():
    torch.manual_seed(0)
    network = build("v3_small", width=0.25).eval()
    blocks = {
        f"features.{index}": block
        for index, block in enumerate(network.features)
        if isinstance(block, InvertedResidual) and any(isinstance(m, SqueezeExcitation) for m in block.modules())
    }
    for open_, block in zip([True, False] * 5, blocks.values(), strict=False):
        squeeze = next(m for m in block.modules() if isinstance(m, SqueezeExcitation))
        nn.init.zeros_(squeeze.fc2.weight)
        nn.init.constant_(squeeze.fc2.bias, 10 if open_ else -10)
    found = dead_channels.gates(network, torch.randn(3, 3, 32, 32))
    assert list(found) == list(blocks)
    for open_, gate in zip([True, False] * 5, found.values(), strict=False):
        assert gate.shape[0] == 3
        assert (gate == (1 if open_ else 0)).all()
    assert not any(m._forward_hooks for m in network.modules())


def test_a_run_tells_in_its_record(tiny, few_digits):
    fit = training.fit_recipe(tiny(), few_digits, log=lambda line: None)
    told = dead_channels.of_run(fit, few_digits)["dead_channels"]
    assert set(told) == {"ReLU", "Hardswish"} and all(isinstance(number, int) for number in told.values())

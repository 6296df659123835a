"""Kernels of a training step: as exact as torch's own in its default layout, and out of the way everywhere else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mnv3lib import build, kernels, training

EPS = torch.finfo(torch.float32).eps


def off(result, exact):
    """How far `result` is from the float64 tensor `exact`, in the norm of the whole, relative to it."""
    return ((result.double() - exact).norm() / exact.norm()).item()


def as_exact(result, usual, exact, rounding=4 * EPS):
    """Whether `result` is at most three times as far from `exact` as torch's `usual`, or within `rounding`."""
    return off(result, exact) <= max(3 * off(usual, exact), rounding)


# Layers: inputs, outputs, kernel, stride, groups, height, width
CONVOLUTIONS = [
    (24, 24, 5, 1, 24, 8, 8),
    (24, 24, 5, 2, 24, 8, 8),
    (24, 24, 5, 1, 24, 5, 6),
    (24, 24, 5, 2, 24, 7, 4),
    (24, 24, 5, 1, 24, 9, 7),
    (24, 24, 5, 2, 24, 9, 7),
    (24, 24, 5, 1, 24, 1, 1),
    (24, 24, 5, 2, 24, 2, 2),
    (40, 40, 3, 1, 40, 8, 8),
    (40, 40, 3, 2, 40, 7, 9),
    (24, 8, 1, 1, 1, 7, 8),
    (8, 24, 1, 1, 1, 8, 8),
    (72, 40, 1, 1, 1, 8, 8),
    (3, 16, 3, 2, 1, 9, 8),
]


@pytest.mark.parametrize("batch", [2, 129])
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_gradients_of_a_convolution(shape, batch):
    inputs, outputs, kernel, stride, groups, height, width = shape
    torch.manual_seed(0)
    x, weight = torch.randn(batch, inputs, height, width), torch.randn(outputs, inputs // groups, kernel, kernel)
    options = (stride, stride), (kernel // 2, kernel // 2), groups

    def gradients(x, weight, convolution):
        x, weight = x.requires_grad_(), weight.requires_grad_()
        out = convolution(x, weight)
        gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
        return out, *torch.autograd.grad(out, (x, weight), gradient)

    def torchs(x, weight):
        return F.conv2d(x, weight, None, *options[:2], 1, groups)

    exact = gradients(x.double(), weight.double(), torchs)
    usual = gradients(x.clone(), weight.clone(), torchs)
    last = x.to(memory_format=torch.channels_last)
    ours = gradients(last, weight, lambda x, weight: kernels._Convolution.apply(x, weight, *options))
    for name, *results in zip(("output", "input", "weight"), ours, usual, exact, strict=True):
        # torch's gradient of 3x3 depthwise kernels is that far off too: oneDNN adds all images up in float32.
        rounding = 1e-5 if name == "weight" and groups > 1 else 4 * EPS
        assert as_exact(*(result.detach() for result in results), rounding), name


def step(network, images, call):
    """What a training step leaves behind: logits, gradients of all parameters and of `images`, running statistics."""
    images = images.clone().requires_grad_()
    network.zero_grad()
    torch.manual_seed(5)  # of dropout
    logits = call(network.train(), images)
    targets = torch.arange(len(images)) % logits.shape[1]
    F.cross_entropy(logits, targets).backward()
    named = {"logits": logits.detach(), "images": images.grad}
    named |= {name: parameter.grad for name, parameter in network.named_parameters()}
    return named | {name: buffer.clone() for name, buffer in network.named_buffers()}


def plainly(network, images):
    return network(images)


@pytest.mark.parametrize("options", [dict(model=model) for model in ("v1", "v2", "v3_small", "v3_large")], ids=str)
def test_a_step_is_the_plain_one(options):
    torch.manual_seed(2)
    network = build(width=0.25, num_classes=7, dropout=0.2, **options).to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(4, 3, 16, 18).to(memory_format=torch.channels_last)
    ours = step(network, images, kernels.forward)
    network.load_state_dict(before)
    plain = step(network, images, plainly)
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_where_the_kernels_serve():
    network, images = build("v3_small", width=0.25), torch.zeros(2, 3, 8, 8)
    assert kernels.serve(network.train(), images)
    assert not kernels.serve(network.eval(), images)
    network.train()
    assert not kernels.serve(network, images.double())
    assert not kernels.serve(network, images.to("meta"))
    assert not kernels.serve(nn.Sequential(network), images)
    with torch.no_grad():
        assert not kernels.serve(network, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels.serve(network, images)
    with network.features[0][2].register_forward_hook(lambda *_: None):
        assert not kernels.serve(network, images)
    assert kernels.serve(network, images)
    assert not kernels.serve(network.double(), images)


def test_training_takes_them(monkeypatch):
    network, images = build("v2", width=0.25), torch.randn(2, 3, 8, 8)
    seen = []
    monkeypatch.setattr(kernels, "_run", lambda module, x, run=kernels._run: seen.append(module) or run(module, x))
    training.gradients(network.train(), images, torch.tensor([0, 1]), 0.1)
    assert len(seen) > 50
    assert all(parameter.grad is not None for parameter in network.parameters())
    seen.clear()
    network.eval()(images)
    assert not seen

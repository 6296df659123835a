"""Kernels of a training step: as exact as torch's own in its default layout, and out of the way everywhere else."""

import copy
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
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
    ours = gradients(last, weight, lambda x, weight: kernels.Convolution.apply(x, weight, *options))
    for name, *results in zip(("output", "input", "weight"), ours, usual, exact, strict=True):
        # torch's gradient of 3x3 depthwise kernels is that far off too: oneDNN adds all images up in float32.
        rounding = 1e-5 if name == "weight" and groups > 1 else 4 * EPS
        assert as_exact(*(result.detach() for result in results), rounding), name


def test_pooling_keeps_the_layout_of_the_gradient():
    torch.manual_seed(8)
    x = torch.randn(4, 16, 5, 7).to(memory_format=torch.channels_last).requires_grad_()
    pooled = kernels._pool(x)
    torch.testing.assert_close(pooled.flatten(1), x.mean((2, 3)))
    (gradient,) = torch.autograd.grad(pooled.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 1 / 35))
    assert gradient.is_contiguous(memory_format=torch.channels_last)


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


@pytest.fixture(params=["torch", "numba"])
def way(request, monkeypatch):
    """Without Numba, and with it."""
    if request.param == "torch":
        monkeypatch.setattr(kernels.calling, "loops", lambda: None)
    elif kernels.calling.loops() is None:
        pytest.skip("Numba is not installed")
    return request.param


# Network, batch and size of the images.
STEPS = [
    (dict(model="v1", lowered_strides=2), 2, 9, 7),
    (dict(model="v2"), 4, 16, 18),
    (dict(model="v3_small"), 4, 16, 18),
    (dict(model="v3_small", width=0.5, lowered_strides=0, se_last=True, nonlinearity="hard_swish"), 129, 33, 32),
    (dict(model="v3_large", lowered_strides=1, nonlinearity="hard_swish"), 2, 17, 16),
    (dict(model="v3_small", nonlinearity="relu", squeeze_excitation="all"), 3, 16, 16),
    (dict(model="v2", nonlinearity="hard_swish", hard_swish="composed", squeeze_excitation="all"), 3, 8, 8),
    (dict(model="v1", nonlinearity="hard_swish"), 3, 8, 8),
    (dict(model="v3_small", stochastic_depth=0.5), 8, 16, 16),
]


@pytest.mark.parametrize("options", STEPS, ids=str)
def test_a_step_is_as_exact_as_torchs(options, way):
    """Logits, all gradients and running statistics, against float64."""
    architecture, batch, height, width = options
    torch.manual_seed(2)
    network = build(**dict(width=0.25, num_classes=7, dropout=0.0) | architecture)
    images = torch.randn(batch, 3, height, width)
    exact = step(copy.deepcopy(network).double(), images.double(), plainly)
    usual = step(copy.deepcopy(network), images, plainly)
    ours = step(network.to(memory_format=torch.channels_last), images, kernels.forward)
    assert exact.keys() == ours.keys()
    parameters = [name for name, _ in network.named_parameters()]
    statistics = [name for name, _ in network.named_buffers() if "running" in name]
    for names in (["logits"], statistics, ["images"], parameters):
        results = [torch.cat([result[name].flatten() for name in names]) for result in (ours, usual, exact)]
        rounding = 2e-6
        if way == "torch" or (
            names not in (["logits"], statistics) and architecture.get("nonlinearity") != "hard_swish"
        ):
            # torch's own norm in channels_last is that far off, and so is any gradient where a single ReLU falls on
            # the other side of its kink.
            rounding = 1e-2
        assert as_exact(*results, rounding), names[:1]


def test_a_processor_without_avx_512_is_served_too():
    """The narrower vectors, in a process whose Numba is told of such a processor."""
    if platform.machine() not in ("x86_64", "AMD64") or kernels.calling.loops() is None:
        pytest.skip("Numba compiles for this machine's kind of processor alone")
    told = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2"}
    code = (
        "import test_kernels as t; from mnv3lib.kernels.loops import LANES; assert LANES == 8; "
        "t.test_a_step_is_as_exact_as_torchs(t.STEPS[0], 'numba')"
    )
    where = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | told, cwd=where, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_dropout_and_counts_are_the_plain_ones(way):
    network = build("v3_small", width=0.25, num_classes=7, dropout=0.2, stochastic_depth=0.5)
    images = torch.randn(4, 3, 16, 16)
    before = copy.deepcopy(network.state_dict())
    plain = step(network, images, plainly)
    network.load_state_dict(before)
    ours = step(network, images, kernels.forward)
    torch.testing.assert_close(ours["logits"], plain["logits"], rtol=1e-4, atol=1e-5)
    counts = [name for name in plain if "num_batches" in name]
    assert all(torch.equal(ours[name], plain[name]) for name in counts)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_the_same_step_twice_is_the_same_bit_for_bit(way):
    network = build("v3_small", width=0.25, num_classes=7)
    images = torch.randn(5, 3, 16, 16)
    first, second = (step(copy.deepcopy(network), images, kernels.forward) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_threads_do_what_one_does(way, two_threads):
    network = build("v3_small", width=0.25, num_classes=7)
    images = torch.randn(5, 3, 16, 16)
    assert kernels.way().split()[0] == way
    first, second = (step(copy.deepcopy(network), images, kernels.forward) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.set_num_threads(1)
    alone = step(copy.deepcopy(network), images, kernels.forward)
    torch.testing.assert_close(first["logits"], alone["logits"], rtol=1e-4, atol=1e-5)


def test_every_part_is_done_by_a_thread_of_a_team(two_threads):
    if kernels.calling.team() is None:
        pytest.skip("torch has no OpenMP that lends its threads")
    seen, both = {}, threading.Barrier(2, timeout=30)

    def work(part, first, last):
        both.wait()  # which one thread alone would do in vain
        seen[part] = first, last

    kernels.calling.share(5, work)
    assert seen == {0: (0, 2), 1: (2, 5)}

    def fail(part, first, last):
        if part == 1:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        kernels.calling.share(5, fail)


def test_threads_that_cannot_be_lent_leave_the_step_to_torch(monkeypatch, two_threads):
    monkeypatch.setattr(kernels.calling, "team", lambda: None)
    assert kernels.way() == "torch"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("model", ["v2", "v3_small"])
def test_what_is_no_number_goes_through_as_in_torch(way, model, value):
    network = build(model, width=0.25, num_classes=7, dropout=0.0)
    images = torch.randn(3, 3, 16, 16)
    images[1, 0, 2, 3] = value
    plain = step(copy.deepcopy(network), images, plainly)
    ours = step(copy.deepcopy(network), images, kernels.forward)
    for name in plain:
        hidden = ours[name].isfinite() & ~plain[name].isfinite()
        assert not hidden.any(), name
    for name in ("logits", *(name for name, _ in network.named_buffers())):
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.Hardswish])
def test_activations_at_their_kinks(kind):
    """Values and slopes are torch's there too."""
    loops = pytest.importorskip("mnv3lib.kernels.loops")
    z = torch.tensor([-torch.inf, -4, -3, -1.5, -0.0, 0, 1e-30, 1.5, 3, 6, 7, torch.nan, torch.inf, -1, 2, -2])
    z.requires_grad_()
    expected = kind()(z)
    expected.sum().backward()
    identity = np.repeat(np.array([1, 0, 0], np.float32), 16)  # scale, shift and mean; and what the gradient is made of
    out, grad, one = np.empty(16, np.float32), np.empty(16, np.float32), np.ones(16, np.float32)
    arrays, activation, sizes = z.detach().numpy(), kernels.ACTIVATIONS[kind], (0, 1, 1, 16)
    loops.normalise(arrays, identity, activation, False, one, False, one, out, *sizes)
    np.testing.assert_allclose(out, expected.detach().numpy(), rtol=1e-6, atol=1e-7)
    loops.gradient(arrays, one, identity, activation, identity, False, one, one, grad, *sizes)
    finite = z.detach().isfinite().numpy()
    np.testing.assert_allclose(grad[finite], z.grad.numpy()[finite], rtol=1e-6, atol=1e-7)


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


def test_the_way_has_a_name(way):
    assert kernels.way().split()[0] == way
    network = build("v3_small", width=0.25)
    assert kernels.way(network).split()[0] == way
    training.freeze(network, "norms")
    assert kernels.way(network) == "torch", "they make the gradients of all parameters or of none"


def test_without_numba_torch_makes_the_step(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("loops", "norms", "depthwise", "pointwise", "vectors"):
        monkeypatch.delitem(sys.modules, f"mnv3lib.kernels.{name}", raising=False)
        monkeypatch.delattr(kernels, name, raising=False)
    kernels.calling.loops.cache_clear()
    try:
        assert kernels.way() == "torch"
    finally:
        kernels.calling.loops.cache_clear()


def test_what_was_compiled_serves_later_processes():
    """Numba looks code up by what a function holds on to, which must be the same in another process."""
    loops = pytest.importorskip("mnv3lib.kernels.loops")
    for loop in (loops.depthwise(3, 1), loops.depthwise_gradient(5, 2)):
        held = [cell.cell_contents for cell in loop.py_func.__closure__]
        assert all(isinstance(each, int) for each in held), held


def test_a_place_that_cannot_be_written_to_keeps_nothing(monkeypatch):
    vectors = pytest.importorskip("mnv3lib.kernels.vectors")

    def njit(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda loop: loop

    monkeypatch.setattr(vectors.numba, "njit", njit)
    assert vectors.compiled(len) is len

"""Networks in int8 answer as they do in fp32, those with odd weights too."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mnv3lib import networks, store
from mnv3lib.blocks import SqueezeExcitation
from mnv3lib.deploy import formats, int8, latency, onnx_files, openvino_files
from mnv3lib.recipe import MODELS
from mnv3lib.study import labelling


@pytest.fixture(scope="module")
def photographs():
    images = labelling.photographs(labelling.images_folder())
    return torch.cat(list(onnx_files.floats(images)))


def answers(network, images, mean=(0, 0, 0), std=(1, 1, 1)):
    """Of PyTorch and of onnxruntime in int8: float32 [n, classes] each, and the file's content."""
    model = int8.quantized(network, images, mean, std)
    onnx.checker.check_model(model)
    with torch.inference_mode():
        normal = (images - torch.tensor(mean).reshape(3, 1, 1)) / torch.tensor(std).reshape(3, 1, 1)
        expected = network.eval()(normal).numpy()
    opened = onnx_files.open_session(model.SerializeToString(), threads=1)
    return expected, opened.run(None, {"images": images.numpy()})[0], model


def alike(expected, got) -> float:
    """How well answers agree: the correlation of all logits."""
    return np.corrcoef(expected.ravel(), got.ravel())[0, 1]


def test_a_trained_network_sees_the_same_in_photographs(photographs):
    network = store.load("mobilenet_v3_small_0.25")
    expected, got, model = answers(network, photographs, network.mean, network.std)
    assert (expected.argmax(1) == got.argmax(1)).mean() >= 0.8
    assert alike(expected, got) > 0.98
    weights = sum(one.numel() for one in network.parameters())
    assert len(model.SerializeToString()) < 0.4 * 4 * weights


@pytest.mark.parametrize("model", MODELS)
def test_every_network_is_int8_throughout(model, photographs):
    torch.manual_seed(0)
    network = latency.settle(networks.build(model, width=0.25, num_classes=7), 32)
    expected, got, written = answers(network, photographs)
    assert got.shape == (len(photographs), 7)
    assert alike(expected, got) > 0.9  # untrained logits are near zero
    operations = Counter(node.op_type for node in written.graph.node)
    whole = {"QLinearConv", "QLinearMul", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm", "Clip", "Flatten"}
    first = {"Sub", "Div", "QuantizeLinear"} | ({"Conv", "HardSwish", "Mul"} if "v3" in model else set())
    assert {name: count for name, count in operations.items() if name not in whole} == dict.fromkeys(first, 1)


def test_hard_swish_and_gate_are_right_to_a_step():
    """Of a layer that hands its input on: the values can be computed by hand."""
    layer = nn.Conv2d(3, 3, 1)
    nn.init.dirac_(layer.weight)
    nn.init.zeros_(layer.bias)
    values = torch.linspace(-6, 6, 3 * 32 * 32).reshape(1, 3, 32, 32)
    for activation, step in ((nn.Hardswish(), 9 / 255), (nn.Hardsigmoid(), 1 / 254), (nn.ReLU(), 6 / 255)):
        network = nn.Sequential(layer, layer, activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
        nn.init.eye_(network[-1].weight)
        nn.init.zeros_(network[-1].bias)
        expected, got, _ = answers(network, values)
        np.testing.assert_allclose(got, expected, atol=2 * step)


ODD = ["a channel that is always zero", "weights near zero with a bias", "an activation that never varies", "all zero"]


def odd(kind):
    """A small network in which something is degenerate."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Hardswish(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        SqueezeExcitation(8),
        nn.Conv2d(8, 24, 1), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    with torch.no_grad():
        if kind == "a channel that is always zero":
            network[0].weight[3] = network[0].bias[3] = 0
            network[2].weight[5] = network[2].bias[5] = 0
        elif kind == "weights near zero with a bias":
            for layer in network[0], network[2], network[5]:
                layer.weight[2], layer.bias[2] = 1e-9, 1.0
                layer.weight[4], layer.bias[4] = -1e-12, -2.0
        elif kind == "an activation that never varies":
            network[2].weight.zero_()
            network[2].bias.fill_(0.7)
        elif kind == "all zero":
            network[2].weight.zero_()
            network[2].bias.zero_()
    return network


@pytest.mark.parametrize("kind", ODD)
def test_odd_weights_stay_right(kind, photographs):
    network = odd(kind)
    expected, got, model = answers(network, photographs)
    spread = max(np.abs(expected).max(), 0.1)
    np.testing.assert_allclose(got, expected, atol=0.05 * spread)
    for constant in map(onnx.numpy_helper.to_array, model.graph.initializer):
        assert np.isfinite(constant).all()
        if constant.dtype == np.int32:  # with a bias, the sum of products still fits
            assert np.abs(constant.astype(np.int64)).max() <= 1.001 * int8.LARGEST_BIAS  # scales are rounded


@pytest.mark.parametrize("kind", ODD)
def test_odd_weights_stay_right_in_openvino(kind, photographs, tmp_path):
    pytest.importorskip("nncf")
    network = odd(kind).eval()
    formats.fill(network, "openvino-int8", tmp_path, photographs)
    with torch.inference_mode():
        expected = network(photographs).numpy()
    spread = max(np.abs(expected).max(), 0.1)
    np.testing.assert_allclose(openvino_files.opened(tmp_path)(photographs.numpy()), expected, atol=0.05 * spread)


def test_weights_for_openvino_suit_processors_without_vnni(photographs, tmp_path):
    """Two products of a byte and a weight have to fit in 16 bits there, but for those of a depthwise layer."""
    pytest.importorskip("nncf")
    formats.fill(odd("none").eval(), "openvino-int8", tmp_path, photographs)
    operations = openvino_files._extra("openvino").Core().read_model(tmp_path / "network.xml").get_ops()
    constants = [one for one in operations if one.get_type_name() == "Constant"]
    weights = [one.data for one in constants if one.get_element_type().get_type_name() == "i8"]
    largest = {values.shape: np.abs(values.astype(int)).max() for values in weights}
    assert largest.pop((8, 1, 1, 3, 3)) == 127
    assert largest.keys() == {(8, 3, 3, 3), (24, 8, 1, 1), (5, 24)}
    assert max(largest.values()) <= 64


def test_ranges_leave_out_the_largest_values_whatever_the_batch(monkeypatch):
    class Twice(nn.Module):
        def forward(self, x):
            return x + x

    values = torch.linspace(-1, 2, 100_000)[torch.randperm(100_000, generator=torch.Generator().manual_seed(0))]
    for batch in (1, 7, 100):
        monkeypatch.setattr(onnx_files, "BATCH", batch)
        low, high = int8.ranges(torch.fx.symbolic_trace(Twice()), values.reshape(100, 10, 10, 10))["add"]
        assert low == -2  # no value below it, so nothing is cut
        assert high == pytest.approx(2 * values.sort().values[-10].item())  # a ten-thousandth of 100,000


def test_one_wide_channel_before_a_hard_swish_does_no_harm(photographs):
    """The others would have few steps left, and so would what is added to them."""

    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.activation = nn.Conv2d(3, 8, 3, padding=1), nn.Hardswish()
            self.branch, self.behind = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1)
            self.end = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))

        def forward(self, x):
            x = self.activation(self.first(x))
            return self.end(self.behind(x + self.branch(x)))

    torch.manual_seed(1)
    network = Added()
    with torch.no_grad():
        network.first.weight *= 4
        network.first.weight[4] *= 1000
        network.behind.weight[:, 4] /= 1000
    expected, got, model = answers(network, photographs)
    assert alike(expected - expected.mean(0), got - expected.mean(0)) > 0.99
    assert "HardSwish" in {node.op_type for node in model.graph.node}

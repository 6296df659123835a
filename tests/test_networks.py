"""The networks: equal to torchvision's, as large as the papers say, and each option does what it says."""

import math
from functools import cache

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from mnv3lib import Architecture, InputError, build, cost
from mnv3lib.blocks import (
    ComposedHardswish,
    ConvNormActivation,
    InvertedResidual,
    SqueezeExcitation,
    activation,
    make_divisible,
)
from mnv3lib.recipe import MODELS
from mnv3lib.study import published

TORCHVISION = {
    "v2": torchvision.models.mobilenet_v2,
    "v3_small": torchvision.models.mobilenet_v3_small,
    "v3_large": torchvision.models.mobilenet_v3_large,
}
PARAMETERS = {"v2": 3_504_872, "v3_small": 2_542_856, "v3_large": 5_483_032}
BLOCKS = {"v1": 13, "v2": 17, "v3_small": 11, "v3_large": 15}
SE_BLOCKS = {"v1": 0, "v2": 0, "v3_small": 9, "v3_large": 8}


@pytest.mark.parametrize("model", MODELS)
def test_features_are_extracted_as_from_torchvisions(model):
    """By torch.fx, which follows no branch; and by hooks, with gradients of a loaded network's maps."""
    network = build(model, width=0.25, num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    found = create_feature_extractor(network, {"features.3": "early", "avgpool": "pooled"})(images)
    torch.testing.assert_close(found["early"], network.features[:4](images))
    torch.testing.assert_close(network.classifier(found["pooled"].flatten(1)), network(images))
    maps = []
    hook = network.requires_grad_(False).features[-1].register_forward_hook(lambda *given: maps.append(given[-1]))
    (gradient,) = torch.autograd.grad(network(images.requires_grad_())[0].max(), maps)
    hook.remove()
    assert gradient.shape == maps[0].shape and gradient.abs().sum() > 0


@cache
def sketch(model, **options):
    """A network without memory for weights: shapes and sizes only. Shared, so not to be changed."""
    with torch.device("meta"):
        return build(model, **{"initialization": "torch", **options}).eval()


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


def kinds(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


def randomise_norms(network):
    """Statistics and scales that are not 0 and 1, so that forgetting one shows."""
    for module in kinds(network, nn.BatchNorm2d):
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, std=0.2)
        nn.init.normal_(module.running_mean, std=0.2)
        nn.init.uniform_(module.running_var, 0.5, 1.5)


@pytest.fixture(scope="module", params=TORCHVISION)
def pair(request):
    """Ours and torchvision's network for ImageNet, with the same random weights."""
    torch.manual_seed(1)
    theirs = TORCHVISION[request.param]()
    randomise_norms(theirs)
    ours = build(request.param, num_classes=1000, lowered_strides=0, dropout=None)
    ours.load_state_dict(theirs.state_dict())
    return request.param, ours, theirs


def test_keys_and_shapes_are_torchvisions(pair):
    _, ours, theirs = pair
    assert [(key, value.shape) for key, value in ours.state_dict().items()] == [
        (key, value.shape) for key, value in theirs.state_dict().items()
    ]


def test_logits_are_torchvisions(pair):
    _, ours, theirs = pair
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = theirs.eval()(images)
        logits = ours.eval()(images)
    assert expected.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_training_step_is_torchvisions(pair):
    """Gradients, dropout and the running statistics of batch normalisation."""
    _, ours, theirs = pair
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    for network in (theirs, ours):
        torch.manual_seed(4)
        network.train().zero_grad()
        nn.functional.cross_entropy(network(images), torch.tensor([3, 997])).backward()
    for (name, expected), (_, parameter) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: n + m)
    assert max(parameter.grad.abs().max() for parameter in theirs.parameters()) > 0.01
    for (name, expected), (_, buffer) in zip(theirs.named_buffers(), ours.named_buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("model", TORCHVISION)
def test_initial_weights_are_torchvisions(model):
    torch.manual_seed(5)
    theirs = TORCHVISION[model](num_classes=10).state_dict()
    torch.manual_seed(5)
    ours = build(model, num_classes=10).state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("model", PARAMETERS)
def test_exact_number_of_parameters(model):
    assert size(sketch(model, num_classes=1000)) == PARAMETERS[model]


@pytest.mark.parametrize(
    ("model", "name"), [("v3_large", "mobilenetv3_large_100"), ("v3_small", "mobilenetv3_small_100")]
)
def test_timm_has_as_many_parameters(model, name):
    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False)
    assert size(sketch(model, num_classes=1000)) == size(theirs)


def agrees(value, printed, half_unit):
    """Whether `value` is within 3 % of a printed number, give or take what its last digit leaves open."""
    return abs(value - printed) <= 0.03 * printed + half_unit


PAPER_ROWS = [
    row for source in ("V1 paper", "V2 paper", "V3 paper") for row in published.load(source).itertuples(index=False)
]


@pytest.mark.parametrize("row", PAPER_ROWS, ids=lambda row: f"{row.network}-{row.width}-{row.resolution}")
def test_cost_is_the_papers(row):
    # Table 9's parameters of Large 1.25 are those of the network whose penultimate layer is not widened.
    penultimate = 1280 if (row.network, row.width) == ("v3_large", 1.25) else None
    network = sketch(row.network, width=row.width, num_classes=row.classes, lowered_strides=0, penultimate=penultimate)
    parameters, macs = cost.totals(network, row.resolution)
    assert agrees(macs / 1e6, row.macs_m, 0.5)
    if (row.network, row.width) != ("v2", 1.4):  # see test_v2_is_torchvisions_at_every_width
        assert agrees(parameters / 1e6, row.parameters_m, 0.05)


@pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 1.3, 1.4])
def test_v2_is_torchvisions_at_every_width(width):
    """At 1.4 too, where the V2 paper prints 6.9 million parameters and such a network has 6.1."""
    with torch.device("meta"):
        theirs = torchvision.models.mobilenet_v2(width_mult=width).state_dict()
    ours = sketch("v2", width=width, num_classes=1000).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert width != 1.4 or not agrees(size(sketch("v2", width=1.4, num_classes=1000)) / 1e6, 6.9, 0.05)


def test_published_has_every_width_of_the_v3_paper():
    widths = published.load("V3 paper").groupby("network")["width"].apply(sorted).to_dict()
    assert widths == {model: [0.35, 0.5, 0.75, 1.0, 1.25] for model in ("v3_large", "v3_small")}


def test_large_125_is_widened_as_in_the_official_code():
    network = sketch("v3_large", width=1.25, num_classes=1000, lowered_strides=0)
    assert network.classifier[0].out_features == 1600
    parameters, macs = cost.totals(network, 224)
    assert parameters == 8_256_296
    assert not agrees(parameters / 1e6, 7.5, 0.05)
    assert agrees(macs / 1e6, 356, 0.5)


@pytest.mark.parametrize("model", ["v2", "v3_small", "v3_large"])
def test_penultimate_layer_is_not_narrowed(model):
    outputs = {"v2": 1280, "v3_small": 1024, "v3_large": 1280}[model]
    for width in (0.25, 0.5, 1.0):
        assert sketch(model, width=width).classifier[-1].in_features == outputs
    assert sketch(model, width=1.5).classifier[-1].in_features == 1.5 * outputs


def test_published_numbers_are_complete():
    table = published.load()
    assert set(table["network"]) == set(MODELS)
    original = published.load("original report").set_index(["network", "width"])["top1"].to_dict()
    assert original == {
        ("v3_small", 0.25): 60.13,
        ("v3_small", 0.5): 66.37,
        ("v3_small", 1.0): 69.44,
        ("v3_large", 0.25): 65.03,
        ("v3_large", 0.5): 69.5,
        ("v3_large", 1.0): 71.75,
    }
    assert table.loc[table["source"] != "original report", "url"].str.startswith("https://").all()
    with pytest.raises(InputError, match=r"unknown source 'V4 paper'.*V3 paper"):
        published.load("V4 paper")


@pytest.mark.parametrize("lowered", range(6))
@pytest.mark.parametrize("model", MODELS)
def test_lowered_strides_keep_the_maps_large(model, lowered):
    network = sketch(model, width=0.25, lowered_strides=lowered)
    side = 2**lowered
    assert network.features(torch.empty(1, 3, 32, 32, device="meta")).shape[2:] == (side, side)
    strides = [module.stride[0] for module in kinds(network, nn.Conv2d)]
    assert strides.count(2) == 5 - lowered
    usual = [module.stride[0] for module in kinds(sketch(model, lowered_strides=0), nn.Conv2d)]
    lowered_at = [index for index, stride in enumerate(usual) if stride == 2][:lowered]
    assert [stride for index, stride in enumerate(usual) if index not in lowered_at] == [
        stride for index, stride in enumerate(strides) if index not in lowered_at
    ]


@pytest.mark.parametrize("model", ["v3_small", "v3_large"])
def test_last_5x5_layers_see_8x8_maps(model):
    table = cost.layers(sketch(model), 32)
    fives = table[table["kernel"] == 5]
    assert [shape[1:] for shape in fives["output"].tail(3)] == [(8, 8)] * 3


@pytest.mark.parametrize("model", MODELS)
def test_lowering_strides_changes_no_weight(model):
    shapes = [
        {key: value.shape for key, value in sketch(model, lowered_strides=n).state_dict().items()} for n in (0, 3)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("pixels", [1, 7, 33])
@pytest.mark.parametrize("model", MODELS)
def test_any_size_of_input(model, pixels):
    network = build(model, width=0.25, num_classes=7, lowered_strides=0).eval()
    assert network(torch.zeros(2, 3, pixels, pixels + 1)).shape == (2, 7)


def nonlinearities(network):
    """The kinds of activation outside squeeze-excitation, whose own are fixed."""
    inside = {id(module) for block in kinds(network, SqueezeExcitation) for module in block.modules()}
    every = (nn.ReLU, nn.ReLU6, nn.Hardswish, ComposedHardswish)
    return {type(module) for module in kinds(network, every) if id(module) not in inside}


@pytest.mark.parametrize(
    ("model", "of_the_paper"),
    [
        ("v1", {nn.ReLU}),
        ("v2", {nn.ReLU6}),
        ("v3_small", {nn.ReLU, nn.Hardswish}),
        ("v3_large", {nn.ReLU, nn.Hardswish}),
    ],
)
def test_nonlinearity(model, of_the_paper):
    assert nonlinearities(sketch(model)) == of_the_paper
    assert nonlinearities(sketch(model, nonlinearity="relu")) == {nn.ReLU}
    assert nonlinearities(sketch(model, nonlinearity="hard_swish")) == {nn.Hardswish}
    assert nonlinearities(sketch(model, nonlinearity="hard_swish", hard_swish="composed")) == {ComposedHardswish}


def test_composed_hard_swish_equals_the_fused():
    networks = []
    for kind in ("fused", "composed"):
        torch.manual_seed(6)
        networks.append(build("v3_small", width=0.35, num_classes=10, dropout=0.0, hard_swish=kind))
    images = torch.randn(4, 3, 16, 16)
    logits = [network(images) for network in networks]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
    for result in logits:
        result.square().sum().backward()
    fused, composed = ([parameter.grad for parameter in network.parameters()] for network in networks)
    torch.testing.assert_close(composed, fused, rtol=1e-2, atol=1e-4)


def test_hard_swish_is_x_times_relu6_of_x_plus_3_over_6():
    x = torch.tensor([-4.0, -3.0, -1.5, 0.0, 1.0, 3.0, 5.0])
    expected = torch.tensor([0.0, 0.0, -0.375, 0.0, 4 / 6, 3.0, 5.0])
    torch.testing.assert_close(ComposedHardswish()(x), expected)
    torch.testing.assert_close(activation("hard_swish")(x.clone()), expected)


@pytest.mark.parametrize("model", MODELS)
def test_squeeze_excitation(model):
    assert len(kinds(sketch(model), SqueezeExcitation)) == SE_BLOCKS[model]
    assert len(kinds(sketch(model, squeeze_excitation="none"), SqueezeExcitation)) == 0
    assert len(kinds(sketch(model, squeeze_excitation="all"), SqueezeExcitation)) == BLOCKS[model]
    every = build(model, width=0.25, squeeze_excitation="all").eval()
    assert torch.isfinite(every(torch.randn(1, 3, 16, 16))).all()


def test_squeeze_excitation_scales_channels():
    torch.manual_seed(7)
    block = SqueezeExcitation(64)
    assert block.fc1.out_channels == 16
    x = torch.randn(2, 64, 5, 5) * 4
    gate = block.gate(x)
    assert gate.shape == (2, 64, 1, 1)
    assert 0 <= gate.min() < gate.max() <= 1
    torch.testing.assert_close(block(x), x * gate)
    pooled = x.mean((2, 3))
    hidden = (pooled @ block.fc1.weight.flatten(1).T + block.fc1.bias).relu()
    expected = ((hidden @ block.fc2.weight.flatten(1).T + block.fc2.bias) / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(gate.flatten(1), expected)


def test_squeeze_excitation_on_the_last_convolution_of_small():
    with_se, without = sketch("v3_small", se_last=True), sketch("v3_small")
    assert isinstance(with_se.features[-1], SqueezeExcitation)
    assert with_se.features[-1].fc2.out_channels == 576
    assert size(with_se) - size(without) == 576 * 144 + 144 + 144 * 576 + 576


@pytest.mark.parametrize("model", ["v2", "v3_small", "v3_large"])
def test_penultimate(model):
    assert sketch(model, penultimate=333).classifier[-1].in_features == 333
    assert sketch(model, penultimate=333, width=2.0).classifier[-1].in_features == 333
    before = {"v2": 320, "v3_small": 576, "v3_large": 960}[model]
    network = sketch(model, penultimate=0)
    assert network.classifier[-1].in_features == before
    assert len(kinds(network.classifier, nn.Linear)) == 1


def test_dropout():
    def probability(model, **options):
        (dropout,) = kinds(sketch(model, **options), nn.Dropout)
        return dropout.p

    assert [probability(model) for model in MODELS] == [0.0, 0.2, 0.2, 0.2]
    assert [probability(model, dropout=0.35) for model in MODELS] == [0.35] * 4
    assert probability("v2", dropout=0) == 0


def test_norm_momentum_and_epsilon():
    for model, (momentum, eps) in {"v1": (0.1, 1e-5), "v2": (0.1, 1e-5), "v3_small": (0.01, 1e-3)}.items():
        assert {(norm.momentum, norm.eps) for norm in kinds(sketch(model), nn.BatchNorm2d)} == {(momentum, eps)}
        changed = sketch(model, norm_momentum=0.3)
        assert {(norm.momentum, norm.eps) for norm in kinds(changed, nn.BatchNorm2d)} == {(0.3, eps)}


def test_initialization_torch():
    """Uniform up to 1/sqrt(fan-in), torch's default."""
    torch.manual_seed(8)
    network = build("v3_small", initialization="torch")
    for layer in kinds(network, nn.Conv2d | nn.Linear):
        bound = 1 / math.sqrt(layer.weight[0].numel())
        assert 0.5 * bound < layer.weight.abs().max() <= bound
    assert kinds(network, nn.Linear)[-1].bias.abs().max() > 0


def test_initialization_kaiming_normal():
    torch.manual_seed(8)
    network = build("v3_small", initialization="kaiming_normal")
    for layer in kinds(network, nn.Conv2d | nn.Linear):
        assert layer.bias is None or not layer.bias.any()
        if layer.weight.numel() > 5000:
            fan_out = layer.weight.shape[0] * layer.weight[0, 0].numel()
            expected = 0.01 if isinstance(layer, nn.Linear) else math.sqrt(2 / fan_out)
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_initialization_truncated_normal():
    torch.manual_seed(8)
    network = build("v3_small", initialization="truncated_normal")
    for layer in kinds(network, nn.Conv2d | nn.Linear):
        assert layer.bias is None or not layer.bias.any()
        assert layer.weight.abs().max() <= 0.18
        if layer.weight.numel() > 5000:
            # A normal cut at two deviations keeps 0.880 of its deviation.
            assert layer.weight.std().item() == pytest.approx(0.09 * 0.8796, rel=0.03)


@pytest.mark.parametrize("model", ["v2", "v3_small", "v3_large"])
def test_zero_init_makes_residual_blocks_the_identity(model):
    network = build(model, lowered_strides=0, zero_init_residual=True)
    residual = [block for block in kinds(network, InvertedResidual) if block.has_residual]
    assert len(residual) == {"v2": 10, "v3_small": 6, "v3_large": 10}[model]
    for block in residual:
        x = torch.randn(2, kinds(block, nn.Conv2d)[-1].out_channels, 4, 4)
        assert torch.equal(block(x), x)
    usual = kinds(build(model, width=0.25), InvertedResidual)
    assert all(block.last_norm.weight.all() for block in usual)


def test_stochastic_depth_is_torchvisions():
    """Images skip blocks in training, the last block with the probability given, those before with less."""
    network = build("v3_small", lowered_strides=0, stochastic_depth=0.6).train()
    residual = [block for block in kinds(network, InvertedResidual) if block.has_residual]
    assert [block.stochastic_depth for block in residual] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    block, x = residual[-1], torch.randn(64, kinds(residual[-1], nn.Conv2d)[-1].out_channels, 4, 4)
    torch.manual_seed(0)
    out = block(x)
    torch.manual_seed(0)
    expected = x + torchvision.ops.stochastic_depth(block.layers(x), 0.6, "row")
    torch.testing.assert_close(out, expected)
    assert 20 < sum(torch.equal(one, same) for one, same in zip(out, x, strict=True)) < 55
    block.eval()
    assert torch.equal(block(x), x + block.layers(x))


def test_projection_has_no_activation():
    for block in kinds(sketch("v2"), InvertedResidual) + kinds(sketch("v3_large"), InvertedResidual):
        last = list(block.layers.modules())[-1]
        assert isinstance(last, nn.BatchNorm2d)
        assert last is block.last_norm


def test_stride_2_rounds_up():
    layer = ConvNormActivation(3, 8, 5, 2, norm=nn.BatchNorm2d, nonlinearity=None)
    assert layer(torch.zeros(2, 3, 7, 10)).shape == (2, 8, 4, 5)


def test_make_divisible():
    assert [make_divisible(n) for n in (1, 8, 11, 12, 17, 19, 20, 100)] == [8, 8, 16, 16, 16, 24, 24, 104]
    for channels in range(1, 2000):
        rounded = make_divisible(channels / 3)
        assert rounded % 8 == 0
        assert rounded >= 0.9 * channels / 3


def test_widths_follow_the_papers_convention():
    """The expansion is the ratio of the paper's table times the scaled input, not a column scaled by itself."""
    network = sketch("v3_small", width=0.75)
    block = kinds(network, InvertedResidual)[2]
    convolutions = kinds(block, nn.Conv2d)
    assert convolutions[0].in_channels == make_divisible(24 * 0.75) == 24 - 8 + 8
    assert convolutions[0].out_channels == make_divisible(convolutions[0].in_channels * 88 / 24)


WRONG = [
    (dict(model="v4"), "model 'v4'.*v1, v2, v3_small, v3_large"),
    (dict(model=["v1"]), "model"),
    (dict(width=0), "width 0.*above 0"),
    (dict(width=-1.0), "width -1"),
    (dict(width=4.5), "width 4.5.*at most 4"),
    (dict(width="0.5"), "width '0.5'"),
    (dict(width=True), "width True"),
    (dict(width=math.nan), "width nan"),
    (dict(width=math.inf), "width inf"),
    (dict(num_classes=0), "num_classes 0.*from 1"),
    (dict(num_classes=10.0), "num_classes 10.0.*whole"),
    (dict(lowered_strides=9), "lowered_strides 9.*from 0 to 5"),
    (dict(lowered_strides=-1), "lowered_strides -1"),
    (dict(lowered_strides=True), "lowered_strides True"),
    (dict(nonlinearity="gelu"), "nonlinearity 'gelu'.*paper, relu, hard_swish"),
    (dict(hard_swish="fast"), "hard_swish 'fast'.*fused, composed"),
    (dict(squeeze_excitation="some"), "squeeze_excitation 'some'.*paper, none, all"),
    (dict(squeeze_excitation=True), "squeeze_excitation True"),
    (dict(se_last="yes"), "se_last 'yes'"),
    (dict(model="v3_large", se_last=True), "se_last.*v3_small.*v3_large"),
    (dict(penultimate=-8), "penultimate -8"),
    (dict(penultimate=12.5), "penultimate 12.5"),
    (dict(model="v1", penultimate=8), "penultimate.*v1"),
    (dict(dropout=1.0), "dropout 1.0"),
    (dict(dropout=-0.1), "dropout -0.1"),
    (dict(initialization="xavier"), "initialization 'xavier'.*torch, kaiming_normal, truncated_normal"),
    (dict(initialization=["torch"]), "initialization"),
    (dict(zero_init_residual=None), "zero_init_residual None"),
    (dict(norm_momentum=0), "norm_momentum 0"),
    (dict(norm_momentum=1.5), "norm_momentum 1.5"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[str(options) for options, _ in WRONG])
def test_impossible_values_are_named(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**{"model": "v3_small", **options})
    assert isinstance(caught.value, InputError)
    assert "\n" not in str(caught.value)


def test_unknown_arguments_are_named():
    with pytest.raises(ValueError, match=r"widht.*width, num_classes.*norm_momentum"):
        build("v2", widht=0.5)
    with pytest.raises(ValueError, match="model"):
        build()
    with pytest.raises(ValueError, match="too many"):
        build(*["v2"] * 15)


def test_build_takes_every_field_of_architecture():
    network = build("v3_small", 0.5, 10, 2, nonlinearity="relu", penultimate=64)
    expected = Architecture(
        "v3_small", width=0.5, num_classes=10, lowered_strides=2, nonlinearity="relu", penultimate=64
    )
    assert network.architecture == expected

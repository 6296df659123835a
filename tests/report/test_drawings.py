import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from mnv3lib import build, cost
from mnv3lib.blocks import InvertedResidual, SqueezeExcitation
from mnv3lib.errors import InputError
from mnv3lib.recipe import MODELS
from mnv3lib.report import drawings


def words(figure) -> str:
    """All text of a drawing."""
    text = " ".join(text.get_text() for axes in figure.axes for text in [axes.title, *axes.texts])
    plt.close(figure)
    return " ".join(text.split())


def meta(model, **options):
    with torch.device("meta"):
        return build(model, **options)


@pytest.mark.parametrize("model", MODELS)
def test_blocks_leave_nothing_out(model):
    table = drawings.blocks(meta(model, width=0.5), 32)
    assert (table["parameters"].sum(), table["MACs"].sum()) == cost.totals(meta(model, width=0.5), 32)


def test_blocks_are_the_papers_rows():
    table = drawings.blocks(meta("v3_small", lowered_strides=0, num_classes=1000), 224).set_index("block")
    columns = ["input", "operator", "expansion", "output", "SE", "NL", "s", "residual"]
    assert [str(cell) for cell in table.loc["features.4", columns]] == [
        *("28×28×24", "bottleneck 5×5", "96", "14×14×40", "✓", "HS", "2", "")
    ]
    assert table.loc["features.5", "residual"] == "✓"
    assert table.loc["features.3", "NL"] == "RE"
    assert table.loc["classifier.0", "NL"] == "HS"
    assert table.loc["classifier.3", "NL"] == ""


def test_drawing_says_what_the_block_does():
    network = meta("v2", lowered_strides=0)
    plain = words(drawings.draw_block(network.features[3], (24, 56, 56), "a title"))
    for part in ("a title", "144 ch. 56×56", "depthwise 3×3 stride 1 BN, ReLU6", "BN, linear", "the input is added"):
        assert part in plain
    strided = words(drawings.draw_block(network.features[2], (16, 112, 112)))
    assert "stride 2" in strided and "no residual: the stride is 2" in strided
    wider = words(drawings.draw_block(network.features[11], (64, 14, 14)))
    assert "no residual: input and output differ in channels" in wider


def test_drawing_of_a_gate():
    network = meta("v3_small", lowered_strides=0)
    text = words(drawings.draw_block(network.features[5], (40, 14, 14)))
    assert "1×1, 240 → 64, ReLU 1×1, 64 → 240, hard sigmoid" in text
    assert "gate" not in words(drawings.draw_block(network.features[3], (24, 28, 28)))


def test_macs_of_the_steps_are_those_of_the_network():
    network = meta("v3_large")
    layers = cost.layers(network, 32)
    for index, block in enumerate(network.features):
        part = layers[layers["layer"].str.startswith(f"features.{index}.")]
        assert sum(step.macs for step in drawings.steps(block, part["input"].iloc[0])) == part["macs"].sum()


def test_draws_blocks_alone():
    with pytest.raises(InputError, match="cannot draw Linear"):
        drawings.draw_block(nn.Linear(2, 2), (2, 1, 1))


def test_drawing_leaves_training_mode_and_statistics():
    block = build("v3_small").train().features[4]
    before = {name: value.clone() for name, value in block.state_dict().items()}
    drawings.steps(block, (24, 8, 8))
    assert block.training
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


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
    found = drawings.gates(network, torch.randn(3, 3, 32, 32))
    assert list(found) == list(blocks)
    for open_, gate in zip([True, False] * 5, found.values(), strict=False):
        assert gate.shape[0] == 3
        assert (gate == (1 if open_ else 0)).all()
    assert not any(m._forward_hooks for m in network.modules())
    plt.close(drawings.draw_gates(found))


def test_shares_of_cost_add_up():
    figure = drawings.where_cost_sits({"a": meta("v3_small", width=0.25), "b": meta("v1", width=0.25)}, 32)
    for axes in figure.axes:
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100)
    plt.close(figure)


def test_map_sizes_end_where_the_network_does():
    networks = {"small": {count: meta("v3_small", width=0.25, lowered_strides=count) for count in (0, 3)}}
    figure = drawings.map_sizes(networks, 32)
    assert [line.get_ydata()[-1] for line in figure.axes[0].lines] == [1, 8]
    assert "3 lowered: 8×8" in words(figure)

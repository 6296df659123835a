"""What notebook 01 says of the papers' blocks: its tables of blocks and its drawings, from the cells that make them."""

import json

import matplotlib.pyplot as plt
import pytest

from mnv3lib import cost
from mnv3lib.provenance import ROOT
from mnv3lib.recipe import MODELS


@pytest.fixture(scope="module")
def page() -> dict:
    """The names that the cells with the parameters, the imports and the functions define."""
    notebook = json.loads((ROOT / "notebooks" / "01_versions_explained.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names = {}
    with plt.rc_context():
        for marker in ("models_folder =", "import ", "def block_table(", "def draw_block("):
            exec(next(cell for cell in cells if marker in cell), names)
    return names


def words(figure) -> str:
    """All text of a drawing."""
    text = " ".join(text.get_text() for axes in figure.axes for text in [axes.title, *axes.texts])
    plt.close(figure)
    return " ".join(text.split())


@pytest.mark.parametrize("model", MODELS)
def test_blocks_leave_nothing_out(page, model):
    network = page["shapes_only"](model, width=0.5)
    table = page["block_table"](network, 32)
    assert (table["parameters"].sum(), table["MACs"].sum()) == cost.totals(network, 32)


def test_blocks_are_the_papers_rows(page):
    table = page["block_table"](page["paper_networks"]["v3_small"], 224).set_index("block")
    columns = ["input", "operator", "expansion", "output", "SE", "NL", "s", "residual"]
    assert [str(cell) for cell in table.loc["features.4", columns]] == [
        *("28×28×24", "bottleneck 5×5", "96", "14×14×40", "✓", "HS", "2", "")
    ]
    assert table.loc["features.5", "residual"] == "✓"
    assert table.loc["features.3", "NL"] == "RE"
    assert table.loc["classifier.0", "NL"] == "HS"
    assert table.loc["classifier.3", "NL"] == ""


def test_a_drawing_says_what_the_block_does(page):
    plain = words(page["draw_block"](page["paper_networks"]["v2"], "features.3", "a title"))
    for part in ("a title", "144 ch. 56×56", "depthwise 3×3 stride 1 BN, ReLU6", "BN, linear", "the input is added"):
        assert part in plain
    strided = words(page["draw_block"](page["paper_networks"]["v2"], "features.2", ""))
    assert "stride 2" in strided and "residual" not in strided


def test_a_drawing_of_a_gate(page):
    network = page["paper_networks"]["v3_small"]
    text = words(page["draw_block"](network, "features.5", ""))
    assert "1×1, 240 → 64, ReLU 1×1, 64 → 240, hard sigmoid 30.7k MACs" in text
    assert "gate" not in words(page["draw_block"](network, "features.3", ""))

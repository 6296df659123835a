"""The variants of notebook 05."""

import math

import pytest
import scipy.stats

from mnv3lib import ablations, plots, recipe
from mnv3lib.errors import InputError


def test_an_axis_changes_what_it_says_and_nothing_else():
    variants = ablations.recipes("strides", width=0.25, epochs=2)
    assert [made.lowered_strides for made in variants.values()] == [0, 1, 2, 3]
    for made in variants.values():
        assert (made.width, made.epochs) == (0.25, 2)
    differing = {
        name
        for made in variants.values()
        for name, value in made.as_dict().items()
        if value != variants["0-lowered"].as_dict()[name]
    }
    assert differing == {"lowered_strides", "variant"}
    assert len({made.run for made in variants.values()}) == len(variants)


def test_unknown_axis_and_a_change_of_what_is_varied_are_named():
    with pytest.raises(InputError, match="unknown axis 'colour': choose from strides"):
        ablations.recipes("colour")
    with pytest.raises(InputError, match="lowered_strides is what the axis strides varies"):
        ablations.recipes("strides", lowered_strides=1)


def test_table_of_no_records():
    assert ablations.table({}).empty


def record(variant, top1, seed=0, seconds=60.0, **fields):
    made = recipe.make(width=0.25, variant=variant, seed=seed, **fields)
    return {"recipe": made.as_dict(), "result": {"top1": top1}, "macs": 1_000_000, "seconds": seconds}


def test_variants_are_compared_with_the_base():
    records = [
        record("smoother", 61.0, label_smoothing=0.1),
        record("base", 60.0),
        record("base", 60.4, seed=1, seconds=120.0),
        record("base", 60.8, seed=2),
        record("larger", 58.0, batch_size=256, learning_rate=0.6),
        record("larger", 59.0, seed=1, batch_size=256, learning_rate=0.6),
    ]
    table = ablations.compare(records).set_index("variant")
    assert list(table.index) == ["base", "smoother", "larger"]
    assert table["change"].tolist() == ["", "label_smoothing 0.1", "batch_size 256, learning_rate 0.6"]
    assert table["seeds"].tolist() == [3, 1, 2]
    assert table["top1"].tolist() == pytest.approx([60.4, 61.0, 58.5])
    assert table["difference"].tolist() == pytest.approx([math.nan, 0.6, -1.9], nan_ok=True)
    assert table["seconds"]["base"] == 80.0
    # With the base and `larger` alone the variance is pooled over both, as in Student's test of two samples.
    theirs = scipy.stats.ttest_ind([58.0, 59.0], [60.0, 60.4, 60.8]).confidence_interval(0.95)
    assert tuple(table.loc["larger", ["low", "high"]]) == pytest.approx((theirs.low, theirs.high))
    assert math.isnan(table["spread"]["smoother"]) and table["low"]["smoother"] < 0.6 < table["high"]["smoother"]


def test_single_runs_have_no_interval_and_a_base_is_needed():
    table = ablations.compare([record("base", 60.0), record("other", 61.0, crop=2)])
    assert table["difference"][1] == 1.0 and math.isnan(table["low"][1])
    assert "–" in ablations.style(table).to_html()
    with pytest.raises(InputError, match="no run of the variant 'base' to compare with: other"):
        ablations.compare([record("other", 61.0)])


def test_a_field_that_an_older_record_lacks_is_at_its_default():
    older = record("base", 60.0)
    del older["recipe"]["depthwise_decay"]
    table = ablations.compare([older, record("same", 60.0), record("without", 60.0, depthwise_decay=False)])
    assert table["change"].tolist() == ["", "", "depthwise_decay False"]


def test_figure_of_differences_has_a_row_a_variant():
    records = [record("base", 60.0), record("base", 60.5, seed=1), record("one", 61.0, crop=2)]
    figure = plots.differences(ablations.compare(records), "title")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one"]
    assert [text.get_text() for text in axes.texts] == ["+0.75 (1 seed)"]

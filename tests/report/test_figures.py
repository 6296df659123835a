"""What the figures share, and what those without a module of their own must show."""

import io
import itertools
import warnings

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text

from mnv3lib.report import figures
from mnv3lib.study import ablations, claims, results, statistics


@pytest.fixture(autouse=True)
def style():
    with plt.style.context("mnv3lib.report.figures"):
        yield
    plt.close("all")


def test_names_hide_neither_lines_nor_points_nor_each_other():
    axes = plt.figure().subplots()
    axes.plot([1, 2, 3], [1, 2, 3], "o-")
    axes.scatter([1.05, 2.1], [1, 2], marker="*")
    axes.set(xlim=(0, 3), ylim=(0, 4))
    points = [
        (1, 1, "a long name", "black"),
        (1.05, 1, "star", "0.4"),
        (2, 2, "middle", "black"),
        (3, 3, "end", "black"),
    ]
    figures.name_points(axes, points)
    assert [text.get_text() for text in axes.texts] == [name for _, _, name, _ in points]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    on_line = axes.transData.transform([(x / 100, x / 100) for x in range(100, 300)])
    stars = axes.transData.transform([(1.05, 1), (2.1, 2)])
    assert not any(box.contains(*pixel) for box in boxes for pixel in [*on_line, *stars])
    assert all(axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) for box in boxes)


def test_lines_are_named_at_their_right_ends_and_no_name_hides_another():
    axes = plt.figure().subplots()
    axes.set(ylim=(0, 10))
    for label, last in (("upper", 9.0), ("one", 5.0), ("two", 5.01), ("three", 4.99)):
        axes.plot([1, 2, 3], [0, 5, last], label=label)
    axes.errorbar([3, 1], [2, 0], yerr=[1, 1], label="bars", color="black")
    axes.plot([1, 3], [1, 1])
    figures.name_lines(axes)
    axes.figure.canvas.draw()
    names = {text.get_text(): text for text in axes.texts}
    assert names.keys() == {"upper", "one", "two", "three", "bars"}
    boxes = {name: Text.get_window_extent(text) for name, text in names.items()}  # without the line to the end
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes.values(), 2))
    assert boxes["three"].y0 < boxes["one"].y0 < boxes["two"].y0
    assert names["bars"].xy == (3, 2) and names["bars"].get_color() == "black"
    assert all(box.x0 > axes.transData.transform((3, 0))[0] for box in boxes.values())


def test_claims_are_drawn_with_their_verdicts_and_where_they_say_that_differences_lie():
    records = ablations.load_records(ablations.folder())
    tests = claims.tests(ablations.results(records), results.load_runs(), statistics.seed_spread(records))
    figure = figures.claims(tests, limits=(-12, 6))
    (axes,) = figure.axes
    told = [text.get_text() for text in axes.texts]
    for verdict in claims.verdicts(tests).itertuples():
        assert f"{verdict.claim.replace('`', '')}: {verdict.verdict}" in told
    strides = tests[tests["axis"] == "strides"].iloc[0]  # tens of points lower: outside, and so its band is cut
    assert f"{strides['difference']:+.1f} (1, 1 runs)" in told
    (place,) = [text.get_position()[1] for text in axes.texts if text.get_text() == "the paper's against three lowered"]
    (arrow,) = [line for line in axes.lines if line.get_marker() == "<" and line.get_ydata()[0] == place]
    assert arrow.get_xdata()[0] == -12
    (band,) = [
        box for box in (each.get_datalim(axes.transData) for each in axes.collections) if box.y0 < place < box.y1
    ]
    assert (band.x0, band.x1) == (-12, -10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is warned of is printed on the page
        figure.savefig(io.BytesIO())
    plt.close(figure)

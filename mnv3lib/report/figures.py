"""Every figure of the report, in one style: legible in print and to the colour-blind."""

import io
import itertools
import json
import os
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.ticker import LogLocator, NullFormatter

from mnv3lib import provenance
from mnv3lib.deploy.timing import milliseconds
from mnv3lib.report import tables
from mnv3lib.study.claims import Verdict, verdicts

COLOURS = mpl.color_sequences["petroff10"]  # made to be told apart with any colour vision (Petroff 2021)
MODEL_STYLE = {
    "v1": {"color": COLOURS[2], "marker": "s", "label": "MobileNet V1"},
    "v2": {"color": COLOURS[1], "marker": "^", "label": "MobileNet V2"},
    "v3_small": {"color": COLOURS[0], "marker": "o", "label": "MobileNet V3 Small"},
    "v3_large": {"color": COLOURS[4], "marker": "D", "label": "MobileNet V3 Large"},
}
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))  # right and up
LINES = ("-", "--", ":", "-.")
HATCHES = ("", "//", "..", "xx", "--", "oo")


def use_style() -> None:
    """Make the style of the report matplotlib's default; the first cell of a notebook calls it."""
    plt.style.use("mnv3lib.report.figures")


def show(
    figure: plt.Figure,
    name: str,
    *,
    alt: str,
    caption: str,
    data: pd.DataFrame | None = None,
    photographs: bool = False,
    folder: str | os.PathLike = "../figures",
) -> None:
    """Write `folder`/`name`.svg, or .png where that is smaller, and show it with its alternative text and caption.

    alt: what the figure says, for a reader who cannot see it; caption: how to read it (Markdown); data: what is drawn,
    for `name`.csv beside it; photographs: whether it has some, which a dark page must not turn into negatives. The
    file's metadata tell what made it: commit, versions, processor and time.
    """
    from IPython.display import SVG, Image, Markdown, display

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = {"Title": name, "Description": alt, "Source": json.dumps(provenance.environment())}
    software, now = f"mnv3lib, {provenance.commit()}", provenance.now()
    forms = {
        "svg": made | {"Creator": software, "Date": now},
        "png": made | {"Comment": caption, "Software": software, "Creation Time": now},
    }
    files = {}
    for form, metadata in forms.items():
        files[form] = io.BytesIO()
        figure.savefig(files[form], format=form, metadata=metadata)
    plt.close(figure)
    form, content = min(((form, file.getvalue()) for form, file in files.items()), key=lambda one: len(one[1]))
    (folder / f"{name}.{form}").write_bytes(content)
    about = {"alt": alt, "caption": caption, "name": name, "file": f"{name}.{form}", "photographs": photographs}
    about["width"] = round(figure.get_figwidth() * 96)
    if data is not None:
        about["data"] = f"{name}.csv"
        data.to_csv(folder / about["data"], index=False, float_format="%.6g", lineterminator="\n")
    kind, shown = ("image/svg+xml", SVG(content)) if form == "svg" else ("image/png", Image(content))
    display(shown, metadata={kind: about})
    display(Markdown(f"*{caption}*"), metadata={"caption": True})


def columns(table: pd.DataFrame) -> pd.DataFrame:
    """Those columns of ablations.results or ablations.compare that `differences` and others draw, for a CSV."""
    return table[[name for name in "axis variant seeds top1 difference low high macs".split() if name in table]]


def logarithmic(axis: mpl.axis.Axis) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def name_points(axes: plt.Axes, names: list[tuple[float, float, str, object]]) -> None:
    """Write each (x, y, name, colour) beside its point, on the side where it hides least of what is drawn.

    To be called last: what is drawn later is not seen, and the limits of the axes must not change any more.
    """
    axes.figure.canvas.draw()  # settles the layout
    drawn, taken = _drawn(axes), [legend.get_window_extent() for legend in [axes.get_legend()] if legend]
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    for x, y, name, colour in names:
        text = axes.annotate(name, (x, y), (0, 0), "data", "offset points", fontsize=8, color=colour, path_effects=halo)
        hidden = []
        for box in (_move(text, side) for side in SIDES):
            outside = not (axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max))
            points = np.all((box.min < drawn) & (drawn < box.max), axis=1).sum()
            hidden.append(points + 100 * (box.count_overlaps(taken) + outside))
        taken.append(_move(text, SIDES[np.argmin(hidden)]))


def name_lines(axes: plt.Axes) -> None:
    """Write the label of each line behind its right end, in its colour, in place of a legend; none hides another.

    To be called last, as `name_points`.
    """
    axes.figure.canvas.draw()
    scale = 72 / axes.figure.dpi  # points a pixel
    lines = [handle[0] if isinstance(handle, tuple) else handle for handle in axes.get_legend_handles_labels()[0]]
    ends = [max(line.get_xydata().tolist()) for line in lines]
    heights = scale * axes.transData.transform(ends)[:, 1] if ends else []
    order, places = np.argsort(heights), np.array(heights)
    for _ in range(200):  # those closer than a line of text move apart, half of the way each
        gaps = np.clip(12 - np.diff(places[order]), 0, None) / 2
        places[order[:-1]] -= gaps
        places[order[1:]] += gaps
    places += max(0, scale * axes.bbox.y0 + 6 - min(places, default=0))  # none below the axes
    for line, label, end, shift in zip(lines, axes.get_legend_handles_labels()[1], ends, places - heights, strict=True):
        leader = {"arrowstyle": "-", "color": "0.6", "lw": 0.6, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 1}
        look = {"color": line.get_color(), "fontsize": 8, "va": "center", "arrowprops": leader}
        axes.annotate(label, end, (12, shift), "data", "offset points", annotation_clip=False, **look)


def _move(text: plt.Annotation, side: tuple[int, int]) -> mpl.transforms.Bbox:
    """Put `text` on this side of its point; the pixels that it takes there."""
    right, up = side
    alignment = {"ha": ("center", "left", "right")[right], "va": ("center", "bottom", "top")[up]}
    text.set(position=(6 * right, 6 * up), **alignment)
    return text.get_window_extent()


def _drawn(axes: plt.Axes) -> np.ndarray:
    """Pixels along all lines of `axes`, and those of all marks: [n, 2]."""
    paths = []
    for line in axes.lines:
        paths += [line.get_xydata()] if line.get_linestyle() != "None" else list(line.get_xydata()[:, None])
    for collection in axes.collections:
        lines = isinstance(collection, mpl.collections.LineCollection)
        paths += collection.get_segments() if lines else list(collection.get_offsets()[:, None])
    pixels = [np.empty((0, 2))]
    for path in paths:
        corners = axes.transData.transform(path)
        pixels.append(corners)  # a mark has no line
        for start, end in itertools.pairwise(corners):
            pixels.append(np.linspace(start, end, 2 + int(np.hypot(*(end - start)) / 5)))
    return np.concatenate(pixels)


def differences(table: pd.DataFrame, title: str) -> plt.Figure:
    """A point and, where there is one, a 95 % interval for each variant's difference to the base.

    `table` is as ablations.compare makes it; points without an interval are hollow.
    """
    rows = table.dropna(subset=["difference"])
    figure, axes = plt.subplots(figsize=(7.5, 0.4 * len(rows) + 1.3))
    for position, row in enumerate(rows.itertuples()):
        known = pd.notna(row.low)
        if known:
            axes.plot([row.low, row.high], [position, position], color=COLOURS[0])
        axes.plot(row.difference, position, "o", color=COLOURS[0], markerfacecolor=None if known else "white")
        told = f"{row.difference:+.2f} ({row.seeds} seed{'' if row.seeds == 1 else 's'})"
        axes.text(1.02, position, told, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(rows)), rows["variant"])
    axes.margins(x=0.1)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="difference to the base (points of top-1)")
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")  # over the axes alone it could be cut off
    return figure


def claims(tests: pd.DataFrame, limits: tuple[float, float] = (-12, 6)) -> plt.Figure:
    """Each claim, its verdict, and under it the differences that test it, with grey where the claim says they lie.

    tests: claims.tests'; limits: from which points to which is drawn: a difference outside is an arrow at the edge.
    """
    drawn = tests.assign(compared=tables.compared(tests)).dropna(subset=["difference"])
    colours = {Verdict.HOLDS: COLOURS[0], Verdict.FAILS: COLOURS[2]}
    lines = []  # from the top: a heading and its colour, or a row of tests and what it compares
    for verdict in verdicts(tests).itertuples():
        colour = colours.get(verdict.verdict, "0.3")
        lines.append((f"{verdict.claim.replace('`', '')}: {verdict.verdict}", colour))
        lines += [(row.compared, row) for row in drawn[drawn["claim"] == verdict.claim].itertuples()]
    height = 0.25 * len(lines) + 0.6  # inches, of which the axis takes the 0.6
    figure = plt.figure(figsize=(8.5, height))
    figure.set_layout_engine("none")  # not as it is made: from the second save on that is the style's layout
    axes = figure.add_axes((0.37, 0.5 / height, 0.46, 1 - 0.6 / height))
    least, most = limits
    across = mpl.transforms.blended_transform_factory(figure.transFigure, axes.transData)
    at_side = {"transform": across, "va": "center", "fontsize": 8.5}
    for place, (text, what) in enumerate(lines):
        if not hasattr(what, "difference"):
            clear = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # of the line at 0
            axes.text(0.005, place + 0.1, text, color=what, fontweight="bold", bbox=clear, **at_side)
            continue
        colour = colours.get(what.verdict, "0.3")
        agrees = np.clip([what.agrees_from, what.agrees_to], least, most)
        axes.fill_betweenx([place - 0.42, place + 0.42], *agrees, color="0.9", linewidth=0)
        low, high = np.clip([what.low, what.high], least, most)
        axes.plot([low, high], [place, place], color=colour)
        inside = least < what.difference < most
        mark = "o" if inside else "<" if what.difference < least else ">"
        axes.plot(np.clip(what.difference, least, most), place, mark, color=colour, clip_on=False)
        axes.text(0.02, place, text, **at_side)
        axes.text(0.84, place, f"{what.difference:+.1f} ({what.seeds:.0f}, {what.seeds_against:.0f} runs)", **at_side)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set(yticks=[], xlim=limits, ylim=(len(lines) - 0.3, -0.7), xlabel="difference (points of top-1)")
    axes.spines.left.set_visible(False)
    return figure


def bars(tables: dict[str, pd.DataFrame], reference: str, title: str) -> plt.Figure:
    """Latencies relative to the contestant `reference`, with the interquartile range; a panel each of `tables`.

    tables: title of the panel to what timing.measure returned.
    """
    names = list(dict.fromkeys(name for table in tables.values() for name in table["name"]))  # one colour each
    height = 0.4 * len(names) + 1.5
    figure, panels = plt.subplots(1, len(tables), figsize=(4.4 * len(tables), height), squeeze=False, sharey=True)
    for axes, (name, table) in zip(panels[0], tables.items(), strict=True):
        rows = table.set_index("name")
        unit = rows.loc[reference, "median_ms"]
        spread = [(rows["median_ms"] - rows["p25_ms"]) / unit, (rows["p75_ms"] - rows["median_ms"]) / unit]
        places = [names.index(name) for name in rows.index]
        colours = [COLOURS[place % len(COLOURS)] for place in places]
        look = {"color": colours, "edgecolor": "white", "height": 0.6, "capsize": 3}
        drawn = axes.barh(rows.index, rows["median_ms"] / unit, xerr=spread, **look)
        for bar, place in zip(drawn, places, strict=True):
            bar.set_hatch(HATCHES[place % len(HATCHES)])
        clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # of the line at 1
        axes.bar_label(drawn, [*map(milliseconds, rows["median_ms"])], padding=5, fontsize=8, bbox=clear)
        axes.axvline(1, color="0.4", lw=1, ls="--")
        axes.set_xlim(0, 1.3 * max(rows["p75_ms"].max() / unit, 1))
        axes.set(title=name, xlabel=f"latency ({reference} = 1)")
        axes.title.set_size(9)
        axes.grid(axis="y", visible=False)
    panels[0][0].invert_yaxis()
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    return figure

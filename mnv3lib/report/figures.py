"""Every figure of the report, in one style: legible in print and to the colour-blind."""

import itertools
import json
import math
import os
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from mnv3lib import provenance
from mnv3lib.deploy.timing import milliseconds
from mnv3lib.recipe import Recipe

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


def show(figure: Figure, name: str, *, alt: str, caption: str, folder: str | os.PathLike = "../figures") -> None:
    """Write `folder`/`name`.png and show it in the notebook with its alternative text and its caption.

    alt: what the figure says, for a reader who cannot see it; caption: how to read it (Markdown). The file's metadata
    tell what made it: commit, versions, processor and time.
    """
    from IPython.display import Image, Markdown, display

    path = Path(folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp = {"Title": name, "Description": alt, "Comment": caption, "Software": f"mnv3lib, {provenance.commit()}"}
    stamp["Source"] = json.dumps(provenance.environment())
    stamp["Creation Time"] = provenance.now()
    figure.savefig(path, metadata=stamp)
    plt.close(figure)
    display(Image(path.read_bytes(), width=round(figure.get_figwidth() * 96)), metadata={"image/png": {"alt": alt}})
    display(Markdown(f"*{caption}*"))


def schedules(recipes: dict[str, Recipe]) -> Figure:
    """The learning rate over the epochs of each recipe."""
    figure, axes = plt.subplots()
    for (name, recipe), line in zip(recipes.items(), ("-", "--", ":", "-."), strict=False):
        progress = np.linspace(0, 1, 401)[:-1]
        rates = [recipe.learning_rate * recipe.rate(share) for share in progress]
        axes.plot(progress * recipe.epochs, rates, line, label=name)
    axes.set(title="Learning rate by recipe", xlabel="epoch", ylabel="learning rate")
    axes.legend()
    return figure


def curves(history: pd.DataFrame, title: str) -> Figure:
    """Loss and accuracy of one run by epoch; `history` is a run's, as in store.load_history."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    left.plot(history["epoch"], history["train_loss"], marker="o", markersize=3)
    left.set(title=title, xlabel="epoch", ylabel="training loss")
    right.plot(
        history["epoch"], history["train_top1"], "--", marker="o", markersize=3, label="training images, augmented"
    )
    right.plot(history["epoch"], history["test_top1"], marker="s", markersize=3, label="test images")
    right.set(title="Accuracy", xlabel="epoch", ylabel="top-1 (%)")
    right.legend()
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure


def accuracy_curves(models: dict[str, str], histories: dict[str, pd.DataFrame]) -> Figure:
    """Test accuracy by epoch of many runs, a panel for each of `models` (by run), with the other runs in grey."""
    shown = [model for model in MODEL_STYLE if model in models.values()]
    rows = math.ceil(len(shown) / 2)
    figure, panels = plt.subplots(rows, 2, figsize=(9, 3.2 * rows), sharex=True, sharey=True, squeeze=False)
    for axes, model in itertools.zip_longest(panels.flat, shown):
        if model is None:
            axes.remove()
            continue
        ends = []
        for run, history in sorted(histories.items(), key=lambda item: -item[1]["test_top1"].iloc[-1]):
            epochs, top1 = history["epoch"], history["test_top1"]
            if models[run] != model:
                axes.plot(epochs, top1, color="0.88", linewidth=1, zorder=1)
                continue
            axes.plot(epochs, top1, LINES[len(ends) % 4], color=COLOURS[len(ends) % len(COLOURS)])
            ends.append(
                (top1.iloc[-1], epochs.iloc[-1], "×" + run.removeprefix(f"mobilenet_{model}_").replace("_", " "))
            )
        label_ends(axes, ends, fitting=14)
        axes.set_title(MODEL_STYLE[model]["label"])
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.supxlabel("epoch", fontsize="medium")
    figure.supylabel("top-1 on the test set (%)", fontsize="medium")
    return figure


def loss_curves(networks: dict[str, dict[str, pd.DataFrame]]) -> Figure:
    """Training loss by epoch of the runs of several networks, a panel each; the histories of one are named alike."""
    figure, panels = plt.subplots(1, len(networks), figsize=(9, 4), sharey=True, squeeze=False)
    for axes, (network, histories) in zip(panels.flat, networks.items(), strict=True):
        for (name, history), line in zip(histories.items(), itertools.cycle(LINES), strict=False):
            axes.plot(history["epoch"], history["train_loss"], line, label=name)
        axes.set(title=network, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    panels[0, 0].set_ylabel("cross-entropy with label smoothing")
    panels[0, -1].legend(title="rate × decay", alignment="left")
    return figure


def label_ends(axes: Axes, ends: list[tuple[float, float, str]], fitting: int) -> None:
    """Write each (y, x, name) to the right of its line's end, moved apart where they would overlap; y descends.

    fitting: how many names the height of the axes has room for.
    """
    low, high = axes.get_ylim()
    gap, right = (high - low) / fitting, max((x for _, x, _ in ends), default=0)
    placed, floor = [], low + gap / 2
    for y, _, _ in ends:
        placed.append(min(y, placed[-1] - gap) if placed else y)
    for index in reversed(range(len(placed))):
        placed[index] = max(placed[index], floor)
        floor = placed[index] + gap
    for (y, x, name), height in zip(ends, placed, strict=True):
        line = {"arrowstyle": "-", "color": "0.6", "lw": 0.6, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 1}
        axes.annotate(name, (x, y), xytext=(right * 1.05, height), fontsize=8, va="center", arrowprops=line)
    axes.set_xlim(right=right * 1.02)


def logarithmic(axis: Axis) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def name_points(axes: Axes, names: list[tuple[float, float, str, object]]) -> None:
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


def _move(text: Annotation, side: tuple[int, int]) -> Bbox:
    """Put `text` on this side of its point; the pixels that it takes there."""
    right, up = side
    alignment = {"ha": ("center", "left", "right")[right], "va": ("center", "bottom", "top")[up]}
    text.set(position=(6 * right, 6 * up), **alignment)
    return text.get_window_extent()


def _drawn(axes: Axes) -> np.ndarray:
    """Pixels along all lines of `axes`, and those of all marks: [n, 2]."""
    paths = []
    for line in axes.lines:
        paths += [line.get_xydata()] if line.get_linestyle() != "None" else list(line.get_xydata()[:, None])
    for collection in axes.collections:
        lines = isinstance(collection, LineCollection)
        paths += collection.get_segments() if lines else list(collection.get_offsets()[:, None])
    pixels = [np.empty((0, 2))]
    for path in paths:
        corners = axes.transData.transform(path)
        pixels.append(corners)  # a mark has no line
        for start, end in itertools.pairwise(corners):
            pixels.append(np.linspace(start, end, 2 + int(np.hypot(*(end - start)) / 5)))
    return np.concatenate(pixels)


def augmented(images: torch.Tensor, batches: list[torch.Tensor], titles: list[str]) -> Figure:
    """Photographs in the first column, then what augmentation made of them; all uint8 [n, height, width, 3]."""
    columns = [images, *batches]
    figure, grid = plt.subplots(
        len(images), len(columns), figsize=(1.2 * len(columns), 1.25 * len(images) + 0.3), squeeze=False
    )
    for column, (batch, title) in enumerate(zip(columns, titles, strict=True)):
        grid[0, column].set_title(title, fontsize=9, loc="center", fontweight="normal")
        for row, image in enumerate(batch):
            grid[row, column].imshow(image.numpy())
            grid[row, column].axis("off")
    return figure


def differences(table: pd.DataFrame, title: str) -> Figure:
    """A point and, where there is one, a 95 % interval for each variant's difference to the base.

    `table` is as ablations.compare makes it; points without an interval are hollow.
    """
    rows = table.dropna(subset=["difference"])
    figure, axes = plt.subplots(figsize=(7.5, 0.4 * len(rows) + 1.3))
    for position, row in enumerate(rows.itertuples()):
        known = not math.isnan(row.low)
        if known:
            axes.plot([row.low, row.high], [position, position], color=COLOURS[0])
        axes.plot(row.difference, position, "o", color=COLOURS[0], markerfacecolor=None if known else "white")
        told = f"{row.difference:+.2f} ({row.seeds} seed{'' if row.seeds == 1 else 's'})"
        axes.text(1.02, position, told, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(rows)), rows["variant"])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.set_xlabel("difference to the base (points of top-1)")
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")  # over the axes alone it could be cut off
    return figure


def overview(table: pd.DataFrame) -> Figure:
    """All variants by their difference to the base, axis by axis; `table` is as ablations.results makes it.

    Within two points the scale is linear, beyond them logarithmic. Points without an interval are hollow.
    """
    rows = table.dropna(subset=["difference"]).reset_index(drop=True)
    names = rows["axis"].unique()
    positions = rows.index + rows["axis"].map({name: number for number, name in enumerate(names)})
    figure, axes = plt.subplots(figsize=(8.5, 0.2 * (len(rows) + len(names)) + 1.3))
    for position, row in zip(positions, rows.itertuples(), strict=True):
        known = not math.isnan(row.low)
        clear = known and (row.low > 0 or row.high < 0)
        colour = COLOURS[(0 if row.difference > 0 else 1) if clear else 3]
        if known:
            axes.plot([row.low, row.high], [position, position], color=colour)
        axes.plot(row.difference, position, "o", color=colour, markerfacecolor=None if known else "white", markersize=5)
    for number, name in enumerate(names):
        axes.text(1.02, positions[rows["axis"] == name].mean(), name, transform=axes.get_yaxis_transform(), va="center")
        if number:
            axes.axhline(positions[rows["axis"] == name].min() - 1, color="0.8", linewidth=0.8)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_xscale("symlog", linthresh=2, linscale=1.5)
    low, high = axes.get_xlim()
    ticks = [tick for tick in (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(positions, rows["variant"], fontsize=8)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(positions.max() + 0.7, -0.7)
    axes.set(title="Every variant beside its base", xlabel="difference to the base (points of top-1)")
    return figure


def accuracy_for_compute(table: pd.DataFrame, title: str) -> Figure:
    """Top-1 against the compute of the training, each variant named; `table` has the rows of ablations.compare.

    The lines are the 95 % intervals of the differences to the base, around the accuracy of the variant.
    """
    figure, axes = plt.subplots()
    compute, base = table["compute"] / 1e6, table["top1"].iloc[0]
    known = table["low"].notna()
    axes.vlines(compute[known], base + table["low"][known], base + table["high"][known], color=COLOURS[0], alpha=0.4)
    axes.plot(compute, table["top1"], "o", color=COLOURS[0])
    logarithmic(axes.xaxis)
    axes.margins(x=0.18, y=0.12)
    axes.set(title=title, xlabel="million MACs an image × epochs", ylabel="top-1 on the test set (%)")
    name_points(axes, [(*row, "black") for row in zip(compute, table["top1"], table["variant"], strict=True)])
    return figure


def bars(tables: dict[str, pd.DataFrame], reference: str, title: str) -> Figure:
    """Latencies relative to the contestant `reference`, with the interquartile range; a panel each of `tables`.

    tables: title of the panel to what timing.measure returned.
    """
    height = 0.4 * max(map(len, tables.values())) + 1.5
    figure, panels = plt.subplots(1, len(tables), figsize=(4.4 * len(tables), height), squeeze=False, sharey=True)
    for axes, (name, table) in zip(panels[0], tables.items(), strict=True):
        rows = table.set_index("name")
        unit = rows.loc[reference, "median_ms"]
        spread = [(rows["median_ms"] - rows["p25_ms"]) / unit, (rows["p75_ms"] - rows["median_ms"]) / unit]
        look = {"color": COLOURS, "edgecolor": "white", "height": 0.6, "capsize": 3}
        drawn = axes.barh(rows.index, rows["median_ms"] / unit, xerr=spread, **look)
        for bar, hatch in zip(drawn, itertools.cycle(HATCHES), strict=False):
            bar.set_hatch(hatch)
        axes.bar_label(drawn, [*map(milliseconds, rows["median_ms"])], padding=5, fontsize=8)
        axes.axvline(1, color="0.4", lw=1, ls="--")
        axes.set_xlim(0, 1.3 * max(rows["p75_ms"].max() / unit, 1))
        axes.set(title=name, xlabel=f"latency ({reference} = 1)")
        axes.title.set_size(9)
        axes.grid(axis="y", visible=False)
    panels[0][0].invert_yaxis()
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    return figure

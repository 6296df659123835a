"""The figures of notebook 03: accuracy against cost, confusion, calibration, photographs with their guesses."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from mnv3lib.recipe import short
from mnv3lib.report.figures import COLOURS, MODEL_STYLE, logarithmic, name_points
from mnv3lib.study.evaluation import Evaluation

AXIS = {"macs": "MACs for one image (millions)", "parameters": "parameters (millions)"}
GREY = "0.45"
RIGHT, WRONG = COLOURS[0], "0.8"


def accuracy_against(cost: str, runs: pd.DataFrame, original: pd.DataFrame, peers: pd.DataFrame) -> Figure:
    """Top-1 against `cost`, macs or parameters, on a logarithmic axis.

    runs: as evaluation.summary with a column `usual`, true for the report's own recipe, false for variants of it
    (drawn hollow); the widths of one network are joined, at the mean of their seeds. original and peers: columns
    network, width, top1 and `cost`; rows without cost are left out.
    """
    figure, axes = plt.subplots(figsize=(8, 5.2))
    averages = runs[runs["usual"]].groupby(["model", "width"])[[cost, "top1"]].mean()
    for model, style in MODEL_STYLE.items():
        mine = runs[runs["model"] == model]
        look = {"color": style["color"], "marker": style["marker"], "markersize": 7}
        for usual, rows in mine.groupby("usual"):
            errors = [rows["top1"] - rows["top1_low"], rows["top1_high"] - rows["top1"]]
            face = {} if usual else {"markerfacecolor": "none", "label": f"{style['label']}, another recipe"}
            axes.errorbar(rows[cost] / 1e6, rows["top1"], yerr=errors, linestyle="", capsize=3, **look, **face)
        if model not in averages.index:
            continue
        means = averages.loc[model]
        axes.plot(means[cost] / 1e6, means["top1"], **look | {"markevery": []}, label=style["label"])
    others = (("earlier report, V3 Small and Large", original, "x", "0.1"), ("published by others", peers, "*", GREY))
    for label, rows, marker, colour in others:
        rows = rows.dropna(subset=[cost, "top1"])
        if len(rows):
            axes.scatter(rows[cost] / 1e6, rows["top1"], marker=marker, color=colour, s=60, label=label, zorder=3)
    names = [
        (getattr(row, cost) / 1e6, row.top1, f"×{row.width:g}", MODEL_STYLE[row.model]["color"])
        for row in pd.concat([averages.reset_index(), runs[~runs["usual"]]]).itertuples()
    ]
    names += [
        (getattr(row, cost) / 1e6, row.top1, f"{short(row.network)} ×{row.width:g}", GREY)
        for row in peers.dropna(subset=[cost, "top1"]).itertuples()
    ]
    logarithmic(axes.xaxis)
    axes.margins(x=0.08, y=0.06)
    axes.set(title=f"Accuracy against {AXIS[cost].split(' (')[0]}", xlabel=AXIS[cost], ylabel="top-1 (%)")
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: (not labels[index].startswith("MobileNet"), labels[index]))
    axes.legend([handles[index] for index in order], [labels[index] for index in order], loc="lower right", fontsize=9)
    name_points(axes, names)
    return figure


def superclass_confusion(evaluation: Evaluation) -> Figure:
    """Percent of each superclass's images (rows) that were taken for another one (columns)."""
    counts = evaluation.superclass_confusion()
    share = 100 * counts.to_numpy() / counts.to_numpy().sum(1, keepdims=True).clip(1)
    names = [name.replace("_", " ") for name in counts.index]
    wrong = np.ma.masked_array(share, np.eye(len(share), dtype=bool))
    figure, axes = plt.subplots(figsize=(9, 7.6))
    picture = axes.imshow(wrong, cmap="Oranges", vmin=0, aspect="auto")
    for (row, column), value in np.ndenumerate(share):
        if row == column or value >= 1:
            text = {"color": "white"} if row != column and value > 0.6 * wrong.max() else {}
            weight = "bold" if row == column else "normal"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, fontweight=weight, **text)
    axes.set_xticks(range(len(names)), names, rotation=50, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.grid(False)
    axes.set(
        title=f"Which superclass is taken for which? {evaluation.run}",
        xlabel="superclass of the best guess",
        ylabel="superclass of the image",
    )
    figure.colorbar(picture, label="wrong guesses (% of the row's images)", shrink=0.6)
    return figure


def hardest_and_easiest(per_class: pd.DataFrame, run: str, count: int = 12) -> Figure:
    """Top-1 of the easiest and the hardest classes with 95 % intervals; `per_class` as Evaluation.per_class."""
    ordered = per_class.sort_values("top1", ascending=False, kind="stable")
    count = min(count, len(ordered) // 2)
    groups = (("easiest", ordered.head(count), "o", COLOURS[0]), ("hardest", ordered.tail(count), "s", COLOURS[1]))
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.27 * count + 1.6), sharex=True)
    for panel, (title, rows, marker, colour) in zip(axes, groups, strict=True):
        names = rows["class"].str.replace("_", " ")
        errors = [rows["top1"] - rows["top1_low"], rows["top1_high"] - rows["top1"]]
        panel.errorbar(rows["top1"], names, xerr=errors, fmt=marker, color=colour, capsize=3)
        panel.invert_yaxis()
        panel.set(title=f"The {count} {title} classes", xlabel="top-1 with 95 % interval (%)", xlim=(0, 100))
    figure.suptitle(run, fontsize=9)
    return figure


def calibration(evaluation: Evaluation) -> Figure:
    """The reliability diagram above the histogram of confidence."""
    table = evaluation.calibration()
    middle, width = 50 * (table["low"] + table["high"]), 100 / len(table)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(6, 6), sharex=True, height_ratios=[3, 1])
    top.bar(middle, table["top1"], width, color=COLOURS[0], edgecolor="white", label="measured top-1")
    top.plot([0, 100], [0, 100], "--", color="0.2", label="perfectly calibrated")
    top.set(title=f"Is {evaluation.run} as sure as it should be?", ylabel="top-1 (%)", xlim=(0, 100), ylim=(0, 100))
    top.legend(loc="upper left", title=f"ECE {evaluation.ece:.1f} points", alignment="left")
    shares = 100 * table["images"] / len(evaluation.labels)
    bottom.bar(middle, shares, width, color=GREY, edgecolor="white")
    bottom.axvline(evaluation.top1, color=COLOURS[0], label=f"top-1 {evaluation.top1:.1f} %")
    confidence = 100 * float(evaluation.probabilities[:, 0].mean())
    bottom.axvline(confidence, color="0.1", linestyle=":", label=f"mean confidence {confidence:.1f} %")
    bottom.set(xlabel="confidence: probability of the best guess (%)", ylabel="images (%)")
    bottom.legend(fontsize=8, loc="best")
    return figure


def photographs(
    title: str,
    images: dict[str, Image.Image],
    seen: np.ndarray,
    guesses: pd.DataFrame,
    truth: dict[str, str],
    columns: int = 4,
) -> Figure:
    """Photographs, each beside what the network sees of it and above its best guesses; the right one is ticked.

    images: by name; seen: uint8 [n, size, size, 3] in the same order; guesses: as inference.predict; truth: the
    right class of each image that has one.
    """
    rows = -(-len(images) // columns)
    figure = plt.figure(figsize=(2.5 * columns, 2.1 * rows), dpi=110)
    figure.get_layout_engine().set(h_pad=0.01, hspace=0.02)
    figure.suptitle(title, fontweight="bold", x=0.005, ha="left")
    grid = figure.add_gridspec(rows, columns)
    for index, (name, image) in enumerate(images.items()):
        cell = grid[divmod(index, columns)].subgridspec(2, 2, height_ratios=[1.15, 1])
        left, right = figure.add_subplot(cell[0, 0]), figure.add_subplot(cell[0, 1])
        left.imshow(_thumbnail(image))
        right.imshow(seen[index])
        for panel in (left, right):
            panel.axis("off")
        right_class = truth.get(name)
        shown = (right_class or "no such class").replace("_", " ")
        left.set_title(shown, fontsize=9, fontweight="bold" if right_class else "normal", loc="left")
        _bars(figure.add_subplot(cell[1, :]), guesses[guesses["image"] == name], right_class)
    return figure


def _bars(axes, guesses: pd.DataFrame, right_class: str | None) -> None:
    """The guesses of one image as bars with their names on them."""
    right = guesses["class"] == right_class
    percent = 100 * guesses["probability"]
    axes.barh(
        guesses["rank"],
        percent,
        color=[RIGHT if one else WRONG for one in right],
        hatch=["////" if one else "" for one in right],
        edgecolor="white",
        linewidth=0,
        height=0.8,
    )
    for rank, name, value, one in zip(guesses["rank"], guesses["class"], percent, right, strict=True):
        mark = "✓ " if one else ""
        box = {"facecolor": "white", "alpha": 0.75, "pad": 0.6, "linewidth": 0}
        text = f"{mark}{name.replace('_', ' ')} {value:.0f} %"
        axes.text(2, rank, text, va="center", fontsize=7.5, fontweight="bold" if one else "normal", bbox=box)
    axes.set(xlim=(0, 100), ylim=(len(guesses) + 0.6, 0.4))
    axes.axis("off")


def _thumbnail(image: Image.Image, size: int = 150) -> Image.Image:
    small = image.copy()
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    return small

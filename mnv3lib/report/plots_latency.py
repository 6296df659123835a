"""The figures of the latency study."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnv3lib.deploy.latency_text import place
from mnv3lib.report.figures import COLOURS, HATCHES, MODEL_STYLE, logarithmic, name_points


def by_width(table: pd.DataFrame) -> Figure:
    """Latency against width, a line a version; a column a batch size, a row a device. `table` is latency.compare's."""
    figure, panels = _panels(table)
    for axes, rows in panels:
        for model, line in rows.groupby("model", sort=False):
            line = line.sort_values("width")
            spread = [line["median_ms"] - line["p25_ms"], line["p75_ms"] - line["median_ms"]]
            axes.errorbar(line["width"], line["median_ms"], yerr=spread, capsize=3, **MODEL_STYLE[model])
        axes.set(xlabel="width multiplier", ylabel="latency (ms)", xticks=sorted(rows["width"].unique()))
        logarithmic(axes.yaxis)
    panels[0][0].legend(fontsize=8)
    _title(figure, "Latency of a forward pass against width")
    return figure


def against_macs(table: pd.DataFrame) -> Figure:
    """Latency against MACs, both logarithmic, with lines of equal speed; panels and `table` as in `by_width`."""
    figure, panels = _panels(table)
    for axes, rows in panels:
        macs, milliseconds = rows["macs"] / 1e6, rows["median_ms"] / rows["batch"]
        for model, line in rows.groupby("model", sort=False):
            line = line.sort_values("macs")
            axes.plot(line["macs"] / 1e6, line["median_ms"] / line["batch"], **MODEL_STYLE[model])
        limits = axes.get_xlim(), axes.get_ylim()
        fastest = (macs / milliseconds).max()
        ends = [macs.min() / 2, macs.max() * 2]
        for part, style in ((1, "-"), (4, "--"), (16, ":")):
            speed = fastest / part
            axes.plot(
                ends, [end / speed for end in ends], style, color="0.6", lw=1, zorder=0, label=f"{speed:.3g} GMAC/s"
            )
        axes.set(xlabel="million MACs an image", ylabel="milliseconds an image")
        axes.set_xlim(limits[0][0] * 0.8 if limits[0][0] > 0 else macs.min() * 0.8, macs.max() * 1.3)
        axes.set_ylim(milliseconds.min() * 0.7, milliseconds.max() * 1.4)
        logarithmic(axes.xaxis)
        logarithmic(axes.yaxis)
        speeds = axes.get_legend_handles_labels()
        axes.legend(
            *(part[-3:] for part in speeds), fontsize=7, loc="lower right", title="equal speed", title_fontsize=7
        )
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles[:-3], labels[:-3], loc="outside lower center", ncols=4, fontsize=8)
    _title(figure, "Latency against multiply-accumulates")
    return figure


def accuracy(table: pd.DataFrame, title: str) -> Figure:
    """Top-1 against latency: filled the runs of this project, hollow the earlier report's accuracy at our latency.

    table: model, width, median_ms, top1 and original (percent, missing where there is none).
    """
    figure, axes = plt.subplots(figsize=(7.5, 5))
    names = []
    for model, rows in table.groupby("model", sort=False):
        style = MODEL_STYLE[model]
        look = {"color": style["color"], "marker": style["marker"]}
        for column, line, fill, whose in (
            ("top1", "-", None, "this project"),
            ("original", ":", "none", "earlier report"),
        ):
            known = rows.dropna(subset=[column]).sort_values("width")
            if known.empty:
                continue
            label = f"{style['label']}, {whose}"
            axes.plot(
                known["median_ms"], known[column], line, markerfacecolor=fill or look["color"], label=label, **look
            )
            names += [
                (row.median_ms, getattr(row, column), f"×{row.width:g}", style["color"]) for row in known.itertuples()
            ]
    axes.margins(0.1, 0.15)
    axes.set(title=title, xlabel="latency (ms)", ylabel="top-1 on the test set (%)")
    if axes.has_data():
        figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    name_points(axes, names)
    return figure


def by_runtime(relative: pd.DataFrame, title: str) -> Figure:
    """Times relative to the reference, a row a runtime or library, a mark a model, a panel a batch size.

    relative: rows of latency.relative, all of one machine and number of threads.
    """
    labels = list(dict.fromkeys(relative["label"]))
    batches = sorted(relative["batch"].unique())
    figure, panels = plt.subplots(
        1, len(batches), figsize=(4.5 * len(batches), 0.36 * len(labels) + 1.8), sharey=True, squeeze=False
    )
    for axes, batch in zip(panels[0], batches, strict=True):
        rows = relative[relative["batch"] == batch]
        for offset, (model, group) in enumerate(rows.groupby("model", sort=False)):
            spots = [labels.index(label) + 0.16 * (offset - 1.5) for label in group["label"]]
            spread = [group["ratio"] - group["low"], group["high"] - group["ratio"]]
            axes.errorbar(group["ratio"], spots, xerr=spread, ls="none", ms=5, capsize=2, lw=1, **MODEL_STYLE[model])
        axes.axvline(1, color="0.4", lw=1, ls="--")
        axes.set(title=f"batch {batch}", xlabel="time over the reference's")
        axes.title.set_size(9)
        logarithmic(axes.xaxis)
        axes.grid(axis="y", visible=False)
        for index in range(0, len(labels), 2):
            axes.axhspan(index - 0.5, index + 0.5, color="0.95", zorder=0, lw=0)
    panels[0][0].set_yticks(range(len(labels)), labels)
    panels[0][0].set_ylim(len(labels) - 0.5, -0.5)
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8)
    _title(figure, title)
    return figure


def shares(table: pd.DataFrame, title: str) -> Figure:
    """Percentages by kind of layer: `table` has a row a kind and a column each of what is shared out."""
    figure, axes = plt.subplots(figsize=(7.5, 0.2 * table.size + 1.2))
    height = 0.8 / table.shape[1]
    for index, (column, hatch) in enumerate(zip(table, HATCHES, strict=False)):
        spots = [row + index * height for row in range(len(table))]
        drawn = axes.barh(
            spots, table[column], height, label=column, color=COLOURS[index], hatch=hatch, edgecolor="white"
        )
        axes.bar_label(drawn, fmt="%.0f", padding=3, fontsize=8)
    axes.set_yticks([row + height * (table.shape[1] - 1) / 2 for row in range(len(table))], table.index)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title=title, xlabel="share (%)")
    axes.legend(loc="lower right")
    return figure


def _panels(table: pd.DataFrame) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A grid of axes, a row a device and a column a batch size, each with its rows of `table`."""
    devices, batches = table["device"].unique(), table["batch"].unique()
    size = (4.2 * max(len(batches), 1.6), 3.9 * len(devices))
    figure, grid = plt.subplots(len(devices), len(batches), figsize=size, squeeze=False)
    panels = []
    for axes_row, device in zip(grid, devices, strict=True):
        for axes, batch in zip(axes_row, batches, strict=True):
            rows = table[(table["device"] == device) & (table["batch"] == batch)]
            name = place(device)
            threads = rows["threads"].iloc[0]
            where = f"{name}, {threads} thread{'s' if threads > 1 else ''}" if device == "cpu" else name
            axes.set_title(f"{where}, batch {batch}", fontsize=10)
            panels.append((axes, rows))
    return figure, panels


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(title, fontweight="bold", x=0.01, ha="left")

"""What latencies say, in words and as text; each sentence follows the numbers, and says so where they are too noisy."""

import numpy as np
import pandas as pd

from mnv3lib import profiling
from mnv3lib.networks import short
from mnv3lib.timing import NOISY

# What was to be reached: contestant, beside which (None: torchvision by default), and the largest ratio of their times
# by batch size, for the networks that torchvision has.
GOALS = {
    "our network, eager, beside torchvision's": ("eager", "torchvision, eager", {1: 1.02, 64: 1.02}),
    "batch norm folded, channels_last": ("folded", None, {1: 0.85, 64: 0.5}),
    "onnxruntime": ("onnxruntime", None, {1: 0.4, 64: 0.33}),
    "int8 beside fp32, both onnxruntime": ("onnxruntime-int8", "onnxruntime", {1: 1.0, 64: 1.0}),
}
# The least ratio of this package's images a second in training to the faster plain loop's
TRAINING_GOALS = {("v3_small", 0.25): 2.0, ("v3_small", 1.0): 3.0, ("v3_large", 1.0): 3.0}


def as_text(table: pd.DataFrame, how: str) -> str:
    """What latency.compare returned, as a table to read, CSV or JSON."""
    if how == "csv":
        return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    if how == "json":
        return table.to_json(orient="records", indent=2, double_precision=6) + "\n"
    about = f"{', '.join(table['processor'].unique())}; torch {table['torch'][0]}; {table['measured'].max()}"
    if "images_per_second" in table:
        return f"{about}; images a second in training\n{training(table).to_string(index=False)}\n"
    lines = [f"{about}; {table['size'][0]} px; milliseconds", readable(table).to_string(index=False)]
    if table["noisy"].any():
        lines.append(noise(table))
    return "\n".join(lines) + "\n"


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of latency.compare's table that a reader needs, as text."""
    shown = table[["model", "width"]].copy()
    shown["width"] = shown["width"].map("{:g}".format)
    shown["weights"] = table["run"].fillna("untrained").where(table["library"] == "mnv3lib", table["library"])
    shown["MMACs"] = (table["macs"] / 1e6).map("{:.1f}".format)
    names = ["device", "threads", "batch", "runtime", "calls"]
    shown[names] = table[names]
    for name in ("median", "p25", "p75", "p90"):
        shown[name] = table[f"{name}_ms"].map(lambda value: ms(value).removesuffix(" ms"))
    return shown.assign(noisy=table["noisy"].map({True: "noisy", False: ""}))


def training(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of training_speed.compare's table that a reader needs, as text."""
    shown = table[["model", "width", "loop", "batch", "threads"]].copy()
    shown["width"] = shown["width"].map("{:g}".format)
    shown["parameters (M)"] = (table["parameters"] / 1e6).map("{:.2f}".format)
    shown["images/s"] = table["images_per_second"].map("{:.1f}".format)
    shown["low–high"] = table["low"].map("{:.1f}".format) + "–" + table["high"].map("{:.1f}".format)
    if "peak_mib" in table:  # not in tables recorded before it was measured
        shown["peak MiB"] = table["peak_mib"].map("{:.0f}".format)
    return shown.assign(times=table["times"].map("{:.2f}".format))


def noise(table: pd.DataFrame) -> str:
    """How many measurements scatter too much, and what to do about it."""
    count = int(table["noisy"].sum())
    rule = f"an interquartile range wider than {NOISY:.0%} of the median"
    if not count:
        return f"None of the {len(table)} measurements is noisy ({rule})."
    return (
        f"{count} of the {len(table)} measurements are noisy ({rule}): close other programs, use fewer threads than "
        "cores or measure for longer."
    )


def versus(table: pd.DataFrame, first: str, second: str) -> str:
    """A clause that sets contestant `first` beside `second`, e.g. "composed takes 1.32 times as long as fused".

    table: timing.measure's. Where the middle halves of the two overlap, it says that they cannot be told apart.
    """
    rows = table.set_index("name")
    one, other = rows.loc[first], rows.loc[second]
    ratio = one["median_ms"] / other["median_ms"]
    if one["p25_ms"] <= other["p75_ms"] and other["p25_ms"] <= one["p75_ms"]:
        return f"{first} and {second} cannot be told apart (ratio {ratio:.2f})"
    return f"{first} takes {ratio:.2f} times as long as {second}"


def growth(table: pd.DataFrame) -> list[str]:
    """For each device, batch size and version, how MACs and time grow from the narrowest to the widest."""
    sentences = []
    for (device, batch), group in table.groupby(["device", "batch"], sort=False):
        parts = []
        for model, rows in group.groupby("model", sort=False):
            narrow, wide = rows.loc[rows["width"].idxmin()], rows.loc[rows["width"].idxmax()]
            if narrow["width"] < wide["width"]:
                parts.append(
                    f"{short(model)}: {wide['macs'] / narrow['macs']:.1f} times the MACs, "
                    f"{wide['median_ms'] / narrow['median_ms']:.1f} times the time"
                )
        if parts:
            sentences.append(f"{place(device)}, batch {batch}, from the narrowest to the widest: {'; '.join(parts)}.")
    return sentences


def misleading(table: pd.DataFrame) -> list[str]:
    """For each device and batch size, the two networks whose MACs mislead most: fewer MACs, yet more time.

    Most is the largest product of the two ratios, among those whose middle halves do not overlap.
    """
    sentences = []
    for (device, batch), group in table.groupby(["device", "batch"], sort=False):
        worst, found = 0.0, None
        for lean in group.itertuples():
            for heavy in group.itertuples():
                product = heavy.macs / lean.macs * lean.median_ms / heavy.median_ms
                if lean.macs < heavy.macs and lean.p25_ms > heavy.p75_ms and product > worst:
                    worst, found = product, (lean, heavy)
        where = f"{place(device)}, batch {batch}"
        if found is None:
            sentences.append(f"{where}: no network with fewer MACs is clearly slower than one with more.")
            continue
        lean, heavy = found
        sentences.append(
            f"{where}: {title(lean)} has {heavy.macs / lean.macs:.1f} times fewer MACs than {title(heavy)} and takes "
            f"{lean.median_ms / heavy.median_ms:.2f} times as long."
        )
    return sentences


def prices(table: pd.DataFrame) -> list[str]:
    """For each device and batch size, what a layer and what a MAC costs (profiling.prices), in words."""
    sentences = []
    for (device, batch), group in table.groupby(["device", "batch"], sort=False):
        where = f"{place(device)}, batch {batch}"
        layer, gmac, error = profiling.prices(group)
        if min(layer, gmac) <= 0:
            sentences.append(f"{where}: the measurements do not allow such a split.")
            continue
        share = 100 * layer * group["layers"] / (layer * group["layers"] + gmac * group["macs"] * batch / 1e9)
        ends = [f"{share[row]:.0f} % of {title(group.loc[row])}" for row in (share.idxmax(), share.idxmin())]
        sentences.append(
            f"{where}: {1000 * layer:.0f} µs a layer and {gmac:.1f} ms a thousand million MACs, which fits the medians "
            f"with a typical error of {100 * error:.0f} %. The layers' price is {ends[0]} and {ends[1]}."
        )
    return sentences


def at_equal(table: pd.DataFrame, column: str, uncertain: float = 0.0) -> list[str]:
    """How long V2 and V1 take at the MACs, or the top-1, of each V3 network: a sentence a device, batch and network.

    column: macs or top1. The time of V2 and V1 is interpolated between their widths (logarithmically, of MACs too); a
    version that has no networks on both sides is not spoken of. uncertain: points of top-1; if given, the ratios so
    much below and above are told too, as far as the widths reach.
    """
    sentences = []
    for (device, batch), group in table.dropna(subset=[column]).groupby(["device", "batch"], sort=False):
        for row in group[group["model"].str.startswith("v3")].sort_values(column).itertuples():
            parts = []
            for model in ("v2", "v1"):
                line = group[group["model"] == model].groupby(column)["median_ms"].min()
                spots = np.log(line.index) if column == "macs" else line.index
                here = np.log(row.macs) if column == "macs" else row.top1
                if len(line) > 1 and spots.min() <= here <= spots.max():
                    around = np.array([here, here - uncertain, here + uncertain])
                    ratio, low, high = np.exp(np.interp(around, spots, np.log(line))) / row.median_ms
                    span = f" ({low:.2f}–{high:.2f})" if uncertain else ""
                    parts.append(f"{short(model)} takes {ratio:.2f} times as long{span}")
            if parts:
                what = f"{row.macs / 1e6:.0f} million MACs" if column == "macs" else f"a top-1 of {row.top1:.1f} %"
                sentences.append(f"{place(device)}, batch {batch}, at {what} ({title(row)}): {', '.join(parts)}.")
    return sentences


def ratios(relative: pd.DataFrame, label: str, reference: str | None = None) -> str:
    """The least and the largest ratio of a contestant over the models, by batch: "0.31–0.42 at batch 1, ...".

    relative: latency.relative's. reference: a label to divide by instead of what that table is relative to.
    """
    parts = []
    for batch, rows in relative.groupby("batch"):
        found = _ratios(rows, label, reference)
        if len(found):
            parts.append(f"{_span(found)} at batch {batch}")
    return ", ".join(parts) or "not measured"


def _ratios(rows: pd.DataFrame, label: str, reference: str | None) -> pd.Series:
    """The ratio by model, of rows of latency.relative with one batch size."""
    found = rows[rows["label"] == label].set_index("model")["ratio"]
    if reference:
        found = (found / rows[rows["label"] == reference].set_index("model")["ratio"]).dropna()
    return found


def _span(found: pd.Series) -> str:
    return f"{found.min():.2f}" if len(found) == 1 else f"{found.min():.2f}–{found.max():.2f}"


def goals(relative: pd.DataFrame, speeds: pd.DataFrame) -> pd.DataFrame:
    """What was to be reached beside what was measured, a row a goal: goal, aim, measured, reached (yes, no, by whom).

    relative: rows of latency.relative, of one machine and number of threads. speeds: training_speed.compare's.
    Goals of which nothing was measured are left out. Where the median misses the goal, but the middle halves of the
    two times would allow it, it is not decided.
    """
    rows = []
    theirs = relative[relative["model"] != "v1"]  # torchvision has no V1
    for name, (label, reference, limits) in GOALS.items():
        for batch, limit in limits.items():
            mine = theirs[theirs["batch"] == batch]
            found = _ratios(mine, label, reference)
            if len(found):
                by_model = [mine[mine["label"] == one].set_index("model") for one in (label, reference)]
                slowest = by_model[1]["high"] if reference else 1.0
                at_best = (by_model[0]["low"] / slowest)[found.index]
                reached = _who(found.round(2) <= limit, at_best.round(2) <= limit)
                rows.append((f"{name}, batch {batch}", f"at most {limit:.2f}", _span(found), reached))
    ours = speeds[speeds["loop"] == "mnv3lib"].set_index(["model", "width"])["times"]
    for (model, width), least in TRAINING_GOALS.items():
        for times in ours[ours.index == (model, width)]:
            name = f"images a second in training, {short(model)} {width:g}"
            rows.append((name, f"at least {least:.2f}", f"{times:.2f}", "yes" if round(times, 2) >= least else "no"))
    return pd.DataFrame(rows, columns=["goal", "aim", "measured", "reached"])


def _who(reached: pd.Series, possible: pd.Series) -> str:
    """Which models reached a goal; those that only possibly did are not decided."""
    if reached.all():
        return "yes"
    if not possible.any():
        return "no"
    open_ones = possible & ~reached
    parts = [
        f"{word} {', '.join(map(short, chosen.index[chosen]))}"
        for word, chosen in (("yes:", reached), ("not decided:", open_ones), ("no:", ~possible & ~reached))
        if chosen.any()
    ]
    return "not decided" if open_ones.all() else "; ".join(parts)


def front(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with a top1 that no other row beats in both, fastest first."""
    known = table.dropna(subset=["top1"]).sort_values(["median_ms", "top1"], ascending=[True, False])
    return known[known["top1"] > known["top1"].cummax().shift(fill_value=-1.0)]


def ms(value: float) -> str:
    """Milliseconds with three digits, and no power of ten."""
    return f"{value:,.0f} ms" if value >= 1000 else f"{value:.3g} ms"


def title(row) -> str:
    """The network of a row, e.g. "V3 Small 0.25"."""
    return f"{short(row.model)} {row.width:g}"


def place(device: str) -> str:
    """A device for people."""
    return {"cpu": "CPU", "cuda": "GPU"}[device]

"""What tables of latencies say, as numbers: growth with width, MACs against time, equal accuracy, goals."""

from enum import StrEnum

import numpy as np
import pandas as pd

from mnv3lib.recipe import short

PANEL = ["device", "batch"]

# What was to be reached: contestant, beside which (None: torchvision by default), and the largest ratio of their times
# by batch size, for the networks that torchvision has.
GOALS = {
    "eager": ("eager", "torchvision, eager", {1: 1.02, 64: 1.02}),
    "folded": ("folded", None, {1: 0.85, 64: 0.5}),
    "onnxruntime": ("onnxruntime", None, {1: 0.4, 64: 0.33}),
    "int8": ("onnxruntime-int8", "onnxruntime", {1: 1.0, 64: 1.0}),
}
# The least ratio of this package's images a second in training to the faster plain loop's
TRAINING_GOALS = {("v3_small", 0.25): 2.0, ("v3_small", 1.0): 3.0, ("v3_large", 1.0): 3.0}


class Reached(StrEnum):
    """Whether a goal is reached; undecided where the middle halves of the two times allow both."""

    YES = "yes"
    UNDECIDED = "not decided"
    NO = "no"


def title(row) -> str:
    """The network of a row, e.g. "V3 Small 0.25"."""
    return f"{short(row.model)} {row.width:g}"


def growth(table: pd.DataFrame) -> pd.DataFrame:
    """How many times the MACs and the time the widest network has of the narrowest: device, batch, model, macs, time.

    table, here and below: latency.compare's.
    """
    keys = [*PANEL, "model"]
    widths = table.groupby(keys, sort=False)["width"]
    narrow, wide = (table.loc[ends].set_index(keys) for ends in (widths.idxmin(), widths.idxmax()))
    wide = wide[wide["width"] > narrow["width"]]
    found = {"macs": wide["macs"] / narrow["macs"], "time": wide["median_ms"] / narrow["median_ms"]}
    return pd.DataFrame(found).loc[wide.index].reset_index()


def misleading(table: pd.DataFrame) -> pd.DataFrame:
    """For each device and batch size, the two networks whose MACs mislead most: fewer MACs, yet more time.

    Most is the largest product of the two ratios, among those whose middle halves do not overlap. Columns: device,
    batch, lean and heavy (the networks; None where there are none), macs (heavy over lean), time (lean over heavy).
    """
    lean = table.assign(lean=[title(row) for row in table.itertuples()])
    pairs = lean.merge(lean.rename(columns={"lean": "heavy"}), on=PANEL, suffixes=("", "_heavy"))
    pairs = pairs[(pairs["macs"] < pairs["macs_heavy"]) & (pairs["p25_ms"] > pairs["p75_ms_heavy"])]
    macs, time = pairs["macs_heavy"] / pairs["macs"], pairs["median_ms"] / pairs["median_ms_heavy"]
    pairs = pairs.assign(macs=macs, time=time)
    worst = pairs.loc[(macs * time).sort_values().index].drop_duplicates(PANEL, keep="last")
    found = table[PANEL].drop_duplicates().merge(worst[[*PANEL, "lean", "heavy", "macs", "time"]], how="left")
    return found.astype({"lean": object, "heavy": object}).replace({"lean": {np.nan: None}, "heavy": {np.nan: None}})


def prices(table: pd.DataFrame) -> pd.DataFrame:
    """What a layer and what arithmetic costs: the best fit of median_ms = layer x layers + gmac x MACs / 1e9.

    A row a device and batch size: device, batch, layer (milliseconds a layer), gmac (milliseconds a thousand million
    MACs of the whole batch), error (the median relative error of the fit), and the networks in which the layers' price
    has the largest and the smallest share of the fitted time: most, most_share, least, least_share. All but device and
    batch is missing where a price is not above 0.
    """
    rows = []
    for (device, batch), group in table.groupby(PANEL, sort=False):
        wanted = group["median_ms"].to_numpy()
        known = np.stack([group["layers"], group["macs"] * batch / 1e9], axis=1)
        # Divided by the time, so that relative errors count and the slowest network does not decide alone.
        fitted, *_ = np.linalg.lstsq(known / wanted[:, None], np.ones(len(wanted)), rcond=None)
        row = {"device": device, "batch": batch}
        if min(fitted) > 0:
            share = known[:, 0] * fitted[0] / (known @ fitted)
            row |= {"layer": fitted[0], "gmac": fitted[1], "error": np.median(np.abs(known @ fitted / wanted - 1))}
            for name, index in (("most", share.argmax()), ("least", share.argmin())):
                row |= {name: title(group.iloc[index]), f"{name}_share": share[index]}
        rows.append(row)
    columns = [*PANEL, "layer", "gmac", "error", "most", "most_share", "least", "least_share"]
    return pd.DataFrame(rows, columns=columns)


def at_equal(table: pd.DataFrame, column: str, uncertain: float = 0.0) -> pd.DataFrame:
    """How many times as long V2 and V1 take at the MACs, or the top-1, of each V3 network.

    column: macs or top1. The time of V2 and V1 is interpolated between their widths (logarithmically, of MACs too); a
    version that has no networks on both sides is left out. uncertain: points of top-1.

    Returns device, batch, network (the V3), at (its MACs or top-1), model (v2 or v1), ratio, and low and high, the
    ratios at so much less and more top-1; missing where no width of that version has so little or so much.
    """
    rows = []
    scale = np.log if column == "macs" else np.asarray
    for panel, group in table.dropna(subset=[column]).groupby(PANEL, sort=False):
        for row in group[group["model"].str.startswith("v3")].sort_values(column).itertuples():
            for model in ("v2", "v1"):
                line = group[group["model"] == model].groupby(column)["median_ms"].min()
                spots, here = scale(line.index), scale(getattr(row, column))
                if len(line) > 1 and spots.min() <= here <= spots.max():
                    around = np.array([here, here - uncertain, here + uncertain])
                    times = np.interp(around, spots, np.log(line), left=np.nan, right=np.nan)
                    found = np.exp(times) / row.median_ms
                    rows.append((*panel, title(row), getattr(row, column), model, *found))
    return pd.DataFrame(rows, columns=[*PANEL, "network", "at", "model", "ratio", "low", "high"])


def ratios(relative: pd.DataFrame, label: str, reference: str | None = None) -> pd.Series:
    """The ratio of a contestant by batch size and model (the index); empty where it was not measured.

    relative: latency.relative's. reference: a label to divide by instead of what that table is relative to.
    """
    wide = relative.pivot_table(index=["batch", "model"], columns="label", values="ratio")
    if not {label, reference or label} <= set(wide):
        return pd.Series(dtype=float, index=wide.index[:0])
    return (wide[label] / (wide[reference] if reference else 1)).dropna()


def files(table: pd.DataFrame) -> pd.DataFrame:
    """What files of trained networks are like: a row a run and runtime, of `latency.load_tables`'s tables.

    Columns: run, runtime, network, model, file_mb, file_top1, peak_mib (at the smallest batch), measured, and for each
    batch size B ratio_B (the median time over onnxruntime's for the same run, in the same table) and ms_B (that, times
    onnxruntime's milliseconds in one table for all: that with the most runs, of these with the most calls, of these the
    newest). Of a run and runtime in several tables the newest counts, with several numbers of threads the fewest.
    """
    columns = ["network", "model", "file_mb", "file_top1", "peak_mib", "measured"]
    if "file_mb" not in table:
        return pd.DataFrame(columns=["run", "runtime", *columns])
    table = table[table["run"].notna()].assign(file=table.get("file", ""))
    keys, one = ["run", "runtime"], ["file", "run", "batch", "threads"]
    plain = table[table["runtime"] == "onnxruntime"]
    table = table[table["file_mb"].notna()].join(plain.set_index(one)["median_ms"].rename("reference"), on=one)
    table = table[table["threads"] == table.groupby(keys)["threads"].transform("min")]
    table = table.sort_values("measured", kind="stable").drop_duplicates([*keys, "batch"], keep="last")
    table = table.sort_values("batch", kind="stable")
    found = table.drop_duplicates(keys).set_index(keys)
    found["network"] = [title(row) for row in found.itertuples()]
    found = found.reindex(columns=columns)  # not all are measured
    for batch, rows in table.groupby("batch"):
        rows = rows.set_index(keys)
        ratios = rows["median_ms"] / rows["reference"]
        found[f"ms_{batch}"] = ratios * _of_one_table(plain[plain["batch"] == batch]).reindex(ratios.index, level="run")
        found[f"ratio_{batch}"] = ratios
    return found.reset_index().sort_values(["network", "runtime"], ignore_index=True)


def _of_one_table(rows: pd.DataFrame) -> pd.Series:
    """median_ms by run, from the one of several tables that has most runs, then calls, then is the newest."""
    tables = rows.assign(calls=rows.get("calls", 0)).groupby("file")
    tables = tables.agg(runs=("run", "nunique"), calls=("calls", "median"), measured=("measured", "max"))
    best = tables.sort_values(["runs", "calls", "measured"]).index[-1:]
    rows = rows[rows["file"].isin(best)].sort_values("threads").drop_duplicates("run")
    return rows.set_index("run")["median_ms"]


def goals(relative: pd.DataFrame, speeds: pd.DataFrame) -> pd.DataFrame:
    """What was to be reached beside what was measured, a row a goal and model.

    relative: rows of latency.relative, of one machine and number of threads. speeds: training_speed.compare's.

    Returns goal (of GOALS, or "training"), batch, model, width, aim (a ratio: at most, in training at least), measured
    (the ratio), reached (a Reached). What was not measured is left out.
    """
    rows = []
    theirs = relative[relative["model"] != "v1"]  # torchvision has no V1
    for goal, (label, reference, limits) in GOALS.items():
        for batch, limit in limits.items():
            mine = theirs[theirs["batch"] == batch].set_index("model")
            one = mine[mine["label"] == label]
            other = mine[mine["label"] == reference] if reference else one.assign(ratio=1.0, low=1.0, high=1.0)
            measured = one["ratio"] / other["ratio"]
            at_best, at_worst = one["low"] / other["high"], one["high"] / other["low"]
            for model in one.index.intersection(other.index, sort=False):
                verdict = Reached.UNDECIDED if round(at_best[model], 2) <= limit else Reached.NO
                verdict = Reached.YES if round(at_worst[model], 2) <= limit else verdict
                rows.append((goal, batch, model, 1.0, limit, measured[model], verdict))
    ours = speeds[speeds["loop"] == "mnv3lib"].set_index(["model", "width"])["times"]
    for (model, width), least in TRAINING_GOALS.items():
        for times in ours[ours.index == (model, width)]:
            verdict = Reached.YES if round(times, 2) >= least else Reached.NO
            rows.append(("training", None, model, width, least, times, verdict))
    return pd.DataFrame(rows, columns=["goal", "batch", "model", "width", "aim", "measured", "reached"])

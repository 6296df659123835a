"""The numbers behind the findings of the start page, all from records; its template has the sentences."""

import math
from pathlib import Path

import pandas as pd

from mnv3lib import store
from mnv3lib.deploy import comparisons, export, latency
from mnv3lib.provenance import ROOT
from mnv3lib.study import ablations, claims, statistics

CALLS = 1024  # a percentile wants as many


def numbers(
    recorded: pd.DataFrame, tests: pd.DataFrame, models: Path | None = None, results: Path | None = None
) -> dict:
    """What the template asks for; what is not recorded is empty or None.

    recorded: results.recorded's; tests: claims.tests'; results: the folder of latencies and int8 accuracies.
    """
    results = results or ROOT / "results"
    networks = of_networks(recorded)
    records = ablations.recorded(ablations.folder(), models)
    rows = ablations.results(records).set_index(["axis", "variant"]).to_dict("index")
    spread = statistics.seed_spread(records)
    measured = latency.recorded(results / "latency")
    speed = headline(measured, networks)
    return {
        "networks": networks.to_dict("records"),
        "compared": networks.dropna(subset=["original"]).to_dict("records"),
        "ablations": len(records),
        "versions": tests[tests["axis"].isna()].dropna(subset=["difference"]).to_dict("records"),
        "ablation": lambda axis, variant: rows.get((axis, variant)),
        "spread": spread,
        "base_deviation": next(
            (row["spread"] for row in rows.values() if pd.isna(row["outcome"]) and row["seeds"] > 1), None
        ),
        "speed": speed.to_dict("records"),
        "front": front(speed).to_dict("records"),
        "equal": equal(speed, spread.reach(1, 1)),
        **runtimes(measured),
        "int8_loss": int8_losses(recorded, results / "int8", models),
    }


def tests(recorded: pd.DataFrame, models: Path | None = None, results: Path | None = None) -> pd.DataFrame:
    """claims.tests by this project's recorded ablations, the trained models `recorded`, and latencies in `results`."""
    records = ablations.recorded(ablations.folder(), models)
    timed = with_latency(recorded, (results or ROOT / "results") / "latency")
    return claims.tests(ablations.results(records), timed, statistics.seed_spread(records))


def with_latency(recorded: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """results.recorded's with a column `latency`: the ms of one image in onnxruntime, of the headline's table."""
    if recorded.empty:
        return recorded.assign(latency=math.nan)
    speed = headline(latency.recorded(folder), of_networks(recorded))
    times = speed[speed["runtime"] == "onnxruntime"].set_index(["model", "width"])["median_ms"]
    return recorded.join(times.rename("latency"), on=["model", "width"])


def of_networks(recorded: pd.DataFrame) -> pd.DataFrame:
    """A row a network of the usual recipe: model, width, macs, parameters, top1 (mean of its seeds), seeds, low and
    high (the widest of its runs' intervals), original (the earlier report's top-1), gain over it, and clear (whether
    all intervals lie above it)."""
    usual = recorded[recorded["usual"]]
    named = {"macs": ("macs", "first"), "parameters": ("parameters", "first"), "top1": ("top1", "mean")}
    named |= {
        "seeds": ("top1", "size"),
        "low": ("low", "min"),
        "high": ("high", "max"),
        "original": ("original", "first"),
    }
    table = usual.groupby(["model", "width"], as_index=False).agg(**named)
    return table.assign(gain=table["top1"] - table["original"], clear=table["low"] > table["original"])


def headline(measured: pd.DataFrame, networks: pd.DataFrame) -> pd.DataFrame:
    """Of the newest table with CALLS calls of trained networks: a row a network and runtime, with its mean top-1."""
    rows = measured[(measured["calls"] >= CALLS) & measured["run"].notna() & (measured["batch"] == 1)]
    return latency.newest(rows).drop(columns=["top1", "macs", "parameters"]).merge(networks, on=["model", "width"])


def front(speed: pd.DataFrame) -> pd.DataFrame:
    """The networks that none beats in both accuracy and time with onnxruntime, with PyTorch's time as `torch_ms`."""
    torch_ms = speed[speed["runtime"] == "folded"].set_index(["model", "width"])["median_ms"].rename("torch_ms")
    return comparisons.front(speed[speed["runtime"] == "onnxruntime"]).join(torch_ms, on=["model", "width"])


def equal(speed: pd.DataFrame, uncertain: float) -> dict[str, dict]:
    """By runtime, the V3 with fewest MACs whose accuracy V2 and V1 have between two widths: model, width, top1,
    median_ms and p90_ms, and v2 and v1, how many times as long these take at that accuracy; v2_low, v2_high, v1_low and
    v1_high are the same at `uncertain` points less and more."""
    found = {}
    for runtime, rows in speed.groupby("runtime"):
        pairs = comparisons.at_equal(rows, "top1", uncertain).pivot_table(["ratio", "low", "high"], "at", "model")
        pairs = pairs.reindex(columns=pd.MultiIndex.from_product([["ratio", "low", "high"], ["v1", "v2"]])).dropna()
        reached = rows[rows["top1"].isin(pairs.index)].sort_values("macs")
        if len(reached):
            row = reached.iloc[0].to_dict()
            times = pairs.loc[row["top1"]].items()
            named = {model if part == "ratio" else f"{model}_{part}": value for (part, model), value in times}
            found[runtime] = row | named
    return found


def runtimes(measured: pd.DataFrame) -> dict:
    """The newest comparisons of runtimes at 32 px and batch 1, each with its first row, and (least, most) ratio.

    `fastest_runtime`, on `compared_on`: onnxruntime's time to torchvision's by default; `int8`, on `int8_on`: the int8
    file's to the fp32 file's. None where there is no record.
    """
    relative = latency.relative(measured)
    here = latency.newest(relative[relative["size"] == 32])
    found = {"compared_on": None if here.empty else here.iloc[0].to_dict(), "fastest_runtime": None}
    ratios = comparisons.ratios(here, "onnxruntime")
    ratios = ratios[ratios.index.get_level_values("batch") == 1]
    if len(ratios):
        found["fastest_runtime"] = (ratios.min(), ratios.max())
    written = measured[measured["file_mb"].notna()] if "file_mb" in measured else measured[:0]
    files = comparisons.files(written)
    int8 = files[files["runtime"] == "onnxruntime-int8"]
    known = len(int8) and "ratio_1" in int8
    found["int8"] = (int8["ratio_1"].min(), int8["ratio_1"].max()) if known else None
    found["int8_on"] = latency.newest(written).iloc[0].to_dict() if known else None
    return found


def int8_losses(recorded: pd.DataFrame, folder: Path, models: Path | None) -> list[float]:
    """Points of top-1 that int8 costs each run of which a record says so."""
    kept = [run for run in recorded["run"] if store.has(run, store.WEIGHTS, models)]
    facts = [export.recorded(run, folder, models) for run in kept]
    return sorted(one["top1"] - one["top1_int8"] for one in facts if one)

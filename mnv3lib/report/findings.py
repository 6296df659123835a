"""The numbers behind the findings of the start page, all from records; its template has the sentences."""

import math
from pathlib import Path

import pandas as pd

from mnv3lib import cost, store
from mnv3lib.deploy import comparisons, export, latency
from mnv3lib.provenance import ROOT
from mnv3lib.recipe import DEFAULTS
from mnv3lib.report import tables
from mnv3lib.study import ablations, claims, statistics

CALLS = 1024  # a percentile wants as many


def numbers(timed: pd.DataFrame, tests: pd.DataFrame, models: Path | None = None, results: Path | None = None) -> dict:
    """What the template asks for; what is not recorded is empty or None.

    timed: with_latency's; tests: claims.tests'; results: the folder of latencies and int8 accuracies.
    """
    results = results or ROOT / "results"
    networks = of_networks(timed)
    records = ablations.load_records(ablations.folder(), models)
    rows = ablations.results(records).set_index(["axis", "variant"]).to_dict("index")
    spread = statistics.seed_spread(records)
    measured = latency.load_tables(results / "latency")
    speed = headline(measured, networks)
    level = equal(speed, spread.apart())
    long = statistics.repeated(one for one in records if one["recipe"]["epochs"] == DEFAULTS["epochs"])
    spread_long = statistics.seed_spread(record for group in long for record in group)
    return {
        "networks": networks.to_dict("records"),
        "compared": networks.dropna(subset=["original"]).to_dict("records"),
        "repeated": next((row for row in timed.to_dict("records") if row["recipe"] == "original"), None),
        "ablations": len(records),
        "versions": claims.versions(timed, spread),
        "spread_long": spread_long,
        "networks_long": pd.DataFrame([group[0]["recipe"] for group in long], columns=["model", "width"])
        .drop_duplicates()
        .to_dict("records"),
        "versions_long": claims.versions(timed, spread_long),
        "level": claims.LEVEL,
        "most_tried": max(claims.PLANS),
        "small": smaller(networks, spread.apart()),
        "ablation": lambda axis, variant: rows.get((axis, variant)),
        "needed": tests.groupby("claim")["needed"].max().dropna().astype(int).sort_values().tolist(),
        "missing": ablations.missing(ablations.plan(["claims"], ()), records),
        "spread": spread,
        "apart_of": [
            spread.apart(statistics.Seeds(row.top1, row.seeds, row.deviation))
            for row in networks.itertuples()
            if row.seeds > 2
        ],
        "speed": speed.to_dict("records"),
        "front": front(speed).to_dict("records"),
        "equal": level.to_dict("records"),
        "clearly": {runtime: tables.clearly(rows) for runtime, rows in level.groupby("runtime")},
        "beaten": beaten(speed).to_dict("records"),
        "lead_of_lean": lead_of_lean(speed),
        **int8_times(measured),
        "int8_loss": int8_losses(timed, results / "int8", models),
    }


def tests(timed: pd.DataFrame, models: Path | None = None) -> pd.DataFrame:
    """claims.tests by this project's recorded ablations and the trained models of with_latency."""
    records = ablations.load_records(ablations.folder(), models)
    return claims.tests(ablations.results(records), timed, statistics.seed_spread(records))


def with_latency(recorded: pd.DataFrame, folder: Path | None = None) -> pd.DataFrame:
    """results.load_runs's with a column `latency`: the ms of one image in onnxruntime, of the headline's table."""
    if recorded.empty:
        return recorded.assign(latency=math.nan)
    speed = headline(latency.load_tables(folder or ROOT / "results" / "latency"), of_networks(recorded))
    times = speed[speed["runtime"] == "onnxruntime"].set_index(["model", "width"])["median_ms"]
    return recorded.join(times.rename("latency"), on=["model", "width"])


def of_networks(recorded: pd.DataFrame) -> pd.DataFrame:
    """A row a network of the usual recipe: model, width, macs, parameters, weight_decay, top1 (mean of its seeds),
    seeds, deviation (between them), low and high (the widest of its runs' intervals), original (the earlier report's
    top-1), and gain over it."""
    usual = recorded[recorded["usual"]]
    named = {"macs": ("macs", "first"), "parameters": ("parameters", "first"), "top1": ("top1", "mean")}
    named |= {
        "weight_decay": ("weight_decay", "first"),
        "seeds": ("top1", "size"),
        "deviation": ("top1", "std"),
        "low": ("low", "min"),
        "high": ("high", "max"),
        "original": ("original", "first"),
    }
    table = usual.groupby(["model", "width"], as_index=False).agg(**named)
    return table.assign(gain=table["top1"] - table["original"])


def headline(measured: pd.DataFrame, networks: pd.DataFrame) -> pd.DataFrame:
    """Of the newest table with CALLS calls of trained networks: a row a network and runtime, with its mean top-1.

    Runs of one network, of other seeds or recipes, are of one speed: the first of them counts.
    """
    if measured.empty:
        return networks.head(0).assign(runtime="", median_ms=math.nan, p90_ms=math.nan)
    rows = latency.newest(measured[(measured["calls"] >= CALLS) & measured["run"].notna() & (measured["batch"] == 1)])
    rows = rows.drop_duplicates(["model", "width", "runtime"])
    return rows.drop(columns=["top1", "macs", "parameters"]).merge(networks, on=["model", "width"])


def front(speed: pd.DataFrame) -> pd.DataFrame:
    """The networks that none beats in both accuracy and time with onnxruntime, with PyTorch's time as `torch_ms`."""
    torch_ms = speed[speed["runtime"] == "folded"].set_index(["model", "width"])["median_ms"].rename("torch_ms")
    best = cost.pareto_front(speed[speed["runtime"] == "onnxruntime"], "median_ms")
    return best.join(torch_ms, on=["model", "width"])


def equal(speed: pd.DataFrame, uncertain: float) -> pd.DataFrame:
    """V2 and V1 at the accuracy of each V3 that they have between two widths: a row a runtime, V3 and version, in order
    of MACs. Columns: those of `speed`, which are the V3's, than (v2 or v1), ratio (how many times as long it takes),
    low and high (the same at `uncertain` points less and more)."""
    found = [
        comparisons.at_equal(rows, "top1", uncertain)
        .rename(columns={"model": "than"})[["network", "than", "ratio", "low", "high"]]
        .merge(rows.drop(columns=["low", "high"], errors="ignore"), on="network")
        for _, rows in speed.assign(network=[comparisons.title(row) for row in speed.itertuples()]).groupby("runtime")
    ]
    if not found:
        return pd.DataFrame(columns=["runtime", "model", "than", "ratio", "low", "high"])
    return pd.concat(found).sort_values(["runtime", "macs", "than"], ascending=[True, True, False], ignore_index=True)


def beaten(speed: pd.DataFrame) -> pd.DataFrame:
    """Each V3 beside a network of V2 or V1 that is clearly faster with the same runtime and no less accurate: runtime,
    model, width, older, older_width, points (of top-1 more), ratio (of its time to the V3's).

    Clearly faster is where the middle halves of their calls lie apart.
    """
    newer = speed["model"].str.startswith("v3")
    pairs = speed[newer].merge(speed[~newer], on="runtime", suffixes=("", "_older"))
    pairs = pairs.assign(
        points=pairs["top1_older"] - pairs["top1"], ratio=pairs["median_ms_older"] / pairs["median_ms"]
    )
    pairs = pairs[(pairs["points"] > 0) & (pairs["p75_ms_older"] < pairs["p25_ms"])]
    named = {"model_older": "older", "width_older": "older_width"}
    return pairs.rename(columns=named)[["runtime", "model", "width", "older", "older_width", "points", "ratio"]]


def smaller(networks: pd.DataFrame, apart: float) -> tuple[list[dict], dict] | None:
    """(the most accurate network of V1 or V2 that beats a V3 with fewer parameters, and those of both that have fewer
    still and are less than `apart` points behind; the most accurate such V3)."""
    newer = networks["model"].str.startswith("v3")
    for older in networks[~newer].sort_values("top1", ascending=False).to_dict("records"):
        beaten = networks[newer & (networks["top1"] < older["top1"]) & (networks["parameters"] > older["parameters"])]
        if len(beaten):
            leaner = networks[~newer & (networks["parameters"] < older["parameters"])]
            leaner = leaner[leaner["top1"] > older["top1"] - apart].sort_values("parameters", ascending=False)
            return [older, *leaner.to_dict("records")], beaten.loc[beaten["top1"].idxmax()].to_dict()
    return None


def lead_of_lean(speed: pd.DataFrame) -> tuple[float, float] | None:
    """How many times as fast onnxruntime is as PyTorch (folded), of the networks in `speed`: the least and the most."""
    times = speed.pivot_table(index=["model", "width"], columns="runtime", values="median_ms")
    if not {"folded", "onnxruntime"} <= set(times):
        return None
    ratios = times["folded"] / times["onnxruntime"]
    return ratios.min(), ratios.max()


def int8_times(measured: pd.DataFrame) -> dict:
    """`int8`, the (least, most) time of onnxruntime's int8 file to that of the fp32 file, and `int8_on`, the newest row
    that says where; None where there is no record."""
    written = measured[measured["file_mb"].notna()] if "file_mb" in measured else measured[:0]
    files = comparisons.files(written)
    int8 = files[files["runtime"] == "onnxruntime-int8"]
    if not len(int8) or "ratio_1" not in int8:
        return {"int8": None, "int8_on": None}
    newest = latency.newest(written[written["runtime"] == "onnxruntime-int8"]).iloc[0].to_dict()
    return {"int8": (int8["ratio_1"].min(), int8["ratio_1"].max()), "int8_on": newest}


def int8_losses(recorded: pd.DataFrame, folder: Path, models: Path | None) -> list[float]:
    """Points of top-1 that int8 costs each run of which a record says so."""
    kept = [run for run in recorded["run"] if store.has(run, store.WEIGHTS, models)]
    facts = [export.load_int8_record(run, folder, models) for run in kept]
    return sorted(one["top1"] - one["top1_int8"] for one in facts if one)

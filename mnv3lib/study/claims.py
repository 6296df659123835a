"""Which of the earlier report's claims the recorded runs bear out."""

import enum
import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mnv3lib.recipe import short
from mnv3lib.study import ablations, axes, results, statistics
from mnv3lib.study.axes import Claim
from mnv3lib.study.statistics import Spread

VERSIONS = "V3 is more accurate than V2, and V2 than V1, at no more MACs"


class Verdict(enum.StrEnum):
    """On a claim, or on one of the differences that test it."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "not decided"
    MISSING = "not run yet"


COLUMNS = "claim axis question every variant against difference low high seeds seeds_against verdict"
OF_VERSIONS = "macs macs_against weight_decay weight_decay_against"


def tests(table: pd.DataFrame, models: pd.DataFrame, spread: Spread) -> pd.DataFrame:
    """A row a difference that tests a claim, from ablations.results, results.recorded and the spread between seeds.

    Columns: claim (its text), axis (missing for the claim about versions), question (whether it is only asked), every
    (whether the claim is about all of its differences, or about one of them), variant and against (what is set beside
    what), difference (points of top-1), low and high (its 95 % interval), seeds and seeds_against (how many), verdict
    (on this difference), and for versions macs, weight_decay and both of what it is set against. What was not run has
    no numbers.
    """
    rows = _of_versions(models, spread)
    for claim in axes.read().claims:
        rows += _of_claim(claim, table[table["axis"] == claim.axis].set_index("variant"), spread)
    return pd.DataFrame(rows, columns=[*COLUMNS.split(), *OF_VERSIONS.split()])


def verdicts(tests: pd.DataFrame) -> pd.DataFrame:
    """A row a claim of `tests`: claim, axis, question, verdict."""
    groups = tests.groupby("claim", sort=False)
    table = groups[["axis", "question"]].first()
    table["verdict"] = [_all(group["verdict"], group["every"].all()) for _, group in groups]
    return table.reset_index()


def recorded(models: Path | None = None) -> pd.DataFrame:
    """`tests` by this project's recorded ablations and the trained models in `models` (default: this project's)."""
    records = ablations.recorded(ablations.folder(), models)
    return tests(ablations.results(records), results.recorded(models), statistics.seed_spread(records))


def _of_claim(claim: Claim, rows: pd.DataFrame, spread: Spread) -> list[dict]:
    against = claim.against or (rows.index[0] if len(rows) else "base")
    about = {"claim": claim.text, "axis": claim.axis, "question": claim.question, "every": claim.every}
    tested = []
    for name in claim.variants:
        row = about | {"variant": name, "against": against, "verdict": Verdict.MISSING}
        if name in rows.index and against in rows.index:
            row |= _tested(rows.loc[name], rows.loc[against], spread, claim.low, claim.high)
        tested.append(row)
    return tested


def _of_versions(models: pd.DataFrame, spread: Spread) -> list[dict]:
    """That each version is more accurate than the one before.

    Each network of the older version is set beside the most accurate of the newer that has no more MACs; of one with
    several seeds, the mean counts.
    """
    usual = models[models["usual"]].groupby(["model", "width", "epochs", "macs", "weight_decay"], as_index=False)
    usual = usual.agg(top1=("top1", "mean"), seeds=("top1", "size"))
    usual["name"] = [f"{short(model)} {width:g}" for model, width in zip(usual["model"], usual["width"], strict=True)]
    version, about = usual["model"].str[:2], {"claim": VERSIONS, "question": False, "every": True}
    tested = []
    for older, newer in (("v1", "v2"), ("v2", "v3")):
        pairs = []
        for _, old in usual[version == older].iterrows():
            lean = usual[(version == newer) & (usual["macs"] <= old["macs"]) & (usual["epochs"] == old["epochs"])]
            if lean.empty:
                continue
            new = lean.loc[lean["top1"].idxmax()]
            row = about | {"variant": new["name"], "against": old["name"]} | _tested(new, old, spread, 0, math.inf)
            for name in ("macs", "weight_decay"):
                row |= {name: new[name], f"{name}_against": old[name]}
            pairs.append(row)
        tested += pairs or [about | {"variant": newer, "against": older, "verdict": Verdict.MISSING}]
    return tested


def _tested(one: pd.Series, other: pd.Series, spread: Spread, least: float, most: float) -> dict:
    """Whether top1 of `one` is `least` to `most` points above that of `other`, and by how much."""
    difference, half = one["top1"] - other["top1"], spread.reach(one["seeds"], other["seeds"])
    low, high = difference - half, difference + half
    verdict = Verdict.UNDECIDED
    if min(one["seeds"], other["seeds"]) > 1 or abs(difference) >= spread.deviation:
        if low >= least and high <= most:
            verdict = Verdict.HOLDS
        elif high < least or low > most:
            verdict = Verdict.FAILS
    seeds = {"seeds": one["seeds"], "seeds_against": other["seeds"]}
    return {"difference": difference, "low": low, "high": high, "verdict": verdict} | seeds


def _all(verdicts: Iterable[Verdict], every: bool) -> Verdict:
    """The verdict on a claim about several differences: that each lies where it says, or that one does."""
    found = set(verdicts)
    deciding, other = (Verdict.FAILS, Verdict.HOLDS) if every else (Verdict.HOLDS, Verdict.FAILS)
    if deciding in found:
        return deciding
    return found.pop() if found in ({other}, {Verdict.MISSING}) else Verdict.UNDECIDED

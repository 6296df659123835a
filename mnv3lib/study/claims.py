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


COLUMNS = "claim axis question every variant against difference low high seeds seeds_against verdict".split()
COLUMNS += "macs macs_against weight_decay weight_decay_against".split()


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
    return pd.DataFrame(rows, columns=COLUMNS)


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
    tested, measured = [], rows[["top1", "seeds"]].to_dict("index")
    for name in claim.variants:
        row = about | {"variant": name, "against": against, "verdict": Verdict.MISSING}
        if name in measured and against in measured:
            row |= measured[name] | {f"{key}_against": value for key, value in measured[against].items()}
            row |= _tested(row, spread, claim.low, claim.high)
        tested.append(row)
    return tested


def _of_versions(models: pd.DataFrame, spread: Spread) -> list[dict]:
    """That each version is more accurate than the one before.

    Each network of the older version is set beside the most accurate of the newer that has no more MACs; of one with
    several seeds, the mean counts.
    """
    usual = models[models["usual"]].groupby(["model", "width", "epochs", "macs", "weight_decay"], as_index=False)
    usual = usual.agg(top1=("top1", "mean"), seeds=("top1", "size"))
    usual["variant"] = usual["model"].map(short) + usual["width"].map(" {:g}".format)
    version, about = usual["model"].str[:2], {"claim": VERSIONS, "question": False, "every": True}
    tested = []
    for older, newer in (("v1", "v2"), ("v2", "v3")):
        pairs = usual[version == older].merge(usual[version == newer], on="epochs", suffixes=("_against", ""))
        pairs = pairs[pairs["macs"] <= pairs["macs_against"]].rename(columns={"variant_against": "against"})
        best = pairs.loc[pairs.groupby("against", sort=False)["top1"].idxmax()].to_dict("records")
        missing = about | {"variant": newer, "against": older, "verdict": Verdict.MISSING}
        tested += [about | pair | _tested(pair, spread, 0, math.inf) for pair in best] or [missing]
    return tested


def _tested(pair: dict, spread: Spread, least: float, most: float) -> dict:
    """Whether top1 is `least` to `most` points above top1_against, and by how much."""
    difference, half = pair["top1"] - pair["top1_against"], spread.reach(pair["seeds"], pair["seeds_against"])
    low, high = difference - half, difference + half
    verdict = Verdict.UNDECIDED
    if min(pair["seeds"], pair["seeds_against"]) > 1 or abs(difference) >= spread.deviation:
        if low >= least and high <= most:
            verdict = Verdict.HOLDS
        elif high < least or low > most:
            verdict = Verdict.FAILS
    return {"difference": difference, "low": low, "high": high, "verdict": verdict}


def _all(verdicts: Iterable[Verdict], every: bool) -> Verdict:
    """The verdict on a claim about several differences: that each lies where it says, or that one does."""
    found = set(verdicts)
    deciding, other = (Verdict.FAILS, Verdict.HOLDS) if every else (Verdict.HOLDS, Verdict.FAILS)
    if deciding in found:
        return deciding
    return found.pop() if found in ({other}, {Verdict.MISSING}) else Verdict.UNDECIDED

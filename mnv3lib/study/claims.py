"""Which of the earlier report's claims the recorded runs bear out."""

import enum
import math
from pathlib import Path

import pandas as pd

from mnv3lib.recipe import short
from mnv3lib.study import ablations, axes, results, statistics
from mnv3lib.study.axes import Claim
from mnv3lib.study.statistics import Seeds, Spread

VERSIONS = "V3 is more accurate than V2, and V2 than V1, at no more MACs"


class Verdict(enum.StrEnum):
    """On a claim, or on one of the differences that test it."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "not decided"
    MISSING = "not run yet"


LEVEL = 0.05  # of all tests of claims together
COLUMNS = (
    "claim axis question every variant against difference low high seeds seeds_against p_holds p_fails verdict".split()
)
COLUMNS += "macs macs_against weight_decay weight_decay_against".split()


def tests(table: pd.DataFrame, models: pd.DataFrame, spread: Spread) -> pd.DataFrame:
    """A row a difference that tests a claim, from ablations.results, results.recorded and the spread between seeds.

    Columns: claim (its text), axis (missing for the claim about versions), question (whether it is only asked), every
    (whether the claim is about all of its differences, or about one of them), variant and against (what is set beside
    what), difference (points of top-1), low and high (its 95 % interval), seeds and seeds_against (how many), p_holds
    and p_fails (of the tests that it lies, and that it does not lie, where the claim says), verdict (on this difference
    alone, as if it were the only test), and for versions macs, weight_decay and both of what it is set against. What
    was not run has no numbers.
    """
    rows = _of_versions(models, spread)
    for claim in axes.read().claims:
        rows += _of_claim(claim, table[table["axis"] == claim.axis].set_index("variant"), spread)
    return pd.DataFrame(rows, columns=COLUMNS)


def verdicts(tests: pd.DataFrame) -> pd.DataFrame:
    """A row a claim of `tests`: claim, axis, question, p (corrected, by Holm, for the number of claims), verdict.

    A claim about all of its differences holds if each does, and fails if one does, for which p counts how many there
    are; a claim about one of them the other way round.
    """
    rows = [_judged(group) for _, group in tests.groupby("claim", sort=False)]
    table = pd.DataFrame(rows, columns=["claim", "axis", "question", "run", "holds", "p"])
    table["p"] = statistics.holm(table["p"])
    decided = table["holds"].map({True: Verdict.HOLDS, False: Verdict.FAILS})
    table["verdict"] = decided.where(table["p"] < LEVEL, Verdict.UNDECIDED).where(table["run"], Verdict.MISSING)
    return table.drop(columns=["run", "holds"])


def _judged(group: pd.DataFrame) -> tuple:
    first, p_holds, p_fails = group.iloc[0], group["p_holds"].fillna(1), group["p_fails"].fillna(1)
    every, one = (p_holds, p_fails) if first["every"] else (p_fails, p_holds)
    every, one = every.max(), min(1, len(group) * one.min())
    p_holds, p_fails = (every, one) if first["every"] else (one, every)
    run = group["difference"].notna().any()
    return first["claim"], first["axis"], first["question"], run, p_holds <= p_fails, min(p_holds, p_fails)


def recorded(models: Path | None = None) -> pd.DataFrame:
    """`tests` by this project's recorded ablations and the trained models in `models` (default: this project's)."""
    records = ablations.recorded(ablations.folder(), models)
    return tests(ablations.results(records), results.recorded(models), statistics.seed_spread(records))


def _of_claim(claim: Claim, rows: pd.DataFrame, spread: Spread) -> list[dict]:
    against = claim.against or (rows.index[0] if len(rows) else "base")
    about = {"claim": claim.text, "axis": claim.axis, "question": claim.question, "every": claim.every}
    tested, measured = [], rows[["top1", "seeds", "spread"]].to_dict("index")
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
    usual = usual.agg(top1=("top1", "mean"), seeds=("top1", "size"), spread=("top1", "std"))
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
    """By how much top1 is above top1_against, and whether that lies between `least` and `most` points."""
    sides = (Seeds(*(pair[f"{name}{side}"] for name in ("top1", "seeds", "spread"))) for side in ("", "_against"))
    found = spread.difference(*sides)
    holds, fails = found.p_within(least, most), found.p_outside(least, most)
    verdict = Verdict.HOLDS if holds < LEVEL else Verdict.FAILS if fails < LEVEL else Verdict.UNDECIDED
    tested = {"p_holds": holds, "p_fails": fails, "verdict": verdict}
    return {"difference": found.points, "low": found.points - found.half, "high": found.points + found.half} | tested

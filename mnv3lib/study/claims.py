"""Which of the earlier report's claims the recorded runs bear out."""

import bisect
import enum
import functools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from mnv3lib.cost import pareto_front
from mnv3lib.study import axes, statistics
from mnv3lib.study.axes import Claim
from mnv3lib.study.statistics import Seeds, Spread

VERSIONS = {  # by what the networks are made equal in, a column of the trained models
    "macs": "At equal MACs V3 is more accurate than V2, and V2 than V1",
    "latency": "At equal latency V3 is more accurate than V2, and V2 than V1",
    "parameters": "At equal parameters V3 is more accurate than V2, and V2 than V1",
}


PAIRS = (("V2", "V1"), ("V3", "V2"))  # that these claims compare, the newer version first


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
COLUMNS += "agrees_from agrees_to cost least most".split()
PLANS = (*range(2, 31), 40, 50, 75, 100)  # seeds of each recipe, of which the fewest that would decide a claim is told


def tests(table: pd.DataFrame, models: pd.DataFrame, spread: Spread) -> pd.DataFrame:
    """A row a difference that tests a claim, from ablations.results, results.load_runs and the spread between seeds.

    models may have a column `latency`, in ms. Columns: claim (its text), axis (missing for claims about versions),
    question (whether it is only asked), every (whether the claim is about all of its differences, or about one of
    them), variant and against (what is set beside what), difference (points of top-1), low and high (its 95 %
    interval), seeds and seeds_against (how many runs), p_holds and p_fails (of the tests that it lies, and that it does
    not lie, where the claim says), verdict (on this difference alone, as if it were the only test), agrees_from and
    agrees_to (between which points the claim says that it lies), for versions cost (of VERSIONS), and from the least to
    the most of it that both versions have, and needed (see `_needed`). What was not run has no other numbers.
    """
    found = _tests(table, models, spread)
    return found.assign(needed=found["claim"].map(_needed(found, table, models, spread)).astype(float))


def _tests(table: pd.DataFrame, models: pd.DataFrame, spread: Spread, least: int = 0) -> pd.DataFrame:
    """As `tests`, but for needed. With `least` as if all had so many seeds, at the means and deviations they have."""

    def planned(seeds: Seeds) -> Seeds:
        if seeds.count >= least:
            return seeds
        return Seeds(seeds.top1, least, spread.deviation if math.isnan(seeds.deviation) else seeds.deviation)

    if spread.alike:  # what two recipes with so many seeds tell of it
        spread = spread._replace(freedom=max(spread.freedom, 2 * (least - 1)))
    rows = [row for cost in VERSIONS for row in _of_versions(models, cost, spread, planned)]
    for claim in axes.read().claims:
        rows += _of_claim(claim, table[table["axis"] == claim.axis].set_index("variant"), spread, planned)
    return pd.DataFrame(rows, columns=COLUMNS)


def _needed(found: pd.DataFrame, table: pd.DataFrame, models: pd.DataFrame, spread: Spread) -> dict[str, int]:
    """How many seeds of each recipe would decide each claim that is not, if means and deviations stayed as they are.

    The next claim to be decided has to pass Holm's correction for all that are not. Those for which the most of PLANS
    would not do are left out.
    """
    judged = verdicts(found)
    undecided = judged["verdict"] == Verdict.UNDECIDED
    left = (undecided | (judged["verdict"] == Verdict.MISSING)).sum()
    tried = functools.cache(functools.partial(_tests, table, models, spread))

    def decides(seeds: int, claim: str) -> bool:
        *_, p = _judged(tried(seeds).groupby("claim").get_group(claim))
        return p < LEVEL / left

    places = {
        claim: bisect.bisect_left(PLANS, True, key=functools.partial(decides, claim=claim))
        for claim in judged["claim"][undecided]
    }
    return {claim: PLANS[place] for claim, place in places.items() if place < len(PLANS)}


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


def _of_claim(claim: Claim, rows: pd.DataFrame, spread: Spread, planned: Callable[[Seeds], Seeds]) -> list[dict]:
    against = claim.against or (rows.index[0] if len(rows) else "base")
    about = {"claim": claim.text, "axis": claim.axis, "question": claim.question, "every": claim.every}
    about |= {"agrees_from": claim.low, "agrees_to": claim.high}
    tested, measured = [], rows[["top1", "seeds", "spread"]].to_dict("index")
    for name in claim.variants:
        row = about | {"variant": name, "against": against, "verdict": Verdict.MISSING}
        if name in measured and against in measured:
            sides = [planned(Seeds(*measured[side].values())) for side in (name, against)]
            row |= {"seeds": sides[0].count, "seeds_against": sides[1].count}
            row |= _judged_difference(spread.difference(*sides), claim.low, claim.high)
        tested.append(row)
    return tested


def _of_versions(models: pd.DataFrame, cost: str, spread: Spread, planned: Callable[[Seeds], Seeds]) -> list[dict]:
    """That each version is more accurate than the one before at an equal `cost`.

    A curve goes through the networks of a version that none of it beats at no more cost: straight in the logarithm of
    the cost, through means over seeds. The difference is the mean distance of two curves over the costs that both have.
    """
    about = {"claim": VERSIONS[cost], "question": False, "every": True, "cost": cost}
    about |= {"agrees_from": 0, "agrees_to": math.inf}
    rows = []
    for newer, older in PAIRS:
        row = about | {"variant": newer, "against": older, "verdict": Verdict.MISSING}
        found = curves(models, cost, newer, older)
        if len(found):
            means = [planned(Seeds(one.top1, one.seeds, one.std)) for one in found.itertuples()]
            runs = found[found["weight"] != 0].groupby("version")["seeds"].sum()
            row |= found[["least", "most"]].iloc[0].to_dict() | {"seeds": runs[newer], "seeds_against": runs[older]}
            row |= _judged_difference(spread.contrast(found["weight"], means), row["agrees_from"], row["agrees_to"])
        rows.append(row)
    return rows


def versions(models: pd.DataFrame, spread: Spread) -> pd.DataFrame:
    """How far each version is ahead of each older one at equal cost, where both have networks of such a cost.

    models and spread: as for `tests`; V3 against V1 is here too, which no claim is about. Columns: cost (of VERSIONS),
    newer, older, least and most (the costs that both have), difference (mean distance of the curves, in points), low
    and high (its 95 % interval), p_together (that it is none, with Holm's correction over these rows), at_least and
    at_most (their distance at these two costs).
    """
    rows = []
    for cost in VERSIONS:
        for newer, older in (*PAIRS, ("V3", "V1")):
            found = curves(models, cost, newer, older)
            if len(found):
                means = [Seeds(one.top1, one.seeds, one.std) for one in found.itertuples()]
                mean = spread.contrast(found["weight"], means)
                ends = {f"at_{end}": found["top1"] @ found[f"weight_{end}"] for end in ("least", "most")}
                row = {"cost": cost, "newer": newer, "older": older, **found[["least", "most"]].iloc[0]} | ends
                row |= {"difference": mean.points, "low": mean.points - mean.half, "high": mean.points + mean.half}
                rows.append(row | {"p": mean.p_outside(0, 0)})
    columns = "cost newer older least most difference low high p at_least at_most".split()
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p_together=statistics.holm(table["p"].astype(float))).drop(columns="p")


def curves(models: pd.DataFrame, cost: str, newer: str, older: str) -> pd.DataFrame:
    """The networks that the curves of two versions go through, and the weight of each in the curves' mean distance.

    models: as for `tests`. Columns: version, model, width, cost, top1 (mean of its seeds), seeds, std, weight, least
    and most (the costs that both versions have), weight_least and weight_most (the weights in the distance at these
    costs). Empty where they have none in common.
    """
    usual = models[models["usual"]]
    usual = usual.assign(version=usual["model"].str[:2].str.upper(), **({} if cost in usual else {cost: math.nan}))
    networks = usual.groupby(["version", "model", "width"], as_index=False)
    networks = networks.agg(cost=(cost, "first"), top1=("top1", "mean"), seeds=("top1", "size"), std=("top1", "std"))
    new, old = (pareto_front(networks[networks["version"] == one], "cost") for one in (newer, older))
    if new.empty or old.empty:
        return new.head(0).assign(weight=0.0, least=0.0, most=0.0, weight_least=0.0, weight_most=0.0)
    least, most = (max(new["cost"].min(), old["cost"].min()), min(new["cost"].max(), old["cost"].max()))
    spans = {"weight": (least, most), "weight_least": (least, least), "weight_most": (most, most)}
    both = pd.concat([new, old]) if least < most else new.head(0)
    weights = {
        name: np.array([*_shares(new["cost"], *span), *-_shares(old["cost"], *span)])[: len(both)]
        for name, span in spans.items()
    }
    return both.assign(least=least, most=most, **weights)


def _shares(costs: pd.Series, least: float, most: float) -> np.ndarray:
    """What each point of a curve counts in the curve's mean from `least` to `most`."""
    places, spots = np.linspace(math.log(least), math.log(most), 1001), np.log(costs.to_numpy(float))
    return np.array([np.interp(places, spots, one).mean() for one in np.eye(len(spots))])


def _judged_difference(found: statistics.Difference, least: float, most: float) -> dict:
    holds, fails = found.p_within(least, most), found.p_outside(least, most)
    verdict = Verdict.HOLDS if holds < LEVEL else Verdict.FAILS if fails < LEVEL else Verdict.UNDECIDED
    tested = {"p_holds": holds, "p_fails": fails, "verdict": verdict}
    return {"difference": found.points, "low": found.points - found.half, "high": found.points + found.half} | tested

"""What seeds do to top-1: its spread, the intervals of differences, and whether they can be trusted."""

import enum
import json
import math
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd
import scipy.stats

from mnv3lib.study.places import devices

MARGIN = 1.0  # points of top-1; less than that counts as no difference
NAMES = {"recipe", "variant", "seed"}  # the fields that do not tell how a run trains, or are repeated on purpose


class Outcome(enum.StrEnum):
    """What a difference to the base says; ALIKE is within MARGIN."""

    BETTER = "better"
    WORSE = "worse"
    ALIKE = "alike"
    UNDECIDED = "not decided"


class Spread(NamedTuple):
    """The standard deviation of top-1 between seeds and its degrees of freedom: NaN and 0 where it is not known."""

    deviation: float
    freedom: int

    def reach(self, first: int, second: int) -> float:
        """Half the width of the 95 % interval (Student's) of a difference of means over so many seeds, in points."""
        return float(scipy.stats.t.ppf(0.975, self.freedom)) * self.deviation * math.sqrt(1 / first + 1 / second)

    def seeds_within(self, points: float) -> int:
        """How many seeds of each of two recipes make their `reach` less than so many points. The spread is known."""
        return math.floor((self.reach(1, 1) / points) ** 2) + 1


def training(record: dict) -> str:
    """What tells how a record's run was trained, but for the seed."""
    return json.dumps(record["recipe"] | dict.fromkeys(NAMES), sort_keys=True)


def repeated(records: Iterable[dict]) -> list[list[dict]]:
    """The records of each recipe that was run with several seeds."""
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(training(record), []).append(record)
    return [group for group in groups.values() if len(group) > 1]


def tops(group: Iterable[dict]) -> pd.Series:
    """Top-1 of each record, in percent."""
    return pd.Series([one["result"]["top1"] for one in group])


def seed_spread(records: Iterable[dict]) -> Spread:
    """The deviation between seeds, pooled over the recipes run with several, which are all taken to have the same.

    Whether they have, `deviations` tells.
    """
    groups = [tops(group) for group in repeated(records)]
    freedom = sum(len(values) - 1 for values in groups)
    squares = sum(values.var() * (len(values) - 1) for values in groups)
    return Spread(math.sqrt(squares / freedom) if freedom else math.nan, freedom)


def deviations(records: Iterable[dict]) -> tuple[list[float], float]:
    """(standard deviation of top-1 of each recipe with three seeds or more, p of Bartlett's test that all are equal).

    p is NaN with fewer than two such recipes.
    """
    groups = [tops(group) for group in repeated(records) if len(group) > 2]
    p = float(scipy.stats.bartlett(*groups).pvalue) if len(groups) > 1 else math.nan
    return [values.std() for values in groups], p


def device_effect(records: Iterable[dict]) -> tuple[float, float, int]:
    """(points of top-1 by which runs begun on a GPU are above those on CPUs, half its 95 % interval, how many recipes).

    Least squares with an effect of each recipe, from those that have runs of both; the interval is Student's. Both are
    NaN where there are too few.
    """
    groups = [
        pd.DataFrame({"top1": tops(group), "on_gpu": [float(devices(one).startswith("GPU")) for one in group]})
        for group in repeated(records)
    ]
    within = [runs - runs.mean() for runs in groups if runs["on_gpu"].nunique() == 2]
    freedom = sum(map(len, within)) - len(within) - 1
    if freedom < 1:
        return math.nan, math.nan, len(within)
    top1, on_gpu = pd.concat(within).to_numpy().T
    effect = top1 @ on_gpu / (on_gpu @ on_gpu)
    error = math.sqrt(((top1 - effect * on_gpu) ** 2).sum() / freedom / (on_gpu @ on_gpu))
    return float(effect), float(scipy.stats.t.ppf(0.975, freedom)) * error, len(within)


def outcome(difference: float, half: float, seeds: int, deviation: float) -> Outcome:
    """What a difference of so many points says, give or take `half`.

    seeds: the fewer of the two's; from one seed nothing follows where the difference is below the `deviation` of seeds.
    """
    if math.isnan(half) or (seeds == 1 and abs(difference) < deviation):
        return Outcome.UNDECIDED
    if abs(difference) > half:
        return Outcome.BETTER if difference > 0 else Outcome.WORSE
    return Outcome.ALIKE if abs(difference) + half < MARGIN else Outcome.UNDECIDED

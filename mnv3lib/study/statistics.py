"""What seeds do to top-1: its spread, the intervals of differences, and whether they can be trusted."""

import enum
import json
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from scipy import optimize, special

from mnv3lib.study.places import devices

MARGIN = 1.0  # points of top-1; less than that counts as no difference
NAMES = {"recipe", "variant", "seed"}  # the fields that do not tell how a run trains, or are repeated on purpose


class Outcome(enum.StrEnum):
    """What a difference to the base says; ALIKE is within MARGIN."""

    BETTER = "better"
    WORSE = "worse"
    ALIKE = "alike"
    UNDECIDED = "not decided"


class Seeds(NamedTuple):
    """Top-1 of a recipe over its seeds, in percent: mean, how many, standard deviation (NaN with one)."""

    top1: float
    count: int
    deviation: float


class Difference(NamedTuple):
    """A difference of means in points of top-1, its standard error and its degrees of freedom."""

    points: float
    error: float
    freedom: float

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval, Student's."""
        return float(scipy.stats.t.ppf(0.975, self.freedom)) * self.error

    def p_within(self, low: float, high: float) -> float:
        """p of two one-sided tests that it is not within `low` and `high`, doubled: both sides of each are counted."""
        return min(1.0, 2 * max(self._beyond(self.points - low), self._beyond(high - self.points)))

    def p_outside(self, low: float, high: float) -> float:
        """p of the test that it is within `low` and `high`."""
        return min(1.0, 2 * min(self._beyond(low - self.points), self._beyond(self.points - high)))

    def _beyond(self, points: float) -> float:
        return float(scipy.stats.t.sf(points / self.error, self.freedom)) if self.error else float(points <= 0)


class Spread(NamedTuple):
    """What is known of the standard deviation of top-1 between seeds before a recipe's own seeds are seen.

    deviation: the typical one, in points. freedom: for how many seeds beyond the first that knowledge counts; the more
    the recipes differ, the fewer. NaN and 0 where nothing is known. alike: all recipes have the same, which is pooled
    over them, so that a recipe's own seeds tell nothing more.
    """

    deviation: float
    freedom: float
    alike: bool = False

    def difference(self, first: Seeds, second: Seeds) -> Difference:
        """First minus second. Error and freedom are NaN where no spread is known."""
        return self.contrast([1, -1], [first, second])

    def contrast(self, weights: Iterable[float], means: Iterable[Seeds]) -> Difference:
        """The sum of means with these weights, which add up to 0. NaN as above.

        Each mean has a variance of its own, as in Welch's interval. The degrees of freedom are the fewest of any of the
        means (Scheffé 1970, "Practical solutions of the Behrens-Fisher problem"), not Satterthwaite's: with few seeds
        their interval covers 86 to 94 % where it should cover 95 %, and this one 95 to 96 %.
        """
        weights, means = list(weights), list(means)
        points = sum(weight * one.top1 for weight, one in zip(weights, means, strict=True))
        if not self.freedom:
            return Difference(points, math.nan, math.nan)
        variances, freedoms = np.array([self._of_mean(one) for one in means]).T
        error = math.sqrt((variances * np.square(weights)).sum())
        return Difference(points, error, min(freedoms[np.not_equal(weights, 0)]))

    def _of_mean(self, seeds: Seeds) -> tuple[float, float]:
        """The variance of a mean over seeds, and its degrees of freedom.

        The seeds' own variance is moderated: averaged with the typical one, weighted by their degrees of freedom (Smyth
        2004, "Linear models and empirical Bayes methods for assessing differential expression", section 3).
        """
        own = 0 if self.alike else seeds.count - 1
        squares = self.freedom * self.deviation**2 + (own * seeds.deviation**2 if own else 0.0)
        return squares / (self.freedom + own) / seeds.count, self.freedom + own

    def apart(self, known: Seeds | None = None) -> float:
        """By how many points two single runs have to differ to differ clearly: half the 95 % interval of a difference.

        Both are of recipes of which nothing is known, or that vary as the seeds `known` do.
        """
        known = known or Seeds(0.0, 1, math.nan)
        if not self.freedom:
            return math.nan
        variance, freedom = self._of_mean(known)
        return Difference(0.0, math.sqrt(2 * known.count * variance), freedom).half


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


def of(tops: pd.Series) -> Seeds:
    """The top-1 of a recipe's seeds, summed up."""
    return Seeds(float(tops.mean()), len(tops), float(tops.std()))


def seed_spread(records: Iterable[dict]) -> Spread:
    """What the recipes run with several seeds tell of the spread of any other, whose variance is drawn like theirs.

    Their variances are taken for draws of a scaled inverse chi-squared distribution, whose two parameters come from the
    mean and the variance of their logarithms (Smyth 2004, section 6.2). Where they differ no more than chance makes
    them, the spread is pooled.
    """
    groups = [tops(group) for group in repeated(records)]
    freedom = np.array([len(values) - 1 for values in groups])
    variances = np.array([values.var() for values in groups])
    if not len(groups):
        return Spread(math.nan, 0)
    known = variances > 0
    logs = np.log(variances[known]) - special.digamma(freedom[known] / 2) + np.log(freedom[known] / 2)
    excess = logs.var(ddof=1) - special.polygamma(1, freedom[known] / 2).mean() if known.sum() > 1 else 0.0
    if excess <= 0:
        return Spread(math.sqrt((freedom * variances).sum() / freedom.sum()), int(freedom.sum()), alike=True)
    prior = 2 * optimize.brentq(lambda half: special.polygamma(1, half) - excess, 1e-3, 1e6)
    return Spread(math.exp((logs.mean() + special.digamma(prior / 2) - math.log(prior / 2)) / 2), prior)


def deviations(records: Iterable[dict]) -> tuple[list[float], float]:
    """(standard deviation of top-1 of each recipe with three seeds or more, p of Bartlett's test that all are equal).

    p is NaN with fewer than two such recipes.
    """
    groups = [tops(group) for group in repeated(records) if len(group) > 2]
    p = float(scipy.stats.bartlett(*groups).pvalue) if len(groups) > 1 else math.nan
    return [values.std() for values in groups], p


def device_effect(records: Iterable[dict]) -> tuple[Difference, int]:
    """(by how much runs begun on a GPU are above those on CPUs, how many recipes have runs of both).

    Least squares with an effect of each recipe, from those that have runs of both; NaN where there are too few.
    """
    groups = [
        pd.DataFrame({"top1": tops(group), "on_gpu": [float(devices(one).startswith("GPU")) for one in group]})
        for group in repeated(records)
    ]
    within = [runs - runs.mean() for runs in groups if runs["on_gpu"].nunique() == 2]
    freedom = sum(map(len, within)) - len(within) - 1
    if freedom < 1:
        return Difference(math.nan, math.nan, math.nan), len(within)
    top1, on_gpu = pd.concat(within).to_numpy().T
    effect = top1 @ on_gpu / (on_gpu @ on_gpu)
    error = math.sqrt(((top1 - effect * on_gpu) ** 2).sum() / freedom / (on_gpu @ on_gpu))
    return Difference(float(effect), error, freedom), len(within)


def holm(p: pd.Series) -> pd.Series:
    """The p values of several tests corrected for how many they are, so that all together err in 5 % (Holm 1979)."""
    ordered = p.sort_values()
    return (ordered * np.arange(len(p), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def outcome(difference: Difference) -> Outcome:
    """What a difference to the base says, from its 95 % interval."""
    points, half = difference.points, difference.half
    if math.isnan(half):
        return Outcome.UNDECIDED
    if abs(points) > half:
        return Outcome.BETTER if points > 0 else Outcome.WORSE
    return Outcome.ALIKE if abs(points) + half < MARGIN else Outcome.UNDECIDED

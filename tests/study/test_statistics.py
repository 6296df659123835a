"""The spread between seeds, and what is taken for granted about it."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from records import record_of

from mnv3lib import recipe
from mnv3lib.study import ablations, statistics
from mnv3lib.study.statistics import Difference, Outcome, Seeds, Spread


def seeds(made, tops, **fields):
    return [record_of(dataclasses.replace(made, seed=seed), top1, **fields) for seed, top1 in enumerate(tops)]


def test_the_spread_is_pooled_where_recipes_do_not_differ_in_it():
    made = ablations.recipes("dropout")
    records = seeds(made["0"], [60.0, 60.4, 60.8]) + seeds(made["0.2"], [50.0, 51.0])
    alone = record_of(ablations.recipes("nonlinearity")["relu"], 10.0)
    assert statistics.seed_spread([*records, alone]) == (pytest.approx(math.sqrt((2 * 0.16 + 0.5) / 3)), 3, True)
    spread = statistics.seed_spread([alone])
    assert math.isnan(spread.deviation) and spread.freedom == 0 and math.isnan(spread.apart())


def test_the_spread_of_recipes_that_differ_in_it_is_found_again():
    """Drawn from the model itself: variances 0.25 * 6 / chi-squared(6), and seeds of a normal distribution."""
    random = np.random.default_rng(0)
    groups = [[60 + n for n in random.normal(0, math.sqrt(1.5 / random.chisquare(6)), 5)] for _ in range(300)]
    records = [
        record_of(recipe.make(width=0.25, crop=2, learning_rate=0.1 + number / 1000, seed=seed), top1)
        for number, tops in enumerate(groups)
        for seed, top1 in enumerate(tops)
    ]
    spread = statistics.seed_spread(records)
    assert spread.deviation == pytest.approx(0.5, rel=0.1) and 4 < spread.freedom < 9


def test_a_difference_has_welchs_error_and_the_fewest_degrees_of_freedom():
    first, second = pd.Series([60.0, 60.5, 61.4, 60.2]), pd.Series([58.0, 59.9, 61.0])
    found = Spread(1.0, 1e-9).difference(statistics.of(first), statistics.of(second))
    theirs = scipy.stats.ttest_ind(first, second, equal_var=False)
    assert found.points / found.error == pytest.approx(theirs.statistic)
    assert found.freedom == pytest.approx(2) and found.half > theirs.confidence_interval(0.95).high - found.points
    assert found.p_outside(-math.inf, 0) == pytest.approx(2 * scipy.stats.t.sf(theirs.statistic, 2))


@pytest.mark.parametrize("counts", [(1, 1), (1, 10), (3, 10), (1, 1, 1, 1)])
def test_an_interval_covers_what_it_says(counts):
    """Drawn from the model: of 95 % intervals 95 % hold the true difference, of 99.5 % ones no less.

    With Satterthwaite's degrees of freedom it is 86 to 94 % of the first.
    """
    random, spread = np.random.default_rng(0), Spread(0.56, 3.1)
    weights = [2 / len(counts) * (1 if place % 2 else -1) for place in range(len(counts))]
    covered = []
    for _ in range(4000):
        deviations = 0.56 * np.sqrt(3.1 / random.chisquare(3.1, len(counts)))
        runs = [random.normal(0, own, count) for own, count in zip(deviations, counts, strict=True)]
        seeds = [Seeds(tops.mean(), len(tops), tops.std(ddof=len(tops) > 1)) for tops in runs]
        found = spread.contrast(weights, seeds)
        errors = [spread.contrast([weight], [one]) for weight, one in zip(weights, seeds, strict=True)]
        freedom = found.error**4 / sum(one.error**4 / one.freedom for one in errors)
        narrow = abs(found.points) < found._replace(freedom=freedom).half
        covered.append((abs(found.points) < found.half, found.p_outside(-math.inf, 0) > 0.005, narrow))
    once, often, satterthwaite = np.mean(covered, axis=0)
    assert 0.94 < once < 0.965 and often > 0.993
    assert 0.85 < satterthwaite < 0.945


def test_a_recipe_that_varies_more_has_the_wider_interval():
    spread, base = Spread(0.5, 4), Seeds(60.0, 6, 0.5)
    steady, shaky = (spread.difference(Seeds(61.0, 3, deviation), base) for deviation in (0.2, 2.0))
    alone = spread.difference(Seeds(61.0, 1, math.nan), base)
    assert steady.half < alone.half < shaky.half


def test_no_difference_is_shown_by_two_one_sided_tests():
    inside, edge, outside = (Difference(points, 0.2, 20) for points in (0.1, 1.0, 2.0))
    one_sided = scipy.stats.t.sf(0.9 / 0.2, 20)
    assert inside.p_within(-1, 1) == pytest.approx(2 * one_sided)
    assert edge.p_within(-1, 1) == edge.p_outside(-1, 1) == 1
    assert outside.p_outside(-1, 1) == pytest.approx(2 * scipy.stats.t.sf(5, 20)) and outside.p_within(-1, 1) == 1


def test_holm_has_the_published_values():
    """statsmodels' documentation of multipletests has no table; worked by hand: 4 x 0.01, 3 x 0.015, 2 x 0.02, 0.04."""
    p = pd.Series([0.04, 0.01, 0.02, 0.015])
    assert statistics.holm(p).tolist() == pytest.approx([0.045, 0.04, 0.045, 0.045])


def test_how_far_apart_single_runs_have_to_be():
    """With a spread known well it is the normal distribution's: 1.96 * sqrt(2); of seeds that vary more, more."""
    assert Spread(1.0, 1e6).apart() == pytest.approx(2.77, abs=0.005)
    spread, one = Spread(0.5, 4), Seeds(60.0, 1, math.nan)
    assert spread.apart() == pytest.approx(spread.difference(one, one).half)
    assert Spread(0.5, 4).apart(Seeds(60.0, 10**6, 1.2)) == pytest.approx(1.96 * math.sqrt(2) * 1.2, rel=1e-3)


def test_deviations_are_tested_for_being_equal():
    """By scipy's own test; a recipe with two seeds tells too little and is left out."""
    made, relu = ablations.recipes("dropout"), ablations.recipes("nonlinearity")["relu"]
    steady, shaky = [60.0, 60.1, 60.2], [55.0, 60.0, 65.0]
    records = seeds(made["0"], steady) + seeds(made["0.2"], shaky) + seeds(relu, [60.0, 60.0])
    own, p = statistics.deviations(records)
    assert own == pytest.approx([0.1, 5.0]) and p == pytest.approx(scipy.stats.bartlett(steady, shaky).pvalue)
    own, p = statistics.deviations(records[:3])
    assert own == pytest.approx([0.1]) and math.isnan(p)


def test_the_effect_of_the_place_is_a_paired_test_where_runs_are_paired():
    """With one run of each recipe in each place least squares is Student's test of pairs."""
    on_cpu, on_gpu = [60.0, 50.0, 40.0], [60.4, 50.5, 40.9]
    records = [
        record_of(recipe.make(width=0.25, crop=crop, seed=seed), top1, environment={"device": device})
        for seed, (device, tops) in enumerate((("cpu", on_cpu), ("NVIDIA H100", on_gpu)))
        for crop, top1 in enumerate(tops)
    ]
    records += seeds(recipe.make(width=0.25, crop=4), [70.0, 70.0])  # on CPUs alone: tells nothing
    effect, recipes = statistics.device_effect(records)
    theirs = scipy.stats.ttest_rel(on_gpu, on_cpu).confidence_interval(0.95)
    assert recipes == 3
    assert (effect.points - effect.half, effect.points + effect.half) == pytest.approx((theirs.low, theirs.high))
    assert statistics.outcome(effect) == Outcome.UNDECIDED
    assert math.isnan(statistics.device_effect(records[:3] + records[6:])[0].points)


@pytest.mark.parametrize(
    ("points", "half", "expected"),
    [
        (1.2, 1.0, Outcome.BETTER),
        (-0.4, 0.3, Outcome.WORSE),
        (0.2, 0.7, Outcome.ALIKE),
        (0.2, 0.9, Outcome.UNDECIDED),
        (5.0, math.nan, Outcome.UNDECIDED),
    ],
)
def test_outcome(points, half, expected):
    assert statistics.outcome(Difference(points, half / scipy.stats.t.ppf(0.975, 20), 20)) == expected

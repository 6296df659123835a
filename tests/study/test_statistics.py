"""The spread between seeds, and what is taken for granted about it."""

import dataclasses
import math

import pytest
import scipy.stats
from records import record_of

from mnv3lib import recipe
from mnv3lib.study import ablations, statistics
from mnv3lib.study.statistics import Outcome, Spread


def seeds(made, tops, **fields):
    return [record_of(dataclasses.replace(made, seed=seed), top1, **fields) for seed, top1 in enumerate(tops)]


def test_the_spread_is_pooled_over_the_recipes_with_several_seeds():
    made = ablations.recipes("dropout")
    records = seeds(made["0"], [60.0, 60.4, 60.8]) + seeds(made["0.2"], [50.0, 51.0])
    alone = record_of(ablations.recipes("nonlinearity")["relu"], 10.0)
    assert statistics.seed_spread([*records, alone]) == (pytest.approx(math.sqrt((2 * 0.16 + 0.5) / 3)), 3)
    spread = statistics.seed_spread([alone])
    assert math.isnan(spread.deviation) and spread.freedom == 0 and math.isnan(spread.reach(1, 1))


def test_how_many_runs_it_takes():
    """By Student's t of 20 degrees of freedom, 2.086: 2.086 * sqrt(2 / 9) is 0.983, with 8 runs it is above 1."""
    spread = Spread(1.0, 20)
    assert spread.reach(1, 1) == pytest.approx(2.95, abs=0.005)  # 2.086 * sqrt(2)
    assert spread.seeds_within(1.0) == 9 and spread.reach(9, 9) < 1 < spread.reach(8, 8)
    assert Spread(0.001, 20).seeds_within(1.0) == 1


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
    effect, half, recipes = statistics.device_effect(records)
    theirs = scipy.stats.ttest_rel(on_gpu, on_cpu).confidence_interval(0.95)
    assert recipes == 3 and (effect - half, effect + half) == pytest.approx((theirs.low, theirs.high))
    assert statistics.outcome(effect, half, recipes, 0.0) == Outcome.UNDECIDED
    assert math.isnan(statistics.device_effect(records[:3] + records[6:])[0])


@pytest.mark.parametrize(
    ("difference", "half", "seeds", "expected"),
    [
        (1.2, 1.0, 3, Outcome.BETTER),
        (-0.4, 0.3, 3, Outcome.WORSE),
        (0.2, 0.7, 3, Outcome.ALIKE),
        (0.2, 0.9, 3, Outcome.UNDECIDED),
        (0.2, 0.7, 1, Outcome.UNDECIDED),  # below the deviation between seeds, and one seed alone
        (0.5, 0.4, 1, Outcome.BETTER),
        (5.0, math.nan, 1, Outcome.UNDECIDED),
    ],
)
def test_outcome(difference, half, seeds, expected):
    assert statistics.outcome(difference, half, seeds, deviation=0.3) == expected

"""The verdicts on the claims of the earlier report."""

import dataclasses
import math

import pytest
from records import record_of

from mnv3lib import recipe, store
from mnv3lib.report import tables
from mnv3lib.study import ablations, axes, claims, results
from mnv3lib.study.claims import Verdict
from mnv3lib.study.statistics import Spread, seed_spread

NO_MODELS = results.recorded("no such folder")


def differences(tops, axis="dropout"):
    """claims.tests for {variant of `axis`: top-1 by seed}."""
    made = ablations.recipes(axis)
    records = [
        record_of(dataclasses.replace(made[name], seed=seed), top1)
        for name, values in tops.items()
        for seed, top1 in enumerate(values)
    ]
    return claims.tests(ablations.results(records), NO_MODELS, seed_spread(records))


def verdict(tests, text):
    return claims.verdicts(tests).set_index("claim")["verdict"][text]


def test_no_records_no_verdicts(tmp_path):
    table = ablations.results(ablations.recorded(tmp_path, tmp_path))
    tests = claims.tests(table, results.recorded(tmp_path), Spread(math.nan, 0))
    judged = claims.verdicts(tests)
    assert set(judged["verdict"]) == {Verdict.MISSING} and len(judged) == len(axes.read().claims) + 1
    assert tests["difference"].isna().all() and set(tables.claims(tests)["evidence"]) == {""}


@pytest.mark.parametrize(
    ("tops", "expected"),
    [
        ({"0": [60.0, 60.2, 60.1], "0.2": [60.1, 60.0, 60.2]}, Verdict.HOLDS),
        ({"0": [60.0, 60.2, 60.1], "0.2": [57.0, 57.2, 57.1]}, Verdict.FAILS),
        ({"0": [60.0, 60.2, 60.1], "0.2": [59.0, 59.3, 59.1]}, Verdict.UNDECIDED),
        ({"0": [60.0, 60.2, 60.1], "0.2": [60.15]}, Verdict.UNDECIDED),
        ({"0": [60.0], "0.2": [60.1]}, Verdict.UNDECIDED),
        ({"0": [60.0]}, Verdict.MISSING),
    ],
)
def test_no_difference_is_a_claim_that_can_fail(tops, expected):
    assert verdict(differences(tops), "Dropout makes no difference") == expected


def test_a_claim_about_two_variants():
    tests = differences({"base": [60.0, 60.2], "paper": [50.0], "original": [58.0]}, "optimizer")
    (row,) = tests[tests["axis"] == "optimizer"].itertuples()
    assert (row.variant, row.against, row.difference, row.seeds, row.seeds_against) == ("original", "paper", 8.0, 1, 1)
    assert 0 < row.low < 8 < row.high and row.p_holds < 0.05
    assert verdict(tests, row.claim) == Verdict.UNDECIDED  # one seed each does not do for this and ten other tests
    evidence = tables.claims(tests).set_index("claim")["evidence"][row.claim]
    assert evidence.startswith("original against paper: +8.00 points, 95 % +") and evidence.endswith("(1 and 1 runs)")


def test_a_claim_about_one_of_several_variants():
    text, base = "Further augmentation helps, at ten epochs", {"base": [60.0, 60.1, 60.2]}
    below = {name: [58.0] for name in ("trivialaugment", "erasing", "cutmix", "mixup")}
    assert verdict(differences(base | {"mixup": [58.0]}, "augmentation"), text) == Verdict.UNDECIDED
    assert verdict(differences(base | below, "augmentation"), text) == Verdict.FAILS
    assert verdict(differences(base | below | {"mixup": [64.0]}, "augmentation"), text) == Verdict.HOLDS


def test_versions_are_compared_at_no_more_macs(tmp_path):
    for made, top1, macs in (
        (recipe.make(model="v1", width=0.25), 60.0, 20e6),
        (recipe.make(model="v2", width=0.35), 62.0, 18e6),
        (recipe.make(model="v2", width=0.35, seed=1), 64.0, 18e6),
        (recipe.make(model="v2", width=0.5), 70.0, 30e6),  # more MACs than V1's
        (recipe.make(model="v3_large", width=0.25), 66.0, 17e6),
        (recipe.make(model="v3_small", width=0.25), 62.0, 9e6),  # leaner, but less accurate than Large
    ):
        store.save(tmp_path, record_of(made, top1) | {"macs": macs}, [{"epoch": 1}], None, None)
    nothing = ablations.results([])
    tests = claims.tests(nothing, results.recorded(tmp_path), Spread(0.3, 10))
    rows = tests[tests["claim"] == claims.VERSIONS]
    assert rows[["variant", "against", "difference", "seeds", "seeds_against"]].to_numpy().tolist() == [
        ["V2 0.35", "V1 0.25", 3.0, 2, 1],
        ["V3 Large 0.25", "V2 0.35", 3.0, 1, 2],
        ["V3 Large 0.25", "V2 0.5", -4.0, 1, 1],
    ]
    assert verdict(tests, claims.VERSIONS) == Verdict.FAILS
    first, second, third = tables.claims(tests)["evidence"][0].split("; ")
    assert first.startswith("V2 0.35 (18.0 M MACs) against V1 0.25 (20.0 M): +3.00 points, 95 % ")
    assert second.endswith("(1 and 2 runs)")
    assert third.endswith("(1 and 1 runs), with a weight decay of 0.0005 against 0.0002")
    one_seed_each = claims.tests(nothing, results.recorded(tmp_path), Spread(5.0, 10))
    assert verdict(one_seed_each, claims.VERSIONS) == Verdict.UNDECIDED

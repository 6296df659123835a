"""The verdicts on the claims of the earlier report."""

import dataclasses
import math

import numpy as np
import pytest
from records import record_of

from mnv3lib import recipe, store
from mnv3lib.report import tables
from mnv3lib.study import ablations, axes, claims, results
from mnv3lib.study.claims import Verdict
from mnv3lib.study.statistics import Spread, seed_spread

NO_MODELS = results.load_runs("no such folder")


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
    table = ablations.results(ablations.load_records(tmp_path, tmp_path))
    tests = claims.tests(table, results.load_runs(tmp_path), Spread(math.nan, 0))
    judged = claims.verdicts(tests)
    assert set(judged["verdict"]) == {Verdict.MISSING} and len(judged) == len(axes.read().claims) + len(claims.VERSIONS)
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


def test_as_many_runs_as_are_said_to_decide_a_claim_do():
    """The same means and the same deviations, with so many seeds and with fewer."""
    tops = {"0": [60.0, 61.0], "0.2": [60.2, 60.8]}
    needed = differences(tops).set_index("claim")["needed"].dropna()
    assert list(needed.index) == ["Dropout makes no difference"] and 5 < needed.item() <= 100

    def with_seeds(count):
        drawn = np.linspace(-1, 1, count) / np.std(np.linspace(-1, 1, count), ddof=1)
        return differences({name: np.mean(two) + drawn * np.std(two, ddof=1) for name, two in tops.items()})

    assert verdict(with_seeds(int(needed.item()) + 1), "Dropout makes no difference") == Verdict.HOLDS
    assert verdict(with_seeds(int(needed.item()) // 2), "Dropout makes no difference") == Verdict.UNDECIDED
    for known, told in ((tops, {"–", f"about {needed.item():.0f}"}), ({"0": [60.0], "0.2": [60.1]}, {"–"})):
        assert set(tables.claims(differences(known))["runs of each side that would decide it"]) == told


def test_a_claim_about_two_variants():
    tests = differences({"base": [60.0, 60.2], "paper": [50.0], "original": [58.0]}, "optimizer")
    (row,) = tests[tests["axis"] == "optimizer"].itertuples()
    assert (row.variant, row.against, row.difference, row.seeds, row.seeds_against) == ("original", "paper", 8.0, 1, 1)
    assert 0 < row.low < 8 < row.high and row.p_holds < 0.05
    assert verdict(tests, row.claim) == Verdict.UNDECIDED  # one seed each does not do for this and ten other tests
    evidence = tables.claims(tests).set_index("claim or question")["evidence"][row.claim]
    assert evidence.startswith("SGD against RMSProp: +8.00 points, 95 % +") and evidence.endswith("(runs: 1 and 1)")


def test_a_claim_about_one_of_several_variants():
    text, base = "Further augmentation helps, at ten epochs", {"base": [60.0, 60.1, 60.2]}
    below = {name: [58.0] for name in ("trivialaugment", "erasing", "cutmix", "mixup")}
    assert verdict(differences(base | {"mixup": [58.0]}, "augmentation"), text) == Verdict.UNDECIDED
    assert verdict(differences(base | below, "augmentation"), text) == Verdict.FAILS
    assert verdict(differences(base | below | {"mixup": [64.0]}, "augmentation"), text) == Verdict.HOLDS


def trained(folder, tops):
    """results.load_runs of networks with {(model, width, seed): (top-1, million MACs)}, and of an equal latency."""
    for (model, width, seed), (top1, macs) in tops.items():
        made = recipe.make(model=model, width=width, seed=seed)
        store.save(folder, record_of(made, top1) | {"macs": macs * 1e6}, [{"epoch": 1}], None, None)
    table = results.load_runs(folder)
    return table.assign(latency=table["macs"] / 1e6, parameters=range(1, len(table) + 1))


def test_versions_are_compared_at_equal_cost(tmp_path):
    models = trained(
        tmp_path,
        {
            ("v1", 0.25, 0): (60.0, 10),
            ("v1", 0.5, 0): (64.0, 40),
            ("v2", 0.35, 0): (62.0, 10),
            ("v2", 0.35, 1): (64.0, 10),
            ("v2", 0.5, 0): (65.0, 40),
            ("v3_small", 0.25, 0): (70.0, 20),
            ("v3_large", 0.25, 0): (50.0, 30),  # beaten by a leaner one
            ("v3_large", 0.5, 0): (74.0, 80),
            ("v3_large", 1.0, 0): (78.0, 160),  # too far away to count, and so is its run
        },
    )
    nothing, spread = ablations.results([]), Spread(0.3, 10, alike=True)
    tests = claims.tests(nothing, models, spread)
    rows = tests[tests["claim"] == claims.VERSIONS["macs"]].set_index("variant")
    # From 63 to 65 above 60 to 64; and over the upper half of that, from 70 to 72 above 64 to 65.
    assert rows["difference"].tolist() == pytest.approx([2.0, 6.5], abs=1e-6)
    assert rows[["least", "most"]].to_numpy().tolist() == [[10e6, 40e6], [20e6, 40e6]]
    assert rows[["seeds", "seeds_against"]].to_numpy().tolist() == [[3, 2], [2, 3]]
    # Half of each mean of V2, one over two seeds, and of V1.
    assert rows["high"]["V2"] - 2.0 == pytest.approx(2.2281 * 0.3 * (0.25 / 2 + 3 * 0.25) ** 0.5, rel=1e-4)
    assert verdict(tests, claims.VERSIONS["macs"]) == Verdict.HOLDS
    assert verdict(tests, claims.VERSIONS["latency"]) == Verdict.HOLDS
    evidence = tables.claims(tests)["evidence"]
    assert evidence[0].startswith("V2 against V1, 10 to 40 M MACs: +2.00 points, 95 % +")
    assert evidence[1].split("; ")[1].startswith("V3 against V2, 20 to 40 ms: +6.50 points")
    found = claims.versions(models, spread).set_index(["cost", "newer", "older"]).loc["macs"]
    assert found.loc[("V2", "V1"), ["difference", "at_least", "at_most"]].tolist() == pytest.approx([2, 3, 1], abs=1e-6)
    assert found.loc[("V3", "V2"), ["difference", "at_least", "at_most"]].tolist() == pytest.approx(
        [6.5, 6, 7], abs=1e-6
    )
    assert found.loc[("V3", "V1"), ["least", "most"]].tolist() == [20e6, 40e6]
    wide = claims.tests(nothing, models, Spread(5.0, 10))
    assert verdict(wide, claims.VERSIONS["macs"]) == Verdict.UNDECIDED


def test_one_version_alone_is_compared_with_none(tmp_path):
    models = trained(tmp_path, {("v3_small", 0.25, 0): (70.0, 20), ("v3_small", 0.5, 0): (72.0, 30)})
    tests = claims.tests(ablations.results([]), models, Spread(0.3, 10))
    assert all(verdict(tests, text) == Verdict.MISSING for text in claims.VERSIONS.values())


def test_a_version_that_is_worse_at_equal_cost_makes_the_claim_fail(tmp_path):
    tops = {("v1", 0.25, 0): (60.0, 10), ("v1", 0.5, 0): (70.0, 40), ("v2", 0.35, 0): (55.0, 10)}
    models = trained(tmp_path, tops | {("v2", 0.5, 0): (66.0, 40)})
    tests = claims.tests(ablations.results([]), models.drop(columns="latency"), Spread(0.3, 10))
    assert verdict(tests, claims.VERSIONS["macs"]) == Verdict.FAILS
    assert verdict(tests, claims.VERSIONS["latency"]) == Verdict.MISSING  # nothing was timed

"""The table of results, and the goals."""

import dataclasses

import pandas as pd
import pytest
from records import record_of

from mnv3lib import recipe, store
from mnv3lib.provenance import ROOT
from mnv3lib.study import published, results


def save(folder, made, top1, curve):
    """A run without weights, with the accuracy after each epoch in `curve`."""
    record = record_of(
        made,
        top1,
        images=10_000,
        parameters=347_100,
        macs=9_555_584,
        environment={"processor": "a processor", "threads": 1},
        seconds=60.0 * len(curve),
        images_per_second=100.0,
    )
    history = pd.DataFrame({"epoch": range(1, len(curve) + 1), "test_top1": curve, "seconds": 60.0})
    history = history.assign(learning_rate=0.1, train_loss=1.0, train_top1=50.0)
    store.save(folder, record, history.to_dict("records"), None, None)


@pytest.fixture
def models(tmp_path):
    """Three runs that belong in the table and two that do not."""
    small = recipe.make(model="v3_small", width=0.25)
    original = published.load(results.ORIGINAL).query("network == 'v3_small' and width == 0.25")["top1"].item()
    save(tmp_path, small, original + 2, [original - 1, original + 1, original + 2])
    save(tmp_path, dataclasses.replace(small, seed=1), original - 2, [original - 3, original - 2])
    save(tmp_path, recipe.make(model="v1", width=0.25), 60.0, [60.0])
    save(tmp_path, dataclasses.replace(small, split="holdout"), 50.0, [50.0])
    save(tmp_path, recipe.make(dataset="digits"), 99.0, [99.0])
    return tmp_path


def test_table_has_the_runs_on_the_test_set(models):
    table = results.load_runs(models)
    assert list(table["run"]) == ["mobilenet_v1_0.25", "mobilenet_v3_small_0.25", "mobilenet_v3_small_0.25_seed1"]
    assert table["original"].isna().tolist() == [True, False, False]
    assert ((table["low"] < table["top1"]) & (table["top1"] < table["high"])).all()


def test_time_to_original(models):
    table = results.time_to_original(models).set_index("run")
    assert (table["epoch"]["mobilenet_v3_small_0.25"], table["minutes"]["mobilenet_v3_small_0.25"]) == (2, 2.0)
    assert pd.isna(table["epoch"]["mobilenet_v3_small_0.25_seed1"])
    assert table["epoch"].dtype == "Int64"


def test_goals_are_judged_by_the_mean_of_the_seeds(models):
    goals = results.goals(results.load_runs(models))
    small = goals.set_index(["model", "width"]).loc[("v3_small", 0.25)]
    original = published.load(results.ORIGINAL).query("network == 'v3_small' and width == 0.25")["top1"].item()
    assert (small["top1"], small["seeds"], small["reached"]) == (pytest.approx(original), 2, "missed")
    assert small["margin"] == pytest.approx(original - 63.5)
    assert goals["reached"][1:].tolist() == ["not trained"] * 5 and goals["margin"][1:].isna().all()
    for top1, outcome in ((63.5, "goal"), (67.0, "aim")):
        save(models, recipe.make(model="v3_small", width=0.25, seed=2), 3 * top1 - 2 * original, [top1])
        assert results.goals(results.load_runs(models))["reached"][0] == outcome
    longer = recipe.make(width=0.25, epochs=200, seed=4)
    for other in (longer, recipe.make(width=0.25, variant="longer"), recipe.make("original", width=0.25)):
        save(models, other, 90.0, [90.0])  # no run of the usual recipe
    assert results.goals(results.load_runs(models))["seeds"][0] == 3


def test_runs_of_a_usual_name_are_of_the_recipe_as_it_stands():
    models = ROOT / "trained_models"
    for run in store.runs(models):
        recorded = store.load_record(run, models)["recipe"]
        if not recorded["variant"]:
            given = {name: recorded[name] for name in ("recipe", "model", "width", "seed")}
            assert recipe.make(**given).differences(recorded) == [], run
            assert recipe.is_usual(recorded) == (recorded["recipe"] == "modern"), run


def test_csv_has_a_row_a_run_and_the_fields_that_vary(models):
    table = pd.read_csv(results.write_csv(models))
    assert len(table) == 5 and table["top1"].max() == 99.0
    assert {"model", "seed", "split", "dataset", "processor"} <= set(table.columns)
    assert not {"epochs", "momentum"} & set(table.columns)  # the same in all


def test_peers_are_others_on_the_same_images():
    table = results.peers()
    assert results.ORIGINAL not in set(table["source"]) and set(table["resolution"]) == {32}
    assert 80.24 in table["top1"].tolist() and table["top1"].is_monotonic_increasing


def test_no_runs(tmp_path):
    assert results.load_runs(tmp_path).empty
    assert set(results.goals(results.load_runs(tmp_path))["reached"]) == {"not trained"}

"""Runs on classes with few pictures: which pictures, which runs, and the table of them."""

import dataclasses

import pandas as pd
import pytest
import torch
from records import record_of

from mnv3lib import InputError, recipe, store, training
from mnv3lib.errors import DivergedError
from mnv3lib.study import few_pictures


def test_the_file_makes_recipes():
    study = few_pictures.read()
    for fields in [*study["ways"].values(), *study["tuning"].values()]:
        start = "x" if fields["recipe"] == "finetune" else ""
        recipe.make(**study["base"] | fields, start=start)


def test_a_file_that_lists_something_else_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("ways: 3")
    with pytest.raises(InputError, match=r"a.yaml: it should have base"):
        few_pictures.read(tmp_path / "a.yaml")


def test_pictures_are_drawn_by_the_seed_and_never_those_held_out(digits):
    whole = dataclasses.replace(digits, train=digits.train.take(torch.arange(1400)))
    first, again, other = (few_pictures.subset(whole, ["3", "8"], "new", 20, seed) for seed in (0, 0, 1))
    assert first.train.labels.bincount().tolist() == [20, 20]
    assert torch.equal(first.train.images, again.train.images) and first.digest == again.digest
    assert not torch.equal(first.train.images, other.train.images) and first.digest != other.digest
    assert len(first.test) == ((digits.test.labels == 3) | (digits.test.labels == 8)).sum()
    tuned = few_pictures.subset(whole, ["3", "8"], "new", 20, 0, tune=True)
    held = {image.numpy().tobytes() for image in tuned.test.images}
    assert len(tuned.test) == 2 * few_pictures.HELD_OUT
    every = few_pictures.subset(whole, ["3", "8"], "new", len(whole.train), 5)
    assert not held & {image.numpy().tobytes() for image in every.train.images}


def test_the_runs_are_made_once_and_told_in_a_table(digits, tmp_path, monkeypatch, alone):
    monkeypatch.setattr(few_pictures, "HELD_OUT", 10)
    small = {"width": 0.25, "epochs": 1, "image_sizes": [16], "lowered_strides": 1}
    study = {"base": {"model": "v3_small"} | small, "first": 0, "every": 3, "pictures": [3], "seeds": [0, 1]}
    study["ways"] = {"scratch": {"recipe": "modern"}, "frozen": {"recipe": "finetune", "freeze": "features"}}
    whole = dataclasses.replace(digits, train=digits.train.take(torch.arange(400)))
    few_pictures.record(tmp_path / "out", whole, study, log=lambda line: None)
    assert len(store.runs(tmp_path / "out")) == 4
    assert not any(store.has(run, store.WEIGHTS, tmp_path / "out") for run in store.runs(tmp_path / "out"))
    table = few_pictures.results(tmp_path / "out")
    assert table["way"].tolist() == ["scratch", "frozen", "linear"] and (table["seeds"] == 2).all()
    assert ((table["low"] < table["top1"]) & (table["top1"] < table["high"])).all()
    linear = pd.read_csv(tmp_path / "out" / few_pictures.LINEAR)
    assert linear["top1"].mean() == pytest.approx(table["top1"][2])
    study["tuning"] = {"rate-0.1": {"recipe": "finetune", "learning_rate": 0.1}}
    few_pictures.record(tmp_path / "tuned", whole, study, tune=True, log=lambda line: None)
    (run,) = store.runs(tmp_path / "tuned")  # of the first seed
    assert store.load_record(run, tmp_path / "tuned")["recipe"]["variant"] == "rate-0.1"
    monkeypatch.setattr("mnv3lib.training.fit_recipe", None)  # nothing is made again
    few_pictures.record(tmp_path / "out", whole, study, log=lambda line: None)


def test_what_is_none_of_the_study_is_left_out_or_named(tmp_path, tiny):
    data = {"data": {"pictures": 5}}
    for made, more in ((tiny(), {}), (tiny(variant="way"), data), (tiny(variant="way", seed=1), data)):
        store.save(tmp_path, record_of(made, **more), [], None, None)
    (row,) = few_pictures.results(tmp_path).itertuples()
    assert (row.pictures, row.way, row.seeds) == (5, "way", 2)
    for text in ("", "a,b\n1,2\n", "pictures,seed,top1,seconds\n5,0,much,3\n", "a\n1,2\n"):
        (tmp_path / few_pictures.LINEAR).write_text(text)
        with pytest.raises(InputError, match=r"linear.csv is no table that mnv3 sweep --transfer wrote: move it away"):
            few_pictures.results(tmp_path)


def test_a_run_that_diverges_keeps_no_other_from_being_made(digits, tmp_path, monkeypatch, alone):
    monkeypatch.setattr(few_pictures, "HELD_OUT", 10)
    fit, small = training.fit_recipe, {"width": 0.25, "epochs": 1, "image_sizes": [16], "lowered_strides": 1}
    study = {"base": {"model": "v3_small"} | small, "first": 0, "every": 3, "pictures": [3], "seeds": [0]}
    study["ways"] = {"first": {"recipe": "modern"}, "second": {"recipe": "modern"}}

    def diverging(made, *given, **named):
        if made.variant == "first":
            raise DivergedError(f"{made.run}: the loss is nan")
        return fit(made, *given, **named)

    monkeypatch.setattr(training, "fit_recipe", diverging)
    with pytest.raises(DivergedError, match="_first: the loss is nan"):
        few_pictures.record(tmp_path / "out", digits, study, log=lambda line: None)
    assert [store.load_record(run, tmp_path / "out")["recipe"]["variant"] for run in store.runs(tmp_path / "out")] == [
        "second"
    ]
    assert (tmp_path / "out" / few_pictures.LINEAR).is_file()

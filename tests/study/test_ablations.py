"""The comparisons of notebook 05: the axes, the runs that are made of them, and what is made of the records."""

import collections
import dataclasses
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import torch
from records import record_of

from mnv3lib import build, cost, recipe, store, training
from mnv3lib.commands import main
from mnv3lib.errors import InputError
from mnv3lib.networks import MobileNet
from mnv3lib.report import figures, sweep
from mnv3lib.study import ablations, axes
from mnv3lib.study.statistics import Outcome

STUDY = axes.read()
AXES = STUDY.axes

# The axes


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_changes_what_it_says_and_nothing_else(axis):
    base, *variants = ablations.recipes(axis).values()
    assert base == recipe.make(**STUDY.setting | AXES[axis].setting, variant=base.variant)
    for made in variants:
        change = AXES[axis].variants[made.variant.removeprefix(f"{axis}-")]
        allowed = {"variant", *change} | ({"learning_rate"} if AXES[axis].same_budget else set())
        if "width" in change:
            allowed.add("weight_decay")  # a wide network has its own
        differing = set(made.differences(base.as_dict()))
        assert {"variant"} < differing <= allowed
    assert len({made.run for made in [base, *variants]}) == len(variants) + 1


def test_variants_follow_when_modern_changes(monkeypatch):
    """What a variant does not change is the base's, and the variant that the base has become goes by its name."""
    changed = dict(crop=2, padding="reflect", flip="alternating", label_smoothing=0.0, learning_rate=0.2)
    monkeypatch.setitem(recipe.RECIPES, "modern", recipe.RECIPES["modern"] | changed)
    made = ablations.recipes("augmentation")
    assert (made["flip"].crop, made["flip"].flip) == (0, "alternating")
    assert (made["crop"].crop, made["crop"].padding, made["crop"].flip) == (2, "reflect", "none")
    assert made["cutmix"].label_smoothing == 0.0
    assert next(iter(ablations.recipes("label-smoothing"))) == "0"
    assert "label-smoothing-0.05" in {made.variant for made in ablations.recipes("label-smoothing").values()}
    assert ablations.recipes("schedule")["cosine"].learning_rate == pytest.approx(0.2)


def test_schedules_spend_the_same_budget():
    """The mean over the very steps that training takes, each factor at the progress that training gives it."""
    steps, budgets = 390, {}
    for name, made in ablations.recipes("schedule").items():
        total = made.epochs * steps
        factors = [made.rate((step + 1) / (total + 1)) for step in range(total)]
        budgets[name] = made.learning_rate * np.mean(factors)
    assert set(budgets) == {"one-cycle", "constant", "step", "cosine"}
    for name, budget in budgets.items():
        assert budget == pytest.approx(budgets["one-cycle"], rel=1e-3), name


def test_equal_compute_is_equal():
    def compute(made):
        return made.epochs * cost.totals(build("v3_small", made.width, lowered_strides=made.lowered_strides))[1]

    base, *variants = ablations.recipes("strides-compute").values()
    shares = {made.variant: compute(made) / compute(base) for made in variants}
    assert shares.pop("strides-compute-4-lowered") > 3
    assert len(shares) == 8
    assert all(abs(share - 1) < 0.07 for share in shares.values()), shares


def test_networks_of_variants_are_as_large_as_worked_out_by_hand():
    """V3 Small at 0.25: 144 channels after the last 1x1 convolution, 1024 behind, 100 classes."""
    made = {
        name: one for axis in ("penultimate", "squeeze-excitation") for name, one in ablations.recipes(axis).items()
    }
    made["none-penultimate"] = ablations.recipes("penultimate")["none"]
    size = {name: cost.totals(build(**dataclasses.asdict(one.architecture))) for name, one in made.items()}
    (parameters, macs) = size["base"]
    assert size["quarter"] == (parameters - 768 * (144 + 1 + 100), macs - 768 * (144 + 100))
    head = (144 + 1) * 1024 + (1024 + 1) * 100
    assert size["none-penultimate"][0] == parameters - head + (144 + 1) * 100
    assert size["last"] == (parameters + 144 * 40 + 40 + 40 * 144 + 144, macs + 2 * 144 * 40)


def distinct_variants():
    made = {one.variant: one for axis in AXES for one in ablations.recipes(axis, dataset="digits").values()}
    return made.values()


@pytest.mark.parametrize("made", distinct_variants(), ids=lambda made: made.variant)
def test_every_variant_trains(made, few_digits):
    small = dict(width=min(made.width, 0.25), epochs=1, batch_size=32, image_sizes=made.image_sizes[:1])
    few = dataclasses.replace(few_digits, train=few_digits.train.take(torch.arange(32)))
    fit = training.fit_recipe(dataclasses.replace(made, **small), few, log=lambda line: None)
    assert 0 < fit.history[0]["train_loss"] < 10


def test_unknown_axis_and_a_change_of_what_is_varied_are_named():
    with pytest.raises(InputError, match="unknown axis 'colour': choose from strides"):
        ablations.recipes("colour")
    with pytest.raises(InputError, match="lowered_strides is what the axis strides varies"):
        ablations.recipes("strides", lowered_strides=1)


# The plan


def names(planned):
    return [(made.variant, made.seed) for made in planned]


def test_plan_has_the_base_with_three_seeds_and_the_variants_with_one():
    base = [("base", 0), ("base", 1), ("base", 2)]
    assert names(ablations.plan(["dropout"])) == [*base, ("dropout-0.2", 0)]
    assert names(ablations.plan(["nonlinearity/relu", "dropout"])) == [
        *base,
        ("nonlinearity-relu", 0),
        ("dropout-0.2", 0),
    ]
    assert names(ablations.plan(["dropout"], seeds=[3, 4])) == [
        *(("base", 3), ("base", 4)),
        *(("dropout-0.2", 3), ("dropout-0.2", 4)),
    ]


def test_a_base_of_its_own_comes_last_and_once():
    lowered = ("0-lowered", "1-lowered", "2-lowered", "0-lowered-rate-0.1", "1-lowered-rate-0.1")
    variants = [(f"strides-{name}", 0) for name in lowered]
    assert names(ablations.plan(["strides"])) == [*variants, ("strides-base", 0)]
    assert names(ablations.plan(["strides/1-lowered"])) == variants[1:2]


def test_first_and_all():
    first, every = ablations.plan(["first"]), ablations.plan(["all"])
    assert every[: len(first)] == first and len(first) == 3 + len(STUDY.first)
    wanted = {made.variant for axis in AXES for made in ablations.recipes(axis).values()}
    assert {made.variant for made in every} == wanted
    assert sweep.distinct(every) == every
    # Each claim of the earlier report has its runs among the first, but for those that take twenty epochs.
    variants = {made.variant for made in first}
    for claim in STUDY.claims:
        if claim.axis != "augmentation-long":
            assert {f"{claim.axis}-{name}" for name in claim.variants} & variants, claim.text


def test_every_recorded_ablation_is_one_of_the_plan():
    """So no recipe has changed since: each record is found, and what is planned is recorded already."""
    planned = ablations.plan(["all"], seeds=range(10))
    ours = [store.load_record(run, ablations.folder()) for run in store.runs(ablations.folder())]
    found = [one["run"] for made in planned for one in ablations.find(made, ours) if one["recipe"]["seed"] == made.seed]
    assert sorted(found) == sorted(one["run"] for one in ours) and len(ours) > 60
    assert not ablations.missing(ablations.plan(["all"]), ablations.load_records(ablations.folder()))


def test_unknown_ablations_are_named():
    with pytest.raises(InputError, match="unknown ablation 'colour': choose from claims, first, all, strides"):
        ablations.plan(["colour"])
    with pytest.raises(InputError, match=r"unknown variant of dropout '0.3': choose from 0, 0\.2"):
        ablations.plan(["dropout/0.3"])


def test_the_runs_of_claims_are_as_many_seeds_of_each_side_as_are_planned():
    planned = ablations.plan(["claims"])
    assert planned[0].variant in ("base", "optimizer-paper") and len(planned) == len(set(planned))
    counts = collections.Counter(made.variant for made in planned)
    assert counts["dropout-0.2"] == counts["base"] == counts["optimizer-paper"] == 10
    assert counts["augmentation-cutmix"] == 3 and counts["strides-0-lowered"] == 1


def write(folder, made, top1=60.0):
    store.save(folder, record_of(made, top1), [{"epoch": 1}], None, None)


@pytest.fixture
def folders(tmp_path):
    """One for ablations, one for trained models."""
    return tmp_path / "ablations", tmp_path / "models"


def test_what_is_recorded_under_any_name_is_not_made_again(folders):
    ours, models = folders
    write(models, recipe.make(width=0.25))  # the base of augmentation-long
    write(models, recipe.make(width=0.25, epochs=10, seed=1))  # a seed of the base of the others
    write(ours, ablations.recipes("dropout")["0.2"])
    records = ablations.load_records(ours, models)
    left = ablations.missing(ablations.plan(["dropout", "augmentation-long"]), records, ours)
    assert names(left)[:2] == [("base", 0), ("base", 2)]
    assert {made.variant for made in left[2:]} == {
        f"augmentation-long-{name}" for name in AXES["augmentation-long"].variants
    }


def test_a_record_of_before_the_base_changed_is_named(folders):
    ours, models = folders
    base = ablations.recipes("dropout")["0"]
    write(ours, dataclasses.replace(base, crop=1))
    with pytest.raises(InputError, match=f"another recipe, move them: {base.run}"):
        ablations.missing(ablations.plan(["dropout"]), ablations.load_records(ours, models), ours)


def test_the_same_run_in_both_folders_counts_once(folders):
    ours, models = folders
    base = ablations.recipes("augmentation-long")["base"]
    write(ours, base, 61.0)
    write(models, dataclasses.replace(base, variant=""), 62.0)
    write(models, dataclasses.replace(base, variant="", seed=1), 63.0)
    assert sorted(one["result"]["top1"] for one in ablations.load_records(ours, models)) == [61.0, 63.0]


def test_imported_runs_are_no_part_of_a_comparison(folders):
    """Nobody knows how they were trained."""
    ours, models = folders
    base = recipe.make(width=0.25)
    write(models, base)
    known = dataclasses.asdict(base.architecture)
    old = record_of(base, run="old", recipe=known, imported={"file": "old.pth", "sha256": "0"})
    store.save(models, old, [], None, None)
    assert [one["run"] for one in ablations.load_records(ours, models)] == [base.run]


def test_records_of_other_versions_are_compared(folders):
    """A field that an older record lacks is at its default, and one that only a newer version knows is left out."""
    ours, models = folders
    base = recipe.make(width=0.25, variant="base")
    told = base.as_dict()
    older = {name: value for name, value in told.items() if name not in ("depthwise_decay", "image_sizes", "seed")}
    for made, recorded in (
        (base, older),
        (dataclasses.replace(base, variant="same"), told | {"variant": "same", "averaging": 0.9}),
        (dataclasses.replace(base, variant="without"), told | {"variant": "without", "depthwise_decay": False}),
    ):
        store.save(ours, record_of(made, recipe=recorded), [{"epoch": 1}], None, None)
    table = ablations.compare(store.load_record(run, ours) for run in store.runs(ours))
    assert table["change"].tolist() == ["", "", "depthwise_decay False"]
    assert len(ablations.load_records(ours, models)) == 2  # the first two are the same training


def test_command_lists_and_makes_what_is_missing(folders, monkeypatch, capsys):
    ours, models = folders
    monkeypatch.setenv("MNV3_MODELS", str(models))
    write(ours, ablations.recipes("dropout", dataset="digits")["0"])
    options = ["sweep", "--ablation", "dropout", "norm-momentum/0.01", "--dataset", "digits", "--models", str(ours)]
    assert main([*options, "--seed", "0", "1", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 of 6 runs are recorded already"
    assert lines[1:] == [
        f"mobilenet_v3_small_0.25_digits_{name}: 0 of 10 epochs"
        for name in ("base_seed1", "dropout-0.2", "dropout-0.2_seed1", "norm-momentum-0.01", "norm-momentum-0.01_seed1")
    ]
    swept = []
    monkeypatch.setattr(sweep, "sweep", lambda jobs, client: swept.extend(jobs) or {})
    monkeypatch.setattr(sweep, "connect", lambda *_: sweep.contextmanager(lambda: (yield))())
    assert main([*options, "--batch", "64"]) == 1
    assert "another recipe" in capsys.readouterr().err
    assert main(options) == 0
    assert [job.run.removeprefix("mobilenet_v3_small_0.25_digits_") for job in swept] == [
        *("base_seed1", "base_seed2", "dropout-0.2", "norm-momentum-0.01")
    ]
    assert {job.weights for job in swept} == {False} and {job.models for job in swept} == {ours}
    assert (ours / "runs.csv").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ablation", "dropout", "--epochs", "1", "2"], "epochs: with --ablation only --seed takes several"),
        (["--ablation", "dropout", "--dropout", "0.1"], "dropout is what the axis dropout varies"),
        (["--ablation", "dropout", "--variant", "x"], "variant is what the axis dropout varies"),
        (["runs.yaml", "--ablation", "dropout"], "name either a YAML file or"),
    ],
)
def test_command_names_what_is_wrong(options, message, capsys):
    assert main(["sweep", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# What the records say


def record(variant, top1, seed=0, seconds=60.0, device="cpu", **fields):
    made = recipe.make(width=0.25, variant=variant, seed=seed, **fields)
    return {
        "recipe": made.as_dict(),
        "result": {"top1": top1},
        "macs": 1_000_000,
        "seconds": seconds,
        "environment": {"device": device},
    }


def test_variants_are_compared_with_the_base():
    records = [
        record("smoother", 61.0, label_smoothing=0.1),
        record("base", 60.0),
        record("base", 60.4, seed=1, seconds=120.0),
        record("base", 60.8, seed=2, device="NVIDIA H200"),
        record("larger", 58.0, batch_size=256, learning_rate=0.5),
        record("larger", 59.0, seed=1, batch_size=256, learning_rate=0.5),
    ]
    table = ablations.compare(records).set_index("variant")
    assert list(table.index) == ["base", "smoother", "larger"]
    assert table["change"].tolist() == ["", "label_smoothing 0.1", "batch_size 256, learning_rate 0.5"]
    assert table["seeds"].tolist() == [3, 1, 2]
    assert table["top1"].tolist() == pytest.approx([60.4, 61.0, 58.5])
    assert table["difference"].tolist() == pytest.approx([math.nan, 0.6, -1.9], nan_ok=True)
    assert table["seconds"]["base"] == [90.0, 60.0]  # on CPUs, on GPUs
    begun, told = record("base", 60.0, device="NVIDIA H100"), {"after_epoch": 8, "environment": {"device": "cpu"}}
    moved = [begun | {"resumed": [told | {"after_epoch": after}], "seconds": 10.0 * after} for after in (8, 9)]
    (row,) = ablations.compare([begun, *moved]).to_dict("records")
    assert (row["trained_on"], row["seconds"]) == ("GPU; GPU+CPU", [60.0, 85.0])
    assert table["trained_on"].tolist() == ["CPU; GPU", "CPU", "CPU"]
    # With the base and `larger` alone the variance is pooled over both, as in Student's test of two samples.
    theirs = scipy.stats.ttest_ind([58.0, 59.0], [60.0, 60.4, 60.8]).confidence_interval(0.95)
    assert tuple(table.loc["larger", ["low", "high"]]) == pytest.approx((theirs.low, theirs.high))
    assert table["outcome"]["larger"] == Outcome.WORSE
    assert math.isnan(table["spread"]["smoother"]) and table["low"]["smoother"] < 0.6 < table["high"]["smoother"]


def test_single_runs_have_no_interval_and_a_base_is_needed():
    table = ablations.compare([record("base", 60.0), record("other", 61.0, crop=3)])
    assert table["difference"][1] == 1.0 and math.isnan(table["low"][1])
    assert table["outcome"].isna().tolist() == [True, False] and table["outcome"][1] == Outcome.UNDECIDED
    with pytest.raises(InputError, match="no run of the variant 'base' to compare with: other"):
        ablations.compare([record("other", 61.0)])


def test_figure_of_differences_has_a_row_a_variant():
    records = [record("base", 60.0), record("base", 60.5, seed=1), record("one", 61.0, crop=3)]
    figure = figures.differences(ablations.compare(records), "title")
    (plot,) = figure.axes
    assert [label.get_text() for label in plot.get_yticklabels()] == ["one"]
    assert [text.get_text() for text in plot.texts] == ["+0.75 (1 seed)"]


def test_long_names_of_variants_leave_the_title_whole():
    records = [record("base", 60.0), record("a-variant-that-changes-four-things-at-once", 61.0, crop=3)]
    with plt.style.context("mnv3lib.report.figures"):
        figure = figures.differences(ablations.compare(records), "Changes of the recipe: V3 Small 0.25, 10 epochs")
        figure.canvas.draw()
        titles = [*figure.texts, *(plot.title for plot in figure.axes)]
        shown = [one.get_window_extent() for one in titles if one.get_text()]
    assert shown and all(one.x0 >= 0 and one.x1 <= figure.bbox.width for one in shown)


def test_results_share_the_spread_of_all_axes():
    made = [*ablations.recipes("dropout").values(), ablations.recipes("nonlinearity")["relu"]]
    strides = ablations.recipes("strides")
    records = [
        *(record_of(dataclasses.replace(made[0], seed=seed), top1) for seed, top1 in enumerate((60.0, 60.4, 60.8))),
        *(
            record_of(made[1], 61.0),
            record_of(made[2], 58.0),
            record_of(strides["0-lowered"], 40.0),
            record_of(strides["3-lowered"], 70.0),
        ),
        record_of(recipe.make(model="v1"), 50.0),  # of no axis
    ]
    table = ablations.results(records)
    assert list(zip(table["axis"], table["variant"], strict=True)) == [
        *(("strides", "3-lowered"), ("strides", "0-lowered")),
        *(("nonlinearity", "base"), ("nonlinearity", "relu")),
        *(("dropout", "0"), ("dropout", "0.2")),
    ]
    rows = table.set_index("variant")
    assert rows["difference"]["0-lowered"] == -30.0 and rows["difference"]["relu"] == pytest.approx(-2.4)
    # Two degrees of freedom from the base's three seeds; means of one run and of one, and of one and of three.
    half = scipy.stats.t.ppf(0.975, 2) * 0.4
    assert rows["high"]["0-lowered"] == pytest.approx(-30 + half * math.sqrt(2))
    assert rows["low"]["0.2"] == pytest.approx(0.6 - half * math.sqrt(1 + 1 / 3))


def test_compute_counts_every_epoch_at_its_own_size():
    made = ablations.recipes("resolution", epochs=3)
    network = MobileNet(made["32px"].architecture)
    macs = {size: cost.totals(network, size)[1] for size in (20, 24, 32)}
    records = [record_of(one, 60.0) | {"macs": macs[32]} for one in (made["32px"], made["progressive"])]
    table = ablations.compare(records, base=made["32px"].variant)
    assert table["compute"].tolist() == [3 * macs[32], sum(macs.values())]

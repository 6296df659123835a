import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import records
import torch
from records import record_of
from torch.nn import functional as F

import mnv3lib
from mnv3lib import data, inference, recipe, store, training
from mnv3lib.commands import main
from mnv3lib.errors import InputError
from mnv3lib.provenance import ROOT
from mnv3lib.study import evaluation
from mnv3lib.study.evaluation import Evaluation, wilson

NAMES = ("bee", "beetle", "cloud", "sea", "rose", "tulip")  # two of each of three superclasses


def made(labels, guesses, probabilities=None, names=NAMES, **record) -> Evaluation:
    guesses = np.asarray(guesses, np.uint8)
    if probabilities is None:
        probabilities = np.tile(np.linspace(0.5, 0.1, guesses.shape[1]), (len(guesses), 1))
    return Evaluation(
        record_of(recipe.make(model="v1"), top1=0.0, images=len(labels)) | record,
        "recorded",
        names,
        np.asarray(labels, np.uint8),
        guesses,
        np.asarray(probabilities, np.float32),
    )


def confident(probabilities, hits) -> Evaluation:
    """Two classes; the best guess has these probabilities and is right where `hits` says so."""
    best = np.asarray(probabilities)
    labels = np.where(hits, 0, 1)
    return made(labels, [[0, 1]] * len(labels), np.stack([best, 1 - best], 1), names=("bee", "rose"))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory, few_digits, tiny):
    """A folder with one run on digits, trained on a few of them and recorded on its 40 images."""
    folder = tmp_path_factory.mktemp("models")
    training.train(tiny(), dataset=few_digits, models=folder, checkpoints=folder / "c", log=lambda line: None)
    return folder, tiny().run


# (hits, trials, low, high): Newcombe 1998, table I (81 of 263, 15 of 148, 0 of 20, 1 of 29); all of 29 in closed form
@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        (81, 263, 25.53, 36.62),
        (15, 148, 6.24, 16.05),
        (0, 20, 0.0, 16.11),
        (1, 29, 0.61, 17.18),
        (29, 29, 88.30, 100.0),
    ],
)
def test_wilson_interval_has_the_published_values(hits, trials, low, high):
    assert wilson(hits, trials) == pytest.approx((low, high), abs=0.006)


def test_wilson_of_nothing_knows_nothing():
    assert wilson(0, 0) == (0, 100)


def test_top1_and_top5_count_hits():
    one = made([0, 1, 2, 3], [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [5, 4, 3, 1, 2], [0, 1, 2, 4, 5]])
    assert (one.top1, one.top5) == (25, 75)
    row = one.summary()
    assert (row["top1_low"], row["top1_high"]) == wilson(1, 4)
    assert (row["top5_low"], row["top5_high"]) == wilson(3, 4)


def test_calibration_error_by_hand():
    # Two full bins: 0.9 with 3 of 4 right, 0.6 with 1 of 2 right.
    one = confident([0.9, 0.9, 0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0, 1, 0])
    assert one.ece == pytest.approx(100 * (4 * abs(0.75 - 0.9) + 2 * abs(0.5 - 0.6)) / 6, abs=1e-4)
    table = one.calibration().dropna()
    assert table["images"].tolist() == [2, 4]
    assert table["top1"].tolist() == [50, 75]
    assert table["confidence"].tolist() == pytest.approx([60, 90], abs=1e-4)


def test_calibration_error_of_the_perfect_and_of_the_blind():
    assert confident([1.0] * 5, [1] * 5).ece == pytest.approx(0)
    assert confident([1.0] * 5, [0] * 5).ece == pytest.approx(100)
    assert confident([0.75] * 4, [1, 1, 1, 0]).ece == pytest.approx(0)


def test_differences_within_a_bin_cancel_and_between_bins_do_not():
    assert confident([0.70, 0.72], [1, 0]).ece == pytest.approx(21, abs=1e-3)
    assert confident([0.60, 0.90], [1, 0]).ece == pytest.approx((40 + 90) / 2, abs=1e-3)


def test_calibration_bins_cover_all_images_and_close_above():
    table = confident([0.25, 0.5, 0.75, 1.0], [1] * 4).calibration(bins=4)
    assert table["images"].tolist() == [1, 1, 1, 1]
    assert (table["low"].iloc[0], table["high"].iloc[-1]) == (0, 1)
    ends = confident([0.0, 1.0], [1, 1]).calibration()
    assert len(ends) == 15
    assert ends["images"].iloc[[0, -1]].tolist() == [1, 1]


def test_a_pair_counts_both_directions():
    one = made([0, 4, 4, 2], [[4, 0, 1, 2, 3], [0, 4, 1, 2, 3], [0, 4, 1, 2, 3], [3, 2, 1, 0, 4]])
    first = one.confused_pairs().iloc[0]
    assert (first["first"], first["second"]) == ("bee", "rose")
    assert (first["first_for_second"], first["second_for_first"], first["together"]) == (1, 2, 3)
    assert not first["same_superclass"]


def test_confusion_counts_each_image_once():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 500)
    guesses = np.argsort(generator.random((500, 6)), 1)[:, :5]
    one = made(labels, guesses)
    confusion = one.confusion()
    assert confusion.to_numpy().sum() == 500
    assert confusion.sum(axis=1).tolist() == np.bincount(labels, minlength=6).tolist()
    assert confusion.sum(axis=0).tolist() == np.bincount(guesses[:, 0], minlength=6).tolist()
    assert 100 * np.trace(confusion) / 500 == pytest.approx(one.top1)
    superclasses = one.superclass_confusion()
    assert superclasses.index.tolist() == ["flowers", "insects", "large_natural_outdoor_scenes"]
    for name, group in confusion.groupby(data.SUPERCLASS_OF.get):
        assert superclasses.loc[name].sum() == group.to_numpy().sum()
    assert 100 * np.trace(superclasses) / 500 == pytest.approx(one.superclass_right)


def test_tables_by_class_and_superclass():
    # bee: right, beetle, beetle; beetle: cloud; cloud: sea.
    one = made([0, 0, 0, 1, 2], [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [1, 0, 2, 3, 4], [2, 3, 4, 5, 0], [3, 4, 5, 0, 1]])
    classes = one.per_class().set_index("class")
    assert classes.loc["bee", ["images", "top1", "top5", "superclass_right"]].tolist() == [
        3,
        pytest.approx(100 / 3),
        100,
        100,
    ]
    assert classes["most_taken_for"].tolist() == ["beetle", "cloud", "sea", "", "", ""]
    assert classes.loc["rose", "images"] == 0
    assert np.isnan(classes.loc["rose", "top1"])
    insects = one.per_superclass().set_index("superclass").loc["insects"]
    assert (insects["images"], insects["top1"], insects["superclass_right"]) == (4, 25, 75)
    assert (insects["superclass_right_low"], insects["superclass_right_high"]) == wilson(3, 4)
    pairs = one.confused_pairs()
    assert pairs["together"].tolist() == [2, 1, 1]
    assert pairs.loc[0, ["first", "second", "first_for_second", "second_for_first", "same_superclass"]].tolist() == [
        "bee",
        "beetle",
        2,
        0,
        True,
    ]


@pytest.mark.parametrize(
    ("labels", "guesses", "probabilities"),
    [
        ([], np.empty((0, 5)), np.empty((0, 5))),
        ([0], [[0, 1]], None),
        ([9], [[0, 1, 2, 3, 4]], None),
        ([0], [[0, 1, 2, 3, 77]], None),
        ([0], [[0, 1, 2, 3, 4]], [[np.nan, 0, 0, 0, 0]]),
        ([0], [[0, 1, 2, 3, 4]], [[7, 0, 0, 0, 0]]),
        ([0, 1], [[0, 1, 2, 3, 4]], None),
    ],
)
def test_spoilt_predictions_are_refused_by_name(labels, guesses, probabilities):
    with pytest.raises(InputError, match=r"mobilenet_v1_1\.0"):
        made(labels, guesses, probabilities)


def test_digits_are_measured_on_the_test_set_of_digits(digits_run, digits):
    folder, run = digits_run
    lines = []
    (live,) = evaluation.evaluate([run], models=folder, log=lines.append)
    assert (live.source, len(live.labels)) == ("live", len(digits.test))
    expected = inference.best_five(store.load(run, folder), digits.test, 16)
    assert (live.guesses == expected["classes"]).all()
    row, logits = live.summary(), inference.logits(store.load(run, folder), digits.test.images, 16, 100)
    assert row["nll"] == pytest.approx(F.cross_entropy(logits, digits.test.labels).item(), abs=1e-4)
    assert row["nll_scaled"] < row["nll"], "after one epoch probabilities are far off"
    (recorded,) = evaluation.evaluate([run], models=folder, recorded=True)
    assert (recorded.source, len(recorded.labels)) == ("recorded", 40)
    assert recorded.top1 == pytest.approx(store.load_record(run, folder)["result"]["top1"])
    assert np.isnan(recorded.summary()["nll"]), "five classes do not tell it"
    # The record is of 40 digits alone, so the live result is another one, and that is said.
    assert recorded.agrees and not live.agrees
    assert len(lines) == 2
    assert f"the live top-1 is {live.top1:.2f} %, but its record says {recorded.top1:.2f} %" in lines[1]


def test_a_holdout_run_is_measured_on_its_holdout(tmp_path, few_digits, digits, tiny):
    made = tiny(split="holdout")
    training.train(made, dataset=few_digits, models=tmp_path, checkpoints=tmp_path / "c", log=lambda line: None)
    (live,) = evaluation.evaluate([made.run], models=tmp_path)
    assert (live.labels == data.holdout(digits.train)[1].labels.numpy()).all()
    assert live.summary()["measured_on"] == "digits hold-out"


def test_without_cifar100_the_recorded_predictions_are_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MNV3_DATA", str(tmp_path / "nothing"))
    labels = np.arange(100, dtype=np.uint8)
    guesses = np.stack([(labels + shift) % 100 for shift in range(5)], 1).astype(np.uint8)
    guesses[:30, 0], guesses[:30, 1] = guesses[:30, 1].copy(), guesses[:30, 0].copy()
    record = made(
        labels, guesses, names=data.CLASSES["cifar100"], result={"top1": 70.0, "top5": 100.0, "images": 100}
    ).record
    probabilities = np.full((100, 5), 0.2, np.float32)
    predictions = {"labels": labels, "classes": guesses, "probabilities": probabilities}
    store.save(tmp_path, record, [], None, predictions)
    assert main(["evaluate", "--models", str(tmp_path), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    (row,) = csv.DictReader(io.StringIO(out))
    assert (row["source"], float(row["top1"]), float(row["top5"])) == ("recorded", 70, 100)
    assert "CIFAR-100 is not on this machine" in err
    assert main(["evaluate", "--models", str(tmp_path), "--format", "json", "--details"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["run"] == record["run"]
    assert np.array(row["confusion"]["data"]).sum() == 100
    assert len(row["classes"]) == 100
    assert len(row["superclasses"]) == 20
    assert len(row["calibration"]) == 15
    assert main(["evaluate", "--models", str(tmp_path), "--details"]) == 0
    out = capsys.readouterr().out
    assert "70.00" in out
    assert "superclass" in out


@pytest.mark.parametrize(
    ("recorded", "agrees"), [(49.0, False), (50.004, True), (49.996, True), (50.01, False), (49.99, False)]
)
def test_a_result_agrees_with_its_record_to_a_hundredth_of_a_point(recorded, agrees):
    one = made([0, 1], [[0, 1, 2, 3, 4]] * 2, result={"top1": recorded})
    assert (one.top1, one.recorded_top1) == (50, recorded)
    assert one.agrees is agrees


def test_the_table_for_people_has_the_numbers_of_the_summary():
    one = made([0, 1], [[0, 1, 2, 3, 4]] * 2)
    low, high = wilson(1, 2)
    shown = evaluation.readable(evaluation.summary([one])).iloc[0]
    assert shown[["top-1 %", "95 % interval", "top-5 %", "images"]].tolist() == [
        *("50.00", f"{low:.2f}–{high:.2f}", "100.00", "2")
    ]


def test_folding_for_the_measurement_leaves_the_network_alone(digits, tiny):
    torch.manual_seed(0)
    network = mnv3lib.build("v2", width=0.25, num_classes=10, lowered_strides=0)
    network.train()(data.normalise(digits.train.images[:50], (0.5,) * 3, (0.25,) * 3))  # moves the batch norms
    network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measured = evaluation.measure(network, digits.test)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    expected = inference.best_five(network, digits.test)
    assert (measured["classes"][:, 0] == expected["classes"][:, 0]).all()
    np.testing.assert_allclose(measured["probabilities"], expected["probabilities"], atol=1e-5)


MANY_MODELS = """
import resource, sys
from pathlib import Path
import torch
import mnv3lib
from mnv3lib import data, recipe, store
from mnv3lib.study import evaluation
sys.path.insert(0, sys.argv[2])
from records import record_of
from torch.nn import functional as F

models, digits = Path(sys.argv[1]), data.load("digits")
torch.set_num_threads(1)
sizes = [("v1", 1.0), ("v3_large", 0.75), ("v2", 0.75), ("v3_small", 1.0), ("v1", 0.75), ("v3_large", 0.5), ("v2", 1.0)]
recipes = []
for model, width in sizes:
    made = recipe.make(model=model, width=width, num_classes=10, lowered_strides=1, dataset="digits")
    network = mnv3lib.build(model, width=width, num_classes=10, lowered_strides=1)
    network.classes, network.mean, network.std = digits.classes, digits.mean, digits.std
    store.save(models, record_of(made, top1=10.0, images=360), [], network, None)
    recipes.append(made)

def note(line):
    if "live," in line:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

evaluation.evaluate([made.run for made in recipes], models=models, log=note)
"""


def test_memory_does_not_grow_with_the_number_of_models(tmp_path):
    """The largest comes first, so that the peak, in MiB, may not rise much after it."""
    done = subprocess.run(
        [sys.executable, "-c", MANY_MODELS, tmp_path, Path(records.__file__).parent],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    peaks = [float(line) for line in done.stdout.split()]
    assert len(peaks) == 7
    assert peaks[-1] - peaks[0] < 80  # 25 here; 235 with all images in one batch and memory kept


@pytest.mark.parametrize(
    ("arguments", "code", "culprit"),
    [
        (["evaluate", "nonsuch"], 1, "nonsuch"),
        (["evaluate", "../x"], 1, "../x"),
        (["evaluate"], 1, "no trained models"),
    ],
)
def test_bad_input_is_one_line(alone, capsys, arguments, code, culprit):
    assert main([*arguments, "--models", str(alone)]) == code
    err = capsys.readouterr().err
    assert culprit in err
    assert err.count("\n") == 1


def test_details_as_csv_are_bad_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--details", "--format", "csv"])
    assert stop.value.code == 2
    assert "--format json" in capsys.readouterr().err


def test_one_table_holds_what_can_be_compared(digits_run, tmp_path):
    folder, run = digits_run
    assert evaluation.comparable(folder) == [run]
    predictions = store.load_predictions(run, folder)
    store.save(tmp_path, store.load_record(run, folder), [], None, predictions)
    store.save(tmp_path, made([0], [[0, 1, 2, 3, 4]]).record, [], None, predictions)
    assert len(evaluation.trained(tmp_path)) == 2
    assert evaluation.comparable(tmp_path) == ["mobilenet_v1_1.0"]
    other = "mobilenet_v1_1.0"
    assert [one.run for one in evaluation.evaluate(models=tmp_path, recorded=True)] == [other]
    assert [one.run for one in evaluation.evaluate([run, other], models=tmp_path, recorded=True)] == [run, other]


@pytest.mark.parametrize("rank", range(3))
def test_recorded_accuracy_is_measured_again_on_the_real_test_set(cifar100, rank):
    """The three cheapest committed models; the others are measured by `mnv3 evaluate` and by the report."""
    folder = ROOT / "trained_models"
    found = [store.load_record(run, folder) for run in evaluation.trained(folder)]
    found = [
        record
        for record in sorted(found, key=lambda record: record["macs"])
        if evaluation.measured_on(record["recipe"]) == "cifar100 test"
        and (folder / record["run"] / store.WEIGHTS).is_file()
    ]
    if rank >= len(found):
        pytest.skip(f"there are {len(found)} trained models")
    record = found[rank]
    network = store.load(record["run"], folder)
    assert network.classes == cifar100.classes
    predictions = evaluation.measure(network, cifar100.test, record["recipe"]["image_sizes"][-1])
    best = (predictions[part] for part in ("labels", "classes", "probabilities"))
    live = Evaluation(record, "live", network.classes, *best)
    assert live.top1 == pytest.approx(record["result"]["top1"], abs=0.05)
    assert live.top5 == pytest.approx(record["result"]["top5"], abs=0.05)

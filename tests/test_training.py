"""Training: it learns, it repeats itself bit for bit, and it survives being killed at any moment."""

import copy
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from records import record_of
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from mnv3lib import InputError, build, cost, data, inference, kernels, optimizers, store, training
from mnv3lib import checkpoint as checkpoints
from mnv3lib import recipe as recipes


def silent(_):
    pass


def equal(first, second):
    """Whether two networks have the same weights, bit for bit."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# A run on digits, made once


@pytest.fixture(scope="module")
def recipe(tiny):
    return tiny(epochs=5, learning_rate=0.2, batch_size=64, crop=2, flip="none", lowered_strides=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    return dict(models=folder / "models", checkpoints=folder / "checkpoints")


@pytest.fixture(scope="module")
def lines():
    """What the run below logs."""
    return []


@pytest.fixture(scope="module")
def record(recipe, digits, folders, lines):
    more = lambda fit, dataset: {"more": "told"}  # noqa: E731
    return training.train(recipe, dataset=digits, more=more, log=lines.append, **folders)


def test_training_on_digits_passes_90_percent(record):
    assert record["result"]["top1"] > 90
    assert record["result"]["top5"] >= record["result"]["top1"]
    assert record["result"]["images"] == 360


def test_the_loss_falls(record, folders, recipe):
    history = store.load_history(record["run"], folders["models"])
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert history["train_loss"].iloc[-1] < 0.4 * history["train_loss"].iloc[0]
    assert history["train_top1"].iloc[-1] > 85
    assert (history[["seconds", "images_per_second"]] > 0).all(axis=None)
    # One cycle: up within the first fifth of the steps, then down to nearly nothing.
    assert history["learning_rate"].max() <= recipe.learning_rate
    assert history["learning_rate"].iloc[-1] < 0.02 * recipe.learning_rate


def test_the_outcome_is_the_last_epochs(record, folders):
    history = store.load_history(record["run"], folders["models"])
    assert record["result"]["top1"] == history["test_top1"].iloc[-1]


def test_record_tells_how_it_was_made(record, recipe, folders):
    assert record == store.load_record(recipe.run, folders["models"])
    assert record["run"] == recipe.run == "mobilenet_v3_small_0.25_digits"
    assert recipe.differences(record["recipe"]) == []
    network = store.load(recipe.run, folders["models"])
    assert (record["parameters"], record["macs"]) == cost.totals(network, 16)
    assert record["more"] == "told"
    assert record["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert record["environment"]["threads"] == 1
    assert record["environment"]["kernels"] == kernels.way()
    assert record["resumed"] == []
    assert {"commit", "started", "seconds", "images_per_second"} <= set(record)


def test_predictions_are_the_networks(record, recipe, folders, digits):
    network = store.load(recipe.run, folders["models"])
    assert (network.classes, network.mean, network.std) == (digits.classes, digits.mean, digits.std)
    predictions = store.load_predictions(recipe.run, folders["models"])
    assert predictions["labels"].tolist() == digits.test.labels.tolist()
    again = inference.best_five(network, digits.test, 16)
    np.testing.assert_array_equal(predictions["classes"][:, 0], again["classes"][:, 0])
    np.testing.assert_allclose(predictions["probabilities"], again["probabilities"], atol=1e-5)
    top1 = 100 * (predictions["classes"][:, 0] == predictions["labels"]).mean()
    assert record["result"]["top1"] == pytest.approx(top1, abs=1e-3)


def test_nothing_is_left_of_the_run_in_progress(record, folders):
    assert list(folders["checkpoints"].iterdir()) == []
    assert [path.name for path in folders["models"].iterdir()] == [record["run"]]


def test_log_has_a_line_an_epoch(record, lines):
    assert len(lines) == 5
    assert all(f"{record['run']}: epoch {epoch}/5" in line for epoch, line in enumerate(lines, 1))


def test_a_run_that_is_there_is_not_made_again(record, recipe, digits, folders, monkeypatch):
    monkeypatch.setattr(training, "fit_recipe", None)
    logged = []
    assert training.train(recipe, dataset=digits, log=logged.append, **folders) == record
    assert "already" in logged[0]
    assert list(folders["checkpoints"].iterdir()) == []


def test_another_recipe_of_the_same_name_is_refused(record, recipe, digits, folders):
    other = dataclasses.replace(recipe, epochs=3, label_smoothing=0.3)
    assert other.run == recipe.run
    with pytest.raises(InputError, match=r"another recipe \(epochs, label_smoothing differ\)"):
        training.train(other, dataset=digits, **folders)
    assert store.load_record(recipe.run, folders["models"]) == record


def test_a_file_in_the_place_of_the_folder_is_refused_before_training(recipe, digits, tmp_path, monkeypatch):
    (tmp_path / "models").write_text("mine")
    monkeypatch.setattr(training, "fit_recipe", None)
    with pytest.raises(InputError, match="models is no folder"):
        training.train(recipe, dataset=digits, models=tmp_path / "models", checkpoints=tmp_path / "checkpoints")
    assert (tmp_path / "models").read_text() == "mine"


def test_a_folder_without_a_record_is_refused_before_training(recipe, tmp_path, monkeypatch):
    """As one has it who copied the weights alone, which mnv3lib.load reads."""
    target = tmp_path / recipe.run
    monkeypatch.setattr(training, "fit_recipe", None)
    for content, line in ((None, "is no folder: move it away"), (store.WEIGHTS, "has no record.json.*--overwrite")):
        if content:
            target.unlink()
            target.mkdir()
        (target / content if content else target).write_text("mine")
        with pytest.raises(InputError, match=f"{recipe.run} {line}"):
            training.train(recipe, models=tmp_path, checkpoints=tmp_path / "c")
        assert (target / content if content else target).read_text() == "mine"
    assert training.made_already(recipe, tmp_path, overwrite=True) is None


@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_a_run_that_another_process_wrote_meanwhile_stays(tiny, few_digits, tmp_path, momentum):
    made, other = tiny(momentum=0.9), tiny(momentum=momentum)
    given = dict(dataset=few_digits, models=tmp_path / "m", checkpoints=tmp_path / "c")

    def write_the_other(fit, dataset):
        store.save(tmp_path / "m", record_of(other, top1=12.0), [], fit.network, None)
        return {}

    if other == made:
        assert training.train(made, more=write_the_other, log=silent, **given)["result"]["top1"] == 12
        assert list((tmp_path / "c").iterdir()) == []
    else:
        line = (
            r"by another process meanwhile: .* has another recipe \(momentum differ\).* what was trained here is kept"
        )
        with pytest.raises(InputError, match=line):
            training.train(made, more=write_the_other, log=silent, **given)
    assert store.load_record(other.run, tmp_path / "m")["result"]["top1"] == 12
    if other != made:
        (tmp_path / "m").rename(tmp_path / "moved away")
        logged = []
        training.train(made, log=logged.append, **given)
        assert len(logged) == 1 and "goes on after epoch 1 of 1" in logged[0]


def test_a_run_on_other_images_is_refused_as_such(record, recipe, digits, folders, monkeypatch):
    of_others = record | {"recipe": record["recipe"] | {"data_digest": "0" * 12}}
    monkeypatch.setattr(store, "load_record", lambda *given: of_others)
    with pytest.raises(
        InputError, match=r"was trained on other images.*split otherwise \(--test-share\): move it away"
    ):
        training.train(recipe, dataset=digits, **folders)


# The same again


def fit(recipe, dataset, **options):
    return training.fit_recipe(recipe, dataset, log=silent, **options)


@pytest.mark.parametrize(
    "changes",
    [
        dict(model="v1", flip="alternating"),
        dict(model="v2", padding="reflect"),
        dict(model="v3_small", dropout=0.2),
        dict(model="v3_large", optimizer="muon"),
        dict(model="v1", augmentation="trivialaugment"),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_same_seed_same_weights(tiny, few_digits, changes):
    first, second = (fit(tiny(**changes), few_digits) for _ in range(2))
    assert equal(first.network, second.network)
    assert not equal(first.network, fit(tiny(seed=1, **changes), few_digits).network)


TIMES = ["seconds", "images_per_second"]


def untimed(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in TIMES}


class Stop(Exception):  # noqa: N818 (no error)
    pass


def stop_after(epoch):
    def log(line):
        if f"epoch {epoch}/" in line:
            raise Stop

    return log


@pytest.mark.parametrize(
    "changes",
    [
        dict(dropout=0.2, image_sizes=(12, 16)),
        dict(optimizer="muon"),
        dict(optimizer="rmsprop", learning_rate=0.003, schedule="step", step_epochs=1, augmentation="erasing"),
        dict(optimizer="adamw", learning_rate=0.003, dropout=0.2, augmentation="cutmix"),
        dict(augmentation="mixup"),
        dict(augmentation="trivialaugment"),
        dict(model="v3_small", stochastic_depth=0.3, average_epochs=2),
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_a_run_that_was_stopped_goes_on(tiny, few_digits, tmp_path, changes):
    made = tiny(epochs=3, **changes)
    whole = fit(made, few_digits)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    for epoch in (1, 2):
        with pytest.raises(Stop):
            training.fit_recipe(made, few_digits, state=checkpoint, log=stop_after(epoch))
        assert checkpoints.epochs_done(checkpoint.parent) == epoch
    resumed = fit(made, few_digits, state=checkpoint)
    assert equal(whole.network, resumed.network)
    assert [untimed(row) for row in whole.history] == [untimed(row) for row in resumed.history]
    np.testing.assert_array_equal(whole.predictions["probabilities"], resumed.predictions["probabilities"])
    assert [entry["after_epoch"] for entry in resumed.origin["resumed"]] == [1, 2]
    assert all(place["environment"]["threads"] == 1 for place in (resumed.origin, *resumed.origin["resumed"]))
    # Stopped between the last epoch and the writing of the run: nothing is left to train.
    finished = fit(made, few_digits, state=checkpoint)
    assert equal(whole.network, finished.network)
    np.testing.assert_array_equal(whole.predictions["probabilities"], finished.predictions["probabilities"])


def test_killed_at_any_moment_it_ends_with_the_same_weights(tiny, digits, alone):
    made = tiny(epochs=4, batch_size=128, lowered_strides=0)
    whole = alone / "whole"
    training.train(made, dataset=digits, models=whole, checkpoints=alone / "other", log=silent)

    arguments = [
        *("--dataset", "digits", "--model", "small", "--width", "0.25", "--epochs", "4", "--batch", "128"),
        *("--image-sizes", "16", "--lowered-strides", "0", "--threads", "1", "--models", alone / "models"),
    ]
    command = [sys.executable, "-m", "mnv3lib", "train", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        starts = []
        for line in process.stdout:
            starts.append(time.monotonic())
            if "epoch 2/4" in line:
                break
        time.sleep(random.uniform(0, starts[1] - starts[0]))
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (alone / "models").exists()
    (unfinished,) = (alone / "checkpoints").glob("[!.]*")
    assert checkpoints.epochs_done(unfinished) in (2, 3)

    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert again.returncode == 0, again.stderr
    assert f"goes on after epoch {checkpoints.epochs_done(unfinished) or ''}" in again.stdout
    assert (alone / "models" / made.run / store.WEIGHTS).read_bytes() == (whole / made.run / store.WEIGHTS).read_bytes()
    histories = [store.load_history(made.run, folder).drop(columns=TIMES) for folder in (alone / "models", whole)]
    pd.testing.assert_frame_equal(*histories)
    assert store.load_record(made.run, alone / "models")["resumed"][0]["after_epoch"] in (2, 3)
    assert list((alone / "checkpoints").iterdir()) == []


def test_a_run_has_one_process(tiny, few_digits, tmp_path):
    folders = dict(models=tmp_path / "models", checkpoints=tmp_path / "checkpoints")
    folder = checkpoints.folder_of(tiny(), tmp_path / "checkpoints")
    with checkpoints.alone(folder), pytest.raises(InputError, match="being trained by another process"):
        training.train(tiny(), dataset=few_digits, log=silent, **folders)
    assert training.train(tiny(), dataset=few_digits, log=silent, **folders)["result"]["images"] == 40


def test_a_run_has_one_process_to_its_end(tiny, few_digits, tmp_path, monkeypatch):
    @contextmanager
    def watched(folder, alone=checkpoints.alone):
        with alone(folder):
            yield
            assert list(folder.iterdir()) == []
            with pytest.raises(InputError, match="being trained by another process"), alone(folder):
                pass

    monkeypatch.setattr(checkpoints, "alone", watched)
    training.train(tiny(), dataset=few_digits, models=tmp_path / "m", checkpoints=tmp_path / "c", log=silent)
    assert list((tmp_path / "c").iterdir()) == []


# What goes wrong


def test_diverging_keeps_the_last_good_epoch(tiny, few_digits, tmp_path, monkeypatch):
    made = tiny(epochs=3)
    whole = fit(made, few_digits)
    checkpoint = tmp_path / "checkpoint.pt"

    def poison_training(line):
        if "epoch 1/" in line:
            monkeypatch.setattr(training, "resize", lambda inputs, size: inputs * torch.nan)

    with pytest.raises(training.DivergedError, match=f"{made.run}.*nan in epoch 2.*learning_rate") as caught:
        training.fit_recipe(made, few_digits, state=checkpoint, log=poison_training)
    assert "\n" not in str(caught.value)
    assert checkpoints.epochs_done(tmp_path) == 1
    monkeypatch.undo()
    assert equal(fit(made, few_digits, state=checkpoint).network, whole.network)


def test_a_learning_rate_beyond_reason_diverges(tiny, few_digits):
    with pytest.raises(training.DivergedError):
        fit(tiny(learning_rate=100.0, epochs=8, schedule="constant", warmup=0.0, weight_decay=1.0), few_digits)


@pytest.mark.parametrize("damage", ["empty", "half", "text", "one bit", "another recipe", "no checkpoint"])
def test_damaged_checkpoint_is_named(tiny, few_digits, tmp_path, damage):
    made, checkpoint = tiny(epochs=2), tmp_path / "checkpoint.pt"
    with pytest.raises(Stop):
        training.fit_recipe(made, few_digits, state=checkpoint, log=stop_after(1))
    content = bytearray(checkpoint.read_bytes())
    if damage == "empty":
        content = b""
    elif damage == "half":
        content = content[: len(content) // 2]
    elif damage == "text":
        content = b"not a checkpoint"
    elif damage == "one bit":
        content[len(content) // 2] ^= 4
    elif damage == "another recipe":
        made = dataclasses.replace(made, momentum=0.5)
    else:
        torch.save({"weights": torch.zeros(3)}, checkpoint)
        content = checkpoint.read_bytes()
    checkpoint.write_bytes(content)
    with pytest.raises(InputError, match="delete it to start anew") as caught:
        fit(made, few_digits, state=checkpoint)
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_runs_no_code(tiny, few_digits, tmp_path):
    class Evil:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "trace",))

    checkpoint = tmp_path / "checkpoint.pt"
    torch.save({"digest": Evil()}, checkpoint)
    with pytest.raises(InputError, match="no checkpoint of this run"):
        fit(tiny(), few_digits, state=checkpoint)
    assert not (tmp_path / "trace").exists()


# The parts of a step


@pytest.mark.parametrize("depthwise_decay", [True, False])
def test_weight_decay_spares_biases_and_norms(tiny, depthwise_decay):
    made = tiny(weight_decay=0.5, depthwise_decay=depthwise_decay, learning_rate=0.1, momentum=0.0, nesterov=False)
    network = build(**dataclasses.asdict(made.architecture))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 2.0)
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers.make(made, network):
        optimizer.step()
    spared = set()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            spared.add(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            spared |= {module.weight, module.bias}
        if isinstance(module, nn.Conv2d) and module.groups > 1 and not depthwise_decay:
            spared.add(module.weight)
    assert len(spared) > 50
    for parameter in network.parameters():
        expected = 2.0 if parameter in spared else 2.0 * (1 - 0.1 * 0.5)
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected))


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "rmsprop", "adamw"])
def test_every_parameter_is_trained_once(tiny, few_digits, optimizer):
    made = tiny(optimizer=optimizer)
    torch.manual_seed(made.seed)
    before = build(**dataclasses.asdict(made.architecture)).state_dict()
    after = fit(made, few_digits).network
    assert all(not torch.equal(before[name], parameter) for name, parameter in after.named_parameters())
    several = optimizers.make(made, after)
    held = [parameter.data_ptr() for each in several for group in each.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(parameter.data_ptr() for parameter in after.parameters())


@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_optimizers_do_what_their_papers_say(name):
    """Three steps of one kernel and one bias, worked out in double precision beside the optimizer's."""
    made = recipes.make(optimizer=name, learning_rate=0.01, momentum=0.8, weight_decay=0.1)
    network = nn.Linear(3, 1)
    start = {key: value.detach().double() for key, value in network.named_parameters()}
    (optimizer,) = optimizers.make(made, network)
    gradients = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    for gradient in gradients:
        network.weight.grad, network.bias.grad = gradient[None], gradient[:1].clone()
        optimizer.step()
    for key, decay in (("weight", 0.1), ("bias", 0.0)):
        value, first, second = start[key], 0.0, 0.0
        for step, gradient in enumerate(gradients.double(), 1):
            gradient = gradient[None] if key == "weight" else gradient[:1]
            if name == "rmsprop":
                gradient = gradient + decay * value
                second = 0.9 * second + 0.1 * gradient**2
                first = 0.8 * first + gradient / (second**0.5 + 0.0316)
                value = value - 0.01 * first
            else:
                first = 0.8 * first + 0.2 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                step_size = (first / (1 - 0.8**step)) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
                value = value * (1 - 0.01 * decay) - 0.01 * step_size
        torch.testing.assert_close(getattr(network, key).detach(), value.float())


def test_muon_has_nothing_to_do_where_the_features_are_frozen(tiny):
    made = tiny(optimizer="muon", start="a", freeze="features")
    network = build(**dataclasses.asdict(made.architecture))
    training.freeze(network, made.freeze)
    (sgd,) = optimizers.make(made, network)
    assert sum(map(len, (group["params"] for group in sgd.param_groups))) == 2


def test_a_file_in_place_of_a_folder_is_told_before_the_training(tiny, few_digits, tmp_path):
    (tmp_path / "models").write_text("")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="models is no folder"):
            training.train(tiny(), dataset=few_digits, models=tmp_path / "models", overwrite=overwrite)


@pytest.mark.parametrize("model", ["v1", "v2", "v3_small"])
def test_muon_takes_exactly_the_pointwise_convolutions(tiny, model):
    """Those of squeeze-excitation among them, which are 1x1 convolutions too."""
    made = tiny(model=model, optimizer="muon", muon_learning_rate=0.03, muon_weight_decay=0.1)
    network = build(**dataclasses.asdict(made.architecture)).to(memory_format=torch.channels_last)
    muon, sgd = optimizers.make(made, network)
    pointwise = {
        module.weight.data_ptr()
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    }
    (group,) = muon.param_groups
    assert {matrix.data_ptr() for matrix in group["params"]} == pointwise
    assert (group["lr"], group["weight_decay"]) == (0.03, 0.1)
    assert not pointwise & {p.data_ptr() for group in sgd.param_groups for p in group["params"]}


def test_learning_rates_follow_the_schedule(tiny, few_digits):
    made = tiny(optimizer="muon", learning_rate=0.4, muon_learning_rate=0.02, epochs=2, warmup=0.5)
    network = build(**dataclasses.asdict(made.architecture))
    network.mean, network.std = few_digits.mean, few_digits.std
    several = optimizers.make(made, network)
    # Three steps an epoch: the last one of each is the third and the sixth of six.
    for epoch, progress in ((0, 3 / 7), (1, 6 / 7)):
        row = training.train_epoch(made, network, several, few_digits.train, epoch)
        factor = made.rate(progress)
        assert row["learning_rate"] == pytest.approx(0.4 * factor, abs=1e-7)
        assert [group["lr"] for group in several[0].param_groups] == pytest.approx([0.02 * factor])
        assert [group["lr"] for group in several[1].param_groups] == pytest.approx([0.4 * factor] * 2)


def test_image_sizes_are_used(tiny, few_digits, monkeypatch):
    seen, resize = [], inference.resize

    def spy(inputs, size):
        out = resize(inputs, size)
        seen.append((out.shape[-1], len(out)))
        return out

    for module in (training, inference):
        monkeypatch.setattr(module, "resize", spy)
    fit(tiny(epochs=2, image_sizes=(12, 20)), few_digits)
    # Three batches of 32 images and a measurement of 40; it is measured at the last size always.
    assert seen == [(12, 32)] * 3 + [(20, 40)] + [(20, 32)] * 3 + [(20, 40)]


class FakeGraph:
    """Records what is done while it is captured, as torch.cuda.CUDAGraph does, and does it again in `replay`."""

    def replay(self):
        with torch.enable_grad():
            kept = {parameter: parameter.grad for parameter in self.parameters}
            outputs = self.work()
            for ours, new in zip(self.outputs, outputs, strict=True):
                ours.copy_(new)
            for parameter, memory in kept.items():  # a graph writes into the memory that it was captured with
                parameter.grad = memory.copy_(parameter.grad)


@pytest.fixture
def fake_cuda(monkeypatch):
    """CapturedStep without a GPU; returns the list of the shapes that it was captured for."""
    shapes, plain = [], training.gradients

    @contextmanager
    def capture(graph, **_):
        def spy(*arguments):
            graph.work, graph.parameters = (lambda: plain(*arguments)), list(arguments[0].parameters())
            graph.outputs = plain(*arguments)
            shapes.append(tuple(arguments[1].shape))
            return graph.outputs

        with monkeypatch.context() as patch:
            patch.setattr(training, "gradients", spy)
            yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: fork([]))
    return shapes


@pytest.mark.parametrize(
    "changes",
    [
        {"image_sizes": (12, 16)},
        {"augmentation": "mixup"},
        {"augmentation": "cutmix", "augmentation_share": 0.5},
        {"optimizer": "muon"},
    ],
)
def test_captured_steps_train_as_others_do(tiny, few_digits, monkeypatch, fake_cuda, changes):
    """Capturing runs the network a few times, and replays share their memory: neither may show afterwards."""
    made = tiny(epochs=2, dropout=0.2, **changes)
    plain = fit(made, few_digits)
    train_epoch, step = training.train_epoch, training.CapturedStep()
    monkeypatch.setattr(training, "train_epoch", lambda *arguments: train_epoch(*arguments[:-1], step))
    captured = fit(made, few_digits)
    assert fake_cuda == [(made.batch_size, 3, size, size) for size in made.image_sizes]
    assert equal(plain.network, captured.network)
    assert [row["train_loss"] for row in plain.history] == [row["train_loss"] for row in captured.history]


def test_the_last_epochs_are_averaged(tiny, few_digits, monkeypatch):
    """The mean of the weights at the last epochs' ends, and norms with the mean statistics of one more pass."""
    ends, best_five = [], training.best_five
    monkeypatch.setattr(
        training, "best_five", lambda network, *rest: ends.append(copy.deepcopy(network)) or best_five(network, *rest)
    )
    made = tiny(model="v3_small", stochastic_depth=0.5, epochs=4, crop=2, batch_size=16)
    plain = fit(made, few_digits)
    parameters = [dict(network.named_parameters()) for network in ends[1:4]]
    averaged = fit(dataclasses.replace(made, average_epochs=3), few_digits)
    for name, value in averaged.network.named_parameters():
        torch.testing.assert_close(value, sum(one[name] for one in parameters) / 3)

    convolution, norm, _ = averaged.network.features[0]
    moved = dict(crop=2, padding=made.padding, flip=made.flip)
    batches = data.epoch_batches(few_digits.train, batch_size=16, seed=0, epoch=4, **moved)
    with torch.no_grad():
        inputs = [data.normalise(pixels, few_digits.mean, few_digits.std) for pixels, _ in batches]
        maps = [convolution(inference.resize(one, 16)) for one in inputs]
    torch.testing.assert_close(norm.running_mean, torch.stack([one.mean((0, 2, 3)) for one in maps]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([one.var((0, 2, 3)) for one in maps]).mean(0))
    again = copy.deepcopy(averaged.network)
    training.apply_swa(made, again, AveragedModel(again), few_digits.train)
    assert equal(again, averaged.network), "no image skips a block while the statistics are taken"
    assert norm.momentum == made.norm_momentum

    assert list(map(untimed, averaged.history[:3])) == list(map(untimed, plain.history[:3]))
    assert averaged.history[3]["test_top1"] == inference.accuracy(averaged.predictions)["top1"]


def test_frozen_norms_keep_their_statistics_when_weights_are_averaged(tiny, few_digits):
    start = fit(tiny(epochs=1), few_digits).network
    made = tiny(epochs=2, average_epochs=2, start="mobilenet_v1_0.25@0123456789ab", freeze="norms")
    result = fit(made, few_digits, start=start)
    kept = {name: value for name, value in start.named_buffers() if "running" in name}
    assert all(torch.equal(kept[name], value) for name, value in result.network.named_buffers() if name in kept)


def test_holdout_measures_on_a_part_of_the_training_set(tiny, few_digits):
    kept, held = data.holdout(few_digits.train)
    result = fit(tiny(split="holdout", batch_size=16), few_digits)
    assert result.predictions["labels"].tolist() == held.labels.tolist()
    assert len(kept) + len(held) == 96


@pytest.mark.parametrize("size", [32, 20])
def test_best_five_is_a_plain_forward_pass(digits, size):
    torch.manual_seed(3)
    network = build("v3_small", width=0.25, num_classes=10, lowered_strides=1, initialization="torch")
    network.mean, network.std = digits.mean, digits.std
    split = digits.test.take(torch.arange(23))
    result = inference.best_five(network.train(), split, size, batch_size=7)
    pixels = split.images.permute(0, 3, 1, 2).float() / 255
    inputs = (pixels - torch.tensor(digits.mean).view(3, 1, 1)) / torch.tensor(digits.std).view(3, 1, 1)
    with torch.inference_mode():
        inputs = F.interpolate(inputs, (size, size), mode="bilinear", antialias=True)
        expected = network.eval()(inputs).softmax(1).sort(1, descending=True)
    np.testing.assert_array_equal(result["classes"], expected.indices[:, :5].numpy())
    np.testing.assert_allclose(result["probabilities"], expected.values[:, :5].numpy(), atol=1e-6)
    assert result["labels"].tolist() == split.labels.tolist()
    assert {name: (value.dtype, value.shape) for name, value in result.items()} == {
        "labels": (np.uint8, (23,)),
        "classes": (np.uint8, (23, 5)),
        "probabilities": (np.float32, (23, 5)),
    }


def test_without_weights_record_and_history_are_kept(tiny, few_digits, tmp_path):
    folders = dict(models=tmp_path / "models", checkpoints=tmp_path / "checkpoints")
    record = training.train(tiny(), dataset=few_digits, weights=False, log=silent, **folders)
    names = sorted(path.name for path in (tmp_path / "models" / record["run"]).iterdir())
    assert names == [store.HISTORY, store.RECORD]
    assert training.train(tiny(), dataset=few_digits, weights=False, log=silent, **folders) == record
    with pytest.raises(InputError, match=rf"{record['run']} was kept without weights: move it away"):
        training.train(tiny(), dataset=few_digits, log=silent, **folders)
    again = training.train(tiny(epochs=2), dataset=few_digits, overwrite=True, log=silent, **folders)
    assert again["recipe"]["epochs"] == 2
    assert store.load_record(record["run"], tmp_path / "models") == again

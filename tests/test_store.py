"""The folder of trained models: what is written comes back, and nothing else is taken for it."""

import json
import os
import pickle
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mnv3lib
from mnv3lib import InputError, Recipe, build, recipe, store, writing

RUN = "mobilenet_v3_small_0.25_digits"


def make_network(seed=0):
    torch.manual_seed(seed)
    network = build("v3_small", width=0.25, num_classes=10, penultimate=32, nonlinearity="relu")
    network.classes, network.mean, network.std = tuple("0123456789"), (0.1, 0.2, 1 / 3), (0.4, 0.5, 2 / 3)
    network.size = 48
    network.train()(torch.randn(8, 3, 16, 16))
    return network


def make_parts(seed=0):
    random = np.random.default_rng(seed)
    predictions = {
        "labels": random.integers(0, 10, 20).astype(np.uint8),
        "classes": random.integers(0, 10, (20, 5)).astype(np.uint8),
        "probabilities": random.random((20, 5)).astype(np.float32),
    }
    history = pd.DataFrame({"epoch": [1, 2], "learning_rate": [0.1, 0.05], "train_loss": [2.5 + seed, 1 / 3]})
    history = history.assign(train_top1=[9.5, 49.0], test_top1=[10.0, 50.5], seconds=[1.25, 1.0])
    record = {
        "run": RUN,
        "recipe": {"dataset": "digits"},
        "parameters": 3,
        "macs": 4,
        "result": {"top1": 50.5 + seed, "top5": 90.0, "images": 20},
        "environment": {"threads": 1},
        "commit": None,
        "started": "2026-01-01T00:00:00Z",
        "seconds": 1.5,
        "images_per_second": 10.0,
    }
    return record, history.to_dict("records"), make_network(seed), predictions


@pytest.fixture
def folder(tmp_path):
    """A folder with one run."""
    store.save(tmp_path, *make_parts())
    return tmp_path


@pytest.fixture
def weights(folder):
    return folder / RUN / store.WEIGHTS


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def old_header(path):
    """What the header of the weights would have been before all of it was one entry."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()[store.HEADER])
    return {"format": "mnv3lib-1"} | {name: json.dumps(value) for name, value in facts.items() if name != "size"}


def rewrite(path, change=None, **header):
    """Write the weights in the old format with some tensors changed in place, and other entries in the header."""
    metadata = old_header(path)
    state = load_file(path)
    if change:
        change(state)
    metadata = {key: value for key, value in (metadata | header).items() if value is not None}
    save_file(state, path, metadata=metadata or None)


def test_network_comes_back_bit_for_bit(folder):
    saved, loaded = make_network(), mnv3lib.load(RUN, folder)
    assert loaded.architecture == saved.architecture
    assert (loaded.classes, loaded.mean, loaded.std) == (saved.classes, saved.mean, saved.std)
    assert loaded.size == saved.size == 48
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    before, after = saved.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    images = torch.randn(3, 3, 20, 20)
    torch.testing.assert_close(saved.eval()(images), loaded(images))


def test_channels_last_weights_come_back(tmp_path):
    record, history, network, predictions = make_parts()
    expected = {key: value.clone() for key, value in network.state_dict().items()}
    store.save(tmp_path, record, history, network.to(memory_format=torch.channels_last), predictions)
    state = store.load(RUN, tmp_path).state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_the_same_network_makes_the_same_file(tmp_path):
    network, contents = make_network(), set()
    for _ in range(20):
        store.save_weights(network, tmp_path / "a")
        contents.add((tmp_path / "a").read_bytes())
    assert len(contents) == 1


def test_headers_of_several_entries_are_still_read(folder, weights):
    expected = make_network()
    rewrite(weights)
    with safe_open(weights, framework="pt") as file:
        assert set(file.metadata()) == {"format", "architecture", "classes", "mean", "std"}
    loaded = store.load(RUN, folder)
    assert loaded.architecture == expected.architecture
    assert (loaded.classes, loaded.mean, loaded.std) == (expected.classes, expected.mean, expected.std)


def test_trainable_is_what_a_loop_of_ones_own_needs(folder):
    network = store.load(RUN, folder, trainable=True)
    assert network.training and all(module.training for module in network.modules())
    network(torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"architecture": []}', "null"])
def test_an_entry_that_tells_no_network(weights, text):
    save_file(load_file(weights), weights, metadata={store.HEADER: text})
    refused(weights, "no file of weights")


def test_header_tells_all_that_is_needed(weights):
    with safe_open(weights, framework="pt") as file:
        (entry,) = file.metadata().values()
        assert set(file.keys()) == set(make_network().state_dict())
    header = json.loads(entry)
    architecture = header["architecture"]
    assert (architecture["model"], architecture["width"], architecture["num_classes"]) == ("v3_small", 0.25, 10)
    assert header["classes"] == list("0123456789")
    assert header["mean"] == [0.1, 0.2, 1 / 3]
    assert header["std"] == [0.4, 0.5, 2 / 3]


def test_record_history_and_predictions_come_back(folder):
    record, history, _, predictions = make_parts()
    assert store.load_record(RUN, folder) == record | {"recipe": Recipe(dataset="digits", num_classes=10).as_dict()}
    pd.testing.assert_frame_equal(store.load_history(RUN, folder)[store.HISTORY_COLUMNS], pd.DataFrame(history))
    loaded = store.load_predictions(RUN, folder)
    assert loaded.keys() == predictions.keys()
    for name, expected in predictions.items():
        assert loaded[name].dtype == expected.dtype
        np.testing.assert_array_equal(loaded[name], expected)
    assert store.runs(folder) == [RUN]


def test_a_copy_of_a_runs_folder_is_no_run(folder):
    shutil.copytree(folder / RUN, folder / f"{RUN} (copy)")
    assert store.runs(folder) == [RUN]
    shutil.copytree(folder / RUN, folder / "renamed")
    with pytest.raises(InputError, match=r"it is the record of .*, move its folder away"):
        store.load_record("renamed", folder)


def test_record_alone(tmp_path):
    record, history, _, _ = make_parts()
    target = store.save(tmp_path, record, history, None, None)
    assert sorted(path.name for path in target.iterdir()) == [store.HISTORY, store.RECORD]
    with pytest.raises(InputError, match=store.WEIGHTS.replace(".", r"\.")):
        store.load(RUN, tmp_path)


def test_a_run_replaces_the_older_one_whole(folder):
    (folder / RUN / "left.over").write_text("old")
    store.save(folder, *make_parts(seed=1))
    assert store.load_record(RUN, folder)["result"]["top1"] == 51.5
    assert sorted(snapshot(folder)) == sorted(
        f"{RUN}/{name}" for name in (store.WEIGHTS, store.RECORD, store.HISTORY, store.PREDICTIONS)
    )
    assert [path.name for path in folder.iterdir()] == [RUN]


@pytest.mark.parametrize("failing", ["save_weights", "savez", "write_history", "rename", "rename the second time"])
def test_a_save_that_fails_leaves_the_old_run(folder, monkeypatch, failing):
    before = snapshot(folder)
    calls = []
    rename = Path.rename

    def fail(*_, **__):
        raise OSError("no space left on device")

    def fail_later(path, target):
        calls.append(path)
        return fail() if len(calls) == 2 else rename(path, target)

    if failing == "save_weights":
        monkeypatch.setattr(store.safetensors.torch, "save", fail)
    elif failing == "savez":
        monkeypatch.setattr(np, "savez_compressed", fail)
    elif failing == "write_history":
        monkeypatch.setattr(store, "write_history", fail)
    else:
        monkeypatch.setattr(Path, "rename", fail if failing == "rename" else fail_later)
    with pytest.raises(OSError, match="no space left"):
        store.save(folder, *make_parts(seed=1))
    monkeypatch.undo()
    assert snapshot(folder) == before
    assert [path.name for path in folder.iterdir()] == [RUN]


def test_replacing_leaves_the_old_file_or_the_new(tmp_path):
    path = tmp_path / "folder" / "file"
    with writing.replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(KeyError), writing.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(folder, tmp_path):
    for name, target in (("link", "file"), ("new", "not there yet"), ("circle", "circle")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "file").write_text("old")
    for link in (tmp_path / "link", tmp_path / "new"):
        with writing.replacing(link) as temporary:
            temporary.write_text("new")
        assert link.is_symlink() and link.resolve().read_text() == "new"
    with (
        pytest.raises(InputError, match="circle is a link that leads to itself"),
        writing.replacing(tmp_path / "circle"),
    ):
        pass
    (folder / "elsewhere").mkdir()
    (folder / RUN).rename(folder / "elsewhere" / "run")
    (folder / RUN).symlink_to("elsewhere/run")
    store.save(folder, *make_parts(seed=1))
    assert (folder / RUN).is_symlink() and store.load_record(RUN, folder)["result"]["top1"] == 51.5
    assert [path.name for path in (folder / "elsewhere").iterdir()] == ["run"]


def test_what_is_no_file_or_folder_stays(tmp_path):
    fifo, file = tmp_path / "fifo", tmp_path / "file"
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to(fifo)
    streams = [path for path in [Path("/dev/stdout")] if path.is_symlink()]  # of which nothing but the check is tried
    for path in [fifo, tmp_path / "link", *streams]:
        for check in (writing.check_is_file, writing.check_is_text, writing.check_suffix):
            with pytest.raises(InputError, match=f"{path} is a device, a pipe or the like: name a file"):
                check(path)
    with pytest.raises(InputError, match="fifo is a device"), writing.replacing(fifo):
        pass
    assert fifo.is_fifo() and (tmp_path / "link").is_symlink()
    file.write_text("mine")
    with pytest.raises(InputError, match="file is no folder"), writing.replacing_folder(file):
        pass
    assert file.read_text() == "mine"


def test_a_lock_that_goes_while_another_waits_for_it_is_none(tmp_path, monkeypatch):
    """The first writer ends just when the second has opened its lock, which is deleted then."""
    first, second, opened = ExitStack(), ExitStack(), os.open
    first.enter_context(writing.only_writer(tmp_path / "a"))

    def end_first(path, *arguments, **options):
        handle = opened(path, *arguments, **options)
        if Path(path).name.startswith(writing.LOCK):
            first.close()
        return handle

    monkeypatch.setattr(os, "open", end_first)
    with second:
        second.enter_context(writing.only_writer(tmp_path / "a"))
        monkeypatch.undo()
        with pytest.raises(InputError, match="being written"), writing.only_writer(tmp_path / "a", timeout=0):
            pass


# What is refused


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        store.load_weights(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_pickle_is_not_run(weights, tmp_path):
    trace = tmp_path / "trace"
    for content in (pickle.dumps(Evil(trace)), pickle.dumps({"features.0.0.weight": Evil(trace)})):
        weights.write_bytes(content)
        refused(weights, "no file of weights")
    torch.save({"state": Evil(trace)}, weights)
    refused(weights, "no file of weights")
    assert not trace.exists()


def test_pickled_predictions_are_not_run(folder, tmp_path):
    trace, path = tmp_path / "trace", folder / RUN / store.PREDICTIONS
    evil = np.array([Evil(trace)], dtype=object)
    np.savez(path, labels=evil, classes=evil, probabilities=evil)
    with pytest.raises(InputError, match="no file of predictions"):
        store.load_predictions(RUN, folder)
    path.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(InputError, match="no file of predictions"):
        store.load_predictions(RUN, folder)
    assert not trace.exists()


def spoil(key, value):
    return lambda state: state.update({key: value(state[key])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("features.0.0.weight"), "features.0.0.weight is missing"),
        (lambda state: state.update({"more.weight": torch.zeros(1)}), "more.weight.* superfluous"),
        (spoil("features.0.0.weight", lambda weight: weight[:4].clone()), "features.0.0.weight.*shape"),
        (spoil("classifier.0.bias", lambda bias: bias.double()), "classifier.0.bias.*type"),
        (spoil("classifier.0.bias", lambda bias: bias * torch.nan), "classifier.0.bias.*no finite"),
        (spoil("features.0.1.running_var", lambda values: values / 0), "features.0.1.running_var.*no finite"),
    ],
    ids=["missing", "superfluous", "shape", "type", "NaN", "infinite"],
)
def test_tensors_that_do_not_fit(weights, change, message):
    rewrite(weights, change)
    refused(weights, message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (dict(format=None), "no header"),
        (dict(format="other"), "no header"),
        (dict(architecture=None), "architecture"),
        (dict(architecture="{"), "no file of weights"),
        (dict(architecture="[]"), "no file of weights"),
        (dict(architecture=json.dumps({"model": "v3_small", "colour": "red"})), "colour"),
        (dict(architecture=json.dumps({"model": "v3_small", "width": 1.0})), "shape"),
        (dict(classes=None), "classes"),
        (dict(classes=json.dumps(list("012345678"))), "classes.*do not fit"),
        (dict(classes="7"), "no file of weights"),
        (dict(mean="[0, 0]"), "mean.*do not fit"),
        (dict(std="[1, 1, 1, 1]"), "std do not fit"),
    ],
    ids=str,
)
def test_headers_that_do_not_fit(weights, header, message):
    rewrite(weights, **header)
    refused(weights, message)


def test_impossible_architecture_is_named(weights):
    rewrite(weights, architecture=json.dumps({"model": "v3_small", "width": -1}))
    with pytest.raises(InputError, match="width -1"):
        store.load_weights(weights)


def test_no_header_at_all(weights):
    save_file(load_file(weights), weights)
    refused(weights, "no header")


@pytest.mark.parametrize("length", [0, 4, 1000, -1])
def test_truncated_weights(weights, length):
    weights.write_bytes(weights.read_bytes()[:length])
    refused(weights, "no file of weights")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", "{}", json.dumps({"run": "another"}), json.dumps({"run": RUN, "result": {}}), b"\xff\xfe"],
    ids=lambda content: repr(content),
)
def test_broken_record(folder, content):
    path = folder / RUN / store.RECORD
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        store.load_record(RUN, folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"epoch,x\n1,2\n1,2,3,4\n", b"\xff\xfe\x00"])
def test_broken_history(folder, content):
    (folder / RUN / store.HISTORY).write_bytes(content)
    with pytest.raises(InputError, match="no history"):
        store.load_history(RUN, folder)


def test_broken_predictions(folder):
    path = folder / RUN / store.PREDICTIONS
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[50:90] = bytes(40)
    for wrong in (b"", content[:100], bytes(damaged)):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match="no file of predictions"):
            store.load_predictions(RUN, folder)
    np.savez(path, labels=np.zeros(3))
    with pytest.raises(InputError, match="no file of predictions"):
        store.load_predictions(RUN, folder)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="no file of predictions"):
        store.load_predictions(RUN, folder)


@pytest.mark.parametrize("run", ["../secret", "..", ".", "", "/etc", "a/b", "a\\b", ".hidden", "a\n", "x" * 201, "-x"])
def test_names_that_are_no_runs(folder, run):
    for read in (store.load, store.load_record, store.load_history, store.load_predictions):
        with pytest.raises(InputError, match="no name of a run"):
            read(run, folder / "models")
    with pytest.raises(InputError, match="no name of a run"):
        store.save(folder, {"run": run}, [], None, None)


def test_unknown_run_lists_what_there_is(folder):
    shutil.copytree(folder / RUN, folder / "mobilenet_v2_1.0")
    (folder / "empty").mkdir()
    shutil.copytree(folder / RUN, folder / ".writing-x")
    with pytest.raises(InputError, match=f"mobilenet_v1_1.0.*: mobilenet_v2_1.0, {RUN}$"):
        store.load("mobilenet_v1_1.0", folder)
    with pytest.raises(InputError, match="none"):
        store.load("mobilenet_v1_1.0", folder / "empty")
    assert store.runs(folder) == ["mobilenet_v2_1.0", RUN]
    assert store.runs(folder / "nowhere") == []


def test_a_run_that_is_elsewhere_is_told(folder, monkeypatch):
    monkeypatch.setattr(store, "place", lambda *_: folder / "trained_models")
    shutil.copytree(folder / RUN, folder / "build" / "trained_models" / RUN)
    monkeypatch.delenv("MNV3_MODELS", raising=False)
    with pytest.raises(InputError, match=f"{RUN} is not in .* but in .*: say --models .*build/trained_models$"):
        store.load(RUN)
    (folder / RUN / store.WEIGHTS).rename(folder / "x.safetensors")
    with pytest.raises(InputError, match=f"{RUN} in .* has no {store.WEIGHTS}: train it again"):
        store.load(RUN, folder)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"x.safetensors is a file .*load_weights"):
        store.load("x.safetensors", folder)
    with pytest.raises(InputError, match=f"'./{RUN}/' is no name of a run: name {RUN} as the run and . as the folder"):
        store.load(f"./{RUN}/", folder)


def test_runs_are_those_that_kept_one_of_some_files(folder):
    assert store.runs(folder, store.WEIGHTS) == store.runs(folder) == [RUN]
    (folder / RUN / store.WEIGHTS).unlink()
    assert store.runs(folder, store.WEIGHTS) == []
    assert store.runs(folder, store.WEIGHTS, store.PREDICTIONS) == [RUN]


def test_models_folder_is_the_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("MNV3_MODELS", str(tmp_path))
    assert store.models_folder() == tmp_path
    monkeypatch.delenv("MNV3_MODELS")
    assert store.models_folder().name == "trained_models"


@pytest.mark.parametrize(
    ("changes", "build"),
    [
        ({}, False),
        ({"epochs": 21, "seed": 3}, False),
        ({"epochs": 19}, True),
        ({"dataset": "digits"}, True),
        ({"split": "holdout"}, True),
    ],
)
def test_trials_have_a_folder_of_their_own(monkeypatch, tmp_path, changes, build):
    """So that neither a bare command nor the report takes them for models of the report."""
    monkeypatch.delenv("MNV3_MODELS", raising=False)
    models = store.models_folder()
    made = recipe.make(**changes)
    assert store.folder_for(made) == (models.parent / "build" / "trained_models" if build else models)
    monkeypatch.setenv("MNV3_MODELS", str(tmp_path))
    assert store.folder_for(made) == tmp_path


def test_runs_of_several_sets_do_not_go_together():
    sets = {"a": "digits", "b": "cifar100", "c": "cifar100"}
    assert store.of_one_set(sets, "cifar100") == ["b", "c"]
    assert store.of_one_set({"a": "digits"}, "cifar100") == ["a"]
    assert store.of_one_set({}, "cifar100") == []
    with pytest.raises(InputError, match=r"not go together, name those on one of them: cifar100: b, c; digits: a$"):
        store.of_one_set(sets, "birds")

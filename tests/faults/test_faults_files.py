"""Broken files of every format that is read: each gives a result or one clear line, in bounded time and memory."""

import ast
import io
import json
import math
import resource
import signal
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from records import record_of
from safetensors.torch import save as save_tensors

from mnv3lib import build, checkpoint, data, inference, optimizers, recipe, store
from mnv3lib.errors import InputError
from mnv3lib.report import sweep, tables
from mnv3lib.study import ablations, evaluation, importing, places, results

SECONDS = 30  # no file of a few kilobytes may take longer, on the slowest machine
MOST_MEMORY = 1024  # MiB more than before


class Hang(BaseException):
    pass


@contextmanager
def refused_or_read(path):
    """What happens within must end well or in an InputError of one line that names the file, soon."""

    def late(*_):
        raise Hang(f"{path} took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError as error:
        line = str(error)
        assert path.name in line or path.parent.name in line, line
        assert len(line.splitlines()) == 1 and line.isprintable(), repr(line)
        assert len(line) < 1000, line
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MEMORY


CHANGES = st.tuples(
    st.sampled_from(["cut", "flip", "write", "insert", "drop", "repeat"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=8),
)


def mutate(content: bytes, changes, early: bool) -> bytes:
    """`content` with some bytes changed; `early`: within its first 400, where most formats keep what matters."""
    for kind, place, payload in changes:
        at = int(place * (min(len(content), 400) if early else len(content)))
        after = at + len(payload)
        if kind == "cut":
            content = content[:at] if at % 2 else content[: len(content) - at]
        elif kind == "flip":
            content = content[:at] + bytes([b ^ (payload[0] or 1) for b in content[at : at + 1]]) + content[at + 1 :]
        elif kind == "write":
            content = content[:at] + payload + content[after:]
        elif kind == "insert":
            content = content[:at] + payload + content[at:]
        elif kind == "drop":
            content = content[:at] + content[after:]
        else:
            content = content[:at] + content[at : at + 64] * 3 + content[at:]
    return content


def broken(valid: list[bytes]):
    """Any bytes, and valid files with a few changes, some of them put together from two."""
    changed = st.builds(mutate, st.sampled_from(valid), st.lists(CHANGES, min_size=1, max_size=4), st.booleans())
    cut = st.floats(0, 1)
    spliced = st.builds(
        lambda one, two, a, b: one[: int(a * len(one))] + two[int(b * len(two)) :],
        st.sampled_from(valid),
        st.sampled_from(valid),
        cut,
        cut,
    )
    return st.one_of(st.binary(max_size=300), changed, changed, changed, spliced)


ODD = st.sampled_from(
    [None, True, -1, 0, 2.5, math.nan, math.inf, 10**400, "", "7", "\x00", "<b>", [], {}, [[]], [1e308]]
)
JSON = st.recursive(
    st.one_of(ODD, st.text(max_size=5), st.integers()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=4,
)


def changed(content: dict, changes: list) -> dict:
    """A copy of `content` with other values in some places, which may be deep inside."""
    copy = json.loads(json.dumps(content))
    for place, value, remove in changes:
        holders = [copy] + [one for one in copy.values() if isinstance(one, dict)]
        holder = holders[place % len(holders)]
        if holder:
            name = sorted(holder)[place % len(holder)]
            if remove:
                del holder[name]
            else:
                holder[name] = value
    return copy


def other(content: dict):
    """`content` as bytes of JSON, with other values in some places."""
    one = st.tuples(st.integers(0, 500), JSON, st.booleans())
    return st.builds(
        lambda changes: json.dumps(changed(content, changes)).encode(), st.lists(one, min_size=1, max_size=2)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with one whole run of a small network on CIFAR-100's classes."""
    folder = tmp_path_factory.mktemp("models")
    made = recipe.make(width=0.25)
    torch.manual_seed(0)
    network = build("v3_small", width=0.25, penultimate=8)
    network.classes, network.mean, network.std = data.CLASSES["cifar100"], (0.5,) * 3, (0.25,) * 3
    place = {"processor": "one", "threads": 1, "device": "cpu"}
    moved = [{"after_epoch": 1, "commit": None, "environment": place | {"threads": 2}}]
    record = record_of(made, 10.0, images=20, environment=place, resumed=moved)
    history = [dict.fromkeys(store.HISTORY_COLUMNS, epoch) for epoch in (1, 2)]
    drawn = np.random.default_rng(0)
    predictions = {
        "labels": drawn.integers(0, 100, 20).astype(np.uint8),
        "classes": drawn.integers(0, 100, (20, 5)).astype(np.uint8),
        "probabilities": drawn.random((20, 5)).astype(np.float32),
    }
    store.save(folder, record, history, network, predictions)
    return folder / made.run


@pytest.fixture(scope="module")
def attempt(trying, long):
    """Run a check on many broken contents of a file; each counts as a fault of its kind."""

    def attempt(kind, path, contents, check, examples):
        original = path.read_bytes() if path.exists() else None

        @settings(
            max_examples=examples * (4 if long else 1),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(contents)
        def one(content):
            with trying(f"broken file: {kind}"):
                path.write_bytes(content)
                with refused_or_read(path):
                    check()

        try:
            one()
        finally:
            if original is not None:
                path.write_bytes(original)

    return attempt


def images() -> list[bytes]:
    """A small picture in every format that Pillow writes without more than it ships with."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8))
    found = []
    for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "JPEG2000"):
        file = io.BytesIO()
        try:
            picture.save(file, name)
        except (KeyError, OSError):
            continue
        found.append(file.getvalue())
    return found


def test_images(attempt, tmp_path):
    path = tmp_path / "picture"
    attempt("image", path, broken(images()), lambda: inference.as_pixels(inference.load_image(path)), 300)


def test_pictures_in_memory(attempt, tmp_path):
    """Bytes and open files as a program has them, and arrays and tensors of any shape, type and values."""
    path = tmp_path / "image 0"

    def read():
        with path.open("rb") as file:
            inference.as_pixels(inference.picture(file, path.name))
        inference.as_pixels(inference.picture(path.read_bytes(), path.name))

    attempt("picture in memory", path, broken(images()), read, 100)
    kinds = "u1 i1 u2 i4 f2 f4 f8 ?".split()
    shapes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 9]), max_size=4)
    values = st.sampled_from("0 1 0.5 255 -1 nan inf".split())
    parts = st.tuples(st.booleans(), st.sampled_from(kinds), shapes, values)

    def use():
        is_tensor, kind, shape, value = ast.literal_eval(path.read_text())
        with np.errstate(invalid="ignore"):
            array = np.full(shape, float(value)).astype(kind)
        inference.as_pixels(inference.picture(torch.from_numpy(array) if is_tensor else array, path.name))

    attempt("array for a picture", path, parts.map(lambda given: repr(given).encode()), use, 200)


def forward(network) -> None:
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, len(network.classes))
    data.normalise(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), network.mean, network.std)


def test_weights(attempt, run):
    path = run / store.WEIGHTS
    valid = path.read_bytes()
    attempt("weights", path, broken([valid]), lambda: forward(store.load(run.name, run.parent)), 120)


def test_headers_of_weights(attempt, run):
    """Valid safetensors whose header tells something else."""
    path = run / store.WEIGHTS
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    state = store.load(run.name, run.parent).state_dict()
    parts = json.loads(header[store.HEADER])

    def file(text: bytes) -> bytes:
        return save_tensors(state, {store.HEADER: text.decode()})

    def old(text: bytes) -> bytes:
        told = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in json.loads(text).items()
        }
        return save_tensors(state, {"format": "mnv3lib-1"} | told)

    contents = st.one_of(other(parts).map(file), other(parts).map(old))
    attempt("header of weights", path, contents, lambda: forward(store.load(run.name, run.parent)), 100)


def use_record(run) -> None:
    """All that is made from records."""
    table = results.load_runs(run.parent)
    tables.html(tables.runs(table)), tables.markdown(tables.runs(table)), results.write_csv(run.parent)
    for one in evaluation.evaluate([run.name], models=run.parent, recorded=True):
        evaluation.readable(evaluation.summary([one]))
        places.trained_on(one.record)
    results.time_to_original(run.parent), results.goals(table)
    records = ablations.load_records(run.parent, run.parent)
    ablations.results(records)
    for record in records:
        recipe.is_usual(record["recipe"])
        tables.html(tables.comparison(ablations.compare([record], base=record["recipe"]["variant"])))


def test_records(attempt, run):
    path = run / store.RECORD
    valid = path.read_bytes()
    attempt("record", path, st.one_of(broken([valid]), other(json.loads(valid))), lambda: use_record(run), 200)


def test_histories(attempt, run):
    path = run / store.HISTORY
    cell = st.sampled_from(
        ["1", "-2.5", "nan", "inf", "1e999", "x", '"', "", "\x00", "9" * 30, "9" * 400, "True", "1j"]
    )
    line = st.lists(cell, max_size=8).map(",".join)
    tables = st.lists(line, max_size=4).map(lambda lines: "\n".join([",".join(store.HISTORY_COLUMNS), *lines]).encode())

    def check():
        table = store.load_history(run.name, run.parent)
        assert table["epoch"].iloc[-1] + table["test_top1"].sum() < math.inf

    attempt("history", path, st.one_of(broken([path.read_bytes()]), tables), check, 150)


def arrays(labels, classes, probabilities) -> bytes:
    file = io.BytesIO()
    np.savez(file, labels=labels, classes=classes, probabilities=probabilities)
    return file.getvalue()


def test_predictions(attempt, run):
    path = run / store.PREDICTIONS
    array = st.builds(
        lambda shape, kind: np.ones(shape, kind),
        st.sampled_from([(), (0,), (20,), (20, 5), (5, 20), (20, 1), (20, 5, 1), (1, 5), (0, 5)]),
        st.sampled_from(["u1", "i8", "u8", "f4", "f8", "c16", "?", "U3", "S2", "M8[s]", [("a", "i4")]]),
    )
    with np.load(path) as file:
        good = {name: file[name] for name in file.files}
    some = st.one_of(array, st.sampled_from([value * 200 for value in good.values()]))
    odd = st.builds(lambda change: arrays(**good | change), st.dictionaries(st.sampled_from(sorted(good)), some))

    def check():
        (one,) = evaluation.evaluate([run.name], models=run.parent, recorded=True)
        one.summary(), one.per_class(), one.calibration()

    attempt("predictions", path, st.one_of(broken([path.read_bytes(), arrays(**good)]), odd), check, 200)


def test_absurd_sizes(run, trying):
    """Small files that would unpack to terabytes, or say so."""
    path = run / store.PREDICTIONS
    original = path.read_bytes()
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(117) + b"\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    import zipfile

    def archive(content: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written:
            for name in store.PREDICTIONS_ARRAYS:
                written.writestr(f"{name}.npy", content)
        return file.getvalue()

    for content in (archive(member), archive(member + bytes(2**27))):
        with trying("absurd size"):
            path.write_bytes(content)
            with pytest.raises(InputError):
                store.load_predictions(run.name, run.parent)
    path.write_bytes(original)
    for file in (store.RECORD, store.HISTORY):
        original = (run / file).read_bytes()
        with trying("absurd size"):
            with (run / file).open("wb") as large:
                large.truncate(2**40)  # takes no room on the disk
            with pytest.raises(InputError, match="more than"):
                store.load_record(run.name, run.parent) if file == store.RECORD else store.load_history(
                    run.name, run.parent
                )
        (run / file).write_bytes(original)
    original = (run / store.WEIGHTS).read_bytes()
    for length in (2**40, 2**63, 99_999_999):
        with trying("absurd size"):
            (run / store.WEIGHTS).write_bytes(length.to_bytes(8, "little") + original[8:])
            with pytest.raises(InputError, match="no file of weights"):
                store.load(run.name, run.parent)
    (run / store.WEIGHTS).write_bytes(original)


def test_data_files(attempt, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "FILES", {"train.bin": 3, "test.bin": 2})
    drawn = np.random.default_rng(0)
    for file, count in data.FILES.items():
        records = drawn.integers(0, 255, (count, data.RECORD), dtype=np.uint8)
        records[:, :2] = 7
        (tmp_path / file).write_bytes(records.tobytes())
    valid = (tmp_path / "train.bin").read_bytes()
    exact = st.builds(lambda start: mutate(valid, [("write", start, b"\xff")], True), st.floats(0, 0.99))
    path = tmp_path / "train.bin"
    attempt("CIFAR-100", path, st.one_of(broken([valid]), exact), lambda: data.load("cifar100", tmp_path), 80)


def test_old_checkpoints(attempt, tmp_path, run):
    path = tmp_path / "old.pth"
    torch.save({"state_dict": {"features.0.0.weight": torch.zeros(16, 3, 3, 3)}}, path)
    new = path.read_bytes()
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    valid = [new, path.read_bytes()]
    network = build("v3_small", width=0.25, penultimate=8).state_dict()
    torch.save({"model": network, "model_ema": {f"module.{key}": value for key, value in network.items()}}, path)
    valid += [path.read_bytes(), save_tensors(network)]
    attempt(".pth", path, broken(valid), lambda: importing.read_pth(path), 120)


def test_checkpoints(attempt, tmp_path, tiny):
    made = tiny()
    network = build("v3_small", width=0.25, num_classes=10, penultimate=8)
    several = optimizers.make(made, network)
    path = tmp_path / "checkpoint.pt"
    checkpoint.write(path, made, network, several, [], {})
    attempt(
        "checkpoint", path, broken([path.read_bytes()]), lambda: checkpoint.restore(path, made, network, several), 80
    )


def test_files_of_grids(attempt, tmp_path):
    path = tmp_path / "runs.yaml"
    valid = (
        b"common: {epochs: 3}\nruns:\n- {model: v3_small, width: [0.25, 0.5], image_sizes: [20, 32]}\n- {model: v1}\n"
    )
    grids = other({"common": {"epochs": 3, "width": 0.5}, "runs": [{"model": "v1"}]})

    def check():
        try:
            sweep.distinct(sweep.read(path))
        except InputError as error:  # that a value is impossible is told of the value, not of the file
            assert len(str(error).splitlines()) == 1

    attempt("grid of runs", path, st.one_of(broken([valid]), grids), check, 100)

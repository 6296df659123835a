"""Files for other runtimes than onnxruntime: each is run in its own, and nothing is written that answers otherwise."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from mnv3lib import data, store
from mnv3lib.commands import main
from mnv3lib.deploy import FORMATS, comparisons, executorch_files, formats, latency, ncnn_files, openvino_files
from mnv3lib.errors import ExportError, InputError
from mnv3lib.study import labelling

RUN = "mobilenet_v3_small_0.25"
MODULES = {"executorch": executorch_files, "ncnn": ncnn_files, "openvino": openvino_files}


def needs(file_format: str) -> None:
    package = "nncf" if file_format == "openvino-int8" else file_format.removesuffix("-int8")
    if not importlib.util.find_spec(package):
        pytest.skip(f"{package} is not installed")


@pytest.fixture(scope="module")
def photographs():
    return labelling.photographs(labelling.images_folder())


@pytest.mark.parametrize("file_format", MODULES)
def test_a_file_answers_as_pytorch_in_its_own_runtime(file_format, photographs, tmp_path):
    needs(file_format)
    network = store.load(RUN)
    path = tmp_path / "written"
    facts = formats.write(network, path, file_format, photographs, run=RUN)
    assert facts["gap"] <= 1e-4
    about = json.loads((path / formats.ABOUT).read_text())
    assert about["run"] == RUN
    assert {file.name for file in path.iterdir()} == {formats.ABOUT} | formats.FILES[file_format]
    assert tuple(about["classes"]) == network.classes
    answer, given = MODULES[file_format].opened(path, 1), formats.together(photographs)
    many = torch.cat([given] * 4).numpy()  # more than ExecuTorch takes at once
    for images in (many[:1], many):
        np.testing.assert_allclose(answer(images), formats.pytorch(network)(images), atol=1e-4)
    channels_last = given.contiguous(memory_format=torch.channels_last).numpy()
    np.testing.assert_allclose(answer(channels_last), answer(many[: len(given)]), atol=1e-4)


@pytest.mark.parametrize("file_format", ["executorch-int8", "openvino-int8"])
def test_int8_sees_the_same_in_photographs(file_format, photographs, tmp_path):
    needs(file_format)
    network = store.load(RUN)
    split = data.Split(photographs, torch.zeros(len(photographs), dtype=torch.int64))
    path = tmp_path / "int8"
    facts = formats.write(network, path, file_format, photographs, calibration=photographs, test=split)
    given = formats.together(photographs).numpy()
    expected, got = formats.pytorch(network)(given), formats.module_of(file_format).opened(path)(given)
    assert facts == {"top1": 100 * (expected.argmax(1) == 0).mean(), "top1_int8": 100 * (got.argmax(1) == 0).mean()}
    assert (expected.argmax(1) == got.argmax(1)).mean() >= 0.8
    assert np.corrcoef(expected.ravel(), got.ravel())[0, 1] > 0.97
    assert not np.allclose(expected, got, atol=1e-3)
    largest = max(file.stat().st_size for file in path.iterdir())
    assert largest < 0.5 * 4 * sum(one.numel() for one in network.parameters())


@pytest.fixture
def wrong(monkeypatch):
    """A format ncnn whose file holds nothing and answers 0.001 too much."""

    def write(module, folder, images):
        (folder / "network.bin").write_bytes(b"nothing")

    monkeypatch.setattr(ncnn_files, "write", write)
    answer = formats.pytorch(store.load(RUN))
    monkeypatch.setattr(ncnn_files, "opened", lambda folder: lambda images: answer(images) + 1e-3)


def test_a_file_that_answers_otherwise_is_not_written(wrong, photographs, tmp_path):
    with pytest.raises(ExportError, match=r"differ from PyTorch's by 1\.0e-03"):
        formats.write(store.load(RUN), tmp_path / "new", "ncnn", photographs)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".mnv3-lock")]


ABOUT = '{"run": "a", "format": "ncnn", "mnv3lib": "0"}'


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"mine.txt": "mine"}, "nothing that mnv3 export wrote"),
        ({"about.json": '{"name": "an application"}'}, "nothing that mnv3 export wrote"),
        ({"about.json": "[]"}, "nothing that mnv3 export wrote"),
        ({"about.json": ABOUT, "network.bin": "", "app.js": "mine"}, r"app\.js in it, which ncnn does not write"),
    ],
)
def test_a_folder_of_somebody_elses_stays(wrong, photographs, tmp_path, files, line):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{line}.*: name another place with --out"):
        formats.write(store.load(RUN), tmp_path, "ncnn", photographs)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_folder_of_its_own_is_replaced(tmp_path):
    for name in ("about.json", "network.param", "network.bin"):
        (tmp_path / name).write_text(ABOUT)
    formats.check_ours(tmp_path, "ncnn")


@pytest.mark.parametrize(
    ("file_format", "missing"),
    [("executorch", "executorch"), ("executorch", "torchao"), ("ncnn", "pnnx"), ("openvino", "openvino")],
)
def test_without_the_extra_the_mend_is_told(file_format, missing, tmp_path, monkeypatch, capsys):
    needs(file_format)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "executorch.exir", raising=False)
    out = tmp_path / "out"
    assert main(["export", RUN, "--format", file_format, "--out", str(out), "--data", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"{missing} is not installed" in error or f"{missing}.exir is not installed" in error
    assert f"[{file_format}]" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_without_nncf_there_is_no_int8_of_openvino(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InputError, match="nncf is not installed: pip install nncf"):
        formats.fill(torch.nn.Identity(), "openvino-int8", tmp_path, torch.zeros(1, 3, 8, 8))
    assert not any(tmp_path.iterdir())


def test_nothing_is_reported_to_openvinos_makers():
    needs("openvino")
    asked = "import sys; from mnv3lib.deploy import openvino_files as files; files._extra('openvino'); "
    subprocess.run([sys.executable, "-c", asked + "assert not sys.modules['openvino_telemetry']"], check=True)


def test_several_runs_have_no_one_name(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", RUN, RUN, "--out", str(tmp_path / "x.onnx")])
    assert "--out is of one RUN" in capsys.readouterr().err


def test_every_format_has_a_name_of_its_own():
    assert len({name.format(run="a") for name in FORMATS.values()}) == len(FORMATS)


def test_the_newest_of_a_file_counts_beside_its_own_table():
    """int8 recorded anew with onnxruntime: its ratio is to that time. openvino's stays to the older one, and so, on a
    machine that was slower the second time, it would have taken longer, too."""
    rows = [
        ("a", "1", "onnxruntime", 4.0),
        ("a", "1", "onnxruntime-int8", 3.0),
        ("a", "1", "openvino", 2.0),
        ("b", "2", "onnxruntime", 5.0),
        ("b", "2", "onnxruntime-int8", 1.0),
    ]
    table = pd.DataFrame(rows, columns=["file", "measured", "runtime", "median_ms"])
    table = table.assign(run="x", model="v1", width=0.5, batch=1, threads=1, file_mb=1.0, library="mnv3lib")
    found = comparisons.files(table).set_index("runtime")
    assert found["ms_1"].to_dict() == {"onnxruntime": 5, "onnxruntime-int8": 1, "openvino": 2.5}
    assert found["ratio_1"].to_dict() == {"onnxruntime": 1, "onnxruntime-int8": 0.2, "openvino": 0.5}
    both = pd.concat([table, table[:1].assign(run="y", model="v2", median_ms=8.0)])  # the older table has two networks
    found = comparisons.files(both).set_index(["run", "runtime"])["ms_1"]
    assert found["x"].to_dict() == {"onnxruntime": 4, "onnxruntime-int8": 0.8, "openvino": 2}
    assert found["y", "onnxruntime"] == 8


def test_latency_tells_size_memory_and_accuracy_of_a_file(digits):
    few = dataclasses.replace(
        digits, train=digits.train.take(torch.arange(20)), test=digits.test.take(torch.arange(60))
    )
    subjects = latency.subjects([RUN])
    table = latency.compare(
        subjects, runtimes=["eager", "default", "onnxruntime"], batches=[1, 3], threads=[1], seconds=0.01, dataset=few
    )
    (row,) = comparisons.files(table).itertuples()
    assert (row.run, row.runtime, row.network, row.ratio_3) == (RUN, "onnxruntime", "V3 Small 0.25", 1)
    table = table.set_index(["runtime", "batch"])
    assert (row.ms_1, row.peak_mib) == tuple(table.loc["onnxruntime", 1][["median_ms", "peak_mib"]])
    assert comparisons.files(table.reset_index().drop(columns="file_mb")).empty
    test = data.Split(formats.sized(few.test.images, 32), few.test.labels)
    expected = formats.top1(formats.pytorch(subjects[0].network), test)
    for batch in (1, 3):
        row = table.loc["onnxruntime", batch]
        assert row["file_top1"] == pytest.approx(expected)
        assert row["file_mb"] == pytest.approx(1.42, abs=0.1)
        assert 20 < row["peak_mib"] < 0.6 * table.loc["default", batch]["peak_mib"]  # there is no torch in it
        assert table.loc["eager", batch][["file_mb", "peak_mib", "file_top1"]].isna().all()
        assert np.isnan(table.loc["default", batch]["file_mb"])

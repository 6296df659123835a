"""ONNX files give PyTorch's answers, tell what they are, and nothing else gets through."""

import json
import shutil
import sys

import numpy as np
import onnx
import pytest
import torch

from mnv3lib import data, inference, store
from mnv3lib.commands import main
from mnv3lib.deploy import export, formats, latency, onnx_files
from mnv3lib.errors import ExportError, InputError
from mnv3lib.provenance import ROOT
from mnv3lib.recipe import MODELS, Architecture
from mnv3lib.study import labelling

RUN = "mobilenet_v3_small_0.25"


@pytest.fixture(scope="module")
def photographs():
    return labelling.photographs(labelling.images_folder())


def network_of(model, width=0.25, classes=7):
    network = latency.untrained(Architecture(model, width, num_classes=classes))
    network.classes = tuple(f"class {index}" for index in range(classes))
    network.mean, network.std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    return network


@pytest.mark.parametrize("model", MODELS)
def test_onnx_answers_as_pytorch_does_for_any_batch(model, photographs, tmp_path):
    network = network_of(model)
    path = tmp_path / "network.onnx"
    gap = onnx_files.write(network, path, photographs, run="a run")
    assert gap <= onnx_files.TOLERANCE
    opened = onnx_files.session(path)
    for count in (1, 3):
        with torch.inference_mode():
            expected = network(data.normalise(photographs[:count], network.mean, network.std))
        np.testing.assert_allclose(onnx_files.logits(opened, photographs[:count]), expected, atol=1e-4)
    assert onnx_files.classes(opened) == network.classes
    told = opened.get_modelmeta().custom_metadata_map
    assert told["run"] == "a run"
    assert "[0, 1]" in told["input"]
    onnx.checker.check_model(onnx.load(path), full_check=True)


def test_no_path_of_this_machine_goes_into_the_file(photographs, tmp_path):
    onnx_files.write(network_of("v1"), tmp_path / "network.onnx", photographs)
    content = (tmp_path / "network.onnx").read_bytes()
    for trace in (str(ROOT), sys.prefix, ".py", "File "):
        assert trace.encode() not in content


def test_a_file_that_answers_otherwise_is_not_written(photographs, tmp_path, monkeypatch):
    path = tmp_path / "network.onnx"
    path.write_text("the old one")
    right = onnx_files.logits
    monkeypatch.setattr(onnx_files, "logits", lambda *args: right(*args) + 2e-4)
    with pytest.raises(ExportError, match=r"differ from PyTorch's by 2\.0e-04"):
        onnx_files.write(network_of("v1"), path, photographs)
    assert path.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_is_of_the_weights_that_were_measured(tmp_path):
    models = tmp_path / "models"
    shutil.copytree(store.run_folder(RUN), models / RUN)
    assert export.load_int8_record(RUN, tmp_path, models) is None
    path = export.record(RUN, {"top1": 66.0, "top1_int8": 65.5}, tmp_path, models)
    assert export.load_int8_record(RUN, tmp_path, models)["top1_int8"] == 65.5
    weights = models / RUN / store.WEIGHTS
    weights.write_bytes(weights.read_bytes() + b" ")
    assert export.load_int8_record(RUN, tmp_path, models) is None
    path.write_text("[]")
    with pytest.raises(InputError, match="no record"):
        export.load_int8_record(RUN, tmp_path, models)


def test_the_record_is_of_int8_files_alone(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", RUN, "--record", str(tmp_path)])
    assert "--record is of --format onnx-int8" in capsys.readouterr().err


def test_the_readme_way_to_use_a_file_needs_no_torch(tmp_path, capsys):
    """What a person does with the file: an image to [0, 1], and the likeliest class."""
    path = tmp_path / "bee.onnx"
    assert main(["export", RUN, "--out", str(path), "--data", str(tmp_path)]) == 0
    assert "logits differ" in capsys.readouterr().out
    opened = onnx_files.session(path)
    image = inference.load_image(ROOT / "test_images" / "bee.jpg").resize((32, 32))
    values = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
    answer = json.loads(opened.get_modelmeta().custom_metadata_map["classes"])[
        opened.run(None, {"images": values})[0].argmax()
    ]
    assert answer in data.CLASSES["cifar100"]


def test_top1_counts_what_is_right(photographs):
    split = data.Split(photographs[:4], torch.tensor([0, 1, 2, 0]))
    assert formats.top1(lambda images: np.eye(4, dtype=np.float32), split) == 75


def test_foreign_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07nonsense")
    node = onnx.helper.make_node("Identity", ["a"], ["b"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    foreign = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:]), ir_version=10)
    onnx.save(foreign, tmp_path / "foreign.onnx")
    for name, word in (("broken.onnx", "no ONNX file"), ("foreign.onnx", "no ONNX file"), ("none.onnx", "no file")):
        with pytest.raises(InputError, match=word) as caught:
            onnx_files.session(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_the_mend_is_told(missing, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["export", RUN, "--out", str(tmp_path / "x.onnx"), "--data", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert missing in error
    assert "[deploy]" in error
    assert not list(tmp_path.iterdir())


def test_unknown_run(tmp_path, capsys):
    assert main(["export", "no_such_run", "--out", str(tmp_path / "x.onnx")]) == 1
    assert "no_such_run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

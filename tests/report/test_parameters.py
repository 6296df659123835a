"""What the notebooks may be told: the wrong is refused before anything runs, and no parameter is forgotten."""

import ast
import json
import os
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from nbformat.v4 import new_code_cell

from mnv3lib import recipe
from mnv3lib.errors import InputError
from mnv3lib.provenance import ROOT
from mnv3lib.report import pages, parameters
from mnv3lib.study import axes

NOTEBOOKS = {page.name: page.path for page in pages.pages()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_parameter_has_a_rule(name):
    """But fields of a recipe, which have rules of their own, and folders."""
    ruled = {*parameters.CHOICES, *parameters.WHOLE, *parameters.ABOVE_ZERO, *parameters.RUNS}
    for parameter, default in parameters.defaults(NOTEBOOKS[name]).items():
        kind = parameters.KINDS.get(parameter)
        if isinstance(default, list | dict | bool):
            assert kind is type(default)
        exempt = parameter.endswith("folder") or parameter in ("save_to", "recipe", "axis", "variant")
        if not exempt and kind not in (dict, bool) and parameter not in recipe.DEFAULTS:
            assert parameter in ruled


def test_what_report_and_tests_pass_is_allowed():
    report = yaml.safe_load((ROOT / "notebooks" / "report.yaml").read_text())
    overrides = yaml.safe_load((ROOT / "tests" / "report" / "overrides.yaml").read_text())
    for name, values in [*report["parameters"].items(), *overrides.items()]:
        parameters.check(NOTEBOOKS[name], values)
    assert set(report) == {"parameters", "side_by_side"}
    assert set(report["side_by_side"]) < set(NOTEBOOKS)


def test_notebooks_that_measure_times_run_alone():
    report = yaml.safe_load((ROOT / "notebooks" / "report.yaml").read_text())
    timing = {name for name, path in NOTEBOOKS.items() if "seconds" in parameters.defaults(path)}
    assert timing == {"04_latency", "05_ablations"}
    assert not timing & set(report["side_by_side"])


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("01_versions_explained", {"lowered_strides": 6}, "lowered_strides 6"),
        ("01_versions_explained", {"run": "../elsewhere"}, "no name of a run"),
        ("02_train", {"epochs": 0}, "epochs 0"),
        ("02_train", {"changes": {"variant": "a/b"}}, "variant 'a/b'"),
        ("02_train", {"changes": {"width": 0.5}}, "width is a parameter of its own"),
        ("03_evaluate", {"runs": ["fine", ".."]}, "no name of a run"),
        ("03_evaluate", {"threads": -1}, "threads -1"),
        ("04_latency", {"models": ["v1", "v4"]}, "'v4'"),
        ("04_latency", {"widths": [0.5, 0]}, "widths 0"),
        ("04_latency", {"widths": {"v1": 0.5}}, "should be list"),
        ("04_latency", {"widths": "0.5"}, "widths '0.5'"),
        ("04_latency", {"widths": "[0.5, NaN]"}, "widths nan"),
        ("04_latency", {"widths": []}, "at least one"),
        ("04_latency", {"models": None}, "should be list"),
        ("04_latency", {"exported": "a/b"}, "no name of a run"),
        ("03_evaluate", {"runs": [12]}, "runs 12"),
        ("03_evaluate", {"recorded": "perhaps"}, "should be bool"),
        ("03_evaluate", {"models_folder": None}, "should be str"),
        ("03_evaluate", {"images_folder": 3}, "should be str"),
        ("02_train", {"epochs": None}, "should be int"),
        ("02_train", {"width": float("inf")}, "width inf"),
        ("02_train", {"changes": "label_smoothing=0.1"}, "should be dict"),
        ("02_train", {"changes": '{"momentum": Infinity}'}, "momentum inf"),
        ("02_train", {"changes": {1: 2}}, "unknown field of a recipe 1"),
        ("04_latency", {"batches": [1, 2.5]}, "batches 2.5"),
        ("04_latency", {"device": "tpu"}, "device 'tpu'"),
        ("04_latency", {"seconds": float("nan")}, "seconds nan"),
        ("05_ablations", {"axis": "colour"}, "axis 'colour'"),
        ("05_ablations", {"variant": "9-lowered"}, "variant of strides '9-lowered'"),
        ("05_ablations", {"axis": "dropout", "variant": "0.2", "changes": {"dropout": 0.5}}, "dropout"),
        ("05_ablations", {"width": -1.0}, "width -1"),
        ("05_ablations", {"colour": 1}, "colour"),
    ],
)
def test_what_cannot_be_worked_with_is_refused(name, values, word):
    with pytest.raises(InputError, match=word) as caught:
        parameters.check(NOTEBOOKS[name], values)
    assert str(caught.value).startswith(f"{name}.ipynb: ")
    assert "\n" not in str(caught.value)


def test_the_other_questions_can_be_asked():
    for axis, one in axes.read().axes.items():
        for variant in one.variants:
            asked = {"axis": axis, "variant": variant, "dataset": "digits", "epochs": 3}  # progressive has three sizes
            parameters.check(NOTEBOOKS["05_ablations"], asked)
    parameters.check(NOTEBOOKS["03_evaluate"], {"run_in_detail": None, "runs": ["mobilenet_v3_small_0.25"]})


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("changes", '{"label_smoothing": 0.1}', {"label_smoothing": 0.1}),
        ("changes", "{'se_last': True}", {"se_last": True}),
        ("changes", "{}", {}),
        ("runs", "mobilenet_v3_small_0.25", ["mobilenet_v3_small_0.25"]),
        ("runs", '["a", "b"]', ["a", "b"]),
        ("runs", "12", ["12"]),
        ("runs", "null", ["null"]),
        ("runs", [], []),
        ("widths", 0.5, [0.5]),
        ("widths", "(0.25, 1)", [0.25, 1]),
        ("models", "v1", ["v1"]),
        ("recorded", "false", False),
        ("recorded", "True", True),
        ("save_to", None, None),
        ("save_to", Path("a"), "a"),
        ("models_folder", "~/a", os.path.expanduser("~/a")),  # noqa: PTH111
    ],
)
def test_text_and_single_values_are_taken_as_they_are_meant(name, value, meant):
    page = next(path for path in NOTEBOOKS.values() if name in parameters.defaults(path))
    assert parameters.check(page, {name: value}) == {name: meant}


def opened(name: str, injected: str = "", **changes) -> dict:
    """The namespace of a notebook whose parameters are set."""
    return (
        parameters.defaults(NOTEBOOKS[name]) | changes | {"In": ["", "...", injected and f"# Parameters\n{injected}"]}
    )


@pytest.mark.parametrize("place", [".", "notebooks"])
def test_a_notebook_settles_its_parameters(place, monkeypatch):
    """Folders are the same wherever papermill was started; in the notebook's own folder, as pages show them."""
    monkeypatch.chdir(ROOT / place)
    monkeypatch.setenv("MNV3_DATA", "/data")
    before = opened("02_train", "epochs = 3\nchanges = 0", epochs=3, changes='{"se_last": true}', tuning_folder="/a")
    namespace = before.copy()
    parameters.settle("02_train", namespace)
    changed = {name for name, value in namespace.items() if value != before[name]}
    folders = {name for name in before if name.endswith("_folder")} - {"data_folder", "tuning_folder"} | {"save_to"}
    assert changed == {"changes"} | (folders if place == "." else set())
    assert namespace["changes"] == {"se_last": True}
    for name in folders:
        assert Path(namespace[name]).resolve() == (ROOT / "notebooks" / before[name]).resolve()
    parameters.settle("02_train", namespace)
    assert Path(namespace["models_folder"]).resolve() == ROOT / "trained_models", (
        "settled twice, as when a cell is rerun"
    )


def test_images_are_fetched_into_one_folder_of_the_checkout(monkeypatch):
    namespace = opened("03_evaluate")
    monkeypatch.setenv("MNV3_DATA", "/data")
    parameters.settle("03_evaluate", namespace)
    assert namespace["data_folder"] is None
    monkeypatch.delenv("MNV3_DATA")
    parameters.settle("03_evaluate", namespace)
    assert namespace["data_folder"] == str(ROOT / "data")


@pytest.mark.parametrize(
    ("injected", "changes", "word"),
    [
        ("epoch = 1", {"epoch": 1}, "unknown parameter 'epoch'"),
        ("width = float('nan')", {"width": float("nan")}, "width nan"),
        ("", {"width": "wide"}, "should be float"),
    ],
)
def test_a_notebook_refuses_parameters(injected, changes, word):
    with pytest.raises(InputError, match=rf"02_train\.ipynb: .*{word}"):
        parameters.settle("02_train", opened("02_train", injected, **changes))


def test_a_cell_of_parameters_that_did_not_run_is_told():
    namespace = opened("02_train")
    del namespace["epochs"]
    with pytest.raises(InputError, match=r"should set epochs: run it first"):
        parameters.settle("02_train", namespace)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_settle_first_and_write_to_build(name):
    code = [cell for cell in nbformat.read(NOTEBOOKS[name], as_version=4).cells if cell.cell_type == "code"]
    assert code[0].metadata.tags == ["parameters"]
    done = [node for node in ast.parse(code[1].source).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    assert ast.unparse(done[0]) == f"parameters.settle('{name}', globals())"
    for parameter, default in parameters.defaults(NOTEBOOKS[name]).items():
        if parameter in ("figures_folder", "save_to"):
            assert default.startswith("../build/")


def test_a_typo_is_one_line_in_the_first_cell(tmp_path, monkeypatch):
    """By a real kernel, started from elsewhere, and as JupyterLab shows it."""
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(NOTEBOOKS["03_evaluate"], as_version=4)
    call = "from mnv3lib.report import parameters\nparameters.settle('03_evaluate', globals())"
    notebook.cells = [notebook.cells[1], new_code_cell(call)]
    nbformat.write(notebook, "small.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'run'"):
        papermill.execute_notebook("small.ipynb", "out.ipynb", {"run": "a"}, kernel_name="python3", progress_bar=False)
    outputs = json.loads(Path("out.ipynb").read_text())["cells"][-1]["outputs"]
    assert len(outputs) == 1 and len(outputs[0]["traceback"]) == 1
    assert outputs[0]["traceback"][0].startswith("InputError: 03_evaluate.ipynb: unknown parameter 'run'")

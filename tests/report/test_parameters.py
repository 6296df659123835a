"""What the notebooks may be told: the wrong is refused before anything runs, and no parameter is forgotten."""

import ast

import papermill
import pytest
import yaml

from mnv3lib import recipe
from mnv3lib.errors import InputError
from mnv3lib.provenance import ROOT
from mnv3lib.report import pages, parameters
from mnv3lib.study import axes

NOTEBOOKS = {page.name: page.path for page in pages.pages()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_parameter_has_a_rule(name):
    """But fields of a recipe, which have rules of their own, folders and bools."""
    ruled = {*parameters.CHOICES, *parameters.WHOLE, *parameters.ABOVE_ZERO, *parameters.RUNS}
    for parameter, told in papermill.inspect_notebook(str(NOTEBOOKS[name])).items():
        exempt = parameter.endswith("folder") or parameter in ("save_to", "changes", "recipe", "axis", "variant")
        if not exempt and parameter not in recipe.DEFAULTS and ast.literal_eval(told["default"]) not in (True, False):
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
        ("04_latency", {"widths": 0.5}, "should be list"),
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
            parameters.check(NOTEBOOKS["05_ablations"], {"axis": axis, "variant": variant, "dataset": "digits"})
    parameters.check(NOTEBOOKS["03_evaluate"], {"run_in_detail": None, "runs": ["mobilenet_v3_small_0.25"]})

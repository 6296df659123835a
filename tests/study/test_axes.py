"""The file of axes, variants and claims: read, and refused in one line where it is wrong."""

import pytest
import yaml

from mnv3lib import recipe
from mnv3lib.commands import main
from mnv3lib.errors import InputError
from mnv3lib.study import ablations, axes

GOOD = {
    "setting": {"model": "v3_small", "width": 0.25, "epochs": 1},
    "base_seeds": [0, 1],
    "axes": {
        "dropout": {"question": "Does it help?", "variants": {"0": {"dropout": 0.0}, "0.2": {"dropout": 0.2}}},
        "long": {"question": "Longer?", "setting": {"epochs": 2}, "variants": {"decay": {"weight_decay": 0}}},
    },
    "first": ["dropout/0.2"],
    "claims": [{"text": "It does", "axis": "dropout", "variants": ["0.2"], "low": 0}],
}


@pytest.fixture
def write(tmp_path):
    """Write the file with the value at a path of keys changed, or without it (None); returns its path."""

    def written(*path, value=None):
        content = yaml.safe_load(yaml.safe_dump(GOOD))
        place = content
        for key in path[:-1]:
            place = place[key]
        if value is None and path:
            del place[path[-1]]
        elif path:
            place[path[-1]] = value
        file = tmp_path / "ablations.yaml"
        file.write_text(yaml.safe_dump(content))
        return file

    return written


def test_a_study_has_what_the_file_says(write):
    study = axes.read(write())
    assert study.axes["long"].setting == {"epochs": 2} and not study.axes["long"].same_budget
    (claim,) = study.claims
    assert (claim.low, claim.high, claim.against, claim.every, claim.question) == (0, float("inf"), "", True, False)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["colour"], 1, "unknown key 'colour': choose from setting, base_seeds, axes, first, claims"),
        (["claims"], None, "claims is missing"),
        (["first"], "dropout/0.2", "first 'dropout/0.2' should be a list"),
        (["first"], ["dropout/0.3"], "first, dropout/0.3: unknown variant of dropout '0.3': choose from base, 0, 0.2"),
        (["first"], [1], "first, 1: unknown axis '1'"),
        (["setting", "colour"], 1, "setting, base_seeds: unknown field of a recipe 'colour'"),
        (["setting", "variant"], "x", "setting, base_seeds: unknown field of a recipe 'variant'"),
        (["base_seeds"], [-1], "setting, base_seeds: seed -1"),
        (["axes", "dropout"], ["0.2"], "axes, dropout: give a mapping of question, variants, setting, same_budget"),
        (["axes", "dropout", "question"], None, "axes, dropout: question is missing"),
        (["axes", "dropout", "question"], 1, "axes, dropout: question 1 should be text"),
        (["axes", "dropout", "same_budget"], 1, "axes, dropout: same_budget 1 should be true or false"),
        (["axes", "dropout", "variants"], {}, "axes, dropout: variants is missing"),
        (["axes", "dropout", "variants"], {0.2: {}}, "axes, dropout: variants: put 0.2 in quotes"),
        (["axes", "dropout", "variants", "0.2"], 0.2, "axes, dropout: 0.2: 0.2 should be fields of a recipe"),
        (
            ["axes", "dropout", "variants", "0.2"],
            {"colour": 1},
            "axes, dropout: 0.2: unknown field of a recipe 'colour'",
        ),
        (["axes", "dropout", "variants", "0.2"], {"dropout": 2.0}, "axes, dropout: 0.2: dropout 2.0"),
        (["axes", "dropout", "variants", "0.2"], {"weight_decay": "1e-5"}, "axes, dropout: 0.2: weight_decay '1e-5'"),
        (["axes", "dropout", "variants", "a/b"], {"crop": 0}, "axes, dropout: a/b: variant 'dropout-a/b'"),
        (["axes", "long", "setting"], {"epochs": 0}, "axes, long: decay: epochs 0"),
        (["claims", 0, "axis"], "colour", "claims, number 1: unknown axis 'colour': choose from dropout, long"),
        (
            ["claims", 0, "variants"],
            ["0.3"],
            "claims, number 1: unknown variant of dropout '0.3': choose from base, 0, 0.2",
        ),
        (["claims", 0, "against"], "0.3", "claims, number 1: unknown variant of dropout '0.3'"),
        (["claims", 0, "variants"], [], "claims, number 1: variants is missing"),
        (["claims", 0, "high"], -1, "claims, number 1: its low should be below its high"),
        (["claims", 0, "low"], float("nan"), "claims, number 1: its low should be below its high"),
        (["claims", 0, "low"], True, "claims, number 1: low True should be a number"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(path, value, message, write):
    file = write(*path, value=value)
    with pytest.raises(InputError) as caught:
        axes.read(file)
    assert str(caught.value).startswith(f"{file}: {message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1", "axes: [", "a: &a [*a]", "\x00"])
def test_a_file_of_something_else_is_refused(text, tmp_path):
    file = tmp_path / "ablations.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"ablations\.yaml") as caught:
        axes.read(file)
    assert "\n" not in str(caught.value)


def test_without_a_checkout_the_command_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(axes, "FILE", tmp_path / "ablations.yaml")
    axes.read.cache_clear()
    assert main(["sweep", "--ablation", "dropout", "--dry-run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"there is no {tmp_path}" in line and "checkout" in line


def test_original_is_what_its_recipe_says():
    """The variant has the named recipe's values, which are written out in the file."""
    made = ablations.recipes("optimizer")["original"]
    original = recipe.make("original", model="v3_small", width=0.25)
    for name in axes.read().axes["optimizer"].variants["original"]:
        assert getattr(made, name) == getattr(original, name), name

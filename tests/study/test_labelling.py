"""Many runs on many images: `label`, `score`, and what `mnv3 predict` prints."""

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import mnv3lib
from mnv3lib import data, inference, store, training
from mnv3lib.commands import main
from mnv3lib.study import labelling

RED, BLUE = (200, 30, 40), (20, 40, 190)


def picture(colour=RED) -> Image.Image:
    return Image.new("RGB", (64, 48), colour)


@pytest.fixture(scope="module")
def network() -> mnv3lib.MobileNet:
    torch.manual_seed(0)
    made = mnv3lib.build("v3_small", width=0.25, num_classes=10).eval()
    made.classes, made.mean, made.std = data.CLASSES["digits"], (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory, few_digits, tiny):
    """A folder with two runs on digits."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        training.train(
            tiny(seed=seed), dataset=few_digits, models=folder, checkpoints=folder / ".c", log=lambda line: None
        )
    return folder


@pytest.fixture
def folder(tmp_path):
    """Two photographs with the companions that such a folder has."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    picture().save(photographs / "b.png")
    picture().save(photographs / "a.JPG")
    for name in ("SOURCES.csv", "README.md", "licence.TXT", ".hidden"):
        (photographs / name).write_text("no image")
    (photographs / "subfolder").mkdir()
    return photographs


def test_a_broken_file_is_named_and_the_rest_is_labelled(models, folder, capsys):
    (folder / "broken.jpg").write_bytes((folder / "a.JPG").read_bytes()[:300])
    (folder / "odd").write_text("no image, and no companion either")
    code = main(["predict", str(folder), "--models", str(models), "--format", "csv", "--top", "2"])
    out, err = capsys.readouterr()
    assert code == 1
    assert [line.split()[1] for line in err.splitlines()] == [str(folder / "broken.jpg"), str(folder / "odd")]
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 2 * 2 * 2
    assert {row["image"] for row in rows} == {"a.JPG", "b.png"}
    assert len({row["run"] for row in rows}) == 2
    assert all(0 < float(row["probability"]) <= 1 for row in rows)
    assert list(rows[0]) == ["run", "image", "rank", "class", "probability"]


def test_a_run_that_is_named_twice_guesses_once(models, folder):
    first, second = store.runs(models)
    once = labelling.label([folder], [second, first], models=models)
    assert labelling.label([folder], [second, first, second], models=models) == once


def test_runs_on_other_data_are_not_mixed_in(models, folder, tmp_path):
    """A bee is no digit: runs on CIFAR-100 alone are asked, where there are some."""
    mixed = shutil.copytree(models, tmp_path / "mixed")
    first, second = sorted(path.name for path in models.glob("mobilenet*"))
    path = mixed / first / store.RECORD
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"recipe": record["recipe"] | {"dataset": "cifar100", "num_classes": 100}}))
    assert {row[0] for row in labelling.label([folder], models=models)} == {first, second}
    assert {row[0] for row in labelling.label([folder], models=mixed)} == {first}
    assert {row[0] for row in labelling.label([folder], [second], models=mixed)} == {second}


def test_companions_are_skipped_in_silence(models, folder, capsys):
    assert main(["predict", str(folder), "--models", str(models)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) == 1 + 2 * 2


def test_a_companion_that_is_asked_for_is_reported(models, folder, capsys):
    assert main(["predict", str(folder / "README.md"), "--models", str(models)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "README.md is no image" in err


def test_json_is_written_whole_and_reads_back(models, folder, tmp_path, capsys):
    run = sorted(path.name for path in models.glob("mobilenet*"))[0]
    out = tmp_path / "guesses.json"
    arguments = ["predict", str(folder / "b.png"), "--run", run, "--format", "json", "--out", str(out)]
    assert main([*arguments, "--models", str(models)]) == 0
    assert capsys.readouterr().out == ""
    (one,) = json.loads(out.read_text())
    assert (one["run"], one["image"], len(one["guesses"])) == (run, "b.png", 5)
    probabilities = [guess["probability"] for guess in one["guesses"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert set(one["guesses"][0]) == {"class", "probability"}
    expected = mnv3lib.predict(mnv3lib.load(run, models), folder / "b.png", size=16)
    assert probabilities == pytest.approx(expected["probability"].tolist(), abs=1e-6)


def test_files_of_one_name_go_by_their_path_and_odd_names_print(models, tmp_path, capsys):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        picture().save(tmp_path / name / "same.png")
    picture().save(tmp_path / "x" / "two\nlines, \udcff.png", format="png")
    arguments = ["predict", str(tmp_path / "x"), str(tmp_path / "y"), "--models", str(models), "--format", "csv"]
    assert main(arguments) == 0
    images = {row["image"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert images == {str(tmp_path / folder / "same.png") for folder in "xy"} | {
        str(tmp_path / "x" / "two lines, \ufffd.png")
    }


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [(["nowhere"], "nowhere"), ([".", "--run", "nonsuch"], "nonsuch"), ([".", "--top", "11"], "top 11")],
)
def test_bad_input_is_one_line(models, folder, monkeypatch, capsys, arguments, culprit):
    monkeypatch.chdir(folder)
    assert main(["predict", *arguments, "--models", str(models)]) == 1
    err = capsys.readouterr().err
    assert culprit in err
    assert err.count("\n") == 1


def test_nothing_to_label_and_nothing_to_label_with(models, tmp_path, capsys):
    assert main(["predict", str(tmp_path), "--models", str(models)]) == 1
    assert "no images" in capsys.readouterr().err
    picture().save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path), "--models", str(tmp_path)]) == 1
    assert "no trained models" in capsys.readouterr().err


@pytest.fixture
def tree(tmp_path):
    """Class folders as data sets have them, one picture on top, and what should not count."""
    for place in ("top.png", "bee/1.png", "bee/2.png", "rose/red/1.png", ".hidden/no.png"):
        path = tmp_path / "tree" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        picture().save(path)
    for place in ("bee/Thumbs.db", "rose/desktop.ini", "annotations.json", "bee/1.xml", "rose/.DS_Store"):
        (tmp_path / "tree" / place).write_text("no image")
    (tmp_path / "tree" / "again").symlink_to(tmp_path / "tree")
    return tmp_path / "tree"


def test_subfolders_are_read_each_once(models, tree, capsys):
    found = labelling.find_images([tree])
    assert [str(path.relative_to(tree)) for path in found] == ["top.png", "bee/1.png", "bee/2.png", "rose/red/1.png"]
    assert labelling.find_images([tree], recursive=False) == [tree / "top.png"]
    assert labelling.find_images([tree / "rose"]) == [tree / "rose" / "red" / "1.png"]
    command = ["predict", str(tree), "--models", str(models), "--format", "csv", "--top", "1"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert (len(out.splitlines()), err) == (1 + 4 * 2, "")
    assert main([*command, "--no-recursive"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2


def test_too_many_files_are_no_answer(models, tree, monkeypatch, capsys):
    monkeypatch.setattr(labelling, "MOST_FILES", 3)
    assert main(["predict", str(tree), "--models", str(models)]) == 1
    assert "has more than 3 files: name fewer folders" in capsys.readouterr().err


def test_a_picture_behind_a_run_is_a_picture(models, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    one, two = sorted(path.name for path in models.glob("[!.]*"))
    command = ["predict", "--models", str(models), "--format", "csv", "--top", "1", "--run", one]
    assert main([*command, "b.png", "a.JPG"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["run"], row["image"]) for row in rows] == [(one, "b.png"), (one, "a.JPG")]
    assert main([*command, "--run", two, "b.png"]) == 0
    assert [row["run"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))] == [one, two]
    assert main([*command, two]) == 1
    assert f"there is no file {two}, but a run of that name: write --run before each" in capsys.readouterr().err


def test_out_is_a_file_or_the_terminal(models, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    command = ["predict", "b.png", "--models", str(models), "--format", "csv", "--out"]
    assert main([*command, "-"]) == 0
    assert capsys.readouterr().out.startswith("run,image,rank")
    for out, words in (("subfolder", "subfolder is a folder: name a file in it"), ("README.md/x.csv", "is no folder")):
        assert main([*command, out]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words in err
    assert sorted(folder.rglob("*")) == before


def test_what_was_assumed_of_a_picture_is_told_in_a_line(models, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((9, 9), 4095, np.uint16)).save(tmp_path / name)
    assert main(["predict", str(tmp_path), "--models", str(models), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 4
    assert err.splitlines() == [
        f"mnv3: {tmp_path / name} has grey values from 4095 to 4095: 0 is taken for black and 65535 for white"
        for name in ("a.png", "b.png")
    ]


def test_score_counts_the_photographs_whose_class_is_known(network):
    table = mnv3lib.predict(network, [picture(), picture(BLUE), picture()], top=2).assign(run="r")
    first, second = table["class"][0], table["class"][1]
    (row,) = labelling.score(table, {"0": first, "2": second}).to_dict("records")
    assert (row["images"], row["right"], row["top1"], row["in_best"]) == (2, 1, 50, 2)
    assert labelling.score(table, {}).empty


def test_no_predictions_are_a_heading_and_nothing_more():
    assert labelling.as_text([], "table") == "run image\n"
    assert labelling.as_text([], "csv").count("\n") == 1 and labelling.as_text([], "json") == "[]\n"
    assert labelling.table([]).columns.tolist() == ["run", *inference.COLUMNS]


ROWS = [
    ("small", "a, b.png", 1, "bee", 0.5),
    ("small", "a, b.png", 2, "aquarium_fish", 0.0625),
    ("a_longer_run", "a, b.png", 1, "aquarium_fish", 1 / 3),
    ("a_longer_run", "a, b.png", 2, "bee", 1e-7),
]


def test_the_printed_forms_are_those_of_pandas():
    """What scripts may read stays as it was when pandas wrote it."""
    assert labelling.as_text(ROWS, "csv") == labelling.table(ROWS).to_csv(index=False, lineterminator="\n")
    lines = [
        ["small", "a, b.png", "bee 50.0 %", "aquarium_fish 6.2 %"],
        ["a_longer_run", "a, b.png", "aquarium_fish 33.3 %", "bee 0.0 %"],
    ]
    expected = pandas.DataFrame(lines, columns=["run", "image", "guess 1", "guess 2"]).to_string(index=False)
    assert labelling.as_text(ROWS, "table") == expected + "\n"
    first, second = json.loads(labelling.as_text(ROWS, "json"))
    assert (first["run"], second["run"]) == ("small", "a_longer_run")
    assert second["guesses"][0] == {"class": "aquarium_fish", "probability": 1 / 3}


def test_predicting_waits_for_no_pandas(models, folder):
    code = (
        "import sys; from mnv3lib.commands import main\n"
        "main(sys.argv[1:])\n"
        "print(sorted({'torch', 'pandas', 'scipy', 'mnv3lib.training'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "predict", str(folder), "--models", str(models)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "['torch']"

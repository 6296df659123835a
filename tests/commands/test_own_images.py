"""A person's own photographs, from class folders through README's commands: train, evaluate, predict, export."""

import json
import re
import shutil

import nbformat
import numpy as np
import onnxruntime
import photographs
import pytest
import torch

import mnv3lib
from mnv3lib import InputError, data, store
from mnv3lib.commands import main
from mnv3lib.inference import as_pixels, load_image
from mnv3lib.own import transfer
from mnv3lib.report import running
from mnv3lib.report.parameters import NOTEBOOKS

FIRST, TUNED = "mobilenet_v3_small_0.25_shapes", "mobilenet_v3_small_0.25_finetune_shapes"
QUICK = ["--model", "small", "--width", "0.25", "--image-size", "16", "--epochs", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 300 photographs of five shapes, and a cache and folders of models of their own."""
    folder = tmp_path_factory.mktemp("own")
    photographs.draw(folder / "shapes", 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("MNV3_MODELS", str(folder / "models"))
        for variable in ("MNV3_CHECKPOINTS", "MNV3_DATA"):
            patch.delenv(variable, raising=False)
        yield folder


def said(capsys, *options) -> tuple[str, str]:
    """What a command writes to standard output and beside it."""
    capsys.readouterr()
    code = main([str(option) for option in options])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def test_the_whole_way(place, capsys):
    _, beside = said(capsys, "train", "--data", "shapes", *QUICK)
    assert "240 images of 5 classes to train on, 60 to test with" in beside
    record = store.load_record(FIRST)
    assert record["result"]["images"] == 60 and record["recipe"]["batch_size"] == 32
    assert "already" in said(capsys, "train", "--data", "shapes", *QUICK)[0]

    said(capsys, "train", "--data", "shapes", "--from", FIRST, "--image-size", "24", "--epochs", "1", "--threads", "1")
    made = store.load_record(TUNED)["recipe"]
    assert (made["start"].split("@")[0], made["lowered_strides"], made["image_sizes"]) == (FIRST, 3, [24])
    network = mnv3lib.load(TUNED)
    assert (network.size, network.classes, network.mean) == (24, photographs.SHAPES, mnv3lib.load(FIRST).mean)

    out, beside = said(capsys, "evaluate", FIRST, TUNED, "--format", "json", "--html", "page.html")
    rows = json.loads(out)
    assert [row["source"] for row in rows] == ["live", "live"]
    assert [row["top1"] for row in rows] == [row["recorded_top1"] for row in rows]
    page = (place / "page.html").read_text()
    wrong = round(60 - 0.6 * rows[0]["top1"])
    assert page.split("</h1>")[1].count("<img src") == min(24, wrong) > 0
    assert re.search(r"\d+\.(png|jpg|webp): <b>\w+</b>, taken for \w+ \(\d+ %\)", page)

    files = sorted((place / "shapes").glob("*/00[0-2].*"))
    out, _ = said(capsys, "predict", "--run", TUNED, "--format", "json", *files)
    guesses = [one["guesses"][0] for one in json.loads(out)]
    out, _ = said(capsys, "export", TUNED, "--out", "tuned.onnx")
    assert "on 60 images" in out
    session = onnxruntime.InferenceSession("tuned.onnx")
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    pixels = np.stack([as_pixels(load_image(file), 24).numpy() for file in files])
    (logits,) = session.run(None, {"images": pixels.transpose(0, 3, 1, 2).astype("float32") / 255})
    assert [classes[best] for best in logits.argmax(1)] == [guess["class"] for guess in guesses]
    out, _ = said(capsys, "latency", TUNED, "--batch", "1", "--threads", "1", "--seconds", "0.01", "--format", "json")
    assert [row["size"] for row in json.loads(out)] == [24]
    assert set(re.findall(r"(yes|no)$", said(capsys, "verify", FIRST)[0], re.MULTILINE)) == {"yes"}


def test_an_old_checkpoint_on_ones_own_images_becomes_a_run(place, capsys):
    """That of a run, which it then has to equal."""
    said(capsys, "train", "--data", "shapes", *QUICK)
    network, made = mnv3lib.load(FIRST), store.load_record(FIRST)
    torch.save({"state_dict": network.state_dict()}, "old.pth")
    command = ["import", "old.pth", "--run", "old", "--models", "models", "--model", "small", "--width", "0.25"]
    command += ["--data", "shapes", "--image-size", "16", "--mean", *network.mean, "--std", *network.std]
    out, beside = said(capsys, *command)
    assert f"old: top-1 {made['result']['top1']:.2f} %" in out and "60 to test with" in beside
    record = store.load_record("old")
    assert record["result"] == made["result"] and record["data"] == made["data"]
    assert record["recipe"]["lowered_strides"] == made["recipe"]["lowered_strides"] == 4
    again = mnv3lib.load("old")
    assert (again.classes, again.size, again.mean, again.std) == (network.classes, 16, network.mean, network.std)
    rows = json.loads(said(capsys, "evaluate", "old", FIRST, "--format", "json")[0])
    assert rows[0]["source"] == rows[1]["source"] == "live" and rows[0]["top1"] == rows[1]["top1"]
    assert "on 60 images" in said(capsys, "export", "old", "--out", "old.onnx")[0]
    assert main([str(one) for one in command]) == 1 and "exists: choose another name" in capsys.readouterr().err
    command[command.index("old")] = "older"
    command[command.index("0.25")] = "0.5"
    assert main([str(one) for one in command]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mnv3: error: old.pth does not fit v3_small 0.5") and not (place / "models/older").exists()


def test_more_sizes_than_the_usual_epochs_are_right_where_there_are_more_epochs():
    sizes = list(range(8, 33))
    assert transfer.plan(data.unread("digits"), epochs=30, image_sizes=sizes)[0].image_sizes == tuple(sizes)
    with pytest.raises(InputError, match="25 sizes in 20 epochs"):
        transfer.plan(data.unread("digits"), image_sizes=sizes)
    with pytest.raises(InputError, match=r"dataset 'flowers': give what mnv3lib\.data\.folder or"):
        transfer.plan("flowers")


def test_what_is_wrong_is_one_line(place, capsys):
    for options, line in (
        (["train", "--data", "nowhere"], "there is no folder nowhere"),
        (["train", "--data", "shapes", "--from", "none", *QUICK], "none"),
        (["train", "--data", "shapes", "--freeze", "features"], "freeze features: without a network to start from"),
        (["train", "--data", "shapes/circle"], "has no folders"),
        (["evaluate", "--models", "models", FIRST, "--data", "shapes/circle"], "has no folders"),
        (["train", "--data", "shapes", "--dataset", "My Shapes", *QUICK], "'My Shapes': give a name of small letters"),
        (["train", "--data", "shapes", "--dataset", "digits"], "data set digits: it is not in shapes, which holds"),
        (["train", "--data", "shapes", "--dataset", "cifar100"], "data set cifar100: it is not in shapes, which holds"),
        (["evaluate", "--html", "none.html", "--models", "none"], "no run in none is on such: see --models"),
    ):
        assert main(options) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("mnv3: error: ") and line in error


def test_a_network_to_start_from_has_its_shape(place, capsys):
    said(capsys, "train", "--data", "shapes", *QUICK)
    begun = ["train", "--data", "shapes", "--epochs", "1", "--variant", "begun", "--from"]
    for start, more, line in (
        (FIRST, ["--width", "0.5"], "width 0.5: the network to start from has 0.25: give that, or leave it out"),
        (FIRST, ["--model", "v2"], "model v2: the network to start from has v3_small"),
        ("none/weights.safetensors", [], "there is no file none/weights.safetensors"),
        ("shapes/circle/000.png", [], "shapes/circle/000.png is no file of weights that mnv3lib wrote"),
    ):
        assert main([*begun, start, *more]) == 1
        assert line in capsys.readouterr().err
    said(capsys, *begun, place / "models" / FIRST, "--threads", "1")
    assert store.load_record(f"{TUNED}_begun")["recipe"]["start"].split("@")[0] == FIRST, "its folder will do"


def test_images_have_the_name_that_they_are_given(place, capsys):
    said(capsys, "train", "--data", "shapes", "--dataset", "things", *QUICK, "--models", "named")
    assert store.load_record(FIRST.replace("shapes", "things"), "named")["recipe"]["dataset"] == "things"
    out, _ = said(capsys, "evaluate", "--models", "named", "--html", "things.html", "--format", "json")
    assert json.loads(out)[0]["source"] == "live"
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "--models", "named", "--data", "nowhere"])
    assert "there is no folder nowhere" in capsys.readouterr().err


@pytest.fixture(scope="module")
def three(place):
    """The name of a run on three classes: fewer than the five that are shown of more."""
    for shape in photographs.SHAPES[:3]:
        shutil.copytree(place / "shapes" / shape, place / "three" / shape)
    assert main(["train", "--data", "three", *map(str, QUICK)]) == 0
    return FIRST.replace("shapes", "three")


def test_of_three_classes_three_are_guessed(place, three, capsys):
    file = place / "three" / photographs.SHAPES[0] / "000.png"
    out, _ = said(capsys, "predict", file, "--run", three, "--format", "csv")
    assert len(out.splitlines()) == 1 + 3
    assert mnv3lib.predict(mnv3lib.load(three), file)["rank"].tolist() == [1, 2, 3]
    assert len(mnv3lib.predict(mnv3lib.load(three), file, top=2)) == 2
    assert main(["predict", str(file), "--run", three, "--top", "5"]) == 1
    assert "top 5: choose a whole number from 1 to 3, how many classes it has" in capsys.readouterr().err


def test_files_of_another_kind_are_not_written_over(place, three, capsys):
    """Of a picture, a checkpoint or the like, not even where a slip of the pen names it."""
    file = place / "three" / photographs.SHAPES[0] / "000.png"
    before = file.read_bytes()
    for options, line in (
        (["export", three, "--out", file], "000.png does not end in .onnx: name a file that does"),
        (["export", three, "--format", "onnx-int8", "--out", file], "does not end in .onnx"),
        (["export", three, "--format", "html", "--out", file], "does not end in .html or .htm"),
        (["evaluate", three, "--html", file], "does not end in .html or .htm"),
        (["predict", file, "--run", three, "--out", file], "000.png is there, and no text: name another file"),
    ):
        assert main([str(one) for one in options]) == 1
        assert line in capsys.readouterr().err
        assert file.read_bytes() == before


def test_notebook_03_leaves_out_what_is_of_cifar100(place, three):
    given = {"models_folder": place / "models", "runs": [three], "figures_folder": place / "figures"}
    running.run_notebook(NOTEBOOKS / "03_evaluate.ipynb", place / "03.ipynb", {k: str(v) for k, v in given.items()})
    cells = nbformat.read(place / "03.ipynb", as_version=4).cells
    shown = " ".join(str(cell["outputs"]) for cell in cells if cell.cell_type == "code")
    for words in ("superclass", "earlier report", "10,000", "ciFAIR", "100 test images", "train it again"):
        assert words not in shown, words
    assert "12 test images" in shown and "Which class is taken for which" in shown
    assert "The worst mistakes" in shown


def test_details_of_own_images_have_no_superclasses(place, capsys):
    said(capsys, "train", "--data", "shapes", *QUICK)
    assert "superclass" not in said(capsys, "evaluate", FIRST, "--details")[0]
    (row,) = json.loads(said(capsys, "evaluate", FIRST, "--details", "--format", "json")[0])
    assert "confusion" in row and not any("superclass" in key for key in [*row, *row["classes"][0]])


def test_images_that_changed_or_went_are_noticed(place, capsys):
    said(capsys, "train", "--data", "shapes", *QUICK)
    moved = shutil.copytree(place / "shapes", place / "elsewhere")
    out, _ = said(capsys, "evaluate", FIRST, "--data", moved, "--format", "json")
    assert json.loads(out)[0]["source"] == "live", "a copy will do"
    (moved / "circle" / "000.png").unlink()
    out, beside = said(capsys, "evaluate", FIRST, "--data", moved, "--format", "json")
    assert json.loads(out)[0]["source"] == "recorded" and "are others than" in beside
    assert main(["train", "--data", "elsewhere", *QUICK, "--variant", "x", "--models", "models"]) == 0
    assert store.load_record("mobilenet_v3_small_0.25_elsewhere_x")["data"]["train"] == 239
    (place / "elsewhere").rename(place / "away")
    _, beside = said(capsys, "evaluate", "mobilenet_v3_small_0.25_elsewhere_x")
    assert "its images are no longer in" in beside and "say where they are with --data" in beside
    shutil.copytree(place / "away", place / "elsewhere" / "deeper")
    assert main(["evaluate", FIRST, "--recorded"]) == 0
    shutil.rmtree(place / "elsewhere" / "deeper")
    _, beside = said(capsys, "evaluate", "mobilenet_v3_small_0.25_elsewhere_x")
    assert "are others than" in beside, "an empty folder is left"


def test_names_of_any_length_are_kept(place, capsys):
    """The longest that a recipe can have: a data set's of 40 characters, and a variant's of 60."""
    named = ["--dataset", "d" * 40, "--variant", "v" * 60]
    said(capsys, "train", "--data", "shapes", *QUICK, *named)
    run = f"mobilenet_v3_small_0.25_{'d' * 40}_{'v' * 60}"
    assert store.load_record(run)["run"] == run
    said(capsys, "train", "--data", "shapes", *QUICK[-4:], "--from", run, *named)
    assert store.load_record(run.replace("0.25_", "0.25_finetune_"))["recipe"]["start"].startswith(f"{run}@")


def test_five_lines_of_python(place):
    shapes = mnv3lib.data.folder("shapes", size=16)
    start = mnv3lib.train(shapes, model="v3_small", width=0.25, epochs=1, variant="python")
    network = mnv3lib.train(
        shapes, start="mobilenet_v3_small_0.25_shapes_python", freeze="features", epochs=1, variant="python"
    )
    best = mnv3lib.predict(network, place / "shapes" / "cross" / "001.jpg", top=1)
    assert best["class"][0] in photographs.SHAPES
    before, after = start.state_dict(), network.state_dict()
    moved = [key for key in before if not before[key].equal(after[key])]
    assert moved and all(key.startswith("classifier.3.") for key in moved), "frozen: also the statistics of the norms"
    with pytest.raises(InputError, match="model v2: the network to start from has v3_small"):
        mnv3lib.train(shapes, start="mobilenet_v3_small_0.25_shapes_python", model="v2", epochs=1)
    for wrong, line in (
        ({"image_sizes": [32]}, r"image_sizes \[32\]|the images were read at 16 px"),
        ({"image_sizes": 64}, "give a list of at least one size"),
        ({"image_sizes": []}, "give a list of at least one size"),
        ({"image_sizes": [0]}, "image_sizes 0: give a whole number from 8 to 512"),
    ):
        with pytest.raises(InputError, match=line):
            mnv3lib.train(shapes, **wrong)
    for wrong, line in (({"size": -3}, "size -3"), ({"size": "64"}, "size '64'"), ({"top": "3"}, "top 3")):
        with pytest.raises(InputError, match=line):
            mnv3lib.predict(network, place / "shapes" / "cross" / "001.jpg", **wrong)
    with pytest.raises(InputError, match="is no name of a run"):
        mnv3lib.load(place / "shapes")


def test_weights_are_known_by_their_runs_name_from_wherever_they_are_named(place, capsys, monkeypatch):
    said(capsys, "train", "--data", "shapes", *QUICK)
    called = transfer.find(FIRST)[1]
    monkeypatch.chdir(place / "models" / FIRST)
    assert transfer.find("weights.safetensors")[1] == transfer.find(".")[1] == called

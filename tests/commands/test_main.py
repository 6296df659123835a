"""The command line: options, exit codes, one line an error."""

import io
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from records import record_of

from mnv3lib import InputError, build, checkpoint, commands, data, provenance, recipe, store
from mnv3lib.commands import main, make_parser
from mnv3lib.commands.options import given
from mnv3lib.provenance import ROOT


def made_by(command: str) -> recipe.Recipe:
    return recipe.make(**given(make_parser().parse_args(command.split())))


def test_train_takes_the_original_options():
    made = made_by("train --model large --width 0.5 --iter 40 --batch 64")
    assert (made.model, made.width, made.epochs, made.batch_size) == ("v3_large", 0.5, 40, 64)
    made = made_by("train --epochs 3 --batch-size 32")
    assert (made.model, made.width, made.epochs, made.batch_size) == ("v3_small", 1.0, 3, 32)


def test_train_takes_every_kind_of_field():
    made = made_by("train --recipe original --nesterov --zero-init-residual false --image-sizes 20,32 --penultimate 64")
    assert (made.recipe, made.nesterov, made.zero_init_residual) == ("original", True, False)
    assert (made.image_sizes, made.penultimate) == ((20, 32), 64)


def test_train_writes_a_run_and_does_not_make_it_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MNV3_CHECKPOINTS", str(tmp_path / "checkpoints"))
    options = ["train", "--dataset", "digits", "--width", "0.25", "--epochs", "1", "--image-sizes", "16"]
    options += ["--models", str(tmp_path / "models")]
    assert main(options) == 0
    record = json.loads((tmp_path / "models" / "mobilenet_v3_small_0.25_digits" / store.RECORD).read_text())
    assert f"top-1 {record['result']['top1']:.2f} %" in capsys.readouterr().out
    assert main(options) == 0
    assert "already" in capsys.readouterr().out
    assert main([*options, "--seed", "0", "--momentum", "0.8"]) == 1
    assert "momentum differ" in capsys.readouterr().err


def test_train_tells_what_is_wrong_before_it_reads_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", None)
    network = build("v3_small", width=0.25)
    network.classes = data.CLASSES["cifar100"]
    store.save(tmp_path, record_of(recipe.make(width=0.25)), [], network, None)
    for options, message in (
        (["--recipe", "finetune"], "recipe finetune: name a trained network to start from"),
        (["--from", "mobilenet_v3_small_0.25", "--width", "0.5"], "width 0.5: the network to start from has 0.25"),
        (["--width", "0.25", "--epochs", "2"], "has another recipe (epochs differ)"),
    ):
        assert main(["train", "--models", str(tmp_path), *options]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "required: COMMAND"),
        (["train", "--epochs", "many"], 2, "'many': give a whole number"),
        (["train", "--width", "1,5"], 2, "'1,5': give a number, with a point for decimals"),
        (["train", "--nesterov", "yes"], 2, "'yes': give true or false"),
        (
            ["train", "--image-size", "32x32"],
            2,
            "'32x32': give pixels a side as one whole number, or several with commas",
        ),
        (["train", "--threads", "0"], 2, "'0': give a whole number from 1 on"),
        (["train", "--colour", "red"], 2, "--colour"),
        (["train", "--width", "0"], 1, "width 0"),
        (["train", "--model", "medium"], 1, "unknown model 'medium': choose from v1, v2, v3_small, v3_large"),
        (["train", "--lowered-strides", "9"], 1, "lowered_strides 9"),
        (["evaluate", "--recorded", "--html", "page.html"], 2, "--html shows the images, and --recorded reads none"),
        (
            ["export", "a", "--format", "html", "--with-preprocessing"],
            2,
            "--with-preprocessing is not of --format html",
        ),
        (["import", "nowhere.pth", "--run", "a", "--model", "small"], 1, "there is no file nowhere.pth"),
    ],
)
def test_an_error_is_one_line(options, code, message, capsys):
    try:
        got = main(options)
    except SystemExit as error:
        got = error.code
    assert got == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_help_tells_every_option_with_its_default():
    done = subprocess.run(
        [sys.executable, "-m", "mnv3lib", "train", "--help"], capture_output=True, text=True, check=True, timeout=120
    )
    text = " ".join(done.stdout.split())
    assert "--label-smoothing FLOAT share of the target spread over all classes" in text
    assert "(default: original: 0.0, modern: 0.05, finetune: 0.05)" in text
    assert "modern: 0.0005 below width 0.5 and 0.0002 from there on, finetune: 0.0002)" in text


PHRASE = "1–2 × −3 é \U0001f40d"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"1-2 x -3 \\u00e9 \\ud83d\\udc0d"),
        ("latin-1", b"1-2 \xd7 -3 \xe9 \\ud83d\\udc0d"),
        ("cp1252", b"1\x962 \xd7 -3 \xe9 \\ud83d\\udc0d"),
        ("cp437", b"1-2 x -3 \x82 \\ud83d\\udc0d"),
        ("utf-8", PHRASE.encode()),
    ],
)
def test_letters_that_a_terminal_lacks_are_plain_ones(encoding, shown, monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def command(options):
        print(PHRASE)
        raise InputError(PHRASE)

    monkeypatch.setattr(commands.predict, "run", command)
    assert main(["predict", "a.png"]) == 1
    assert streams["stdout"].buffer.getvalue().strip() == shown
    streams["stderr"].flush()
    assert streams["stderr"].buffer.getvalue().strip() == b"mnv3: error: " + shown


def test_recorded_results_print_in_ascii():
    """With the en dash of intervals."""
    done = subprocess.run(
        [sys.executable, "-m", "mnv3lib", "evaluate", "--recorded", "mobilenet_v1_0.25"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(rb"\d\d\.\d\d-\d\d\.\d\d ", done.stdout)


def test_paths_as_people_write_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for command in (
        "predict --out=~/x.csv",
        "train --models=~/x.csv",
        "export a --out=~/x.csv",
        "train --data ~/x.csv",
    ):
        options = vars(make_parser().parse_args(command.split()))
        assert tmp_path / "x.csv" in options.values()
    for arguments, words in (
        (["predict", "https://example.org/a.jpg"], "https://example.org/a.jpg is a web address: download it"),
        (["evaluate", "--models", "s3://bucket/models"], "s3://bucket/models is a web address"),
        (["import", "hf://a/b.pth", "--run", "a", "--model", "v2"], "hf://a/b.pth is a web address"),
        (["predict", ""], "an empty path"),
        (["train", "--data", "file:///data"], "file:///data is a web address"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        lines = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and len(lines) == 1 and words in lines[0]
    monkeypatch.setenv("MNV3_MODELS", "~/models")
    monkeypatch.setenv("MNV3_DATA", "~/data")
    monkeypatch.setenv("MNV3_CHECKPOINTS", "~/checkpoints")
    assert store.models_folder() == tmp_path / "models"
    assert data.cifar100_folder().parent == tmp_path / "data"
    assert checkpoint.base_folder() == tmp_path / "checkpoints"
    assert list(tmp_path.iterdir()) == []


def test_variables_that_name_no_folder_keep_nobody_from_the_help(monkeypatch, capsys):
    for variable in ("MNV3_MODELS", "MNV3_CHECKPOINTS", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, "~a-user-who-is-not-there/x")
    assert "--models" in make_parser().parse_args(["train"]).parser.format_help()
    assert checkpoint.base_folder().name == provenance.cache_folder().parent.name == "x"
    monkeypatch.setenv("MNV3_MODELS", "s3://bucket/models")
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "a"])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and "s3://bucket/models is a web address" in lines[0]


def test_readmes_commands_run_as_written():
    """Each is one that there is, and each file and folder that it reads is here, but for what the reader brings."""
    files = [ROOT / "README.md", ROOT / "notebooks" / "README.md", *ROOT.glob("mnv3lib/*/README.md")]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("mnv3 ")]
    assert len(files) == 4 and len(lines) > 25
    for line in lines:
        options = vars(make_parser().parse_args(shlex.split(line, comments=True)[1:]))
        for name in ("paths", "file"):
            given = options.get(name) or []
            for one in given if isinstance(given, list) else [given]:
                assert (ROOT / one).exists() or one.name in ("old.pth", "new"), line


def test_a_reader_that_leaves_is_no_error(tmp_path):
    command = [sys.executable, "-m", "mnv3lib", "sweep", "--dataset", "digits", "--dry-run", "--models", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 141

"""The command line: options, exit codes, one line an error."""

import json
import subprocess
import sys

import pytest

from mnv3lib import recipe, store
from mnv3lib.commands import main, make_parser
from mnv3lib.commands.options import given


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


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "required: COMMAND"),
        (["train", "--epochs", "many"], 2, "--epochs"),
        (["train", "--colour", "red"], 2, "--colour"),
        (["train", "--width", "0"], 1, "width 0"),
        (["train", "--model", "medium"], 1, "unknown model 'medium': choose from v1, v2, v3_small, v3_large"),
        (["train", "--lowered-strides", "9"], 1, "lowered_strides 9"),
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
    assert "(default: original: 0.0, modern: 0.05)" in text


def test_a_reader_that_leaves_is_no_error(tmp_path):
    command = [sys.executable, "-m", "mnv3lib", "sweep", "--dataset", "digits", "--dry-run", "--models", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=120) == 141

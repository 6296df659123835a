"""LiteRT: its converter fetched once and whole, its file run in its own runtime (with --long)."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from mnv3lib import store
from mnv3lib.commands import main
from mnv3lib.deploy import formats, tflite_files
from mnv3lib.errors import ExportError, InputError
from mnv3lib.study import labelling

RUN = "mobilenet_v3_small_0.25"
# In pip's place: it tells that it was called, and fills its target bit by bit.
PIP = """#!/bin/sh
echo call >> {calls}
echo Collecting one
mkdir -p "$6"
touch "$6/half"
sleep {seconds}
touch "$6/whole"
"""
ASK = (
    "import sys; from mnv3lib.deploy import tflite_files; sys.executable = sys.argv[1]; print(tflite_files.packages())"
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mnv3lib"


@pytest.fixture
def pip(tmp_path):
    """Make a program that takes pip's place; returns its path and the file that has a line for each call."""

    def make(seconds: float = 0):
        program, calls = tmp_path / "pip", tmp_path / "calls"
        program.write_text(PIP.format(calls=calls, seconds=seconds))
        program.chmod(0o755)
        return program, calls

    return make


def ask(program) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", ASK, str(program)], stdout=subprocess.PIPE, text=True)


def test_the_converter_is_fetched_once_for_each_lock(cache, pip, tmp_path, monkeypatch, capsys):
    program, calls = pip()
    monkeypatch.setattr(sys, "executable", str(program))
    folder = tflite_files.packages()
    assert "fetching LiteRT's converter, once" in capsys.readouterr().err
    assert tflite_files.packages() == folder
    assert (folder / "whole").exists()
    assert calls.read_text() == "call\n"
    assert capsys.readouterr().err == ""
    lock = tmp_path / "lock.txt"
    lock.write_text(tflite_files.LOCK.read_text().replace("absl-py==", "absl-py==9"))
    monkeypatch.setattr(tflite_files, "LOCK", lock)
    assert tflite_files.packages() != folder
    assert calls.read_text() == "call\n" * 2


def test_of_two_at_once_one_fetches_and_the_other_waits(cache, pip):
    program, calls = pip(seconds=1)
    first, second = (one.communicate(timeout=60)[0] for one in [ask(program), ask(program)])
    assert first == second != ""
    assert calls.read_text() == "call\n"


def test_after_a_kill_the_converter_is_whole_or_not_there(cache, pip, monkeypatch):
    process = ask(pip(seconds=3)[0])
    while not list(cache.glob(".mnv3-new-*/*/half")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait(timeout=60)
    process.stdout.close()
    assert not list(cache.glob("tflite-*"))
    monkeypatch.setattr(sys, "executable", str(pip()[0]))
    folder = tflite_files.packages()
    assert (folder / "whole").exists()
    assert [path.name for path in cache.iterdir() if not path.name.startswith(".mnv3-lock")] == [folder.name]


def test_without_a_network_one_line_tells_so(cache, tmp_path, monkeypatch, capsys):
    pytest.importorskip("ai_edge_litert")
    for name in [name for name in os.environ if name.startswith(("PIP_", "http", "HTTP"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    out = tmp_path / "out"
    assert main(["export", RUN, "--format", "tflite", "--out", str(out), "--data", str(tmp_path)]) == 1
    announced, error = capsys.readouterr().err.splitlines()
    assert "once, into" in announced
    assert "needs a network once" in error
    assert "absl-py" in error
    assert not out.exists()
    assert not list(cache.glob("tflite-*"))


def test_without_pip_the_mend_is_told(cache, monkeypatch):
    monkeypatch.setattr(tflite_files, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"which is missing: .* -m ensurepip"):
        tflite_files.packages()


def test_what_the_converter_says_of_a_network_is_told(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    program = "def convert(module, args):\n    raise ValueError(f'no {module(*args).numpy()} in LiteRT')\n"
    (tmp_path / "litert_torch.py").write_text(program)
    monkeypatch.setattr(tflite_files, "packages", lambda: tmp_path)
    with pytest.raises(ExportError, match=r"ValueError: no \[\[2\.\]\] in LiteRT\): .* delete "):
        tflite_files.write(torch.nn.Hardtanh(0, 2).eval(), tmp_path, torch.full((3, 1), 9.0))


def test_int8_is_refused_with_the_reason(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", RUN, "--format", "tflite-int8"])
    error = capsys.readouterr().err
    assert "a channel is always zero" in error
    assert "executorch-int8" in error
    assert error.count("\n") == 1


def test_without_the_extra_the_mend_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[tflite\]'"):
        tflite_files.opened(tmp_path)


@pytest.mark.parametrize("run", [RUN, "mobilenet_v2_0.35", "mobilenet_v1_0.25"])
def test_a_file_answers_as_pytorch_for_any_number_of_images(run, long, tmp_path):
    if not long:
        pytest.skip("fetches LiteRT's converter: try it with --long")
    photographs = labelling.photographs(labelling.images_folder())
    network = store.load(run)
    facts = formats.write(network, tmp_path / "written", "tflite", photographs, run=run)
    assert facts["gap"] <= 1e-4
    answer, given = tflite_files.opened(tmp_path / "written", 1), formats.together(photographs)
    many = torch.cat([given] * 4).numpy()
    for images in (many[:1], many, many[:3], given.contiguous(memory_format=torch.channels_last).numpy()):
        np.testing.assert_allclose(answer(images), formats.pytorch(network)(images), atol=1e-4)

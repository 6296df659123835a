"""LiteRT (TensorFlow Lite), for phones: one .tflite file in fp32, run by its own runtime (the extra `tflite`).

What converts comes with packages that do not fit beside JupyterLab's: it is fetched on first use and runs in a process
of its own. No torch at the top: a process that only runs such a file does without.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mnv3lib import provenance
from mnv3lib.errors import ExportError, InputError, one_line

LOAD = "input args_0, output output_0, one image at a time; for more, resize the input tensor first"
LOCK = Path(__file__).parent / "tflite-requirements.txt"
CONVERT = """
import sys, litert_torch, torch
program = torch.export.load(sys.argv[1])
litert_torch.convert(program.module(), program.example_inputs[0]).export(sys.argv[2])
"""


def write(module, folder: Path, images) -> None:
    """network.tflite of a torch module, for an image of the size of `images` (float tensors)."""
    import torch

    _extra()
    converter = packages()
    path = os.pathsep.join([str(converter), *filter(None, sys.path)])  # the converter's own first, torch is ours
    with tempfile.TemporaryDirectory() as scratch:
        torch.export.save(torch.export.export(module, (images[:1].contiguous(),)), f"{scratch}/network.pt2")
        command = [sys.executable, "-P", "-c", CONVERT, f"{scratch}/network.pt2", str(folder / "network.tflite")]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise ExportError(
            f"LiteRT's converter cannot write the network ({one_line(done.stderr[-300:], 300)}): if it is damaged, "
            f"delete {converter}"
        )


def opened(folder: Path, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """What such a folder says to float32 images [n, 3, size, size]: logits [n, classes]."""
    interpreter = _extra()(str(folder / "network.tflite"), num_threads=threads or provenance.cores())
    given, found = (one()[0]["index"] for one in (interpreter.get_input_details, interpreter.get_output_details))
    shape = None

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal shape
        if images.shape != shape:
            shape = images.shape
            interpreter.resize_tensor_input(given, shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(given, images)
        interpreter.invoke()
        return interpreter.get_tensor(found)

    return run


def packages() -> Path:
    """The folder with what LOCK lists; fetched by pip where this Python has not got it yet.

    It is whole or not there. A process that finds another fetching waits for it.
    """
    from mnv3lib import writing

    about = f"{LOCK.read_text(encoding='utf-8')} {sys.implementation.cache_tag} {sysconfig.get_platform()}"
    digest = hashlib.sha256(about.encode()).hexdigest()
    folder = provenance.cache_folder() / f"tflite-{digest[:12]}"
    if folder.is_dir():
        return folder
    with writing.only_writer(folder, timeout=3600, doing="made"):
        writing.clear(folder)  # of what a killed process left, whose pip may still be at work in a folder of its own
        new = folder.with_name(writing.NEW + folder.name) / str(os.getpid())
        try:
            if not folder.is_dir():
                _fetch(new)
                new.rename(folder)
        finally:
            writing.clear(folder)
    return folder


def _fetch(folder: Path) -> None:
    from mnv3lib import progress

    if not find_spec("pip"):
        raise InputError(f"LiteRT's converter is fetched by pip, which is missing: {sys.executable} -m ensurepip")
    lines = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if "==" in line]
    print(
        f"mnv3: fetching LiteRT's converter, once, into {provenance.cache_folder()}: a few minutes, 0.8 GB",
        file=sys.stderr,
    )
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), "--requirement", str(LOCK)]
    options = ["--disable-pip-version-check", "--no-compile", "--progress-bar", "off", "--retries", "1"]
    told = ""
    with (
        subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip,
        progress.bar(total=len(lines), title="LiteRT's converter") as bar,
    ):
        for line in pip.stdout:
            bar.update(line.startswith("Collecting "))
            told = line if line.startswith("ERROR: ") or not told.startswith("ERROR: ") else told
    if pip.returncode:
        needs = "a network once, and Linux on x86-64 or a Mac with Apple silicon"
        raise InputError(f"pip cannot fetch LiteRT's converter, which needs {needs}: {one_line(told)}")


def _extra():
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise InputError("ai_edge_litert is not installed: pip install -e '.[tflite]' in the checkout") from None
    return Interpreter

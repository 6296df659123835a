"""One HTML file with networks and onnxruntime-web in it, that classifies pictures and measures time on any device.

The runtime comes from npm, once; its archive is kept in the user's cache and its digest checked whenever it is read.
"""

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from string import Template

import numpy as np
import torch

from mnv3lib import provenance, writing
from mnv3lib.deploy import formats, onnx_files
from mnv3lib.errors import ExportError, InputError, one_line
from mnv3lib.networks import MobileNet
from mnv3lib.recipe import short

RUNTIME = "1.30.0"  # of onnxruntime-web
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # SHA-512
PARTS = {"api": "ort.wasm.min.mjs", "module": "ort-wasm-simd-threaded.mjs", "wasm": "ort-wasm-simd-threaded.wasm"}
PAGE = Path(__file__).parent / "page"


def write(
    networks: Mapping[str, MobileNet], top1: Mapping[str, float], path: Path, images: Mapping[str, torch.Tensor]
) -> float:
    """Write a page with `networks`, by the names of their runs, and return by how much their logits differ at most.

    The networks are as for `onnx_files.write`, top1 is theirs in percent. images: uint8 [n, size, size, 3], real ones,
    on which PyTorch is compared with onnxruntime and with onnxruntime-web under Node.js. Raises ExportError, and writes
    nothing, if the logits differ by more than onnx_files.TOLERANCE; InputError if npm or the extra `deploy` is missing.
    """
    runtime = runtime_parts()
    titles = {run: f"{short(one.architecture.model)} {one.architecture.width:g}" for run, one in networks.items()}
    shared = {title for title, count in Counter(titles.values()).items() if count > 1}
    entries, gap = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, content in runtime.items():
            (Path(folder) / PARTS[name]).write_bytes(content)
        file = Path(folder) / "network.onnx"
        for run, network in networks.items():
            onnx_files.write(network, file, images[run], run=run)
            given = formats.together(images[run]).numpy()
            found = logits(Path(folder), given)
            gap = max(gap, float(np.abs(found - formats.pytorch(network)(given)).max()))
            about = {"run": run, "name": run if titles[run] in shared else titles[run], "top1": top1[run]}
            about |= {"size": images[run].shape[1], "classes": network.classes, "file": packed(file.read_bytes())}
            entries.append(about)
    if not gap <= onnx_files.TOLERANCE:
        raise ExportError(f"{path} is not written: onnxruntime-web's logits differ from PyTorch's by {gap:.1e}")
    with writing.replacing(path) as temporary:
        temporary.write_text(page(entries, runtime), encoding="utf-8")
    return gap


def page(entries: list[dict], runtime: Mapping[str, bytes]) -> str:
    """The page as text. What may run in it is told by digest, and it may connect to nothing."""
    style, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    data = {"runtime": {"version": RUNTIME} | {name: packed(part) for name, part in runtime.items()}}
    policy = (
        f"default-src 'none'; script-src {_digest(script)} 'wasm-unsafe-eval' blob:; style-src {_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return Template((PAGE / "page.html").read_text(encoding="utf-8")).substitute(
        policy=policy,
        style=style,
        script=script,
        data=json.dumps(data | {"networks": entries}).replace("<", "\\u003c"),
        version=version("mnv3lib"),
        runtime=RUNTIME,
    )


def packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def logits(folder: Path, images: np.ndarray) -> np.ndarray:
    """What onnxruntime-web says under Node.js to float32 images [n, 3, size, size].

    folder: holds the runtime's PARTS and network.onnx.
    """
    images.tofile(folder / "images.bin")
    _run(["node", str(PAGE / "logits.mjs"), str(folder), str(images.shape[2])], "Node.js cannot run the network")
    return np.fromfile(folder / "logits.bin", np.float32).reshape(len(images), -1)


def runtime_parts() -> dict[str, bytes]:
    """The files of onnxruntime-web that a page needs, by their names in PARTS; fetched by npm where not yet cached."""
    path = provenance.cache_folder() / f"onnxruntime-web-{RUNTIME}.tgz"
    if not _is_right(path):
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", "--silent", "--pack-destination", folder, f"onnxruntime-web@{RUNTIME}"]
            _run(command, f"npm cannot fetch onnxruntime-web {RUNTIME}, which needs a network once")
            fetched = Path(folder) / path.name
            if not _is_right(fetched):
                raise InputError(f"npm gave another onnxruntime-web {RUNTIME} than was published: check its registry")
            with writing.replacing(path) as temporary:
                shutil.copyfile(fetched, temporary)
    with tarfile.open(path) as archive:
        return {name: archive.extractfile(f"package/dist/{file}").read() for name, file in PARTS.items()}


def _is_right(path: Path) -> bool:
    return path.is_file() and base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode() == INTEGRITY


def _run(command: list[str], failure: str) -> None:
    program = shutil.which(command[0])  # npm is a script on some systems
    if not program:
        raise InputError(f"{command[0]} is not installed: a page needs Node.js 18 or later with npm to be made")
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{failure}: {one_line(done.stderr)}")

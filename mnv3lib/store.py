"""The folder of trained models: one folder a run, written whole or not at all, read without unpickling anything.

A run's folder holds weights.safetensors (the header tells how to rebuild the network), record.json (how it was made and
what came out), history.csv (a row an epoch) and predictions.npz (labels and the five best classes on the test set).
"""

import dataclasses
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from mnv3lib.errors import InputError
from mnv3lib.networks import Architecture, MobileNet
from mnv3lib.provenance import ROOT

WEIGHTS, RECORD, HISTORY, PREDICTIONS = "weights.safetensors", "record.json", "history.csv", "predictions.npz"


def models_folder() -> Path:
    """MNV3_MODELS if it is set, else trained_models of the checkout, else trained_models here."""
    checkout = ROOT / "trained_models"
    return Path(os.environ.get("MNV3_MODELS") or (checkout if checkout.is_dir() else "trained_models"))


@contextmanager
def replacing(path: Path):
    """Give a temporary path beside `path` to write to, and move it there when all went well.

    Whatever happens, `path` is the old file or the new one, whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def run_folder(run: str, folder: Path | None = None) -> Path:
    """The folder of a run; a name that is none (a path, say) raises InputError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,120}", run):
        raise InputError(f"{run!r} is no name of a run: use letters, digits and _ . + - alone")
    return Path(folder or models_folder()) / run


def runs(folder: Path | None = None) -> list[str]:
    """The names of the runs in `folder` that have a record, in order."""
    return sorted(path.parent.name for path in Path(folder or models_folder()).glob(f"[!.]*/{RECORD}"))


def save(
    folder: Path,
    record: dict,
    history: pd.DataFrame,
    network: MobileNet | None,
    predictions: dict[str, np.ndarray] | None,
) -> Path:
    """Write a run to `folder`/<record["run"]>, in place of an older one, and return that folder.

    Without `network` and `predictions` only the record and the history are kept. The folder appears whole: it is
    written under a temporary name and moved.
    """
    target = run_folder(record["run"], folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    try:
        if network is not None:
            save_weights(network, temporary / WEIGHTS)
        if predictions is not None:
            np.savez_compressed(temporary / PREDICTIONS, **predictions)
        history.to_csv(temporary / HISTORY, index=False, lineterminator="\n")
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        temporary.chmod(0o755)
        if target.exists():
            old = target.with_name(f".old-{target.name}")
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            try:
                temporary.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def save_weights(network: MobileNet, path: Path) -> None:
    """Write the weights with a header from which `load_weights` rebuilds the network."""
    header = {
        "format": "mnv3lib-1",
        "architecture": json.dumps(dataclasses.asdict(network.architecture)),
        "classes": json.dumps(network.classes),
        "mean": json.dumps(network.mean),
        "std": json.dumps(network.std),
    }
    content = safetensors.torch.save({key: value.contiguous() for key, value in network.state_dict().items()}, header)
    with replacing(path) as temporary:
        temporary.write_bytes(_in_order(content))
        temporary.chmod(0o644)


def _in_order(content: bytes) -> bytes:
    """The same file with its header sorted: safetensors writes the entries in an order that differs every time."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def load(run: str, folder: Path | None = None) -> MobileNet:
    """The trained network of a run in eval mode, with its `classes`, `mean` and `std`."""
    return load_weights(_existing(run, folder, WEIGHTS))


def load_weights(path: str | os.PathLike) -> MobileNet:
    """The network in a file that `save_weights` wrote; InputError if the file is anything else. Unpickles nothing."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != "mnv3lib-1":
                raise InputError(f"{path} has no header of mnv3lib, so the network in it is unknown")
            architecture = Architecture(**json.loads(header["architecture"]))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
        with torch.device("meta"):  # the other initializations would load much of torch, and draw nothing here
            network = MobileNet(dataclasses.replace(architecture, initialization="torch"))
        network.architecture = architecture
        expected = network.state_dict()
        for key in expected.keys() | state.keys():
            if (
                key not in state
                or key not in expected
                or state[key].shape != expected[key].shape
                or state[key].dtype != expected[key].dtype
            ):
                raise InputError(
                    f"{path}: tensor {key} is missing, superfluous or of another shape or type than its header tells"
                )
            if not torch.isfinite(state[key]).all():
                raise InputError(f"{path}: tensor {key} has values that are no finite numbers")
        network.load_state_dict(state, assign=True)
        network.classes = tuple(json.loads(header["classes"]))
        network.mean = tuple(json.loads(header["mean"]))
        network.std = tuple(json.loads(header["std"]))
        if len(network.classes) != architecture.num_classes or len(network.mean) != 3 or len(network.std) != 3:
            raise InputError(f"{path}: the header's classes, mean or std do not fit the network")
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is no file of weights that mnv3lib wrote ({_short(error)})") from None
    return network.eval().requires_grad_(False)


def load_record(run: str, folder: Path | None = None) -> dict:
    """What record.json of a run says."""
    path = _existing(run, folder, RECORD)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["run"] != run:
            raise InputError(f"{path} is the record of {record['run']!r}")
        for name in ("parameters", "macs", "seconds", "images_per_second"):
            float(record[name])
        for name in ("top1", "top5", "images"):
            float(record["result"][name])
        dict(record["recipe"]), dict(record["environment"]), record["commit"], record["started"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no record of a run ({_short(error)})") from None
    return record


def load_history(run: str, folder: Path | None = None) -> pd.DataFrame:
    """A row an epoch: epoch, learning_rate, train_loss, train_top1, test_top1 (percent), seconds."""
    path = _existing(run, folder, HISTORY)
    try:
        return pd.read_csv(path)
    except ValueError as error:
        raise InputError(f"{path} is no history of a run ({_short(error)})") from None


def load_predictions(run: str, folder: Path | None = None) -> dict[str, np.ndarray]:
    """`labels` [n], `classes` [n, 5] (best first) and `probabilities` [n, 5] on the test set, as they were recorded."""
    path = _existing(run, folder, PREDICTIONS)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("labels", "classes", "probabilities")}
    except (ValueError, KeyError, TypeError, EOFError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no predictions ({_short(error)})") from None


def _existing(run: str, folder: Path | None, file: str) -> Path:
    path = run_folder(run, folder) / file
    if not path.is_file():
        known = runs(folder)
        raise InputError(f"there is no {path}; runs in {path.parents[1]}: {', '.join(known) or 'none'}")
    return path


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

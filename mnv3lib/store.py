"""The folder of trained models: one folder a run, written whole or not at all, read without unpickling anything.

A run's folder holds weights.safetensors (the header tells how to rebuild the network), record.json (how it was made and
what came out), history.csv (a row an epoch) and predictions.npz (labels and the five best classes on the test set).
"""

import csv
import dataclasses
import hashlib
import json
import math
import os
import re
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open

from mnv3lib.data import CLASSES
from mnv3lib.errors import InputError, one_line, whole, within
from mnv3lib.networks import MobileNet
from mnv3lib.provenance import place
from mnv3lib.recipe import DEFAULTS, Architecture, Recipe
from mnv3lib.writing import OLD, recover, replacing, replacing_folder, standing

if TYPE_CHECKING:
    import pandas

WEIGHTS, RECORD, HISTORY, PREDICTIONS = "weights.safetensors", "record.json", "history.csv", "predictions.npz"
HISTORY_COLUMNS = ["epoch", "learning_rate", "train_loss", "train_top1", "test_top1", "seconds"]
PREDICTIONS_ARRAYS = ("labels", "classes", "probabilities")
HEADER = "mnv3lib"  # the entry of a weights file that tells all of the network, as JSON
NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,199}"  # of a run; a recipe's has 171 at most
OLD_FORMAT = "mnv3lib-1"  # had an entry for each thing
MOST_BYTES = 64 * 2**20  # of a record, a history, or predictions unpacked; they have less than one hundredth of it


def models_folder() -> Path:
    """MNV3_MODELS if it is set, else trained_models of the checkout, else trained_models here."""
    return place("trained_models", "MNV3_MODELS")


def trials_folder() -> Path:
    """Where runs go that are no models of the report: build/trained_models beside `models_folder`.

    MNV3_MODELS takes both.
    """
    folder = models_folder()
    return folder if os.environ.get("MNV3_MODELS") else folder.parent / "build" / folder.name


def folder_for(made: Recipe) -> Path:
    """Where a new run goes: `models_folder`, or `trials_folder` if it is on other data, on a part of it, or shorter, or
    starts from a trained network.

    Such a run is a trial and no model of the report, which is made from `models_folder`.
    """
    trial = (made.dataset, made.split) != (DEFAULTS["dataset"], DEFAULTS["split"]) or made.epochs < DEFAULTS["epochs"]
    return trials_folder() if trial or made.start else models_folder()


def run_folder(run: str, folder: Path | None = None) -> Path:
    """The folder of a run; a name that is none (a path, say) raises InputError."""
    run = str(run)
    if not re.fullmatch(NAME, run):
        mend = "use letters, digits and _ . + - alone"
        with suppress(OSError):  # of a name that is too long for a path
            if any(((path := Path(run)) / file).is_file() for file in (RECORD, WEIGHTS)):
                mend = f"name {path.name} as the run and {path.parent} as the folder of models (--models)"
        raise InputError(f"{run!r} is no name of a run: {mend}")
    return Path(folder or models_folder()) / run


def runs(folder: Path | None = None, *having: str) -> list[str]:
    """The names of the runs in `folder` that have a record, in order, and one of the files `having`, if any is named.

    A folder whose name is none of a run, as of a copy, is left out. Nothing is changed there.
    """
    folder = Path(folder or models_folder())
    found = [*folder.glob(f"[!.]*/{RECORD}"), *folder.glob(f"{OLD}*/{RECORD}")]
    names = sorted({path.parent.name.removeprefix(OLD) for path in found})
    names = [name for name in names if re.fullmatch(NAME, name)]
    return [run for run in names if not having or any(has(run, file, folder) for file in having)]


def of_one_set(sets: dict[str, str], usual: str) -> list[str]:
    """The runs on the set of images called `usual`; where there are none, all, which must be on one set.

    `sets` names the set of each run.
    """
    chosen = [run for run, name in sets.items() if name == usual] or list(sets)
    several = sorted({sets[run] for run in chosen})
    if len(several) > 1:
        listed = "; ".join(f"{name}: {', '.join(run for run in chosen if sets[run] == name)}" for name in several)
        raise InputError(f"runs on several data sets do not go together, name those on one of them: {listed}")
    return chosen


def has(run: str, file: str, folder: Path | None = None) -> bool:
    """Whether a run kept `file`, one of WEIGHTS, RECORD, HISTORY and PREDICTIONS."""
    return (standing(run_folder(run, folder)) / file).is_file()


def save(
    folder: Path,
    record: dict,
    history: list[dict],
    network: MobileNet | None,
    predictions: dict[str, np.ndarray] | None,
) -> Path:
    """Write a run to `folder`/<record["run"]>, in place of an older one, and return that folder.

    Without `network` and `predictions` only the record and the history are kept. The folder appears whole: it is
    written under a temporary name and moved.
    """
    target = run_folder(record["run"], folder)
    with replacing_folder(target) as temporary:
        if network is not None:
            save_weights(network, temporary / WEIGHTS)
        if predictions is not None:
            np.savez_compressed(temporary / PREDICTIONS, **predictions)
        write_history(history, temporary / HISTORY)
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        temporary.chmod(0o755)
    recover(target.parent)
    return target


def write_history(rows: list[dict], path: Path) -> None:
    """Write the rows of a history, one an epoch, as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*HISTORY_COLUMNS, "images_per_second"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def save_weights(network: MobileNet, path: Path) -> None:
    """Write the weights with a header from which `load_weights` rebuilds the network."""
    facts = {
        "architecture": dataclasses.asdict(network.architecture),
        "classes": network.classes,
        "mean": network.mean,
        "std": network.std,
        "size": network.size,
    }
    # One entry: safetensors writes several in an order that differs every time.
    header = {HEADER: json.dumps(facts)}
    content = safetensors.torch.save({key: value.contiguous() for key, value in network.state_dict().items()}, header)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        temporary.chmod(0o644)


def load(run: str, folder: Path | None = None, *, trainable: bool = False) -> MobileNet:
    """The trained network of a run, with its `classes`, `mean` and `std`.

    It is in eval mode and its weights are frozen (no gradients), as guessing wants it; `trainable`: it is in training
    mode and nothing is frozen, for a training loop of your own.
    """
    return load_weights(weights_file(run, folder), trainable=trainable)


def weights_file(run: str, folder: Path | None = None) -> Path:
    """The file with the weights of a run."""
    return _existing(run, folder, WEIGHTS)


def digest(path: str | os.PathLike) -> str:
    """The SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(path: str | os.PathLike, *, trainable: bool = False) -> MobileNet:
    """The network in a file that `save_weights` wrote, as `load` gives it; InputError if the file is anything else.

    Unpickles nothing.
    """
    with _reading(path, "file of weights that mnv3lib wrote", most=math.inf):  # read no further than its header tells
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if HEADER in header:
                facts = json.loads(header[HEADER])
            elif header.get("format") == OLD_FORMAT:
                facts = {name: json.loads(header[name]) for name in ("architecture", "classes", "mean", "std")}
            else:
                raise InputError("it has no header of mnv3lib, so the network in it is unknown")
            architecture = Architecture(**facts["architecture"])
            classes, mean, std = (tuple(facts[name]) for name in ("classes", "mean", "std"))
            # Copies, since what is mapped from a file that somebody cuts off ends the process.
            state = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (no dict)
        network = fill(architecture, state)
        network.size = facts.get("size", 32)
        whole("size", network.size, 1, 512)
        return set_metadata(network, classes, mean, std).train(trainable).requires_grad_(trainable)


def shapes(architecture: Architecture) -> MobileNet:
    """The network of `architecture` on the device "meta": its tensors have a shape and a type, and take no memory."""
    with torch.device("meta"):  # the other initializations would load much of torch, and draw nothing here
        network = MobileNet(dataclasses.replace(architecture, initialization="torch"))
    network.architecture = architecture
    return network


def fill(architecture: Architecture, state: dict[str, torch.Tensor]) -> MobileNet:
    """The network of `architecture` with the tensors of `state`; InputError names the first three that do not fit."""
    network = shapes(architecture)
    expected = network.state_dict()
    unfit = []
    for key in sorted(expected.keys() | state.keys()):
        if key not in state:
            unfit.append(f"{one_line(key)} is missing")
        elif key not in expected:
            unfit.append(f"{one_line(key)} is superfluous")
        elif (state[key].shape, state[key].dtype) != (expected[key].shape, expected[key].dtype):
            has, should = (f"{one[key].dtype} {list(one[key].shape)}" for one in (state, expected))
            unfit.append(f"{key} is of another shape or type than the network's ({has}, not {should})")
        elif not torch.isfinite(state[key]).all() or (key.endswith("running_var") and (state[key] < 0).any()):
            unfit.append(f"{key} has values that are no finite numbers, or variances below zero")
    if unfit:
        more = f" and {len(unfit) - 3} more" if len(unfit) > 3 else ""
        raise InputError(f"tensor {', '.join(unfit[:3])}{more}")
    network.load_state_dict(state, assign=True)
    return network


def set_metadata(network: MobileNet, classes: tuple, mean: tuple, std: tuple) -> MobileNet:
    """Give `network` the names of its classes and its normalisation; InputError if they do not fit it."""
    if len(classes) != network.architecture.num_classes or len(mean) != 3 or len(std) != 3:
        raise InputError("the header's classes, mean or std do not fit the network")
    for name in classes:
        if not (isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable()):
            raise InputError(f"class {str(name)[:100]!r}: names are of 1 to 100 printable characters")
    if len(set(classes)) < len(classes):
        raise InputError("two classes have the same name")
    for value in mean:
        within("mean", value, -1e3, 1e3)
    for value in std:
        within("std", value, 1e-6, 1e3)
    network.classes, network.mean, network.std = classes, mean, std
    return network


def load_record(run: str, folder: Path | None = None) -> dict:
    """What record.json of a run says, its recipe with the fields that this version knows.

    Fields that the recipe lacks get their defaults, `num_classes` the data set's. Of an imported run, whose record has
    `imported`, nobody knows how it was trained: those fields are such defaults and mean nothing.
    """
    path = _existing(run, folder, RECORD)
    with _reading(path, "record of a run"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["run"] != run:
            raise InputError(f"it is the record of {str(record['run'])[:100]!r}, move its folder away")
        made = {name: value for name, value in record["recipe"].items() if name in DEFAULTS}
        classes = CLASSES.get(made.get("dataset", DEFAULTS["dataset"]), ())
        record["recipe"] = Recipe(**{"num_classes": len(classes) or DEFAULTS["num_classes"]} | made).as_dict()
        if record["recipe"]["data_digest"]:
            _check_own(record["data"], record["recipe"]["num_classes"])
        whole("parameters", record["parameters"], 0, 10**12)
        within("macs", record["macs"], 0, 1e15)
        for name in ("seconds", "images_per_second"):
            within(name, record[name], 0, 1e12)
        for name in ("top1", "top5"):
            within(name, record["result"][name], 0, 100)
        whole("images", record["result"]["images"], 1, 10**9)
        kinds = {"environment": dict, "commit": str | None, "started": str}
        for name, kind in kinds.items():
            if not isinstance(record[name], kind):
                raise InputError(f"its {name} is {one_line(repr(record[name]), 50)}")
        for entry in record.get("resumed", []):
            whole("after_epoch", entry["after_epoch"], 0, 10**6)
            if not isinstance(entry.get("environment", {}), dict):
                raise InputError(f"its run went on in {one_line(repr(entry['environment']), 50)}")
    return record


def _check_own(told: dict, classes: int) -> None:
    """Raise InputError unless a record tells enough of a person's own images."""
    names = told["classes"]
    if len(names) != classes or not all(isinstance(name, str) for name in [*names, told["folder"]]):
        raise InputError("its data has other classes than its recipe, or no folder")
    if told["test_share"] is not None:
        within("test_share", told["test_share"], 0, 1)


def load_history(run: str, folder: Path | None = None) -> "pandas.DataFrame":
    """A row an epoch: epoch, learning_rate, train_loss, train_top1, test_top1 (percent), seconds."""
    import pandas  # slow to import

    path = _existing(run, folder, HISTORY)
    with _reading(path, "history of a run"):
        table = pandas.read_csv(path)
        kinds = {table[name].dtype.kind for name in HISTORY_COLUMNS}
        if table.empty or not kinds <= set("iuf") or not np.isfinite(table[HISTORY_COLUMNS].to_numpy()).all():
            raise InputError(f"it should have a row an epoch and finite numbers in {', '.join(HISTORY_COLUMNS)}")
    return table


def load_predictions(run: str, folder: Path | None = None) -> dict[str, np.ndarray]:
    """`labels` [n], `classes` [n, 5] (best first) and `probabilities` [n, 5] on the test set, as they were recorded."""
    path = _existing(run, folder, PREDICTIONS)
    with _reading(path, "file of predictions"):
        with zipfile.ZipFile(path) as file:
            if sum(member.file_size for member in file.infolist()) > MOST_BYTES:
                raise InputError(f"it would unpack to more than {MOST_BYTES:,} bytes")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in PREDICTIONS_ARRAYS}
        labels, classes, probabilities = arrays.values()
        kinds = "".join(array.dtype.kind for array in arrays.values())
        if not re.fullmatch("[iu][iu]f", kinds) or labels.ndim != 1 or classes.ndim != 2:
            raise InputError(
                f"{', '.join(PREDICTIONS_ARRAYS)} should be whole numbers [n] and [n, 5] and floats [n, 5]"
            )
        if len(labels) != len(classes) or classes.shape != probabilities.shape:
            raise InputError(f"{', '.join(PREDICTIONS_ARRAYS)} are not of the same images")
    return arrays


@contextmanager
def _reading(path: str | os.PathLike, what: str, most: float = MOST_BYTES):
    """Make every complaint about the content of `path` an InputError of one line that names it."""
    try:
        if Path(path).stat().st_size > most:
            raise InputError(f"it has more than {most:,} bytes")
        yield
    except InputError as error:
        raise InputError(f"{path} is no {what}: {error}") from None
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # parsers raise all kinds of exceptions on damaged files
        raise InputError(f"{path} is no {what} ({one_line(error)})") from None


def _existing(run: str, folder: Path | None, file: str) -> Path:
    target = run_folder(run, folder)
    path = standing(target) / file
    if path.is_file():
        return path
    known = runs(folder)
    elsewhere = trials_folder() / run
    if Path(run).is_file():
        raise InputError(f"{run} is a file and no name of a run: mnv3lib.store.load_weights reads such a file")
    if run in known:
        raise InputError(f"{run} in {target.parent} has no {file}: train it again, and keep all of it")
    if elsewhere.parent != target.parent and (standing(elsewhere) / RECORD).is_file():
        raise InputError(f"{run} is not in {target.parent} but in {elsewhere.parent}: say --models {elsewhere.parent}")
    raise InputError(f"there is no {target / file}; runs in {target.parent}: {', '.join(known) or 'none'}")

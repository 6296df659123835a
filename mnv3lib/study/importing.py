"""Old checkpoints: the weights in a .pth file, read without running what is in it, made a run of this project."""

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import torch

from mnv3lib import cost, inference, provenance, store
from mnv3lib.data import Dataset
from mnv3lib.errors import InputError
from mnv3lib.recipe import Architecture

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # under which training scripts keep the weights


def read_pth(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state dict that `torch.save` wrote, alone or under one of WRAPPERS.

    Only tensors and plain values are unpickled (torch's `weights_only`): a file that holds anything else is refused
    and none of it runs.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:  # torch compresses nothing, so what does would only grow
                if any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist()):
                    raise InputError(f"{path} is compressed, which no checkpoint of torch is")
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (InputError, OSError):
        raise
    except Exception:  # of all kinds, on damaged files; what torch says of others is no advice to follow
        raise InputError(
            f"{path} is damaged or holds more than tensors: save the network's state_dict() alone"
        ) from None
    for name in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    ):
        raise InputError(f"{path} is no state dict: save the network's state_dict() alone")
    return {key.removeprefix("module."): value for key, value in content.items()}


def import_pth(
    path: Path,
    run: str,
    models: Path,
    *,
    architecture: Architecture,
    dataset: Dataset,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> dict:
    """Make the weights in `path` the run called `run` in the folder `models`, measured on `dataset`.

    Returns its record, which tells where it comes from and that no more is known; there is no history.
    The keys must be those of `mnv3lib.build`, which for V2 and V3 are torchvision's, and the classes in the order of
    `dataset`. `mean` and `std` are the normalisation that it was trained with, else the data set's here.
    """
    target = store.run_folder(run, models)
    if target.exists():
        raise InputError(f"{target} exists: choose another name or move it away")
    state = read_pth(path)
    try:
        expected = store.shapes(architecture).state_dict()
        for key, value in expected.items():
            if key.endswith("num_batches_tracked"):  # old versions of torch did not count
                state.setdefault(key, torch.zeros((), dtype=value.dtype))
            elif key in state and state[key].is_floating_point() and state[key].shape == value.shape:
                state[key] = state[key].float().contiguous()
        network = store.fill(architecture, state)
        store.describe(network, dataset.classes, tuple(mean or dataset.mean), tuple(std or dataset.std))
    except InputError as error:
        raise InputError(f"{path} does not fit {architecture.model} {architecture.width:g}: {error}") from None
    predictions = inference.best_five(network.eval(), dataset.test)
    parameters, macs = cost.totals(network)
    record = {
        "run": run,
        "recipe": dataclasses.asdict(architecture) | {"dataset": dataset.name, "split": "full", "image_sizes": [32]},
        "parameters": parameters,
        "macs": macs,
        "result": inference.accuracy(predictions),
        "environment": provenance.environment(),
        "commit": provenance.commit(),
        "started": provenance.now(),
        "seconds": 0.0,
        "images_per_second": 0.0,
        "imported": {"file": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()},
    }
    store.save(models, record, [], network, predictions)
    return record

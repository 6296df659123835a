"""The state of a run in progress: where it lies, who may touch it, writing and reading it."""

import io
import os
import pickle
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from mnv3lib import provenance
from mnv3lib.errors import InputError, local, one_line
from mnv3lib.recipe import Recipe
from mnv3lib.writing import delete_leftovers, only_writer, replacing

STATE, PROGRESS = "checkpoint.pt", "epochs_done"


def base_folder() -> Path:
    """Where runs in progress keep their checkpoints: MNV3_CHECKPOINTS, else mnv3lib/checkpoints in the user's cache."""
    return local(os.environ.get("MNV3_CHECKPOINTS") or provenance.cache_folder() / "checkpoints")


def folder_of(recipe: Recipe, base: Path | None = None) -> Path:
    """Where the run of `recipe` keeps its state while it is in progress."""
    return Path(base or base_folder()) / f"{recipe.run}-{recipe.digest}"


def epochs_done(folder: Path) -> int:
    """Complete epochs of the run in progress whose state lies in `folder`."""
    try:
        return int((folder / PROGRESS).read_text())
    except (OSError, ValueError):
        return 0


@contextmanager
def alone(folder: Path):
    """Keep every other process out of the run whose state lies in `folder`; raises InputError if one is at it."""
    with only_writer(folder, timeout=0, doing="trained"):
        folder.mkdir(exist_ok=True)
        delete_leftovers(folder, older=0)  # nobody else writes here
        try:
            yield
        finally:
            with suppress(OSError):  # while there is state in it
                folder.rmdir()


def clear(folder: Path) -> None:
    """Delete the state of a run that is written."""
    for name in (STATE, PROGRESS):
        (folder / name).unlink(missing_ok=True)


def write(path: Path, recipe: Recipe, network: nn.Module, others: list, history: list[dict], origin: dict) -> None:
    """Write all that `restore` needs; the old checkpoint stays whole until the new one is.

    others: what else has a state, the optimizers and perhaps an average of the weights.
    """
    state = {
        "digest": recipe.digest,
        "network": network.state_dict(),
        "optimizers": [other.state_dict() for other in others],
        "history": history,
        "origin": origin,
    }
    content = io.BytesIO()
    torch.save(state, content)  # to a file, torch answers a full disk with a RuntimeError
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    with replacing(path.with_name(PROGRESS)) as temporary:
        temporary.write_text(str(len(history)))


def restore(path: Path, recipe: Recipe, network: nn.Module, others: list) -> tuple[list[dict], dict]:
    """Load a checkpoint into `network` and `others`; returns the rows of history and the origin."""
    try:
        with zipfile.ZipFile(path) as file:  # torch.load does not look at the checksums
            if file.testzip():
                raise ValueError("damaged")
        state = torch.load(path, weights_only=True, map_location=next(network.parameters()).device)
        if state["digest"] != recipe.digest:
            raise ValueError("another recipe")
        network.load_state_dict(state["network"])
        for other, saved in zip(others, state["optimizers"], strict=True):
            other.load_state_dict(saved)
        return state["history"], state["origin"]
    except Exception as error:  # of all kinds, on damaged files
        reason = "not of tensors" if isinstance(error, pickle.UnpicklingError) else one_line(error)
        raise InputError(f"{path} is no checkpoint of this run ({reason}): delete it to start anew") from None

"""Old checkpoints: the weights in a .pth file, read without running what is in it, made a run of this project."""

import dataclasses
import errno
import re
import zipfile
from pathlib import Path

import torch
from torch import nn

from mnv3lib import cost, inference, provenance, store
from mnv3lib.data import Dataset
from mnv3lib.errors import InputError, one_line, whole
from mnv3lib.recipe import SIZES, Architecture

# The modules that torch.compile, activation checkpointing and FSDP put around others, and what counting leaves behind.
WRAPPERS = re.compile(r"\b(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
COUNTERS = {"n_averaged", "total_ops", "total_params"}
# Tensors that every network has, with torchvision's keys (and ours) and with timm's. An optimizer has no running mean.
MARKS = (("features.0.0.weight", "features.0.1.running_mean"), ("conv_stem.weight", "bn1.running_mean"))
AVERAGED = {"ema", "swa", "averaged", "average", "shadow"}  # words in the names of averaged weights
TIMM_EPS = 1e-5
TIMM_ORDER = "conv_stem bn1 blocks conv_head bn2 classifier".split()
TIMM_INVERTED = "conv_pw bn1 conv_dw bn2 se conv_pwl bn3".split()  # V2's and V3's block
TIMM_SEPARABLE = "conv conv_dw bn1 se conv_pw bn2".split()  # the first block, and V3's last convolution
TIMM_SE = "conv_reduce conv_expand".split()
TIMM_KINDS = "weight bias running_mean running_var".split()
BEGINNINGS = dict([inference.GIT_LFS]) | {  # of files that are taken for checkpoints
    b"<": "a web page: download the file itself",
    b"\x89HDF": "an HDF5 file, as Keras writes: only PyTorch's are read",
    b"\x1f\x8b": "compressed: unpack it first",
}


@dataclasses.dataclass(frozen=True)
class Found:
    """The weights in a checkpoint: their tensors by key, what they are called there, what else there was."""

    tensors: dict[str, torch.Tensor]
    name: str
    others: list[str]


def read_pth(path: Path, weights: str | None = None) -> Found:
    """The weights of a network in a file that `torch.save` wrote, however deep in it, or in a safetensors file.

    Where there are several, `weights` names those to take; else the averaged ones are taken, if one alone is averaged.
    Only tensors and plain values are unpickled (torch's `weights_only`): a file that holds anything else is refused
    and none of it runs.
    """
    path = Path(path)
    tensors = {}
    for key, value in _flat(_content(path)).items():
        key = WRAPPERS.sub("", key)
        if key.rpartition(".")[2] not in COUNTERS:
            tensors[key] = value
    found = {}
    for first, mean in MARKS:
        for key in tensors:
            root = key.removesuffix(first)
            if key.endswith(first) and (not root or root.endswith(".")) and root + mean in tensors:
                found[root] = {key.removeprefix(root): tensors[key] for key in tensors if key.startswith(root)}
    if not found:
        first = ", ".join(list(tensors)[:3]) or "none"
        raise InputError(
            f"{path} has no network with torchvision's keys, timm's or this library's: save its state_dict() alone "
            f"(tensors in it: {one_line(first)})"
        )
    return _chosen(path, {root.rstrip(".") or "the file itself": found[root] for root in found}, tensors, weights)


def _content(path: Path):
    """What is in the file: tensors in containers."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(32)
    for beginning, what in BEGINNINGS.items():
        if start.startswith(beginning):
            raise InputError(f"{path} is {what}")
    try:
        if start[8:9] == b"{":
            from safetensors.torch import load

            return load(path.read_bytes())
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:  # torch compresses nothing, so what does would only grow
                if any(name.endswith("/constants.pkl") for name in file.namelist()):
                    raise InputError(f"{path} is TorchScript, a program: save torch.jit.load(...).state_dict() of it")
                if any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist()):
                    raise InputError(f"{path} is compressed, which no checkpoint of torch is")
        return torch.load(path, weights_only=True, map_location="cpu")
    except InputError:
        raise
    except Exception as error:  # of all kinds, on damaged files; what torch says of others is no advice to follow
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is what torch's own reader raises
            raise
        raise InputError(
            f"{path} is damaged or holds more than tensors: save the network's state_dict() alone"
        ) from None


def _flat(content) -> dict[str, torch.Tensor]:
    """The tensors in dicts and lists within each other, by their way there; each container is looked at once."""
    tensors, seen, waiting = {}, set(), [("", content)]
    while waiting:
        way, one = waiting.pop(0)
        if isinstance(one, torch.Tensor):
            tensors[way] = one
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            inner = one.items() if isinstance(one, dict) else enumerate(one)
            waiting += [(f"{way}.{key}" if way else str(key), value) for key, value in inner]
    return tensors


def _is_averaged(name: str) -> bool:
    return not AVERAGED.isdisjoint(re.split(r"[._]", name.lower()))


def _chosen(path: Path, found: dict[str, dict], tensors: dict, weights: str | None) -> Found:
    """Those of the weights `found` in a file that `weights` names, or that are its average, or the only ones."""
    names, mend = ", ".join(found), "name those to take by --weights"
    if weights:
        chosen = [name for name in found if name == weights or name.startswith(f"{weights}.")]
        if len(chosen) != 1:
            raise InputError(f"{path} has no weights called {weights!r}, or several: choose from {names}")
    else:
        chosen = [name for name in found if _is_averaged(name)] if len(found) > 1 else list(found)
        if len(chosen) != 1:
            raise InputError(f"{path} has the weights of several networks, {names}: {mend}")
        unread = [key for key, value in tensors.items() if _is_averaged(key) and value.dim()]
        if unread and not _is_averaged(chosen[0]):
            raise InputError(
                f"{path} has averages ({one_line(unread[0])} and others) that are no whole network: {mend} "
                f"({names}), or save the averaged network's state_dict()"
            )
    return Found(found[chosen[0]], chosen[0], [name for name in found if name != chosen[0]])


def from_timm(state: dict[str, torch.Tensor], architecture: Architecture) -> dict[str, torch.Tensor]:
    """The tensors of timm's V2 or V3 under this library's keys, for a network that gives the same logits.

    The batch norm of timm's V3 adds 1e-5 to the variance and ours 1e-3, which its weight makes up for.
    """
    if architecture.model == "v1":
        raise InputError("timm's V1 has ReLU6 where the paper's, built here, has ReLU")
    network = store.shapes(architecture)
    # The layers come in the same order in both. A counter has no name of its own here; `import_pth` adds it.
    ours = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    theirs = [key for key in state if not key.endswith("num_batches_tracked")]
    theirs.sort(key=lambda key: _timm_place(key, state))
    if len(ours) != len(theirs):
        raise InputError(f"timm's network has {len(theirs)} tensors where this one has {len(ours)}")
    renamed = dict(zip(ours, (state[key].clone() for key in theirs), strict=True))
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.eps != TIMM_EPS:
            variance = renamed[f"{name}.running_var"].double()
            factor = ((variance + module.eps) / (variance + TIMM_EPS)).sqrt()
            renamed[f"{name}.weight"] = (renamed[f"{name}.weight"].double() * factor).float()
        elif isinstance(module, nn.Linear) and renamed[f"{name}.weight"].dim() == 4:  # a 1x1 convolution there
            renamed[f"{name}.weight"] = renamed[f"{name}.weight"].flatten(1)
    return renamed


def _timm_place(key: str, state: dict) -> list[int]:
    """The place of a timm key among its network's, in the order of the layers; a file may have them in any other."""
    first, *middle, last = key.split(".")
    try:
        place = [TIMM_ORDER.index(first)]
        if middle:
            stage, block, layer, *inner = middle
            order = TIMM_INVERTED if f"blocks.{stage}.{block}.conv_pwl.weight" in state else TIMM_SEPARABLE
            place += [int(stage), int(block), order.index(layer), *map(TIMM_SE.index, inner)]
        return [*place, TIMM_KINDS.index(last)]
    except ValueError:
        raise InputError(f"tensor {one_line(key)} is in no V2 or V3 of timm") from None


def check(path: Path, run: str, models: Path) -> None:
    """Raise InputError if there is no file `path`, or if the run is there already: known before any image is read."""
    target = store.run_folder(run, models)
    if target.exists():
        raise InputError(f"{target} exists: choose another name or move it away")
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")


def import_pth(
    path: Path,
    run: str,
    models: Path,
    *,
    architecture: Architecture,
    dataset: Dataset,
    size: int = 32,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    weights: str | None = None,
) -> dict:
    """Make the weights in `path` the run called `run` in the folder `models`, measured on `dataset`.

    Returns its record, which tells where it comes from and that no more is known; there is no history.
    The keys must be those of `mnv3lib.build`, which for V2 and V3 are torchvision's, or timm's of V2 or V3, and the
    classes in the order of `dataset`. `size`, in pixels a side, and the normalisation, `mean` and `std`, are those that
    it was trained with; else the normalisation is the data set's here. `weights`: see `read_pth`.
    """
    whole("image size", size, *SIZES)
    check(path, run, models)
    found = read_pth(path, weights)
    try:
        state = found.tensors
        if timm := MARKS[1][0] in state:
            state = from_timm(state, architecture)
        expected = store.shapes(architecture).state_dict()
        for key, value in expected.items():
            if key.endswith("num_batches_tracked"):  # old versions of torch did not count
                state.setdefault(key, torch.zeros((), dtype=value.dtype))
            elif key in state and state[key].is_floating_point() and state[key].shape == value.shape:
                state[key] = state[key].float().contiguous()
        _refuse_torchvisions_widths(architecture, state)
        network = store.fill(architecture, state)
        store.set_metadata(network, dataset.classes, tuple(mean or dataset.mean), tuple(std or dataset.std))
        network.size = size
    except InputError as error:
        raise InputError(
            f"{path} does not fit {architecture.model} {architecture.width:g}: {error}; say model, width, penultimate "
            "layer and data set as they were in training"
        ) from None
    predictions = inference.best_five(network.eval(), dataset.test, size)
    parameters, macs = cost.totals(network, size)
    on = {"dataset": dataset.name, "data_digest": dataset.digest, "split": "full", "image_sizes": [size]}
    origin = {"file": Path(path).name, "sha256": store.digest(path)}
    origin |= {"weights": found.name, "not_taken": found.others, "keys": "timm" if timm else "torchvision"}
    record = {
        "run": run,
        "recipe": dataclasses.asdict(architecture) | on,
        "parameters": parameters,
        "macs": macs,
        "result": inference.accuracy(predictions),
        "environment": provenance.environment(),
        "commit": provenance.commit(),
        "started": provenance.now(),
        "seconds": 0.0,
        "images_per_second": 0.0,
        "imported": origin,
    } | ({"data": dataset.facts} if dataset.facts else {})
    store.save(models, record, [], network, predictions)
    return record


def _refuse_torchvisions_widths(architecture: Architecture, state: dict[str, torch.Tensor]) -> None:
    """Raise InputError if the tensors are of torchvision's V3 at a width where it has other channels than ours."""
    if architecture.width == 1 or architecture.model not in ("v3_small", "v3_large"):
        return
    from torchvision import models

    with torch.device("meta"):
        make = getattr(models, architecture.model.replace("v3", "mobilenet_v3"))
        theirs = make(width_mult=architecture.width, num_classes=architecture.num_classes).state_dict()
    ours = store.shapes(architecture).state_dict()
    if all(key in state and state[key].shape == value.shape for key, value in theirs.items()) and any(
        ours[key].shape != value.shape for key, value in theirs.items()
    ):
        raise InputError(
            "it is torchvision's, which narrows V3 in another way than the paper: only width 1 is the same network"
        )

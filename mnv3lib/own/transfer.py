"""Images of one's own: the recipe for them, and a trained network to start from."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from mnv3lib import recipe as recipes
from mnv3lib import store, training
from mnv3lib.data import Dataset
from mnv3lib.errors import InputError, local
from mnv3lib.networks import MobileNet
from mnv3lib.recipe import Architecture, Recipe

FEW, SMALL = 10, 32  # an epoch of fewer batches gets batches of so many images
# What a network takes from the one it starts from, where nothing else is said: all of its shape but the classes.
NOT_TAKEN = "num_classes", "dropout", "stochastic_depth", "norm_momentum", "initialization"
TAKEN = [field.name for field in dataclasses.fields(Architecture) if field.name not in NOT_TAKEN]
FIXED = "model", "width", "squeeze_excitation", "se_last", "penultimate"  # of these, what its weights are made for


def train(
    dataset: Dataset,
    start: str | Path | None = None,
    *,
    models: Path | None = None,
    log: Callable[[str], None] = print,
    **changes,
) -> MobileNet:
    """Train a network on `dataset` and return it; the run is kept in `models`, else where `store.folder_for` says.

    Arguments are those of `plan`. A run that is there already is not made again.
    """
    made, source = plan(dataset, start, models, **changes)
    training.train(made, dataset=dataset, start=source, models=models, log=log)
    return store.load(made.run, models or store.folder_for(made))


def plan(
    dataset: Dataset, start: str | Path | None = None, models: Path | None = None, recipe: str | None = None, **changes
) -> tuple[Recipe, MobileNet | None]:
    """The recipe for `dataset`, and the network to start from if `start` names one (see `find`).

    `recipe` is a named one, by default `finetune` with `start` and else `modern`; `changes` are of its fields. For
    images of one's own, the lowered strides follow the size of the images, and where an epoch would have fewer than FEW
    batches, batches are of SMALL images, at a learning rate that is as much lower.
    """
    if not isinstance(dataset, Dataset):
        raise InputError(f"dataset {dataset!r}: give what mnv3lib.data.folder or mnv3lib.data.load returns")
    recipe = recipe or ("finetune" if start else "modern")
    if recipe == "finetune" and not start:
        raise InputError("recipe finetune: name a trained network to start from")
    usual, source, fields = recipes.make(recipe), None, {"dataset": dataset.name}
    if start:
        source, fields["start"] = find(start, models)
        shape = {name: getattr(source.architecture, name) for name in TAKEN}
        for name in FIXED:
            if changes.get(name, shape[name]) != shape[name]:
                has = f"the network to start from has {shape[name]}: give that, or leave it out"
                raise InputError(f"{name} {changes[name]}: {has}")
        fields |= shape | {"image_sizes": [source.size]}
    asked = {name: changes[name] for name in ("image_sizes", "epochs") if name in changes}
    sizes = recipes.make(recipe, **asked).image_sizes if "image_sizes" in changes else ()
    if dataset.digest:
        size = dataset.train.images.shape[1]
        if sizes and dataset.test_files and max(sizes) != size:
            raise InputError(f"image_sizes {list(sizes)}: the images were read at {size} px: read them at {max(sizes)}")
        fields |= {"data_digest": dataset.digest, "num_classes": len(dataset.classes), "image_sizes": [size]}
        measured = sizes[-1] if sizes else size
        if not source or measured != source.size:
            fields["lowered_strides"] = recipes.strides_for(measured)
        if len(dataset.train) < FEW * usual.batch_size and not changes.keys() & {"batch_size", "learning_rate"}:
            smaller = SMALL / usual.batch_size
            fields |= {"batch_size": SMALL, "learning_rate": usual.learning_rate * smaller}
    made_before = re.fullmatch(r"[^/]+@[0-9a-f]{12}", str(start))  # as a recipe has it
    named = changes | ({"start": start} if made_before else {})
    for name in ("dataset", "data_digest", "start"):
        if named.get(name, fields.get(name)) != fields.get(name):
            raise InputError(f"{name}: the recipe has {named[name]!r}, and what is here is {fields.get(name)!r}")
    return recipes.make(recipe, **fields | changes), source


def size_for(sizes: Iterable[int] | None, start: str | Path | None = None, models: Path | None = None) -> int:
    """The pixels a side at which images are read: the largest of `sizes`, else what `start` takes, else 32."""
    if sizes:
        return max(sizes)
    return find(start, models)[0].size if start else 32


def find(start: str | Path, models: Path | None = None) -> tuple[MobileNet, str]:
    """The trained network `start`, the name of a run, its folder or a file of weights, and what a recipe calls it.

    A run is looked for in the folder `models`, among the trained models, and where runs on other data go.
    """
    path = local(start)
    if path.is_dir() and (path / store.WEIGHTS).is_file():
        path /= store.WEIGHTS
    if not path.is_file():
        if path.suffix == ".safetensors" or len(path.parts) > 1:
            raise InputError(f"there is no file {path}: name a trained run, or the file with its weights")
        run = str(start).split("@")[0]  # as a recipe has it, the digest of the weights stands behind
        folders = [Path(models)] if models else []
        folders += [store.models_folder(), store.trials_folder()]
        path = store.weights_file(run, next((one for one in folders if store.has(run, store.WEIGHTS, one)), folders[0]))
    name = path.resolve().parent.name if path.name == store.WEIGHTS else path.stem
    name = re.sub(r"[^A-Za-z0-9_.+-]", "-", name)[:200]
    return store.load_weights(path), f"{name}@{store.digest(path)[:12]}"

"""What may be passed to a notebook: checked by name, type and range before it runs, and again in its first cell."""

import ast
import json
import os
from collections.abc import Iterable
from pathlib import Path

import papermill

from mnv3lib import recipe, store
from mnv3lib.errors import InputError, choose, whole, within
from mnv3lib.provenance import ROOT
from mnv3lib.recipe import MAX_WIDTH, MODELS
from mnv3lib.study import ablations

NOTEBOOKS = ROOT / "notebooks"
# What a parameter is, where papermill's command line passes text for it or one value where a list is meant,
KINDS = {
    "changes": dict,
    **dict.fromkeys(("runs", "models", "widths", "batches", "closer_batches", "exported"), list),
    **dict.fromkeys(("recorded", "keep_weights", "compiled"), bool),
}
# which may be empty or None,
EMPTY = {"runs", "exported", "changes"}
OPTIONAL = {"data_folder", "save_to", "run_in_detail", "start"}
# and what may be passed for each that is no field of a recipe and no folder; of a list, for each value.
CHOICES = {"models": MODELS, "closer_model": MODELS, "device": ("auto", "cpu", "cuda")}
WHOLE = recipe.WHOLE | {  # from, to
    "batches": (1, 100_000),
    "closer_batches": (1, 100_000),
    "size": (8, 512),
    "paper_size": (8, 512),
    "paper_classes": (1, 100_000),
    "spiral_seeds": (1, 10_000),
    "threads": (0, 1024),
}
ABOVE_ZERO = {"widths": MAX_WIDTH, "closer_width": MAX_WIDTH, "seconds": 3600}  # up to
RUNS = {"run", "runs", "run_in_detail", "exported"}


def defaults(notebook: Path) -> dict:
    """The parameters of a notebook with their defaults; None where one is no literal."""
    found = {}
    for name, told in papermill.inspect_notebook(str(notebook)).items():
        try:
            found[name] = ast.literal_eval(told["default"])
        except (ValueError, SyntaxError):
            found[name] = None
    return found


def settle(notebook: str, namespace: dict) -> None:
    """Check the parameters in the `namespace` of the notebook of this name, and put there what they mean.

    The first cell calls it: papermill only warns of a name that the notebook does not have, and hours of training by
    the defaults would follow. Relative folders are meant from the notebook's folder, wherever its kernel was started.
    """
    path = NOTEBOOKS / f"{notebook}.ipynb"
    known = defaults(path)
    missing = sorted(known.keys() - namespace.keys())
    if missing:
        raise InputError(f"{path.name}: the cell of parameters should set {', '.join(missing)}: run it first")
    values = check(path, dict.fromkeys(_injected(namespace.get("In", ()))) | {name: namespace[name] for name in known})
    for name, value in values.items():
        if _is_folder(name) and value is not None:
            values[name] = value if Path.cwd() == NOTEBOOKS else os.path.normpath(NOTEBOOKS / value)
    if "data_folder" in values and values["data_folder"] is None and not os.environ.get("MNV3_DATA"):
        values["data_folder"] = str(ROOT / "data")  # or it would be fetched into the folder of the notebooks
    namespace.update(values)


def _injected(cells: Iterable[str]) -> list[str]:
    """The names that papermill has set, in the newest cell of its own among those that have run."""
    own = [cell for cell in cells if cell.startswith("# Parameters\n")]
    nodes = ast.parse(own[-1]).body if own else []
    return [node.targets[0].id for node in nodes if isinstance(node, ast.Assign)]


def check(notebook: Path, parameters: dict) -> dict:
    """The `parameters` as they are meant: a list or mapping where text is passed for it, a list of one for one value.

    Raises InputError for one that the notebook does not have, or whose value it cannot work with. That is another type
    than its default's, a value that the tables above do not allow, or fields that make no recipe.
    """
    known, meant = defaults(notebook), {}
    try:
        for name in parameters:
            choose("parameter", name, known)
        for name, value in parameters.items():
            meant[name] = _read(name, value)
            _check_value(name, meant[name], known[name])
        if {"model", "changes"} <= known.keys():
            _check_recipe(known | meant)
    except InputError as error:
        raise InputError(f"{notebook.name}: {error}") from None
    return meant


def _is_folder(name: str) -> bool:
    return name.endswith("_folder") or name == "save_to"


def _read(name: str, value):
    """`value` as it is meant: see `check`."""
    kind = KINDS.get(name)
    if _is_folder(name) and isinstance(value, str | os.PathLike):
        return os.path.expanduser(value)  # noqa: PTH111 (which raises where there is no such user)
    if kind and isinstance(value, str):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(value)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
            if isinstance(found, kind | tuple):  # else it is a name
                value = found
                break
    if kind is list and not isinstance(value, dict | None):
        value = list(value) if isinstance(value, list | tuple) else [value]
    return value


def _check_value(name: str, value, default) -> None:
    """Raise InputError unless `value`, as `_read` returned it, may be passed for `name`."""
    if value is None and (name in OPTIONAL or (default is None and not _is_folder(name))):
        return
    kind = str if _is_folder(name) else KINDS.get(name, type(default))
    fits = isinstance(value, float | int if kind is float else kind) and isinstance(value, bool) <= (kind is bool)
    if kind is not type(None) and not fits:
        raise InputError(f"{name}={value!r} should be {kind.__name__}")
    if kind in (list, dict) and not value and name not in EMPTY:
        raise InputError(f"{name} {value!r}: give at least one")
    for one in value if isinstance(value, list) else [value]:
        if name in CHOICES:
            choose(name, one, CHOICES[name])
        elif name in WHOLE:
            whole(name, one, *WHOLE[name])
        elif name in ABOVE_ZERO:
            within(name, one, 0, ABOVE_ZERO[name], above=True)
        elif name in RUNS:
            if not isinstance(one, str):
                raise InputError(f"{name} {one!r}: give names of runs")
            store.run_folder(one)


def _check_recipe(values: dict) -> None:
    """`values` of all parameters of a notebook that trains, or that compares variants of an axis."""
    for name in values["changes"]:
        choose("field of a recipe", name, recipe.DEFAULTS)
    fields = {name: value for name, value in values.items() if name in recipe.DEFAULTS.keys() - {"variant", "start"}}
    twice = sorted(fields.keys() & values["changes"].keys())
    if twice:
        raise InputError(f"changes: {', '.join(twice)} is a parameter of its own, set it there")
    if "axis" in values:
        own = {name: value for name, value in fields.items() if name not in ablations.varied(values["axis"])}
        made = ablations.recipes(values["axis"], **own | values["changes"])
        choose(f"variant of {values['axis']}", values["variant"], made)
    else:
        fields = {name: value for name, value in (fields | values["changes"]).items() if value is not None}
        own = values["data_folder"] and fields.get("dataset") not in recipe.DATASETS
        if own and "data_digest" not in fields:
            fields.pop("dataset", None)  # which is known when the images have been read
        recipe.make(**fields | {"start": "given" if values["start"] else ""})

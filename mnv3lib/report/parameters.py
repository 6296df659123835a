"""What may be passed to a notebook: checked by name, type and range before anything runs."""

import ast
from pathlib import Path

import papermill

from mnv3lib import recipe, store
from mnv3lib.errors import InputError, choose, whole, within
from mnv3lib.recipe import MAX_WIDTH, MODELS
from mnv3lib.study import ablations

# What may be passed for each parameter that is no field of a recipe, no folder and no bool; of a list, for each value.
CHOICES = {"models": MODELS, "closer_model": MODELS, "device": ("auto", "cpu", "cuda")}
WHOLE = recipe.WHOLE | {  # from, to
    "batches": (1, 100_000),
    "closer_batches": (1, 100_000),
    "training_batch": (2, 100_000),
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


def check(notebook: Path, parameters: dict) -> None:
    """Raise InputError for a parameter that the notebook does not have, or whose value it cannot work with.

    That is another type than its default's, a value that the tables above do not allow, or fields that make no recipe.
    papermill itself only warns of an unknown name, and runs with the default.
    """
    known = defaults(notebook)
    try:
        for name, value in parameters.items():
            choose("parameter", name, known)
            if value is not None:
                _check_value(name, value, known[name])
        if {"model", "changes"} <= known.keys():
            _check_recipe(known | parameters)
    except InputError as error:
        raise InputError(f"{notebook.name}: {error}") from None


def _check_value(name: str, value, default) -> None:
    whole_number = type(value) is int and type(default) is float  # 1 for 1.0
    if default is not None and type(value) is not type(default) and not whole_number:
        raise InputError(f"{name}={value!r} should be {type(default).__name__}, as {default!r} is")
    for one in value if isinstance(value, list) else [value]:
        if name in CHOICES:
            choose(name, one, CHOICES[name])
        elif name in WHOLE:
            whole(name, one, *WHOLE[name])
        elif name in ABOVE_ZERO:
            within(name, one, 0, ABOVE_ZERO[name], above=True)
        elif name in RUNS:
            store.run_folder(str(one))


def _check_recipe(values: dict) -> None:
    """`values` of all parameters of a notebook that trains, or that compares variants of an axis."""
    fields = {name: value for name, value in values.items() if name in recipe.DEFAULTS and name != "variant"}
    twice = sorted(fields.keys() & values["changes"].keys())
    if twice:
        raise InputError(f"changes: {', '.join(twice)} is a parameter of its own, set it there")
    if "axis" in values:
        own = {name: value for name, value in fields.items() if name not in ablations.varied(values["axis"])}
        made = ablations.recipes(values["axis"], **own | values["changes"])
        choose(f"variant of {values['axis']}", values["variant"], made)
    else:
        recipe.make(**fields | values["changes"])

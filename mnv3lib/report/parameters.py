"""What may be passed to a notebook: checked by name, type and range before anything runs."""

import ast
from collections.abc import Callable
from pathlib import Path

import papermill

from mnv3lib import recipe, store
from mnv3lib.errors import InputError, choose, whole, within
from mnv3lib.recipe import MAX_WIDTH, MODELS, STRIDES
from mnv3lib.study import ablations


def _each(rule: Callable) -> Callable:
    """The rule for a list of such values."""

    def check(name: str, values: list) -> None:
        for value in values:
            rule(name, value)

    return check


def _one_of(*choices: str) -> Callable:
    return lambda name, value: choose(name, value, choices)


def _from(low: int, high: int) -> Callable:
    return lambda name, value: whole(name, value, low, high)


def _width(name: str, value: float) -> None:
    within(name, value, 0, MAX_WIDTH, above=True)


def _run(name: str, value: str) -> None:
    store.run_folder(str(value))


# Of every parameter that is no field of a recipe, no folder and no bool.
RULES = {
    "models": _each(_one_of(*MODELS)),
    "widths": _each(_width),
    "batches": _each(_from(1, 100_000)),
    "size": _from(8, 512),
    "device": _one_of("auto", "cpu", "cuda"),
    "threads": _from(0, 1024),
    "seconds": lambda name, value: within(name, value, 0, 3600, above=True),
    "closer_model": _one_of(*MODELS),
    "closer_width": _width,
    "closer_batches": _each(_from(1, 100_000)),
    "training_batch": _from(2, 100_000),
    "exported": _each(_run),
    "run": _run,
    "runs": _each(_run),
    "run_in_detail": _run,
    "paper_size": _from(8, 512),
    "paper_classes": _from(1, 100_000),
    "num_classes": _from(1, 100_000),
    "lowered_strides": _from(0, STRIDES),
    "spiral_seeds": _from(1, 10_000),
}


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

    That is another type than its default's, what RULES do not allow, or fields that make no recipe. papermill itself
    only warns of an unknown name, and runs with the default.
    """
    known = defaults(notebook)
    try:
        for name, value in parameters.items():
            choose("parameter", name, known)
            if value is not None:
                _check_type(name, value, known[name])
                if name in RULES:
                    RULES[name](name, value)
        if {"model", "changes"} <= known.keys():
            _check_recipe(known | parameters)
    except InputError as error:
        raise InputError(f"{notebook.name}: {error}") from None


def _check_type(name: str, value, default) -> None:
    whole_number = type(value) is int and type(default) is float  # 1 for 1.0
    if default is not None and type(value) is not type(default) and not whole_number:
        raise InputError(f"{name}={value!r} should be {type(default).__name__}, as {default!r} is")


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

"""The axes of notebook 05 and the claims that they test, read from notebooks/ablations.yaml and checked."""

import dataclasses
import functools
import math
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field
from pathlib import Path

import yaml

from mnv3lib import recipe
from mnv3lib.errors import InputError, choose, one_line
from mnv3lib.provenance import ROOT

FILE = ROOT / "notebooks" / "ablations.yaml"
KINDS = {str: "text", bool: "true or false", float: "a number", list: "a list", dict: "a mapping"}


@dataclass(frozen=True)
class Axis:
    """One question; `variants` gives each variant's change to the base.

    setting: where the base itself is another than the file's `setting` says.
    same_budget: give each variant the learning rate that makes its mean over the run the base's.
    """

    question: str
    variants: dict
    setting: dict = field(default_factory=dict)
    same_budget: bool = False


@dataclass(frozen=True)
class Claim:
    """That the difference of `variants` to `against` (the base if empty), in points, lies between `low` and `high`.

    every: whether for each of the variants, or for at least one. question: whether the earlier report only asked.
    """

    text: str
    axis: str
    variants: list
    low: float = -math.inf
    high: float = math.inf
    against: str = ""
    every: bool = True
    question: bool = False


@dataclass(frozen=True)
class Study:
    """All that the file says: the base's `setting` and seeds, the axes by name, the runs to make first, the claims."""

    setting: dict
    base_seeds: list
    axes: dict
    first: list
    claims: list


@functools.cache
def read(path: Path = FILE) -> Study:
    """What the file says, read once a process. Raises InputError, with the key, on what makes no recipe or no test."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no {path}, which lists the ablations: work in a checkout") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} is no YAML: {one_line(error)}") from None
    with _at(path):
        study = _made(Study, content)
        with _at("setting and base_seeds"):
            for seed in study.base_seeds:
                _recipe(study.setting, {"seed": seed})
        axes = {name: _axis(name, given, study.setting) for name, given in study.axes.items()}
        for name in study.first:
            with _at(f"first, {name}"):
                axis, _, variant = str(name).partition("/")
                choose("axis", axis, axes)
                choose("variant", variant, axes[axis].variants)
        claims = [_claim(number, given, axes) for number, given in enumerate(study.claims, 1)]
    return dataclasses.replace(study, axes=axes, claims=claims)


def _axis(name: str, given: object, setting: dict) -> Axis:
    with _at(f"axes, {name}"):
        axis = _made(Axis, given)
        if not axis.variants:
            raise InputError("variants: name at least one")
        for variant, change in axis.variants.items():
            with _at(variant):
                _recipe(setting, axis.setting, change, {"variant": f"{name}-{variant}"})
    return axis


def _claim(number: int, given: object, axes: dict[str, Axis]) -> Claim:
    with _at(f"claims, number {number}"):
        claim = _made(Claim, given)
        choose("axis", claim.axis, axes)
        for name in [*claim.variants, claim.against or "base"]:
            choose("variant", name, ["base", *axes[claim.axis].variants])
        if not claim.variants or claim.low >= claim.high:
            raise InputError("give it variants, and a low that is below high")
    return claim


def _recipe(*changes: object) -> None:
    """Raise InputError unless all `changes` together make a recipe."""
    fields = {}
    for change in changes:
        if not isinstance(change, dict) or not all(isinstance(name, str) for name in change):
            raise InputError("give the fields of a recipe that it changes")
        if fields.keys() & change.keys() & {"variant"}:
            raise InputError("variant: its name is that already")
        fields |= change
    recipe.make(**fields)


def _made(kind: type, given: object):
    """A `kind` of the mapping `given`, with names and types checked."""
    fields = {one.name: one for one in dataclasses.fields(kind)}
    if not isinstance(given, dict):
        raise InputError(f"give a mapping of {', '.join(fields)}")
    for name, value in given.items():
        choose("key", name, fields)
        wanted = fields[name].type
        if not isinstance(value, wanted) and not (wanted is float and type(value) is int):
            raise InputError(f"{name} {value!r} should be {KINDS[wanted]}")
        if wanted is dict and (numbers := [key for key in value if not isinstance(key, str)]):
            raise InputError(f"{name}: put {numbers[0]!r} in quotes, or it is no name")
    lacking = [name for name, one in fields.items() if name not in given and one.default is one.default_factory is MISSING]
    if lacking:
        raise InputError(f"{', '.join(lacking)} is missing")
    return kind(**given)


@contextmanager
def _at(place: object):
    """Put `place` before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None

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
KINDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
}


@dataclass(frozen=True)
class Axis:
    """One question; `variants` gives each variant's change to the base.

    setting: where the base itself is another than the study's `setting` says.
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
    seeds: of each variant and of what it is set against, as planned before these runs. told: a variant in words, where
    its name is too short to be understood beside the claim.
    """

    text: str
    axis: str
    variants: list
    low: float = -math.inf
    high: float = math.inf
    against: str = ""
    every: bool = True
    question: bool = False
    seeds: int = 3
    told: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """The file: setting and seeds of the base, the axes by name, what `plan` takes for `first`, and the claims.

    planned: the day on which the tests of the claims and their seeds were fixed.
    """

    setting: dict
    base_seeds: list
    axes: dict
    first: list
    claims: list
    planned: str = ""


@functools.cache
def read(path: Path | None = None) -> Study:
    """What the file says (default: FILE). It is read once a process.

    Raises InputError, with the file and the key, on what makes no recipe or no test.
    """
    path = path or FILE
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no {path}, which lists the ablations: work in a checkout") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: {one_line(error)}") from None
    with _at(path):
        study = _made(Study, content)
        with _at("setting, base_seeds"):
            for seed in study.base_seeds:
                _check_recipe(study.setting, {"seed": seed})
        axes, claims = {}, []
        for name, given in study.axes.items():
            with _at(f"axes, {name}"):
                axes[name] = axis = _made(Axis, given)
                for variant, change in axis.variants.items():
                    with _at(variant):
                        _check_recipe(study.setting, axis.setting, change, variant=f"{name}-{variant}")
        for name in study.first:
            with _at(f"first, {name}"):
                _check_variant(axes, *str(name).split("/", 1))
        for number, given in enumerate(study.claims, 1):
            with _at(f"claims, number {number}"):
                claims.append(claim := _made(Claim, given))
                for name in [*claim.variants, claim.against or "base", *claim.told]:
                    _check_variant(axes, claim.axis, name)
                if not claim.low < claim.high:
                    raise InputError("its low should be below its high")
    return dataclasses.replace(study, axes=axes, claims=claims)


@contextmanager
def _at(place: object):
    """Put `place` before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def _check_recipe(*changes: object, **name: str) -> None:
    """Raise InputError unless all `changes` together make a recipe that can have this `name`."""
    fields = {}
    for change in changes:
        if not isinstance(change, dict):
            raise InputError(f"{change!r} should be fields of a recipe")
        fields |= change
    for one in fields:
        choose("field of a recipe", one, [name for name in recipe.DEFAULTS if name != "variant"])
    recipe.make(**fields, **name)


def _check_variant(axes: dict[str, Axis], axis: str, variant: str = "base") -> None:
    choose("axis", axis, axes)
    choose(f"variant of {axis}", variant, ["base", *axes[axis].variants])


def _made(kind: type, given: object):
    """A `kind` of the mapping `given`; names, types, and that nothing is missing or empty, are checked."""
    fields = {one.name: one for one in dataclasses.fields(kind)}
    if not isinstance(given, dict):
        raise InputError(f"give a mapping of {', '.join(fields)}")
    for name, value in given.items():
        choose("key", name, fields)
        wanted = fields[name].type
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise InputError(f"{name} {value!r} should be {KINDS[wanted]}")
        for key in value if wanted is dict else ():
            if not isinstance(key, str):  # YAML took it for a number
                raise InputError(f"{name}: put {key!r} in quotes")
    for name, one in fields.items():
        if one.default is one.default_factory is MISSING and not given.get(name):
            raise InputError(f"{name} is missing")
    return kind(**given)

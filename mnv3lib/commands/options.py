"""What the commands share: the parser, common options, an option for each field of a recipe."""

import argparse
import dataclasses
import os
import sys
import types
from pathlib import Path

from mnv3lib import provenance, recipe
from mnv3lib.errors import InputError, local
from mnv3lib.recipe import Recipe

ALIASES = {"small": "v3_small", "large": "v3_large"}
OTHER_NAMES = {"epochs": ["--iter"], "batch_size": ["--batch"], "image_sizes": ["--image-size"]}


class Parser(argparse.ArgumentParser):
    """argparse with one line an error."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def add_shared(command: Parser, *names: str) -> None:
    """The options of these names, which are the same for several commands."""
    try:
        models = provenance.place("trained_models", "MNV3_MODELS")
    except InputError:  # argparse reads text with `path` and tells, but not before --help
        models = os.environ["MNV3_MODELS"]
    shared = {
        "models": dict(type=path, default=models, help="the folder of trained models"),
        "data": dict(
            type=folder,
            help="the folder of CIFAR-100 (else MNV3_DATA, else ./data), or of your own images (else where they were)",
        ),
        "threads": dict(type=positive, help="how many threads torch takes (else as many as there are cores)"),
        "format": dict(default="table", choices=["table", "csv", "json"], help="how the output is written"),
    }
    for name in names:
        command.add_argument(f"--{name}", **shared[name])


def use_threads(options: argparse.Namespace) -> None:
    """Give torch the threads that --threads names."""
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)


def path(text: str) -> Path:
    try:
        return local(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(error) from None


def folder(text: str) -> Path:
    found = path(text)
    if not found.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {found}")
    return found


def positive(text: str) -> int:
    value = integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1 on")
    return value


def integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number, with a point for decimals") from None


def model(text: str) -> str:
    return ALIASES.get(text, text)


def add_recipe_fields(command, *, several: bool = False) -> None:
    """An option for each field of a recipe; its help is what the docstring says and the named recipes' values."""
    texts = recipe.meanings()
    for field in dataclasses.fields(Recipe):
        if field.name in ("recipe", "num_classes", "data_digest", "start"):
            continue
        kind = field.type.__args__[0] if isinstance(field.type, types.UnionType) else field.type
        by_kind = {bool: truth, int: integer, float: number}
        read = {"model": model, "image_sizes": sizes}.get(field.name, by_kind.get(kind, kind))
        count = {"nargs": "+"} if several else {"nargs": "?", "const": True} if kind is bool else {}
        command.add_argument(
            f"--{field.name.replace('_', '-')}",
            *OTHER_NAMES.get(field.name, []),
            dest=field.name,
            type=read,
            metavar={model: "MODEL", sizes: "PIXELS,...", truth: "{true,false}"}.get(read, kind.__name__.upper()),
            default=argparse.SUPPRESS,
            help=f"{texts[field.name]} (default: {default_of(field.name)})".replace("%", "%%"),
            **count,
        )


def default_of(name: str) -> str:
    """What the named recipes have for a field, in words."""
    told = {}
    for one in recipe.RECIPES:
        narrow, wide = (getattr(recipe.make(one, width=width), name) for width in (recipe.WIDE / 2, recipe.WIDE))
        told[one] = str(getattr(recipe.make(one), name))
        if narrow != wide and name != "width":
            told[one] = f"{narrow} below width {recipe.WIDE:g} and {wide} from there on"
    if name == "image_sizes":
        return ",".join(map(str, recipe.DEFAULTS[name]))
    if len(set(told.values())) > 1:
        return ", ".join(f"{one}: {value}" for one, value in told.items())
    return told["modern"] or "none"


def truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: give true or false")
    return text.lower() == "true"


def sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        mend = "give pixels a side as one whole number, or several with commas (20,24,32)"
        raise argparse.ArgumentTypeError(f"{text!r}: {mend}") from None


def given(options: argparse.Namespace) -> dict:
    """The fields of a recipe that the options name."""
    return {name: value for name, value in vars(options).items() if name in recipe.DEFAULTS}


def note(line: str) -> None:
    """A line beside the output."""
    print(f"mnv3: {line}", file=sys.stderr)

"""What the commands share: the parser, common options, an option for each field of a recipe."""

import argparse
import dataclasses
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
    models = provenance.place("trained_models", "MNV3_MODELS")
    shared = {
        "models": dict(type=path, default=models, help="the folder of trained models"),
        "data": dict(
            type=folder,
            help="the folder of CIFAR-100 (else MNV3_DATA, else ./data), or of your own images (else where they were)",
        ),
        "threads": dict(type=positive, help="threads of torch (else as many as there are cores)"),
        "format": dict(default="table", choices=["table", "csv", "json"], help="of the output"),
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
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def model(text: str) -> str:
    return ALIASES.get(text, text)


def add_recipe_fields(command, *, several: bool = False) -> None:
    """An option for each field of a recipe; its help is what the docstring says and the named recipes' values."""
    named = {name: recipe.make(name) for name in recipe.RECIPES}
    texts = recipe.meanings()
    for field in dataclasses.fields(Recipe):
        if field.name in ("recipe", "num_classes", "data_digest", "start"):
            continue
        values = {name: getattr(made, field.name) for name, made in named.items()}
        same = len(set(values.values())) == 1
        default = values["modern"] if same else ", ".join(f"{name}: {value}" for name, value in values.items())
        kind = field.type.__args__[0] if isinstance(field.type, types.UnionType) else field.type
        read = {"model": model, "image_sizes": sizes}.get(field.name, truth if kind is bool else kind)
        count = {"nargs": "+"} if several else {"nargs": "?", "const": True} if kind is bool else {}
        command.add_argument(
            f"--{field.name.replace('_', '-')}",
            *OTHER_NAMES.get(field.name, []),
            dest=field.name,
            type=read,
            metavar={model: "MODEL", sizes: "PIXELS,..."}.get(read, kind.__name__.upper()),
            default=argparse.SUPPRESS,
            help=f"{texts[field.name]} (default: {default})".replace("%", "%%"),
            **count,
        )


def truth(text: str) -> bool:
    return bool(("false", "true").index(text.lower()))


def sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def given(options: argparse.Namespace) -> dict:
    """The fields of a recipe that the options name."""
    return {name: value for name, value in vars(options).items() if name in recipe.DEFAULTS}


def note(line: str) -> None:
    """A line beside the output."""
    print(f"mnv3: {line}", file=sys.stderr)

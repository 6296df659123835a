"""The command line: `mnv3`, or `python -m mnv3lib`."""

import argparse
import dataclasses
import signal
import sys
import types
import typing
from pathlib import Path

import torch

from mnv3lib import data, recipe, store, training
from mnv3lib.errors import InputError
from mnv3lib.recipe import Recipe

ALIASES = {"small": "v3_small", "large": "v3_large"}
OTHER_NAMES = {"epochs": ["--iter"], "batch_size": ["--batch"]}


class Parser(argparse.ArgumentParser):
    """argparse with one line an error."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a failure, 2 for bad usage, 130 when interrupted."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if getattr(options, "threads", None):
            torch.set_num_threads(options.threads)
        return options.command(options) or 0
    except (InputError, OSError, training.DivergedError) as error:
        print(f"mnv3: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mnv3: interrupted", file=sys.stderr)
        return 130


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="mnv3", description=__doc__.splitlines()[0], formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_train(commands)
    return parser


def add_command(commands, name: str, function, text: str) -> Parser:
    command = commands.add_parser(
        name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    command.set_defaults(command=function)
    return command


def add_common(command: Parser) -> None:
    command.add_argument("--models", type=Path, default=store.models_folder(), help="the folder of trained models")
    command.add_argument("--data", type=Path, help="the folder of CIFAR-100 (else MNV3_DATA, else ./data)")
    command.add_argument("--threads", type=positive, help="threads of torch (else as many as there are cores)")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def model(text: str) -> str:
    return ALIASES.get(text, text)


def add_train(commands) -> None:
    command = add_command(commands, "train", train, "Train one model, or go on with a run that was stopped.")
    add_common(command)
    command.add_argument("--recipe", default="modern", choices=recipe.RECIPES, help="what is not given here is as in")
    command.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    command.add_argument("--no-weights", action="store_true", help="keep record and history alone")
    fields = command.add_argument_group("the recipe (documented in mnv3lib.networks.Architecture and mnv3lib.Recipe)")
    add_recipe_fields(fields)


def add_recipe_fields(command) -> None:
    """An option for each field of a recipe, with the named recipes' values as its help."""
    named = {name: recipe.make(name) for name in recipe.RECIPES}
    hints = typing.get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        if field.name in ("recipe", "num_classes"):
            continue
        names = [f"--{field.name.replace('_', '-')}", *OTHER_NAMES.get(field.name, [])]
        values = {name: getattr(made, field.name) for name, made in named.items()}
        default = (
            str(values["modern"])
            if len(set(values.values())) == 1
            else ", ".join(f"{n}: {v}" for n, v in values.items())
        )
        options = {"dest": field.name, "default": argparse.SUPPRESS, "help": f"(default: {default})"}
        kind = hints[field.name]
        if kind is bool:
            command.add_argument(*names, action=argparse.BooleanOptionalAction, **options)
        elif field.name == "image_sizes":
            command.add_argument(*names, type=int, nargs="+", metavar="PIXELS", **options)
        else:
            if isinstance(kind, types.UnionType):
                kind = kind.__args__[0]
            command.add_argument(
                *names, type=model if field.name == "model" else kind, metavar=kind.__name__.upper(), **options
            )


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe that the options describe."""
    names = {field.name for field in dataclasses.fields(Recipe)} - {"recipe"}
    return recipe.make(options.recipe, **{name: value for name, value in vars(options).items() if name in names})


def train(options: argparse.Namespace) -> None:
    made = recipe_of(options)
    record = training.train(
        made,
        dataset=data.load(made.dataset, options.data),
        models=options.models,
        weights=not options.no_weights,
        overwrite=options.overwrite,
    )
    result = record["result"]
    print(f"{record['run']}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % on {result['images']:,} images")


if __name__ == "__main__":
    sys.exit(main())

"""Train one model, or go on with a run that was stopped."""

import argparse
from pathlib import Path

from mnv3lib import recipe
from mnv3lib.commands.options import add_recipe_fields, add_shared, given, use_threads


def add(command) -> None:
    command.add_argument(
        "--models", type=Path, help="where it goes (else trained_models; if on other data or shorter, to build)"
    )
    add_shared(command, "data", "threads")
    command.add_argument("--recipe", default="modern", choices=recipe.RECIPES, help="what is not given here is as in")
    command.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    command.add_argument("--no-weights", action="store_true", help="keep record and history alone")
    fields = command.add_argument_group("the recipe (documented in mnv3lib.networks.Architecture and mnv3lib.Recipe)")
    add_recipe_fields(fields)


def run(options: argparse.Namespace) -> None:
    made = recipe.make(**given(options))
    from mnv3lib import data, store, training
    from mnv3lib.study import dead_channels

    use_threads(options)
    models = options.models or store.folder_for(made)
    record = training.train(
        made,
        dataset=data.load(made.dataset, options.data),
        models=models,
        weights=not options.no_weights,
        overwrite=options.overwrite,
        more=dead_channels.of_run,
    )
    result = record["result"]
    print(
        f"{record['run']}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % on {result['images']:,} images, "
        f"in {models}"
    )

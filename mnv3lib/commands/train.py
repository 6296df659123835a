"""Train one model, or go on with a run that was stopped."""

import argparse

from mnv3lib import recipe
from mnv3lib.commands.options import add_recipe_fields, add_shared, given, use_threads


def add(command) -> None:
    add_shared(command, "models", "data", "threads")
    command.add_argument("--recipe", default="modern", choices=recipe.RECIPES, help="what is not given here is as in")
    command.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    command.add_argument("--no-weights", action="store_true", help="keep record and history alone")
    fields = command.add_argument_group("the recipe (documented in mnv3lib.networks.Architecture and mnv3lib.Recipe)")
    add_recipe_fields(fields)


def run(options: argparse.Namespace) -> None:
    made = recipe.make(**given(options))
    from mnv3lib import data, training
    from mnv3lib.study import dead_channels

    use_threads(options)
    record = training.train(
        made,
        dataset=data.load(made.dataset, options.data),
        models=options.models,
        weights=not options.no_weights,
        overwrite=options.overwrite,
        more=dead_channels.of_run,
    )
    result = record["result"]
    print(f"{record['run']}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % on {result['images']:,} images")

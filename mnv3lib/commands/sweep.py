"""Train a grid of runs, each through notebook 02, side by side on this machine or on a Dask cluster.

Runs that have their record are skipped, and interrupted ones go on.
"""

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

from mnv3lib.commands.options import add_recipe_fields, given, note, path, positive
from mnv3lib.errors import InputError, choose
from mnv3lib.provenance import cores


def add(command) -> None:
    command.add_argument("file", nargs="?", type=path, help="a YAML file with a list of grids under `runs`")
    command.add_argument(
        "--ablation",
        nargs="+",
        metavar="AXIS",
        help="the runs of an axis of notebook 05, of one variant (AXIS/VARIANT), the seeds that decide the claims "
        "(claims), those that tell most for their time (first) or all; records only; --seed takes several. An unknown "
        "axis lists them",
    )
    command.add_argument(
        "--transfer",
        choices=["runs", "tuning"],
        help="the runs of notebooks/transfer.yaml on classes with few pictures, one after the other; records only",
    )
    command.add_argument(
        "--models",
        type=path,
        help="where the runs go (else trained_models; if on other data or shorter, to build; ablations: their folder)",
    )
    command.add_argument("--data", type=path, metavar="FOLDER", help="as of mnv3 train")
    command.add_argument("--from", dest="start_from", metavar="RUN", help="as of mnv3 train")
    command.add_argument("--executed", type=path, default=Path("build/sweep"), help="where the executed notebooks go")
    command.add_argument("--no-weights", action="store_true", help="keep records and histories alone")
    command.add_argument("--workers", type=positive, default=cores(), help="runs side by side on this machine")
    command.add_argument("--threads", type=positive, default=1, help="threads of each run")
    command.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that runs already")
    command.add_argument("--scheduler-file", type=path, help="that a Dask scheduler wrote")
    command.add_argument("--dry-run", action="store_true", help="only list the runs and whether they are done")
    fields = command.add_argument_group(
        "the grid: one or several values for any field of the recipe (with --ablation, several of --seed alone)"
    )
    fields.add_argument("--recipe", nargs="+", default=argparse.SUPPRESS, help="(default: modern)")
    add_recipe_fields(fields, several=True)


def run(options: argparse.Namespace) -> int:
    fields = given(options)
    if options.transfer and not (fields or options.ablation or options.file):
        return make_transfer(options)
    if bool(options.file) == bool(fields or options.ablation) or options.transfer:
        raise InputError(
            "name either a YAML file or fields of the recipe, e.g. --model small large --width 0.25 0.5, or --ablation"
        )
    # Dask and Jupyter are slow to import.
    from mnv3lib import checkpoint, data, store, training
    from mnv3lib.report import sweep
    from mnv3lib.study import ablations, results

    models = options.models
    if options.ablation:
        if options.start_from or "finetune" in fields.get("recipe", ()):
            raise InputError("--ablation: its runs start from random weights: leave out --from and the recipe finetune")
        models = models or ablations.folder()
        seeds = fields.pop("seed", ())
        several = [name for name, values in fields.items() if len(values) > 1]
        if several:
            raise InputError(f"{', '.join(several)}: with --ablation only --seed takes several values")
        planned = ablations.plan(options.ablation, seeds, **{name: one for name, (one,) in fields.items()})
        recipes = ablations.missing(planned, ablations.load_records(models), models)
        if len(recipes) < len(planned):
            say = print if options.dry_run else note
            say(f"{len(planned) - len(recipes)} of {len(planned)} runs are recorded already")
    else:
        make = planner(options)
        recipes = sweep.distinct(sweep.read(options.file, make) if options.file else sweep.grid(make, **fields))
    start = options.start_from
    if start and (Path(start).is_file() or (Path(start) / store.WEIGHTS).is_file()):  # notebooks have their own folder
        start = str(Path(start).absolute())
    folders = {made: models or store.folder_for(made) for made in recipes}
    places = {"cifar100": data.cifar100_folder(options.data).absolute(), "digits": None}
    own = options.data and options.data.absolute()
    jobs = [
        sweep.Job(
            made,
            models=folders[made].absolute(),
            checkpoints=checkpoint.base_folder().absolute(),
            executed=options.executed.absolute(),
            data=places.get(made.dataset, own),
            start=start,
            threads=options.threads,
            weights=not (options.no_weights or options.ablation),
        )
        for made in recipes
    ]
    for job in jobs:  # before hours of training, not after them
        training.made_already(job.recipe, job.models, job.weights)
    if options.dry_run:
        for job in jobs:
            print(f"{job.run}: {'done' if job.is_done else f'{job.epochs_done} of {job.recipe.epochs} epochs'}")
        return 0
    for name in {made.dataset for made in recipes if not made.data_digest}:
        data.load(name, options.data)
    with sweep.connect(options.scheduler, options.scheduler_file, options.workers) as client:
        failed = sweep.sweep(jobs, client)
    for name, reason in failed.items():
        note(f"error: {name}: {reason}")
    for folder in dict.fromkeys(folders.values()):
        if store.runs(folder):
            print(f"all runs of {folder} are in {results.write_csv(folder)}")
    return int(bool(failed))


def planner(options: argparse.Namespace) -> Callable:
    """What makes a recipe of its fields, for the images that --data and `dataset` name, with --from as its start.

    Images of one's own are read for it, others are not.
    """
    from mnv3lib import data, recipe
    from mnv3lib.own import transfer

    start, models = options.start_from, options.models

    @cache
    def images(name: str, size: int) -> data.Dataset:
        return data.load(name, options.data, size, log=note)

    def make(**fields) -> recipe.Recipe:
        if "start" in fields:
            raise InputError("start: leave it out of the grids, and name the network to start from by --from")
        for field in fields:  # or it would be taken for an argument of `plan`
            choose("field of a recipe", field, recipe.DEFAULTS)
        name = str(fields.pop("dataset", None) or data.name_of(options.data))
        if name in data.CLASSES or not options.data:
            return transfer.plan(data.unread(name), start, models, **fields)[0]
        checked = {field: value for field, value in fields.items() if field not in ("data_digest", "num_classes")}
        transfer.plan(data.unread("cifar100"), start, models, **checked)  # what is wrong is told before they are read
        size = transfer.size_for(fields.get("image_sizes"), start, models)
        return transfer.plan(images(name, size), start, models, **fields)[0]

    return make


def make_transfer(options: argparse.Namespace) -> int:
    """The runs on classes with few pictures, and the table of them."""
    import torch

    from mnv3lib import data
    from mnv3lib.provenance import place
    from mnv3lib.study import few_pictures

    if options.dry_run or options.start_from or options.scheduler or options.scheduler_file:
        raise InputError("--transfer takes --models, --data and --threads: see notebooks/transfer.yaml for its runs")
    tune = options.transfer == "tuning"
    models = (options.models or place("results") / ("transfer-tuning" if tune else "transfer")).absolute()
    torch.set_num_threads(options.threads)
    few_pictures.record(models, data.load("cifar100", options.data), few_pictures.read(), tune=tune, log=note)
    print(few_pictures.results(models).round(2).to_string(index=False))
    return 0

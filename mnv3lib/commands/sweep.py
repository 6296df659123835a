"""Train a grid of runs, each through notebook 02, side by side on this machine or on a Dask cluster.

Runs that have their record are skipped, and interrupted ones go on.
"""

import argparse
from pathlib import Path

from mnv3lib.commands.options import add_recipe_fields, given, note, path, positive
from mnv3lib.errors import InputError
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
    from mnv3lib import checkpoint, data, recipe, store, training
    from mnv3lib.own import transfer
    from mnv3lib.report import sweep
    from mnv3lib.study import ablations, results

    models = options.models
    if options.ablation:
        models = models or ablations.folder()
        seeds = fields.pop("seed", ())
        several = [name for name, values in fields.items() if len(values) > 1]
        if several:
            raise InputError(f"{', '.join(several)}: with --ablation only --seed takes several values")
        planned = ablations.plan(options.ablation, seeds, **{name: one for name, (one,) in fields.items()})
        recipes = ablations.missing(planned, ablations.recorded(models), models)
        if len(recipes) < len(planned):
            say = print if options.dry_run else note
            say(f"{len(planned) - len(recipes)} of {len(planned)} runs are recorded already")
    else:
        make, name = recipe.make, fields.get("dataset", [data.name_of(options.data)])[0]
        if not options.file and (options.start_from or name not in recipe.DATASETS):
            sizes = [size for one in fields.get("image_sizes", []) for size in one]
            size = transfer.size_for(sizes, options.start_from, options.models)
            images = data.load(name, options.data, size, log=note)

            def make(**one):
                return transfer.plan(images, options.start_from, options.models, **one)[0]

        recipes = sweep.distinct(sweep.read(options.file) if options.file else sweep.grid(make, **fields))
    start = options.start_from
    if not start and any(made.recipe == "finetune" for made in recipes):
        raise InputError("recipe finetune: name a trained network to start from (--from)")
    if start and (Path(start).is_file() or (Path(start) / store.WEIGHTS).is_file()):  # notebooks have their own folder
        start = str(Path(start).absolute())
    folders = {made: models or store.folder_for(made) for made in recipes}
    jobs = [
        sweep.Job(
            made,
            models=folders[made].absolute(),
            checkpoints=checkpoint.base_folder().absolute(),
            executed=options.executed.absolute(),
            data=(options.data if made.data_digest else data.cifar100_folder(options.data)).absolute(),
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


def make_transfer(options: argparse.Namespace) -> int:
    """The runs on classes with few pictures, and the table of them."""
    import torch

    from mnv3lib import data
    from mnv3lib.provenance import place
    from mnv3lib.study import few_pictures

    if options.dry_run or options.start_from or options.scheduler or options.scheduler_file:
        raise InputError("--transfer takes --models, --data and --threads: see notebooks/transfer.yaml for its runs")
    tune = options.transfer == "tuning"
    models = options.models or place("results") / ("transfer-tuning" if tune else "transfer")
    torch.set_num_threads(options.threads)
    few_pictures.record(models, data.load("cifar100", options.data), few_pictures.read(), tune=tune, log=note)
    print(few_pictures.results(models).round(2).to_string(index=False))
    return 0

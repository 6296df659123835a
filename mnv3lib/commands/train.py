"""Train one model, or go on with a run that was stopped."""

import argparse

from mnv3lib import recipe
from mnv3lib.commands.options import add_recipe_fields, add_shared, given, note, path, use_threads


def add(command) -> None:
    command.add_argument(
        "--models", type=path, help="where it goes (else trained_models; if on other data or shorter, to build)"
    )
    add_shared(command, "threads")
    command.add_argument(
        "--data",
        type=path,
        metavar="FOLDER",
        help="images of your own: a folder a class, or train and test (or val) with such; or that of CIFAR-100 (else "
        "MNV3_DATA, else ./data)",
    )
    command.add_argument("--test-share", type=float, default=0.2, help="of your own images, if no test set is there")
    command.add_argument("--strict", action="store_true", help="stop at files that cannot be read")
    command.add_argument(
        "--from", dest="start_from", metavar="RUN", help="start from a trained one, or its weights file"
    )
    command.add_argument(
        "--recipe",
        default=argparse.SUPPRESS,
        choices=recipe.RECIPES,
        help="what is not given here is as in (default: modern; with --from finetune)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    command.add_argument("--no-weights", action="store_true", help="keep record and history alone")
    fields = command.add_argument_group("the recipe (documented in mnv3lib.Architecture and mnv3lib.Recipe)")
    add_recipe_fields(fields)


def run(options: argparse.Namespace) -> None:
    fields = given(options)
    name = fields.pop("dataset", None)
    checked = {} if name is None or options.data else {"dataset": name}  # with a folder it may be any
    recipe.make(**fields, **checked, start="given" if options.start_from else "")  # before torch is imported
    from mnv3lib import data, store, training
    from mnv3lib.own import transfer
    from mnv3lib.study import dead_channels

    use_threads(options)
    start, keep = options.start_from, dict(weights=not options.no_weights, overwrite=options.overwrite)
    name = name or data.name_of(options.data)
    is_known = name in data.CLASSES
    # What is wrong is told before images are read or fetched, as far as that is known without one's own.
    made, _ = transfer.plan(data.unread(name if is_known else "cifar100"), start, options.models, **fields)
    if is_known:
        data.check_folder(name, options.data)
        training.made_already(made, options.models or store.folder_for(made), **keep)
    size = transfer.size_for(fields.get("image_sizes"), start, options.models)
    own = dict(test_share=options.test_share, strict=options.strict, log=note)
    dataset = data.load(name, options.data, size, **own)
    made, source = transfer.plan(dataset, start, options.models, **fields)
    models = options.models or store.folder_for(made)
    record = training.train(made, dataset=dataset, start=source, models=models, more=dead_channels.of_run, **keep)
    result = record["result"]
    print(
        f"{record['run']}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % on {result['images']:,} images, "
        f"in {models}"
    )

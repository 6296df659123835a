"""Measure trained models on their test set: live where CIFAR-100 is there, else from the recorded predictions."""

import argparse
import json

from mnv3lib.commands.options import add_shared, note, path, use_threads
from mnv3lib.errors import InputError


def add(command) -> None:
    add_shared(command, "models", "data", "threads")
    command.add_argument("runs", nargs="*", metavar="RUN", help="which (else all of CIFAR-100's test set)")
    command.add_argument("--recorded", action="store_true", help="measure nothing, use the recorded predictions")
    add_shared(command, "format")
    command.add_argument(
        "--details", action="store_true", help="by class (and superclass), confusion and calibration too (table, json)"
    )
    command.add_argument(
        "--corruptions",
        type=path,
        metavar="FOLDER",
        help="instead, measure them on spoilt test images, and write two tables of that to this folder",
    )
    command.add_argument(
        "--html", type=path, metavar="FILE", help="write the worst mistakes on your own images there, as thumbnails"
    )


def run(options: argparse.Namespace) -> None:
    if options.details and options.format == "csv":
        options.parser.error("--details has several tables and CSV holds one: use --format json")
    if options.corruptions and (options.recorded or options.details or options.html or options.format != "table"):
        options.parser.error("--corruptions takes runs, --models, --data and --threads")
    from mnv3lib import store, writing
    from mnv3lib.report import mistakes
    from mnv3lib.study import corruptions, evaluation

    use_threads(options)
    if options.html and options.recorded:
        options.parser.error("--html shows the images, and --recorded reads none: leave one out")
    if options.html:
        writing.check_suffix(options.html, ".html", ".htm")
    if options.corruptions:
        corruptions.record(
            options.runs, options.corruptions, models=options.models, data_folder=options.data, log=print
        )
        return
    runs = options.runs
    if options.html and not runs:
        own = {run: store.load_record(run, options.models)["recipe"] for run in evaluation.trained(options.models)}
        runs = [run for run, made in own.items() if made["data_digest"]]
        if not runs:
            raise InputError(f"--html shows your own images, and no run in {options.models} is on such: see --models")
    evaluations = evaluation.evaluate(
        runs, models=options.models, data_folder=options.data, recorded=options.recorded, log=note
    )
    if options.html:
        if not any(one.files for one in evaluations):
            raise InputError(
                "--html shows your own test images: name a run on such that are where they were, and no hold-out run"
            )
        with writing.replacing(options.html) as temporary:
            temporary.write_text(mistakes.page(evaluations), encoding="utf-8")
        note(f"the worst mistakes are in {options.html}")
    summary = evaluation.summary(evaluations)
    if options.format == "csv":
        print(summary.to_csv(index=False), end="")
    elif options.format == "json":
        rows = as_objects(summary, double_precision=6)
        for row, one in zip(rows, evaluations, strict=True):
            if options.details:
                row |= {name: as_objects(table) for name, table in tables(one).items()}
                row["confusion"] = as_objects(one.confusion(), orient="split")
                if one.has_superclasses:
                    row["superclass_confusion"] = as_objects(one.superclass_confusion(), orient="split")
        print(json.dumps(rows, indent=1))
    else:
        print(evaluation.readable(summary).to_string(index=False))
        for one in evaluations if options.details else ():
            print_details(one)


def as_objects(table, orient: str = "records", **options) -> list | dict:
    """A DataFrame as what JSON has; a missing number is null."""
    return json.loads(table.to_json(orient=orient, **options))


def tables(one) -> dict:
    """The tables of an Evaluation that have a row for each thing, by the name that they have in JSON."""
    found = {"classes": one.per_class(), "confused_pairs": one.confused_pairs(), "calibration": one.calibration()}
    if one.has_superclasses:
        return found | {"superclasses": one.per_superclass()}
    found["classes"] = found["classes"].drop(columns=["superclass", "superclass_right"])
    found["confused_pairs"] = found["confused_pairs"].drop(columns="same_superclass")
    return found


def scaled(scores: dict) -> str:
    """What else calibration.scores tells of a live measurement."""
    text = "; NLL {nll:.3f}; at a temperature of {temperature:.2f} NLL {nll_scaled:.3f}, error {ece_scaled:.2f}"
    return text.format_map(scores) if scores else ""


def print_details(one) -> None:
    """Everything by class and superclass, the confusion between superclasses and the calibration of an Evaluation."""
    titles = {
        "classes": "by class (top-1 and top-5 in percent)",
        "confused_pairs": "most confused pairs (images)",
        "calibration": f"calibration (expected calibration error {one.ece:.2f} points{scaled(one.scores)})",
        "superclasses": "by superclass (percent)",
    }
    for name, table in tables(one).items():
        print(f"\n{one.run}: {titles[name]}\n{table.to_string(index=False, float_format='{:.2f}'.format)}")
    if not one.has_superclasses:
        return
    confusion = one.superclass_confusion()
    confusion.index = [f"{number:2} {name}" for number, name in enumerate(confusion.index, 1)]
    confusion.columns = range(1, len(confusion) + 1)
    table = confusion.to_string()
    print(f"\n{one.run}: superclasses (rows) taken for others (columns, numbered alike), images\n{table}")

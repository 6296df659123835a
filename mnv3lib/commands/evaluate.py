"""`mnv3 evaluate`: trained models on their test set."""

import argparse

from mnv3lib.commands.options import add_command, add_common, note, use_threads


def add(commands) -> None:
    command = add_command(
        commands,
        "evaluate",
        run,
        "Measure trained models on their test set: live where CIFAR-100 is there, else from the recorded predictions.",
    )
    add_common(command)
    command.add_argument("runs", nargs="*", metavar="RUN", help="which (else all that are trained)")
    command.add_argument("--recorded", action="store_true", help="measure nothing, use the recorded predictions")
    command.add_argument("--format", default="table", choices=["table", "csv", "json"], help="of the output")
    command.add_argument(
        "--details", action="store_true", help="by class and superclass, confusion and calibration too (table, json)"
    )
    command.set_defaults(usage_error=command.error)


def run(options: argparse.Namespace) -> None:
    if options.details and options.format == "csv":
        options.usage_error("--details has several tables and CSV holds one: use --format json")
    from mnv3lib.study import evaluation, evaluation_text

    use_threads(options)
    evaluations = evaluation.evaluate(
        options.runs, models=options.models, data_folder=options.data, recorded=options.recorded, log=note
    )
    summary = evaluation.summary(evaluations)
    if options.format == "csv":
        print(summary.to_csv(index=False), end="")
    elif options.format == "json":
        print(evaluation_text.as_json(evaluations, options.details))
    else:
        print(evaluation_text.readable(summary).to_string(index=False))
        for one in evaluations if options.details else ():
            print("\n" + evaluation_text.details(one))

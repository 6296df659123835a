"""Measure a recorded run anew from its weights, or train its first epochs again, and say what of it is confirmed."""

import argparse

from mnv3lib.commands.options import add_shared, note, positive, use_threads


def add(command) -> None:
    add_shared(command, "models", "data", "threads")
    command.add_argument("run", metavar="RUN", help="a trained model; --retrain takes a run without weights too")
    command.add_argument(
        "--retrain", action="store_true", help="train its first epochs again instead, and compare with its history"
    )
    command.add_argument("--epochs", type=positive, help="how many epochs (else 2; with --retrain)")


def run(options: argparse.Namespace) -> int:
    if options.epochs and not options.retrain:
        options.parser.error("--epochs is for --retrain")
    from mnv3lib.study import verifying

    use_threads(options)
    places = {"models": options.models, "data_folder": options.data}
    if options.retrain:
        table = verifying.retrained(options.run, options.epochs or 2, **places, log=note)
    else:
        table = verifying.measured(options.run, **places)
    print(table.assign(confirmed=table["confirmed"].map({True: "yes", False: "no"})).to_string(index=False))
    told = f"confirmed, all {len(table)}"
    if not table["confirmed"].all():
        told = f"{(~table['confirmed']).sum()} of {len(table)} are not confirmed"
    elif options.retrain and not verifying.exactly(table):
        told = f"confirmed within {verifying.LOSS:g} of the loss and {verifying.TOP1:g} points, not bit for bit"
    note(f"{options.run}: {told}")
    return int(not table["confirmed"].all())

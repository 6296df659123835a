"""Label images with every trained model.

A file that is no image is reported, the rest goes on (exit code 1).
"""

import argparse
import warnings

from mnv3lib.commands.options import add_shared, note, path, positive, use_threads
from mnv3lib.errors import InputError, one_line


def add(command) -> None:
    command.add_argument(
        "paths", nargs="*", type=path, metavar="PATH", help="images and folders of images (else test_images)"
    )
    command.add_argument(
        "--run", action="append", metavar="RUN", help="which model (else all of CIFAR-100); once for each"
    )
    command.add_argument(
        "--recursive", action=argparse.BooleanOptionalAction, default=True, help="images in subfolders of a folder too"
    )
    add_shared(command, "models", "threads")
    command.add_argument("--top", type=positive, help="guesses an image (else 5, or all where there are fewer classes)")
    add_shared(command, "format")
    command.add_argument(
        "--out", type=path, metavar="FILE", help="where to write it (else, or with -, to the terminal)"
    )


def run(options: argparse.Namespace) -> int:
    from mnv3lib import store, writing
    from mnv3lib.study import labelling

    use_threads(options)
    to_file = options.out and str(options.out) != "-"
    if to_file:
        writing.check_is_text(options.out)
    failures = []

    def failed(line: str) -> None:
        failures.append(line)
        note(line)

    for one in options.paths:
        if not one.exists() and str(one) in store.runs(options.models):
            raise InputError(f"there is no file {one}, but a run of that name: write --run before each run")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: note(one_line(message, 2000))
        rows = labelling.label(
            options.paths or [labelling.images_folder()],
            options.run or (),
            models=options.models,
            top=options.top,
            recursive=options.recursive,
            report=failed,
        )
    text = labelling.as_text(rows, options.format)
    if to_file:
        with writing.replacing(options.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    elif rows:
        print(text, end="")
    return 1 if failures else 0

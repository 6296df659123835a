"""Label images with every trained model.

A file that is no image is reported, the rest goes on (exit code 1).
"""

import argparse
from pathlib import Path

from mnv3lib.commands.options import add_shared, note, positive, use_threads


def add(command) -> None:
    command.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="images and folders of images (else test_images)"
    )
    command.add_argument(
        "--run", nargs="+", action="extend", metavar="RUN", help="which models (else all of CIFAR-100)"
    )
    add_shared(command, "models", "threads")
    command.add_argument("--top", type=positive, default=5, help="guesses an image")
    add_shared(command, "format")
    command.add_argument("--out", type=Path, metavar="FILE", help="where to write it (else to the terminal)")


def run(options: argparse.Namespace) -> int:
    from mnv3lib import writing
    from mnv3lib.study import labelling

    use_threads(options)
    failures = []

    def failed(line: str) -> None:
        failures.append(line)
        note(line)

    rows = labelling.label(
        options.paths or [labelling.images_folder()],
        options.run or (),
        models=options.models,
        top=options.top,
        report=failed,
    )
    text = labelling.as_text(rows, options.format)
    if options.out:
        with writing.replacing(options.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    elif rows:
        print(text, end="")
    return 1 if failures else 0

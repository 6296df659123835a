"""Run the notebooks and export the report as HTML.

README takes its results from the checkout's own report and trained models alone.
"""

import argparse
import sys

from mnv3lib.commands.options import add_shared, path
from mnv3lib.provenance import ROOT


def add(command) -> None:
    add_shared(command, "models")
    command.add_argument("--output", type=path, default=ROOT / "report", help="the folder of the pages")
    command.add_argument("--figures", type=path, help="the folder of the figures (else figures, or OUTPUT_figures)")
    chosen = command.add_mutually_exclusive_group()
    chosen.add_argument("--check", action="store_true", help="only tell whether the report is up to date")
    chosen.add_argument(
        "--changed",
        action="store_true",
        help="run only the notebooks that changed, or whose parameters or records did, and keep the other pages",
    )


def run(options: argparse.Namespace) -> int:
    from mnv3lib.report import pages, readme  # Jupyter is slow to import

    output = options.output.resolve()  # "." has no name, after which others could be called
    if options.check:
        changed = pages.outdated(output, models=options.models)
        for page, names in changed.items():
            print(f"{page} is not up to date ({', '.join(names)}): run mnv3 report --changed", file=sys.stderr)
        return int(bool(changed))
    page = pages.make(output=output, figures=options.figures, models=options.models, changed=options.changed)
    if [output, options.models.resolve()] == [ROOT / "report", ROOT / "trained_models"]:
        readme.update(ROOT / "README.md", options.models)
    print(f"open {page}")
    return 0

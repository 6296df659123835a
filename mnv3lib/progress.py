"""Bars for whatever takes longer than a few seconds."""

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm


def watched() -> bool:
    """Whether somebody watches standard error: in a terminal or in JupyterLab, not in a log, not under papermill.

    JupyterLab tells the kernels of its sessions the session's name; papermill has no session.
    """
    return sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ


def bar(items: Iterable | None = None, title: str = "", **options) -> tqdm:
    """A tqdm bar over `items`, or one that is moved by hand, which goes when it is done; none where nobody watches."""
    return tqdm(items, desc=title, leave=False, disable=not watched(), **options)


def say(line: str) -> None:
    """Print a line above the bars that are shown, if any."""
    tqdm.write(line)

"""What goes wrong: the exceptions that the command line tells in one line, and the checks that raise the first."""

import math
import numbers
import os
import re
from pathlib import Path


class InputError(ValueError):
    """An argument, a file or a folder cannot be used.

    The message is one line that names the culprit and the mend; the command line prints it as it is, and so does
    JupyterLab.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython, and so JupyterLab, shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class AssumedWarning(UserWarning):
    """Something that a file does not tell was taken for granted; the message is one line that names both."""


class DivergedError(RuntimeError):
    """The loss, a weight or a guess is no longer a finite number. The checkpoint is the last good epoch's."""


class ExportError(RuntimeError):
    """An exported file does not give PyTorch's answers."""


class NotebookError(RuntimeError):
    """A cell of a notebook failed; the message names notebook, cell and error."""


def choose(what: str, value, choices) -> None:
    """Raise InputError unless `value` is one of `choices`; the message lists them."""
    if value not in list(choices):
        raise InputError(f"unknown {what} {value!r}: choose from {', '.join(map(str, choices))}")


def within(name: str, value, low: float, high: float, *, above: bool = False) -> None:
    """Raise InputError unless `value` is a number with low <= value <= high (`above`: low < value)."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(value) < math.inf
    if not number or not low <= value <= high or (above and value == low):
        raise InputError(f"{name} {value!r}: give a number {'above' if above else 'from'} {low:g}, at most {high:g}")


def whole(name: str, value, low: int, high: int) -> None:
    """Raise InputError unless `value` is an integer, NumPy's too, with low <= value <= high."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name} {value!r}: give a whole number from {low} to {high}")


def local(path: str | os.PathLike) -> Path:
    """A path as somebody wrote it, `~` being the home; InputError if it is empty or an address on the web."""
    text = os.fspath(path)
    if not text:
        raise InputError("an empty path: name a file or a folder")
    if isinstance(text, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise InputError(f"{one_line(text)} is a web address: download it, and name the file")
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~somebody, who is not known here
        return Path(path)


def one_line(error: Exception | str, most: int = 200) -> str:
    """What an error says as one line of printable characters, cut where it is longer than `most`."""
    text = " ".join(str(error).split())[:most]
    return "".join(letter if letter.isprintable() else "?" for letter in text) or type(error).__name__

"""A bar is seen where somebody watches, and nowhere else."""

import io

import pytest

from mnv3lib import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "session", "seen"),
    [(Terminal(), None, True), (io.StringIO(), "notebooks/02_train.ipynb", True), (io.StringIO(), None, False)],
    ids=["terminal", "JupyterLab", "log or papermill"],
)
def test_a_bar_is_seen_where_somebody_watches(stream, session, seen, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    if session:
        monkeypatch.setenv("JPY_SESSION_NAME", session)
    assert list(progress.bar(range(3), "epoch 1/2", mininterval=0)) == [0, 1, 2]
    assert ("epoch 1/2" in stream.getvalue()) == seen


def test_a_line_stands_above_the_bar(monkeypatch):
    """As a terminal shows it, where output and errors go to the same place."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    with progress.bar(total=2, ncols=40) as bar:
        bar.update()
        progress.say("one run: done")
    shown = []
    for line in terminal.getvalue().split("\n"):
        seen = ""
        for part in line.split("\r"):
            seen = part + seen[len(part) :]
        shown.append(seen.rstrip())
    assert shown == ["one run: done", ""]

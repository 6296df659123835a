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

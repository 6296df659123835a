"""What the tests share: one thread, the data sets, a tiny recipe, folders of their own."""

import dataclasses
import os
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
import torch

from mnv3lib import data, provenance, recipe

FAULTS, LOST = Counter(), Counter()  # by kind: how many were tried, and after how many something was lost or let in
TABLE = Path(__file__).parent / "FAULTS.md"

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="try many more faults and write the table of them")


def pytest_sessionfinish(session):
    """Write the table of faults, after a long run alone."""
    if not session.config.getoption("--long") or not FAULTS:
        return
    lines = [
        "# Faults tried",
        "",
        "Written by `make faults`. A loss is a fault after which something was lost, let in, left lying about, or told",
        "otherwise than in one clear line.",
        "",
        "| fault | tried | losses |",
        "| --- | ---: | ---: |",
        *(f"| {kind} | {tried:,} | {LOST[kind]:,} |" for kind, tried in sorted(FAULTS.items())),
        f"| **all** | **{FAULTS.total():,}** | **{LOST.total():,}** |",
        "",
        f"{provenance.now()}, commit {provenance.commit()}, {provenance.processor()}, {os.cpu_count()} cores, torch",
        f"{torch.__version__}.",
    ]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def trying():
    """`with trying(kind):` counts a fault of that kind, and a loss if what stands below it fails."""

    @contextmanager
    def count(kind: str, times: int = 1):
        FAULTS[kind] += times
        try:
            yield
        except BaseException:
            LOST[kind] += 1
            raise

    return count


@pytest.fixture(scope="session")
def long(request) -> bool:
    """Whether many more faults than usual should be tried."""
    return request.config.getoption("--long")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """One thread: sums are then made in the same order everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(scope="session")
def few_digits(digits) -> data.Dataset:
    """The first 96 digits to train on and 40 to measure with."""
    return dataclasses.replace(
        digits, train=digits.train.take(torch.arange(96)), test=digits.test.take(torch.arange(40))
    )


@pytest.fixture(scope="session")
def cifar100() -> data.Dataset:
    """CIFAR-100; a test that takes it is skipped where it is not."""
    if not data.available():
        pytest.skip("CIFAR-100 is not here: set MNV3_DATA to the folder that holds cifar-100-binary")
    return data.load("cifar100")


@pytest.fixture(scope="session")
def tiny():
    """Make a recipe for a network that trains in a second on a few digits; takes changes as `recipe.make` does."""

    def make(**changes) -> recipe.Recipe:
        defaults = dict(dataset="digits", width=0.25, batch_size=32, epochs=1, image_sizes=(16,), lowered_strides=1)
        return recipe.make("modern", **{**defaults, **changes})

    return make


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Folders of trained models, checkpoints and data that are this test's own."""
    for variable in ("MNV3_MODELS", "MNV3_CHECKPOINTS", "MNV3_DATA"):
        monkeypatch.setenv(variable, str(tmp_path / variable.removeprefix("MNV3_").lower()))
    return tmp_path

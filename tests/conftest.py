"""What the tests share: one thread, the data sets, a tiny recipe, folders of their own."""

import dataclasses

import pytest
import torch

from mnv3lib import data, recipe


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

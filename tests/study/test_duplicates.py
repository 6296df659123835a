"""Test images that are in the training set too."""

import dataclasses

import pytest
import torch

from mnv3lib import data
from mnv3lib.study import duplicates


@pytest.fixture
def noise():
    """Random images, of which no two are close, as a data set."""
    generator = torch.Generator().manual_seed(0)

    def split(count):
        images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
        return data.Split(images, torch.arange(count) % 10)

    return dataclasses.replace(data.load("digits"), train=split(30), test=split(12))


def test_planted_copies_are_found_and_nothing_else(noise):
    noise.test.images[3] = noise.train.images[7]
    noise.test.images[11] = noise.train.images[5].flip(1)  # mirrored
    noise.test.images[4] = noise.train.images[9] // 2 + 64
    noise.train.images[9] = noise.test.images[4]
    noise.train.images[9, 0, 0, 0] ^= 128  # one value of 3072 differs by 128
    table = duplicates.pairs(noise, portion=5)
    assert table[["test", "train"]].to_numpy().tolist() == [[3, 7], [11, 5], [4, 9]]
    assert table["distance"].tolist() == pytest.approx([0, 0, 128 / 3072**0.5])
    assert table["same_class"].tolist() == [False, False, False]


def test_limit_is_that_of_the_pixels(noise):
    noise.test.images[:] = 100
    noise.train.images[4] = 105
    noise.train.images[6] = 107
    assert set(duplicates.pairs(noise, limit=5)["train"]) == {4}
    assert set(duplicates.pairs(noise, limit=7)["train"]) == {4, 6}
    assert duplicates.pairs(noise, limit=4).empty


def test_twins_within_a_set_are_found(noise):
    noise.test.images[5] = noise.test.images[2]
    noise.test.images[9] = noise.test.images[2]
    assert duplicates.twins(noise.test) == [(2, 5), (2, 9)]
    noise.test.images[5, 0, 0, 0] ^= 1
    assert duplicates.twins(noise.test) == [(2, 9)] and duplicates.twins(noise.train) == []

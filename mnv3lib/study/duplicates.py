"""Test images that are in the training set too, or nearly so."""

import pandas as pd
import torch
from torch.nn import functional as F

from mnv3lib.data import Dataset, Split

BLOCK = 4  # pixels a side of the blocks whose means are compared first


def pairs(dataset: Dataset, limit: float = 12.0, portion: int = 500) -> pd.DataFrame:
    """All pairs of a test and a training image, mirrored or not, that differ by at most `limit`.

    Columns: test, train (the numbers of the images), distance (root mean square over the pixels and channels, in grey
    levels of 0 to 255), same_class; closest first. None is missed: block means differ at most as much as the pixels
    do, so only pairs whose block means are within the limit are compared in full.
    """
    train, test = dataset.train, dataset.test
    means = _block_means(train.images)
    both = torch.cat([means, _block_means(train.images.flip(2))])
    squares = both.square().sum(1)
    found = []
    for start in range(0, len(test), portion):
        mine = _block_means(test.images[start : start + portion])
        # |a - b|^2 <= bound, as |b|^2 - 2ab <= bound - |a|^2 to have one pass over the largest array. A grey level more
        # than the limit makes up for the rounding of differences of large numbers.
        bound = mine.shape[1] * (limit + 1) ** 2 - mine.square().sum(1)
        rows, columns = torch.where(torch.addmm(squares, mine, both.T, alpha=-2) <= bound[:, None])
        for row, column in zip((rows + start).tolist(), columns.tolist(), strict=True):
            number, mirrored = column % len(train), column >= len(train)
            image = train.images[number].flip(1) if mirrored else train.images[number]
            distance = (image.float() - test.images[row].float()).square().mean().sqrt().item()
            if distance <= limit:
                found.append((row, number, distance, bool(test.labels[row] == train.labels[number])))
    table = pd.DataFrame(found, columns=["test", "train", "distance", "same_class"])
    table = table.sort_values(["distance", "test", "train"], ignore_index=True)
    return table.drop_duplicates(["test", "train"], ignore_index=True)


def twins(split: Split) -> list[tuple[int, int]]:
    """The pairs of images of one set that are the same, pixel for pixel."""
    first: dict[bytes, int] = {}
    numbers = ((number, image.numpy().tobytes()) for number, image in enumerate(split.images))
    return [(before, number) for number, pixels in numbers if (before := first.setdefault(pixels, number)) != number]


def _block_means(images: torch.Tensor) -> torch.Tensor:
    """uint8 [n, height, width, 3] to the means of square blocks, float [n, blocks * 3]."""
    return F.avg_pool2d(images.permute(0, 3, 1, 2).float(), BLOCK).flatten(1)

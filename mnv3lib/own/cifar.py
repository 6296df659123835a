"""CIFAR-10 and CIFAR-100 as they are published, in Python's layout or the binary one, found in a folder of one's own.

Python's layout is of pickles. Nothing in them is run: what is no array of numbers, text or list is refused.
"""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mnv3lib.data import Dataset, Split, normalisation
from mnv3lib.errors import InputError, one_line

BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
# By layout: the files to train on, the test set, the names of the classes, and the key of the labels.
LAYOUTS = {
    "cifar-10-batches-py": (BATCHES, "test_batch", "batches.meta", "labels"),
    "cifar-10-batches-bin": ([f"{name}.bin" for name in BATCHES], "test_batch.bin", "batches.meta.txt", ""),
    "cifar-100-python": (["train"], "test", "meta", "fine_labels"),
}
PUBLISHED = 50_000, 10_000  # images to train on and to test with, in every layout
RECORD = 1 + 3 * 32 * 32  # class, then the red, green and blue planes
MOST_BYTES = 400 * 2**20
HARMLESS = {  # that the arrays in the pickles are made of, by the names of old and new versions of numpy
    (f"{package}.multiarray", "_reconstruct"): np.ndarray(0).__reduce__()[0]
    for package in ("numpy.core", "numpy._core")
} | {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, code: text.encode("latin1"),  # bytes, as Python 3 writes them for Python 2
}


def find(folder: Path) -> tuple[Path, str] | None:
    """Where in `folder` one of LAYOUTS lies whole, itself or a folder of its usual name in it, and which."""
    for name, (train, test, meta, _) in LAYOUTS.items():
        for place in (folder, folder / name):
            if all((place / file).is_file() for file in [*train, test, meta]):
                return place, name
    return None


def load(place: Path, name: str, log: Callable[[str], None] = lambda line: None) -> Dataset:
    """The data set at the place and of the layout that `find` returned.

    A part of CIFAR that somebody made in the same layout is as good, so fewer images are no error, but told to `log`.
    """
    train, test, meta, key = LAYOUTS[name]
    content = hashlib.sha256()
    if key:
        names = _unpickled(place / meta).get("fine_label_names" if key == "fine_labels" else "label_names")
    else:
        names = (place / meta).read_text(encoding="ascii", errors="replace").split()
    if (
        not isinstance(names, list)
        or not all(isinstance(one, str) and one.isprintable() for one in names)
        or len(names) < 2
    ):
        raise InputError(f"{place / meta} has no names of classes: unpack the archive again")
    parts = [[_part(place / file, key, len(names), content) for file in files] for files in (train, [test])]
    both = [Split(torch.cat([one.images for one in part]), torch.cat([one.labels for one in part])) for part in parts]
    count = len(both[0]), len(both[1])
    if count != PUBLISHED:
        told = ["{:,} images to train on and {:,} to test with".format(*one) for one in (count, PUBLISHED)]
        log(f"{place} has {told[0]}, where CIFAR as published has {told[1]}: taken for a set of your own")
    facts = {"folder": str(place.absolute()), "classes": names, "train": len(both[0]), "test": len(both[1])}
    digest = content.hexdigest()[:12]
    return Dataset(
        name, *both, tuple(names), *normalisation(both[0].images), digest, facts=facts | {"test_share": None}
    )


def _part(path: Path, key: str, classes: int, content) -> Split:
    """One file of images with its labels; `content` is updated with what is in it."""
    if key:
        told = _unpickled(path)
        images, labels = told.get("data"), np.asarray(told.get(key))
    else:
        records = np.fromfile(path, np.uint8)
        if len(records) % RECORD:
            told = f"{len(records):,} bytes, no whole number of images of {RECORD:,}"
            raise InputError(f"{path} has {told}: it is cut off or damaged, unpack the archive again")
        records = records.reshape(-1, RECORD)
        images, labels = records[:, 1:], records[:, 0]
    if (
        not isinstance(images, np.ndarray)
        or (images.dtype, images.shape) != (np.uint8, (len(images), RECORD - 1))
        or labels.shape != images.shape[:1]
        or labels.dtype.kind not in "iu"
        or not len(labels)
        or labels.min() < 0
        or labels.max() >= classes
    ):
        raise InputError(f"{path} has no images of CIFAR with their labels: unpack the archive again")
    images = np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    labels = labels.astype(np.int64)
    content.update(images.tobytes() + labels.tobytes())
    return Split(torch.from_numpy(images), torch.from_numpy(labels))


class _Harmless(pickle.Unpickler):
    """An unpickler that makes arrays and plain values alone."""

    def find_class(self, module, name):
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return HARMLESS[module, name]


def _unpickled(path: Path) -> dict:
    """The dictionary in a pickle, its keys as text."""
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_BYTES:,} bytes")
    try:
        with path.open("rb") as file:
            told = dict(_Harmless(file, encoding="latin1").load())  # Python 2 wrote them
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in told.items()}
    except Exception as error:  # of all kinds, on damaged files
        raise InputError(f"{path} is no file of CIFAR ({one_line(error)}): unpack the archive again") from None

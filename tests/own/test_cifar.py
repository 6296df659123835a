"""CIFAR as it is published, in a folder of one's own: read, and nothing in it run."""

import os
import pickle

import numpy as np
import pytest

from mnv3lib import InputError
from mnv3lib.own import cifar, folders

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3072), np.uint8)
LABELS = [number % 3 for number in range(12)]
NAMES = ["cat", "dog", "ship"]


def write(folder, layout):
    """A tiny data set in `layout`; returns its folder."""
    place = folder / layout
    place.mkdir(parents=True)
    train, test, meta, key = cifar.LAYOUTS[layout]
    for name in [*train, test]:
        if key:
            (place / name).write_bytes(pickle.dumps({b"data": PIXELS, key.encode(): LABELS}, protocol=2))
        else:
            (place / name).write_bytes(np.column_stack([np.uint8(LABELS), PIXELS]).tobytes())
    names = {"label_names" if key == "labels" else "fine_label_names": NAMES}
    (place / meta).write_bytes(pickle.dumps(names, protocol=2) if key else "\n".join([*NAMES, ""]).encode())
    return place


@pytest.mark.parametrize("layout", cifar.LAYOUTS)
@pytest.mark.parametrize("inside", [True, False])
def test_every_layout_is_recognised(tmp_path, layout, inside):
    place = write(tmp_path, layout)
    lines = []
    found = folders.load(tmp_path if inside else place, log=lines.append)
    assert (found.name, found.classes) == (layout, tuple(NAMES)) and "as published" in lines[0]
    assert len(found.test) == 12 and len(found.train) == 12 * len(cifar.LAYOUTS[layout][0])
    np.testing.assert_array_equal(found.test.images.permute(0, 3, 1, 2).reshape(12, -1).numpy(), PIXELS)
    assert found.test.labels.tolist() == LABELS and len(found.digest) == 12


def test_a_part_is_told_and_a_cut_file_refused(tmp_path):
    place, lines = write(tmp_path, "cifar-10-batches-bin"), []
    found = cifar.load(place, place.name, lines.append)
    assert len(found.train) == 60 and len(lines) == 1
    assert "has 60 images to train on and 12 to test with, where CIFAR as published has 50,000" in lines[0]
    content = (place / "data_batch_3.bin").read_bytes()
    (place / "data_batch_3.bin").write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"data_batch_3.bin has 36,875 bytes, no whole number .* unpack the archive"):
        folders.load(tmp_path)


class Bad:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_nothing_foreign_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = write(tmp_path, "cifar-100-python")
    (place / "test").write_bytes(pickle.dumps({"data": Bad()}))
    with pytest.raises(InputError, match=r"test is no file of CIFAR \(it would call \w+.system\): unpack") as caught:
        folders.load(tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "told",
    [
        {},
        [],
        {"data": PIXELS},
        {"data": PIXELS, "fine_labels": [3] * 12},
        {"data": PIXELS[:, 1:], "fine_labels": LABELS},
    ],
)
def test_what_is_none_of_it_is_named(tmp_path, told):
    place = write(tmp_path, "cifar-100-python")
    (place / "train").write_bytes(pickle.dumps(told))
    with pytest.raises(InputError, match=r"train .*unpack the archive again"):
        folders.load(tmp_path)
    (place / "train").write_bytes(pickle.dumps(told)[:-3])
    with pytest.raises(InputError, match=r"train .*unpack the archive again"):
        folders.load(tmp_path)

"""Images of one's own: what is a class, what is split how, what is told of what is not in order, and the cache."""

import shutil
import time

import numpy as np
import photographs
import pytest
import torch
from PIL import Image

from mnv3lib import InputError, data
from mnv3lib.inference import as_pixels, load_image
from mnv3lib.own import folders


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mnv3lib" / "images"


@pytest.fixture
def shapes(tmp_path):
    """Ten photographs of each of three shapes."""
    return photographs.draw(tmp_path / "My Shapes", 10, ("circle", "cross", "square"))


def told(folder, **options):
    lines = []
    return folders.load(folder, log=lines.append, **options), lines


def test_class_folders_become_a_data_set(shapes):
    found, lines = told(shapes, size=24)
    assert (found.name, found.classes) == ("my-shapes", ("circle", "cross", "square"))
    assert (found.train.images.shape, found.test.images.shape) == ((24, 24, 24, 3), (6, 24, 24, 3))
    assert found.test.labels.bincount().tolist() == [2, 2, 2]
    assert "24 images of 3 classes to train on, 6 to test with; 20% of each class" in lines[0]
    for image, label, path in zip(found.test.images, found.test.labels.tolist(), found.test_files, strict=True):
        assert path.parent.name == found.classes[label]
        assert torch.equal(image, as_pixels(load_image(path), 24)), "they are read as predict reads them"
    pixels = found.train.images.double() / 255
    np.testing.assert_allclose(found.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std((0, 1, 2), correction=0), rtol=1e-9)


def test_the_split_is_always_the_same_and_no_image_is_in_both(shapes):
    first, second = folders.load(shapes), folders.load(shapes)
    assert first.test_files == second.test_files and first.digest == second.digest
    assert first.facts["in_both"] == 0 and len(first.train) + len(first.test) == 30
    other = folders.load(shapes, test_share=0.5)
    assert len(other.test) == 15 and other.digest != first.digest


@pytest.mark.parametrize("name", ["test", "val"])
def test_sets_that_are_apart_stay_apart(shapes, tmp_path, name):
    photographs.draw(shapes / "train", 4, ("circle", "cross"))
    photographs.draw(shapes / name, 2, ("circle", "cross"), seed=1)
    for shape in ("circle", "cross", "square"):
        shutil.rmtree(shapes / shape)
    found, lines = told(shapes)
    assert (len(found.train), len(found.test), found.classes) == (8, 4, ("circle", "cross"))
    assert lines[0].endswith(f"{shapes / name} is the test set")
    photographs.draw(shapes / "validation", 1, ("circle", "cross"))
    assert told(shapes)[1][0].endswith(f"{shapes / name} is the test set; not used: validation")
    shutil.copytree(shapes / "train" / "cross", shapes / name / "cross", dirs_exist_ok=True)
    found, lines = told(shapes)
    assert found.facts["in_both"] == 4 and "4 of the 6 test images are training images too" in lines[1]
    photographs.draw(shapes / name, 1, ("star",))
    with pytest.raises(InputError, match=r"has the class 'star', which .*train lacks"):
        folders.load(shapes)


def test_pictures_beside_the_class_folders_are_told(shapes):
    shutil.copy(shapes / "circle" / "000.png", shapes / "bee 1.png")
    (shapes / "notes.txt").write_text("")
    found, lines = told(shapes)
    assert len(found.train) + len(found.test) == 30
    assert lines[0].endswith("files beside the class folders are not used: bee 1.png, 1 in all") and len(lines) == 2


def test_a_test_set_under_another_name_is_told(tmp_path):
    photographs.draw(tmp_path / "train", 4, ("circle", "cross"))
    photographs.draw(tmp_path / "tset", 2, ("circle", "cross"))
    _, lines = told(tmp_path)
    assert "'train' is taken for a class, as no folder beside it is called test or val" in lines[0]
    (tmp_path / "tset").rename(tmp_path / "test")
    assert not any("taken for a class" in line for line in told(tmp_path)[1])


def test_folders_below_a_class_count_and_what_is_no_image_does_not(shapes):
    (shapes / "circle" / "more" / "still more").mkdir(parents=True)
    (shapes / "circle" / "000.png").rename(shapes / "circle" / "more" / "still more" / "x.png")
    (shapes / "circle" / ".hidden").write_text("")
    (shapes / "circle" / "notes.txt").write_text("")
    (shapes / ".git").mkdir()
    elsewhere = shapes.with_name("elsewhere")
    elsewhere.mkdir()
    next((shapes / "circle").glob("*.png")).rename(elsewhere / "y.png")
    (shapes / "circle" / "linked").symlink_to(elsewhere)
    found, lines = told(shapes)
    assert len(found.train) + len(found.test) == 30 and len(lines) == 1


def test_what_cannot_be_read_is_named_and_left_out(shapes):
    (shapes / "circle" / "broken.png").write_bytes((shapes / "circle" / "000.png").read_bytes()[:60])
    (shapes / "cross" / "link.png").symlink_to("nowhere")
    for _ in range(2):  # the second time from the cache
        found, lines = told(shapes)
        assert found.facts["left_out"] == 2 and len(found.train) + len(found.test) == 30
        assert "broken.png" in lines[0] and "link.png" in lines[1]
        with pytest.raises(InputError, match=r"2 of 32 files cannot be read: .*broken.png"):
            folders.load(shapes, strict=True)


def test_what_can_be_read_after_all_is_taken_in(shapes, monkeypatch):
    """Where the package that a format wants was installed since the images were read first."""
    load_image, lacking = folders.load_image, shapes / "circle" / "000.png"

    def without_a_package(path):
        if path == lacking:
            raise InputError(f"{path}: pip install something")
        return load_image(path)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "load_image", without_a_package)
        assert told(shapes)[0].facts["left_out"] == 1
    found, _ = told(shapes)
    assert not found.facts.get("left_out") and len(found.train) + len(found.test) == 30


def test_a_test_set_may_lack_a_class(shapes, tmp_path):
    for shape in shapes.iterdir():
        shutil.copytree(shape, tmp_path / "set" / "train" / shape.name)
    for shape in ("circle", "cross"):
        shutil.copytree(shapes / shape, tmp_path / "set" / "test" / shape)
    found, _ = told(tmp_path / "set")
    assert set(found.test.labels.tolist()) == {found.classes.index("circle"), found.classes.index("cross")}
    assert len(found.classes) == 3


def test_any_mode_and_size(tmp_path):
    for number, mode in enumerate(("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")):
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            suffix = "tif" if mode == "CMYK" else "png"
            Image.new(mode, (3 + 40 * number, 50)).save(tmp_path / name / f"{number}.{suffix}")
    assert folders.load(tmp_path).facts["left_out"] == 0


def test_the_cache_is_used_and_notices_a_change(shapes, cache, monkeypatch):
    first = folders.load(shapes)
    (kept,) = cache.glob("*/*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(folders, "load_image", None)  # so nothing is read again
        assert torch.equal(folders.load(shapes).train.images, first.train.images)
    kept.write_bytes(b"damaged")
    assert torch.equal(folders.load(shapes).train.images, first.train.images)
    (shapes / "circle" / "000.png").write_bytes((shapes / "cross" / "000.png").read_bytes())
    changed = folders.load(shapes)
    assert changed.digest != first.digest
    assert [path.name for path in cache.glob("*/*.npz")] != [kept.name], "what is out of date goes"
    assert len(list(cache.glob("*/*.npz"))) == 1


def test_a_copy_is_the_same_data_set_and_times_do_not_count(shapes, tmp_path):
    first = folders.load(shapes)
    shutil.copytree(shapes, tmp_path / "copy")
    time.sleep(0.01)
    (tmp_path / "copy" / "circle" / "000.png").touch()
    assert folders.load(tmp_path / "copy").digest == first.digest


def test_a_cache_that_cannot_be_written_stops_nothing(shapes, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(folders.load(shapes).train) == 24


def test_what_is_no_data_set_is_told_in_one_line(shapes, tmp_path, monkeypatch):
    def refused(folder, message, **options):
        with pytest.raises(InputError, match=message) as caught:
            folders.load(folder, **options)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nowhere", "there is no folder")
    refused(shapes / "circle" / "000.png", "is no folder")
    refused(shapes / "circle", "has no folders: put the images of each class into a folder of its own")
    refused(shapes, "test_share 1", test_share=1)
    refused(shapes, "image size 4", size=4)
    (shapes / "empty").mkdir()
    refused(shapes, "the class 'empty' has no images")
    photographs.draw(shapes, 1, ("empty",))
    refused(shapes, "the class 'empty' has one image")
    photographs.draw(shapes, 2, ("Circle",))
    refused(shapes, "the classes 'Circle' and 'circle' differ by case alone")
    monkeypatch.setattr(folders, "MOST_CLASSES", 4)
    refused(shapes, "has 5 folders, and 4 classes are the most")
    shutil.rmtree(shapes / "Circle")
    monkeypatch.setattr(folders, "_memory", lambda: 1e5)
    refused(shapes, r"the 31 files of .* need 0.0 GB of memory.*smaller image size")
    for name in ("cross", "square", "empty"):
        shutil.rmtree(shapes / name)
    refused(shapes, "has only the folder 'circle'")
    (shapes / "new\nline").mkdir()
    refused(shapes, "printable characters")


def test_a_folder_is_known_by_what_it_holds(shapes, tmp_path):
    assert data.name_of(None) == data.name_of(tmp_path / "nowhere") == "cifar100"
    assert data.name_of(shapes) == "own-images"
    (tmp_path / "d" / data.FOLDER).mkdir(parents=True)
    assert data.name_of(tmp_path / "d") == "cifar100"
    assert data.load("own-images", shapes, 16).train.images.shape[1] == 16
    assert data.load("own-images", shapes, 16).name == "my-shapes"
    assert data.load("things", shapes, 16).name == "things"
    with pytest.raises(InputError, match="data set 'Things': give a name of small letters"):
        data.load("Things", shapes, 16)
    assert data.folder(shutil.copytree(shapes, tmp_path / "Blümen"), 16).name == "blumen"
    with pytest.raises(InputError, match="unknown data set 'own-images'"):
        data.load("own-images")

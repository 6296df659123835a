"""The data: found, fetched, checked, and augmented as torchvision would."""

import dataclasses
import hashlib
import http.client
import http.server
import io
import tarfile
import threading
import urllib.parse

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as TF

from mnv3lib import InputError, data, recipe, store

COUNTS = {"train.bin": 6, "test.bin": 4}


def make_record(count, seed=0):
    """The bytes of `count` images of the official layout."""
    random = np.random.default_rng(seed)
    records = random.integers(0, 256, (count, data.RECORD), np.uint8)
    records[:, 0] %= 20
    records[:, 1] %= 100
    return records.tobytes()


def make_archive(path, members):
    """A tar.gz of `members`: bytes of a file, or a TarInfo without content, by name."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.fixture
def small(monkeypatch):
    """CIFAR-100 as if it had six images to train on and four to test with."""
    monkeypatch.setattr(data, "FILES", COUNTS)


@pytest.fixture
def files(small, tmp_path):
    """A folder with such files."""
    folder = tmp_path / "here" / data.FOLDER
    folder.mkdir(parents=True)
    for name, count in COUNTS.items():
        (folder / name).write_bytes(make_record(count, count))
    return folder


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Names and numbers


def test_class_names():
    assert len(data.CLASSES["cifar100"]) == 100
    assert len(set(data.SUPERCLASS_OF.values())) == 20
    counts = [list(data.SUPERCLASS_OF.values()).count(name) for name in set(data.SUPERCLASS_OF.values())]
    assert counts == [5] * 20


def test_class_names_are_the_official_ones(cifar100):
    folder = data.cifar100_folder()
    fine, coarse = ((folder / f"{kind}_label_names.txt").read_text().split() for kind in ("fine", "coarse"))
    assert cifar100.classes == tuple(fine)
    records = np.fromfile(folder / "test.bin", np.uint8).reshape(10_000, data.RECORD)
    pairs = {(coarse[superclass], fine[label]) for superclass, label in records[:, :2].tolist()}
    assert pairs == {(superclass, name) for name, superclass in data.SUPERCLASS_OF.items()}


def test_cifar100_is_whole(cifar100):
    for split, count in ((cifar100.train, 50_000), (cifar100.test, 10_000)):
        assert split.images.shape == (count, 32, 32, 3)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert torch.bincount(split.labels).tolist() == [count // 100] * 100


def test_mean_and_deviation_of_cifar100(cifar100):
    pixels = cifar100.train.images.numpy().reshape(-1, 3)
    # From the counts of the 256 values, exactly and without 600 MB of floats.
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
    values = np.arange(256) / 255
    mean = counts @ values / len(pixels)
    std = np.sqrt(counts @ values**2 / len(pixels) - mean**2)
    np.testing.assert_allclose(cifar100.mean, mean, atol=1e-6)
    np.testing.assert_allclose(cifar100.std, std, atol=1e-6)


def test_digits(digits):
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.train.images.shape[1:] == (32, 32, 3)
    assert digits.train.images.dtype == torch.uint8
    assert digits.classes == tuple("0123456789")
    assert torch.bincount(digits.test.labels).min() >= 34
    pixels = digits.train.images.double() / 255
    torch.testing.assert_close(torch.tensor(digits.mean).double(), pixels.mean((0, 1, 2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.tensor(digits.std).double(), pixels.std((0, 1, 2), unbiased=False), atol=1e-5, rtol=0
    )


# Where the files are, and what is wrong with them


def test_files_are_read_in_the_official_layout(files):
    dataset = data.load("cifar100", files.parent)
    raw = (files / "train.bin").read_bytes()
    for index in (0, 5):
        record = raw[index * data.RECORD :]
        assert dataset.train.labels[index] == record[1]
        for channel, row, column in ((0, 0, 0), (1, 3, 31), (2, 31, 7)):
            expected = record[2 + channel * 1024 + row * 32 + column]
            assert dataset.train.images[index, row, column, channel] == expected
    assert dataset.classes == data.CLASSES["cifar100"]


def test_argument_then_variable_then_data(files, monkeypatch, tmp_path):
    here = files.parent
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MNV3_DATA", raising=False)
    assert data.cifar100_folder() == data.Path("data") / data.FOLDER
    assert not data.available()
    here.rename("data")
    assert data.available()
    monkeypatch.setenv("MNV3_DATA", str(tmp_path / "elsewhere"))
    assert data.cifar100_folder() == tmp_path / "elsewhere" / data.FOLDER
    assert not data.available()
    assert data.cifar100_folder(tmp_path / "data") == tmp_path / "data" / data.FOLDER
    assert data.available(tmp_path / "data")
    assert len(data.load("cifar100", tmp_path / "data").test) == 4
    # The folder of the files themselves will do, too.
    assert data.available(tmp_path / "data" / data.FOLDER)
    (tmp_path / "data" / data.FOLDER / "test.bin").unlink()
    assert not data.available(tmp_path / "data")


def test_a_folder_of_ones_own_images_does_not_hide_cifar100(files, monkeypatch, tmp_path):
    """`evaluate --data flowers` of a run on them and of one on CIFAR-100."""
    monkeypatch.setenv("MNV3_DATA", str(files.parent))
    (tmp_path / "flowers" / "rose").mkdir(parents=True)
    assert data.available(tmp_path / "flowers")
    assert len(data.of_run({"recipe": {"dataset": "cifar100"}}, tmp_path / "flowers").test) == 4


@pytest.mark.parametrize("name", ["cifar100", "digits"])
def test_a_folder_of_ones_own_images_is_not_passed_over(name, monkeypatch, tmp_path):
    """Nor is CIFAR-100 fetched into it, which it would then be taken for."""
    monkeypatch.setattr(data, "_download", None)
    (tmp_path / "flowers" / "rose").mkdir(parents=True)
    with pytest.raises(InputError, match=f"data set {name}: it is not in .*flowers, which holds something else: give"):
        data.load(name, tmp_path / "flowers")
    with pytest.raises(InputError, match="there is no folder"):
        data.load(name, tmp_path / "none")
    assert contents(tmp_path) == ["flowers", "flowers/rose"]


@pytest.mark.parametrize("there", [None, "notes.txt"])
def test_the_checkouts_data_may_be_missing_or_hold_other_things(there, monkeypatch, tmp_path):
    """Notebooks name it where nothing else is said."""
    asked = []
    monkeypatch.setattr(data, "ROOT", tmp_path)
    monkeypatch.setattr(data, "_cifar100", asked.append)
    if there:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / there).write_text("")
    data.load("cifar100", tmp_path / "data")
    assert asked == [tmp_path / "data" / data.FOLDER]
    assert data.load("digits", tmp_path / "data").name == "digits"


def test_images_that_are_in_no_folder_are_told_as_such(tmp_path):
    (run,) = store.runs(data.ROOT / "results" / "transfer-base")
    record = store.load_record(run, data.ROOT / "results" / "transfer-base")
    (tmp_path / "rose").mkdir()
    for folder in (None, tmp_path):
        assert data.of_run(record, folder) is None
        with pytest.raises(
            InputError, match=r"some of CIFAR-100's .*what is recorded counts, and mnv3 sweep --transfer"
        ):
            data.need(record, folder)


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_wrong_length(files):
    path = files / "test.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError) as caught:
        data.load("cifar100", files.parent)
    assert str(path) in one_line(caught)
    assert f"{4 * data.RECORD - 1:,}" in one_line(caught)
    assert f"{4 * data.RECORD:,}" in one_line(caught)


@pytest.mark.parametrize(("column", "value"), [(0, 20), (1, 100)])
def test_label_out_of_range(files, column, value):
    path = files / "train.bin"
    content = bytearray(path.read_bytes())
    content[3 * data.RECORD + column] = value
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        data.load("cifar100", files.parent)
    assert str(path) in one_line(caught)
    assert f"{6 * data.RECORD:,}" in one_line(caught)
    assert "labels out of range" in one_line(caught)


def test_unknown_data_set():
    with pytest.raises(InputError, match=r"'cifar10'.*cifar100, digits"):
        data.load("cifar10")


# The download


@pytest.fixture
def new(tmp_path):
    """An empty folder."""
    (tmp_path / "new").mkdir()
    return tmp_path / "new"


def test_nothing_is_made_for_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_download", None)
    with pytest.raises(InputError, match=r"there is no folder .*mistyped/twice: name one of images"):
        data.load("cifar100", tmp_path / "mistyped" / "twice")
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_leaves_no_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "URL", "http://127.0.0.1:9/nobody-listens.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MNV3_DATA", str(tmp_path / "made" / "by it"))
    with pytest.raises(InputError, match="cannot be downloaded"):
        data.load()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ("cifar-100-python/train", "cifar-100-python there is not read .*binary version is"),
        ("cifar-100-python.tar.gz", r"cifar-100-python\.tar\.gz there is not read"),
        ("cifar-100-matlab/train.mat", "cifar-100-matlab there is not read"),
        ("cifar-100-binary.tar.gz", r"cifar-100-binary\.tar\.gz there is not read .*unpacked"),
        ("meta", "meta there is not read .*the Python one is of pickles"),
    ],
)
def test_other_layouts_are_named(there, told, new, monkeypatch):
    monkeypatch.setattr(data, "URL", "http://127.0.0.1:9/nobody-listens.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (new / there).parent.mkdir(exist_ok=True)
    (new / there).write_bytes(b"")
    with pytest.raises(InputError, match=told) as caught:
        data.load("cifar100", new)
    one_line(caught)
    assert (new / there).exists()


def test_offline_says_what_to_do(monkeypatch, new):
    monkeypatch.setattr(data, "URL", "http://127.0.0.1:9/nobody-listens.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(InputError) as caught:
        data.load("cifar100", new)
    for part in (data.URL, data.MD5, str(new), "MNV3_DATA", "refused"):
        assert part in one_line(caught)
    assert contents(new) == []


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serve a folder, also as a proxy for any host; a file called short.tar.gz breaks off before its announced end."""

    def translate_path(self, path):
        return super().translate_path(urllib.parse.urlsplit(path).path)

    def log_message(self, *_):
        pass

    def send_header(self, name, value):
        if name == "Content-Length" and self.path.endswith("short.tar.gz"):
            value = str(int(value) + 100)
        super().send_header(name, value)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server on this machine, and the folder that it serves."""
    served = tmp_path / "served"
    served.mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = lambda *arguments: Quiet(*arguments, directory=served)  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", served
        running.shutdown()
        thread.join()


def offer(monkeypatch, server, name, members, md5=None):
    address, served = server
    archive = make_archive(served / name, members)
    monkeypatch.setattr(data, "URL", f"{address}/{name}")
    monkeypatch.setattr(data, "MD5", md5 or hashlib.md5(archive.read_bytes()).hexdigest())


def good_members():
    return {f"{data.FOLDER}/{name}": make_record(count, count) for name, count in COUNTS.items()}


def test_download(small, server, monkeypatch, new):
    offer(monkeypatch, server, "good.tar.gz", good_members() | {f"{data.FOLDER}/batches.meta": b"names"})
    (new / f"{data.TEMPORARY}x").mkdir()  # as a process leaves it that was killed
    (new / f"{data.TEMPORARY}x" / "archive.tar.gz").write_bytes(b"half")
    dataset = data.load("cifar100", new)
    assert (len(dataset.train), len(dataset.test)) == (6, 4)
    assert contents(new) == [data.FOLDER, f"{data.FOLDER}/test.bin", f"{data.FOLDER}/train.bin"]
    monkeypatch.setattr(data, "URL", "http://127.0.0.1:9/not-asked-again")
    assert torch.equal(data.load("cifar100", new).test.images, dataset.test.images)


def test_download_through_a_proxy(small, server, monkeypatch, new):
    offer(monkeypatch, server, "good.tar.gz", good_members())
    monkeypatch.setattr(data, "URL", "http://cifar.invalid/good.tar.gz")
    monkeypatch.setenv("http_proxy", server[0])
    assert len(data.load("cifar100", new).train) == 6


def test_download_with_another_md5_is_refused(small, server, monkeypatch, new):
    offer(monkeypatch, server, "bad.tar.gz", good_members(), md5="0" * 32)
    with pytest.raises(InputError, match=r"hash .*expected md5:0{32}"):
        data.load("cifar100", new)
    assert contents(new) == []


def test_download_that_breaks_off_is_refused(small, server, monkeypatch, new):
    offer(monkeypatch, server, "short.tar.gz", good_members(), md5="0" * 32)
    with pytest.raises(InputError) as caught:
        data.load("cifar100", new)
    assert data.URL in one_line(caught)
    assert contents(new) == []


def test_an_archive_without_the_images_is_refused(small, server, monkeypatch, new):
    offer(monkeypatch, server, "other.tar.gz", {"notes.txt": b"none"})
    with pytest.raises(InputError) as caught:
        data.load("cifar100", new)
    assert data.URL in one_line(caught)


def test_missing_archive_is_named(small, server, monkeypatch, new):
    offer(monkeypatch, server, "good.tar.gz", good_members())
    monkeypatch.setattr(data, "URL", f"{server[0]}/gone.tar.gz")
    with pytest.raises(InputError, match=r"404.*gone\.tar\.gz"):
        data.load("cifar100", new)


# Splits, normalisation, augmentation


def test_holdout_is_stratified_and_disjoint(digits):
    numbered = dataclasses.replace(digits.train, images=torch.arange(len(digits.train)))
    kept, held = data.holdout(numbered)
    assert sorted(kept.images.tolist() + held.images.tolist()) == list(range(len(numbered)))
    assert kept.images.tolist() == sorted(kept.images.tolist())
    whole, part = torch.bincount(numbered.labels), torch.bincount(held.labels)
    assert part.tolist() == [round(0.1 * count) for count in whole.tolist()]
    assert torch.equal(numbered.labels[held.images], held.labels)
    assert torch.equal(data.holdout(numbered)[1].images, held.images)


def test_holdout_of_few_images_holds_one_of_each_class():
    few = data.Split(torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 1]))
    kept, held = data.holdout(few)
    assert held.images.tolist() == [2, 5] and len(kept) == 4
    with pytest.raises(InputError, match="a class has one image, which cannot be both learnt and held out"):
        data.holdout(data.Split(torch.arange(3), torch.tensor([0, 0, 1])))


def test_holdout_of_cifar100_has_50_images_a_class():
    train = data.Split(torch.arange(50_000), torch.arange(50_000) * 7 % 100)
    kept, held = data.holdout(train)
    assert torch.bincount(kept.labels).tolist() == [450] * 100
    assert torch.bincount(held.labels).tolist() == [50] * 100


def test_normalise():
    images = torch.randint(0, 256, (4, 5, 6, 3), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    expected = TF.normalize(images.permute(0, 3, 1, 2).float() / 255, mean, std)
    result = data.normalise(images, mean, std)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("padding", recipe.CHOICES["padding"])
@pytest.mark.parametrize("pad", [1, 4, 16])
def test_crop_and_flip_are_torchvisions(padding, pad):
    generator = torch.Generator().manual_seed(pad)
    images = torch.randint(0, 256, (40, 20, 32, 3), dtype=torch.uint8, generator=generator)
    offsets = torch.randint(-pad, pad + 1, (40, 2), generator=generator)
    offsets[:4] = torch.tensor([[-pad, -pad], [pad, pad], [-pad, pad], [0, 0]])
    flips = torch.rand(40, generator=generator) < 0.5
    result = data.crop_and_flip(images, offsets, flips, padding)
    assert result.dtype == torch.uint8
    mode = {"zero": "constant", "reflect": "reflect"}[padding]
    for image, (down, right), flip, got in zip(images, offsets.tolist(), flips, result, strict=True):
        padded = TF.pad(image.permute(2, 0, 1), [pad], padding_mode=mode)
        expected = TF.crop(padded, pad + down, pad + right, 20, 32)
        if flip:
            expected = TF.hflip(expected)
        assert torch.equal(got.permute(2, 0, 1), expected)


@pytest.fixture
def numbered():
    """Fifty images that tell their number and which side is left: the number, then 200, in every row."""
    images = torch.arange(50, dtype=torch.uint8).reshape(50, 1, 1, 1).repeat(1, 2, 2, 3)
    images[:, :, 1] = 200
    return data.Split(images, torch.arange(50) + 1000)


def epoch_of(split, **changes):
    """(number, mirrored) of each image of an epoch, in order, a list a batch."""
    options = dict(batch_size=8, seed=3, epoch=5, crop=0, padding="zero", flip="random") | changes
    result = []
    for images, labels in data.epoch_batches(split, **options):
        mirrored = images[:, 0, 0, 0] == 200
        numbers = torch.where(mirrored, images[:, 0, 1, 0], images[:, 0, 0, 0]).long()
        assert torch.equal(numbers + 1000, labels)
        result.append(list(zip(numbers.tolist(), mirrored.tolist(), strict=True)))
    return result


def test_epoch_depends_on_seed_and_epoch_alone(numbered):
    assert epoch_of(numbered) == epoch_of(numbered)
    torch.manual_seed(99)
    assert epoch_of(numbered) == epoch_of(numbered)
    assert epoch_of(numbered) != epoch_of(numbered, epoch=6)
    assert epoch_of(numbered) != epoch_of(numbered, seed=4)


def test_crops_depend_on_seed_and_epoch(digits):
    def crops(epoch):
        batches = data.epoch_batches(
            digits.train, batch_size=64, seed=1, epoch=epoch, crop=4, padding="reflect", flip="none"
        )
        return next(batches)[0]

    assert torch.equal(crops(0), crops(0))
    assert not torch.equal(crops(0), crops(1))


def test_each_image_at_most_once_an_epoch(numbered):
    batches = epoch_of(numbered)
    assert [len(batch) for batch in batches] == [8] * 6
    numbers = [number for batch in batches for number, _ in batch]
    assert len(set(numbers)) == 48
    assert numbers != sorted(numbers)
    missed = [set(range(50)) - {n for batch in epoch_of(numbered, epoch=e) for n, _ in batch} for e in range(20)]
    assert len(set().union(*missed)) > 10


def test_one_batch_where_there_is_no_full_one(numbered):
    (batch,) = epoch_of(numbered, batch_size=64)
    assert sorted(number for number, _ in batch) == list(range(50))
    assert data.steps(numbered, 64) == 1


def test_flips(numbered):
    def mirrored(flip, epoch):
        return dict(pair for batch in epoch_of(numbered, batch_size=50, flip=flip, epoch=epoch) for pair in batch)

    assert not any(mirrored("none", 0).values())
    epochs = [mirrored("alternating", epoch) for epoch in range(4)]
    assert epochs[0] == epochs[2]
    assert epochs[1] == epochs[3]
    assert all(epochs[0][number] != epochs[1][number] for number in range(50))
    assert 10 < sum(epochs[0].values()) < 40
    shares = [sum(mirrored("random", epoch).values()) / 50 for epoch in range(40)]
    assert abs(np.mean(shares) - 0.5) < 0.05
    assert len(set(shares)) > 5


def test_offsets_reach_as_far_as_the_crop():
    """A white dot in the middle shows where the crop went: everywhere within 2 pixels, about as often."""
    images = torch.zeros(5000, 9, 9, 3, dtype=torch.uint8)
    images[:, 4, 4] = 255
    split = data.Split(images, torch.zeros(5000, dtype=torch.int64))
    ((batch, _),) = data.epoch_batches(split, batch_size=5000, seed=0, epoch=0, crop=2, padding="zero", flip="none")
    seen = (batch[..., 0] == 255).sum(0)
    assert seen[2:7, 2:7].min() > 130
    assert seen[2:7, 2:7].sum() == 5000

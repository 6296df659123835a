"""CIFAR-100 and digits as arrays in memory, and augmentation of whole batches.

Images are uint8 tensors [images, height, width, 3]; labels are int64 tensors [images].
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mnv3lib import writing
from mnv3lib.errors import InputError, choose, local, one_line
from mnv3lib.provenance import ROOT

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
MD5 = "03b5dce01913d631647c71ecec9e9cb8"
FOLDER = "cifar-100-binary"
TEMPORARY = ".cifar-100-"  # beside it, while it is fetched
FILES = {"train.bin": 50_000, "test.bin": 10_000}
OWN_IMAGES = "own-images"  # a person's, in a folder that gives no other name
RECORD = 2 + 3 * 32 * 32  # superclass, class, then the red, green and blue planes

# Labels number the classes, and the superclasses, in alphabetical order (Krizhevsky 2009).
SUPERCLASS_OF = {
    name: superclass
    for line in files("mnv3lib").joinpath("cifar100.txt").read_text(encoding="utf-8").splitlines()
    for superclass, names in [line.split(": ")]
    for name in names.split()
}
CLASSES = {"cifar100": tuple(sorted(SUPERCLASS_OF)), "digits": tuple("0123456789")}


@dataclass(frozen=True)
class Split:
    """Images uint8 [n, height, width, 3] and labels int64 [n]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: torch.Tensor) -> "Split":
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A training and a test set with the names of their classes and the normalisation that belongs to them.

    `mean` and `std` are per channel, for pixels in [0, 1]. Images of one's own have a `digest` by which they are known,
    the files of their test set, and `facts` for the record; see folders.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: str = ""
    test_files: tuple[Path, ...] = ()
    facts: dict = field(default_factory=dict)


def load(name: str = "cifar100", folder: str | os.PathLike | None = None, size: int = 32, **options) -> Dataset:
    """The data set called `name`: cifar100, digits, or, under any other name, one's own images in `folder`.

    By the name OWN_IMAGES, they are called as their folder is.
    CIFAR-100 is looked for in `folder`, else in the folder that MNV3_DATA names, else in ./data, and downloaded there
    if it is missing. Raises InputError if `folder` does not exist, or holds something else than the data set of that
    name, if the data can be neither found nor downloaded, or if a file is damaged. `size` and `options` are for images
    of one's own; see folders.load.
    """
    if name not in CLASSES and folder:
        from mnv3lib.own import folders  # which stands on this module

        called = {} if name == OWN_IMAGES else {"name": folders.checked(name)}
        return replace(folders.load(folder, size, **options), **called)
    choose("data set", name, CLASSES)
    check_folder(name, folder)
    return _digits() if name == "digits" else _cifar100(cifar100_folder(folder))


def check_folder(name: str, folder: str | os.PathLike | None) -> None:
    """Raise InputError if `folder` cannot be meant for CIFAR-100 or digits: it is missing, or holds something else."""
    if not folder or (base := local(folder)) == ROOT / "data":  # which notebooks name, whatever is there
        return
    if not base.is_dir():  # a slip of the pen, most likely
        raise InputError(f"there is no folder {base}: name one of images, a folder a class, or {FOLDER}'s")
    if name_of(base) != "cifar100" and not _other_layouts(base):
        mend = "give what is there another name, or leave one of the two out"
        raise InputError(f"data set {name}: it is not in {base}, which holds something else: {mend}")


def unread(name: str) -> Dataset:
    """CIFAR-100 or digits without the images, which is all that planning a run on them takes."""
    none = Split(torch.empty(0, 32, 32, 3, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    return Dataset(name, none, none, CLASSES.get(name, ()), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def folder(path: str | os.PathLike, size: int = 32, **options) -> Dataset:
    """The images of one's own in a folder, in a folder a class, at `size` pixels a side; see folders.load."""
    from mnv3lib.own import folders

    return folders.load(path, size, **{"log": print} | options)


def name_of(folder: str | os.PathLike | None) -> str:
    """What a folder that a person named holds: cifar100, if it is there or nothing is, else images of one's own."""
    if not folder or not (base := local(folder)).is_dir() or all(path.name[0] == "." for path in base.iterdir()):
        return "cifar100"
    return "cifar100" if any((base / name).exists() for name in ("train.bin", FOLDER)) else OWN_IMAGES


def of_run(record: dict, folder: str | os.PathLike | None = None) -> Dataset | None:
    """The data set that the run of a record was trained on; None if it is not on this machine, or has changed.

    It is looked for where `load` does, and images of one's own in `folder` or where the record says. Nothing is
    downloaded.
    """
    made, told = record["recipe"], record.get("data", {})
    name = made["dataset"]
    if name == "digits":
        return load(name)  # a folder is meant for other runs
    if name == "cifar100":
        return load(name, for_cifar100(folder)) if available(folder) else None
    if told.get("folder") == "":
        return None  # see `why_not`
    place = _own_folder(record, folder)
    if not place or not local(place).is_dir():
        return None
    share = {"test_share": told["test_share"]} if told.get("test_share") else {}
    try:
        found = load(name, place, max(made["image_sizes"]), **share)
    except InputError:
        if place == folder:  # which a person named
            raise
        return None  # it is no data set any more
    return found if found.digest == made["data_digest"] else None


def why_not(record: dict, folder: str | os.PathLike | None = None) -> str:
    """Why `of_run` finds no images of one's own, in words."""
    if record.get("data", {}).get("folder") == "":  # see study.few_pictures
        again = "mnv3 sweep --transfer makes it again"
        return f"its images are some of CIFAR-100's and in no folder of their own: what is recorded counts, and {again}"
    place = _own_folder(record, folder)
    if not place or not local(place).is_dir():
        return f"its images are no longer in {place}: say where they are with --data"
    return f"the images in {place} are others than those that it was trained and tested with"


def need(record: dict, folder: str | os.PathLike | None = None) -> None:
    """Raise InputError if the images that the run of a record was trained on are not on this machine."""
    if record["recipe"]["dataset"] == "cifar100" and not available(folder):
        raise InputError("CIFAR-100 is not on this machine, and nothing can be measured without: see MNV3_DATA")
    if "data" in record and of_run(record, folder) is None:
        raise InputError(f"{record['run']}: {why_not(record, folder)}")


def _own_folder(record: dict, folder: str | os.PathLike | None) -> str | os.PathLike | None:
    """Where the images of a run's own are looked for."""
    if not folder or name_of(folder) == "cifar100":  # which is meant for other runs of the same command
        return record.get("data", {}).get("folder")
    return folder


def for_cifar100(folder: str | os.PathLike | None) -> str | os.PathLike | None:
    """`folder`, unless it holds images of one's own: CIFAR-100 is then where MNV3_DATA says, or in ./data."""
    return folder if name_of(folder) == "cifar100" else None


def cifar100_folder(folder: str | os.PathLike | None = None) -> Path:
    """Where the files of CIFAR-100 lie, or would lie; see `load`."""
    base = local(folder or os.environ.get("MNV3_DATA") or "data")
    return base if (base / "train.bin").is_file() else base / FOLDER


def available(folder: str | os.PathLike | None = None) -> bool:
    """Whether CIFAR-100 is on this machine."""
    return all((cifar100_folder(for_cifar100(folder)) / file).is_file() for file in FILES)


@cache
def _digits() -> Dataset:
    """1,797 handwritten digits that ship with scikit-learn, 8x8 grey made 32x32 RGB; a fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    grey, labels = load_digits(return_X_y=True)
    grey = np.rint(grey.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(image).resize((32, 32)).convert("RGB")) for image in grey])
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    whole = Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))
    pixels = images[train] / 255
    mean, std = (tuple(value.tolist()) for value in (pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))))
    train, test = (whole.take(torch.from_numpy(indices)) for indices in (train, test))
    return Dataset("digits", train, test, CLASSES["digits"], mean, std)


def _cifar100(folder: Path) -> Dataset:
    if not all((folder / file).is_file() for file in FILES):
        _download(folder)
    train, test = (_read(folder / file, count) for file, count in FILES.items())
    mean, std = (0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)
    return Dataset("cifar100", train, test, CLASSES["cifar100"], mean, std)


def _read(path: Path, count: int) -> Split:
    """One file of the official binary layout."""
    expected = count * RECORD
    size = path.stat().st_size
    mend = f"delete the folder and run again, or fetch {URL}"
    if size != expected:
        raise InputError(f"{path} has {size:,} bytes and should have {expected:,}: {mend}")
    records = np.fromfile(path, np.uint8).reshape(count, RECORD)
    superclasses, labels = records[:, 0], records[:, 1]
    if superclasses.max() >= 20 or labels.max() >= 100:
        raise InputError(f"{path} ({expected:,} bytes, as it should) has labels out of range, so it is damaged: {mend}")
    images = records[:, 2:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))


def _download(folder: Path) -> None:
    """Fetch the official archive, check it, and put its two files of images into `folder`.

    One process at a time: another waits for it, and then finds them there.
    """
    base = folder.parent
    new = [path for path in (base, *base.parents) if not path.exists()]
    try:
        with writing.only_writer(folder, timeout=3600, doing="downloaded"):
            for left in base.glob(f"{TEMPORARY}*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            if not all((folder / file).is_file() for file in FILES):
                _fetch(folder)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # of requests, and of a checksum
        for path in new:  # nothing is left of a folder that was made for nothing
            with suppress(OSError):
                path.rmdir()
        reason = getattr(error.args[0] if error.args else None, "reason", error)
        others = _other_layouts(base)
        there = (
            f"{', '.join(others)} there is not read (the binary version is, unpacked; the Python one is of pickles); "
        )
        raise InputError(
            f"CIFAR-100 is not in {base} and cannot be downloaded ({one_line(reason)}): {there if others else ''}"
            f"unpack {URL} (md5 {MD5}) there, or point MNV3_DATA at the folder that holds {FOLDER}"
        ) from None


def _fetch(folder: Path) -> None:
    import pooch  # slow to import

    pooch.get_logger().setLevel("WARNING")
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder.parent) as temporary:
        unpack = pooch.Untar(members=[f"{FOLDER}/{file}" for file in FILES], extract_dir=".")
        fetch = pooch.HTTPDownloader(progressbar=True, timeout=30)
        pooch.retrieve(URL, f"md5:{MD5}", "archive.tar.gz", temporary, processor=unpack, downloader=fetch)
        folder.mkdir(exist_ok=True)
        for file in FILES:
            os.replace(Path(temporary) / FOLDER / file, folder / file)


def _other_layouts(base: Path) -> list[str]:
    """What is in a folder of CIFAR-100 in other forms than the one that is read: packed, for Python or for Matlab."""
    others = [path.name for path in base.glob("cifar-100-*") if path.name != FOLDER]
    return others + (["meta"] if (base / "meta").is_file() else [])  # of the Python version


def holdout(train: Split) -> tuple[Split, Split]:
    """Split off the last tenth of each class for tuning: 45,000 and 5,000 images of CIFAR-100, always the same."""
    kept, held = [], []
    for label in train.labels.unique():
        indices = torch.nonzero(train.labels == label).flatten()
        if len(indices) < 2:
            raise InputError("split holdout: a class has one image, which cannot be both learnt and held out")
        cut = len(indices) - max(1, round(0.1 * len(indices)))
        kept.append(indices[:cut])
        held.append(indices[cut:])
    return train.take(torch.cat(kept).sort().values), train.take(torch.cat(held).sort().values)


def parts(dataset: Dataset, split: str) -> tuple[Split, Split]:
    """What a recipe's `split` trains on and what it is measured on: full or holdout."""
    return holdout(dataset.train) if split == "holdout" else (dataset.train, dataset.test)


def normalisation(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in [0, 1], of uint8 images [n, height, width, 3]."""
    counts = np.zeros((3, 256))
    for part in images.split(500):
        counts += [np.bincount(part[..., channel].numpy().ravel(), minlength=256) for channel in range(3)]
    levels, shares = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = shares @ levels
    deviation = np.sqrt(shares @ levels**2 - mean**2).clip(1 / 255)  # of one colour alone it would be nothing
    return tuple(mean.tolist()), tuple(deviation.tolist())


def some(images: torch.Tensor, count: int) -> torch.Tensor:
    """As many of the images, always the same ones."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]]


def normalise(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """uint8 [n, height, width, 3] to float32 [n, 3, height, width] (channels last in memory), normalised."""
    scale = torch.tensor([1 / (255 * deviation) for deviation in std])
    shift = torch.tensor([-value / deviation for value, deviation in zip(mean, std, strict=True)])
    # non_blocking: a GPU need not be done with the last batch
    scale, shift = scale.to(images.device, non_blocking=True), shift.to(images.device, non_blocking=True)
    return torch.addcmul(shift, images.float(), scale).permute(0, 3, 1, 2)


def crop_and_flip(images: torch.Tensor, offsets: torch.Tensor, flips: torch.Tensor, padding: str) -> torch.Tensor:
    """Shift each image of a batch by its own offset and mirror some of them, in one gather.

    images: uint8 [n, height, width, 3]; offsets: int64 [n, 2] (down, right), in pixels, negative too; flips: bool [n];
    padding: what comes in at the border, black or the mirrored image. A crop from an image padded by p pixels is an
    offset in [-p, p].
    """
    n, height, width, _ = images.shape
    rows = torch.arange(height, device=images.device) + offsets[:, :1]
    columns = torch.arange(width, device=images.device) + offsets[:, 1:]
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = _reflected(rows, height), _reflected(columns, width)
    first = torch.arange(n, device=images.device)[:, None, None] * (height * width)
    out = images.reshape(-1, 3)[first + rows[:, :, None] * width + columns[:, None, :]]
    return out if padding == "reflect" else out * inside[..., None]


def _reflected(index: torch.Tensor, size: int) -> torch.Tensor:
    """Indices outside [0, size) mirrored into it, the border itself not repeated."""
    return (size - 1 - (size - 1 - index.abs()).abs()).clamp(0, size - 1)


def epoch_batches(
    split: Split, *, batch_size: int, seed: int, epoch: int, crop: int, padding: str, flip: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled and augmented batches of one epoch: (uint8 [batch, height, width, 3], int64 [batch]).

    Depends on `seed` and `epoch` alone, so that an epoch can be run again. A last batch that is not full is left out,
    unless it is the only one.
    `crop`: pixels of padding for the random crop. `flip`: none, random, or alternating (each image is mirrored in
    every second epoch, as in airbench).
    """
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    device = split.labels.device
    order = torch.randperm(len(split), generator=generator).to(device)
    offsets = torch.randint(-crop, crop + 1, (len(split), 2), generator=generator).to(device)
    if flip == "alternating":
        first = torch.rand(len(split), generator=torch.Generator().manual_seed(seed)) < 0.5
        flips = (first ^ bool(epoch % 2)).to(device)
    else:
        flips = (torch.rand(len(split), generator=generator) < (0.5 if flip == "random" else 0)).to(device)
    for start in range(0, steps(split, batch_size) * batch_size, batch_size):
        indices = order[start : start + batch_size]
        batch = split.take(indices)
        yield crop_and_flip(batch.images, offsets[indices], flips[indices], padding), batch.labels


def steps(split: Split, batch_size: int) -> int:
    """Batches in an epoch: full ones only, unless there is none."""
    return max(1, len(split) // batch_size)


class Augmentation:
    """Augmentation beyond crop and flip, as a recipe's `augmentation` names it: of pixels, or of inputs and labels.

    trivialaugment (Müller and Hutter 2021) and erasing (Zhong et al. 2020; half of the images) take one image at a
    time; cutmix (Yun et al. 2019) and mixup (Zhang et al. 2018) mix each image of a batch with its neighbour, all by
    the same share. They are torchvision's, at its defaults, and draw from torch's global generator, which `training`
    seeds anew in each epoch, so that an epoch can be run again. `share`: of the images, or batches, that get it.
    """

    def __init__(self, name: str, classes: int, share: float = 1.0):
        self.name, self.classes, self.share, self.transform = name, classes, share, None
        if name != "none":
            from torchvision.transforms import v2  # slow to import, and most recipes have none of these

            kinds = {"trivialaugment": v2.TrivialAugmentWide, "erasing": v2.RandomErasing}
            mixes = {"cutmix": v2.CutMix, "mixup": v2.MixUp}
            self.transform = kinds[name]() if name in kinds else mixes[name](num_classes=classes)

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [n, height, width, 3] to the same, before they are normalised."""
        if self.name != "trivialaugment":
            return images
        return self._each(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def inputs(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images [n, 3, height, width] and labels [n] to images and the targets of the loss.

        The targets are the labels, or shares of the classes [n, classes] where images were mixed.
        """
        if self.name == "erasing":
            inputs = self._each(inputs)
        elif self.name in ("cutmix", "mixup"):
            if self._chosen():
                inputs, labels = self.transform(inputs, labels)
            else:  # the same form of targets in each batch
                labels = F.one_hot(labels, self.classes).to(inputs.dtype)
        return inputs.contiguous(memory_format=torch.channels_last), labels

    def _each(self, images: torch.Tensor) -> torch.Tensor:
        """A transform that would treat a batch all alike, image by image."""
        return torch.stack([self.transform(image) if self._chosen() else image for image in images])

    def _chosen(self) -> bool:
        return self.share == 1 or float(torch.rand(())) < self.share

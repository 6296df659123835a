"""Images of one's own, in a folder a class, as a data set.

    FOLDER/<class>/...   split into training and test here, or
    FOLDER/train/<class>/... and FOLDER/test/<class>/... (or val)
    or CIFAR as it is published; see cifar

They are read as `mnv3 predict` reads them, once: the pixels are kept in the user's cache, by the paths, sizes and times
of the files. The digest of a data set is made of the files' contents, their paths in the folder and the test share, so
that a copied folder is the same data set and a changed one is another.
"""

import hashlib
import json
import math
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from mnv3lib.data import OWN_IMAGES, Dataset, Split, normalisation
from mnv3lib.errors import InputError, local, whole, within
from mnv3lib.inference import COMPANIONS, as_pixels, load_image, printable
from mnv3lib.own import cifar
from mnv3lib.progress import bar
from mnv3lib.provenance import cache_folder
from mnv3lib.recipe import DATASETS, OWN, SIZES
from mnv3lib.writing import replacing

TEST_NAMES = ("test", "val", "valid", "validation")  # the first that is there is the test set
MOST_CLASSES = 2000
SHARE = 0.2  # of each class that is the test set, where the folder has none
TOLD = 10  # lines about files that cannot be read


def load(
    folder: str | os.PathLike,
    size: int = 32,
    *,
    test_share: float = SHARE,
    strict: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """The images in `folder`, at `size` pixels a side, with the normalisation of those to train on.

    A folder without a test set is split: `test_share` of each class, one image at least, drawn always alike. What
    cannot be read is told to `log` and left out, or, if `strict`, raises InputError; so does a folder that is no data
    set. Also told are the sizes of both sets, and how many images are in both.
    """
    folder = local(folder)
    whole("image size", size, *SIZES)
    within("test_share", test_share, 0, 0.9, above=True)
    if folder.is_dir() and (found := cifar.find(folder)):
        place, layout = found
        log(f"{place} has the layout of {place.name if place.name in cifar.LAYOUTS else 'CIFAR'} as published")
        return cifar.load(place, layout, log)
    sets = find_sets(folder)
    names = find_classes(sets["train"])
    if "test" not in sets and "train" in map(str.lower, names):  # which may be one, but also a slip of the pen
        log(f"{printable(folder)}: 'train' is taken for a class, as no folder beside it is called test or val")
    if "test" in sets and (lacking := sorted(set(find_classes(sets["test"])) - set(names))):
        raise InputError(f"{sets['test']} has the class {lacking[0]!r}, which {sets['train']} lacks: move or rename it")
    for root in sets.values():
        beside = sorted(path.name for path in root.iterdir() if path.is_file() and _may_be_image(path))
        if beside:
            told = f"{printable(beside[0])}, {len(beside):,} in all"
            log(f"{printable(root)}: files beside the class folders are not used: {told}")
    listed = [
        (path, label, part == "test")
        for part, root in sets.items()
        for label, name in enumerate(names)
        for path in (sorted(find_files(root / name)) if (root / name).is_dir() else ())  # a test set may lack a class
    ]
    _check_memory(folder, len(listed), size)
    images, broken, content = _read(folder, [path for path, _, _ in listed], size, log)
    if broken and strict:
        raise InputError(f"{len(broken)} of {len(listed):,} files cannot be read: {broken[0][1]}")
    for _, line in broken[:TOLD]:
        log(f"left out: {line}")
    if len(broken) > TOLD:
        log(f"left out: {len(broken) - TOLD:,} more")
    unread = {index for index, _ in broken}
    listed = [one for index, one in enumerate(listed) if index not in unread]
    labels = torch.tensor([label for _, label, _ in listed], dtype=torch.int64)
    is_test = torch.tensor([test for _, _, test in listed], dtype=torch.bool)

    counts = labels[~is_test].bincount(minlength=len(names)).tolist()
    for name, count in zip(names, counts, strict=True):
        if not count:
            raise InputError(f"the class {name!r} has no images in {sets['train']}: add some or delete its folder")
        if count == 1 and "test" not in sets:
            raise InputError(f"the class {name!r} has one image, which cannot be both learnt and tested: add another")
    if "test" not in sets:
        is_test = _drawn(labels, test_share)
    elif not is_test.any():
        raise InputError(f"there are no images in {sets['test']}")
    train, test = (Split(images[chosen], labels[chosen]) for chosen in (~is_test, is_test))
    both = _in_both(train.images, test.images)
    share = None if "test" in sets else test_share
    how = f"{sets['test']} is the test set" if share is None else f"{share:.0%} of each class is the test set"
    unused = [path.name for path in _folders(folder) if path.name.lower() in TEST_NAMES and path not in sets.values()]
    how += f"; not used: {', '.join(unused)}" * ("test" in sets and bool(unused))
    log(f"{folder}: {len(train):,} images of {len(names)} classes to train on, {len(test):,} to test with; {how}")
    if both:
        log(f"{both:,} of the {len(test):,} test images are training images too, which flatters the result")
    facts = {"folder": str(folder.absolute()), "classes": names, "train": len(train), "test": len(test)}
    facts |= {"test_share": share, "left_out": len(broken), "in_both": both}
    return Dataset(
        _name(folder),
        train,
        test,
        tuple(names),
        *normalisation(train.images),
        digest=hashlib.sha256(f"{content} {share}".encode()).hexdigest()[:12],
        test_files=tuple(path for (path, _, _), chosen in zip(listed, is_test.tolist(), strict=True) if chosen),
        facts=facts,
    )


def find_sets(folder: Path) -> dict[str, Path]:
    """Where the images to train on lie, and, if they are apart, those to test with."""
    if not folder.is_dir():
        raise InputError(
            f"{printable(folder)} is no folder" if folder.exists() else f"there is no folder {printable(folder)}"
        )
    inside = {path.name.lower(): path for path in _folders(folder)}
    tests = [inside[name] for name in TEST_NAMES if name in inside]
    if "train" in inside and tests:
        return {"train": inside["train"], "test": tests[0]}
    return {"train": inside["train"] if list(inside) == ["train"] else folder}


def find_classes(folder: Path) -> list[str]:
    """The names of the class folders in `folder`; InputError if they make no classes."""
    names = sorted(path.name for path in _folders(folder))
    if len(names) < 2:
        found = f"only the folder {names[0]!r}" if names else "no folders"
        raise InputError(
            f"{printable(folder)} has {found}: put the images of each class into a folder of its own, two at least"
        )
    if len(names) > MOST_CLASSES:
        raise InputError(
            f"{printable(folder)} has {len(names):,} folders, and {MOST_CLASSES:,} classes are the most: one a class?"
        )
    for name in names:
        if len(name) > 100 or not name.isprintable():
            raise InputError(
                f"class {printable(name)[:100]!r}: names are of 1 to 100 printable characters, rename the folder"
            )
    alike = [name for name, count in Counter(map(str.casefold, names)).items() if count > 1]
    if alike:
        twins = [name for name in names if name.casefold() == alike[0]]
        raise InputError(
            f"the classes {' and '.join(map(repr, twins))} differ by case alone: make them one or rename one"
        )
    return names


def find_files(folder: Path, recursive: bool = True, most: float = math.inf) -> list[Path]:
    """The files in `folder`, then those of each of its subfolders, in order, without hidden ones and COMPANIONS.

    Links to folders are followed, and each folder counts once. Raises InputError if there are more than `most`.
    """
    found, seen, waiting = [], set(), [folder]
    while waiting:
        one = waiting.pop(0)
        if (real := one.resolve()) in seen:
            continue
        seen.add(real)
        shown = sorted(path for path in one.iterdir() if not _hidden(path.name))
        found += [path for path in shown if not path.is_dir() and _may_be_image(path)]
        if recursive:
            waiting[:0] = [path for path in shown if path.is_dir()]
        if len(found) > most:
            raise InputError(f"{printable(folder)} has more than {most:,} files: name fewer folders")
    return found


def _may_be_image(path: Path) -> bool:
    return not _hidden(path.name) and path.suffix.lower() not in COMPANIONS


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name)]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _name(folder: Path) -> str:
    """What the data set of a folder is called, in the names of runs too."""
    plain = unicodedata.normalize("NFKD", folder.absolute().name).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9.+-]+", "-", plain).strip("-.+")[:40]
    return name if re.fullmatch(OWN, name) and name not in DATASETS else OWN_IMAGES


def checked(name: str) -> str:
    """A name that a person gave to a data set; InputError if it cannot be one."""
    if not re.fullmatch(OWN, name):
        raise InputError(f"data set {name!r}: give a name of small letters, digits and . + - alone")
    return name


def _read(
    folder: Path, paths: list[Path], size: int, log: Callable[[str], None]
) -> tuple[torch.Tensor, list[tuple[int, str]], str]:
    """The images at `paths`, uint8 [n, size, size, 3]; number and complaint of each that is none; a digest of all."""
    told = [(str(path.relative_to(folder)), *_stamp(path)) for path in paths]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    place = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    kept = cache_folder() / "images" / place / f"{size}-{key}.npz"
    try:
        with np.load(kept, allow_pickle=False) as file:
            images, broken, content = torch.from_numpy(file["images"]), json.loads(str(file["broken"])), file["content"]
        if not any(_can_be_read(paths[index]) for index, _ in broken):
            return images, broken, str(content)
    except Exception:  # it is not there, or damaged
        pass
    images, broken, content = [], [], hashlib.sha256()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: log(str(message))  # what a file leaves open is told
        for index, path in enumerate(bar(paths, "images")):
            content.update(f"{told[index][0]} ".encode(errors="surrogateescape"))
            try:
                images.append(as_pixels(load_image(path), size).numpy())
                with path.open("rb") as file:
                    content.update(hashlib.file_digest(file, "sha256").digest())
            except InputError as error:
                broken.append([index, str(error)])
    images = np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)
    with suppress(OSError, InputError):  # without a place in the cache they are read again the next time
        with replacing(kept) as temporary, temporary.open("wb") as file:
            np.savez(file, images=images, broken=json.dumps(broken), content=content.hexdigest())
        for old in set(kept.parent.glob(f"{size}-*.npz")) - {kept}:
            old.unlink()
    return torch.from_numpy(images), broken, content.hexdigest()


def _can_be_read(path: Path) -> bool:
    """Whether an image that could not be read can be now: what its format needs may have been installed since."""
    with suppress(InputError):
        load_image(path)
        return True
    return False


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file, or of a link that leads nowhere."""
    found = path.stat() if path.exists() else path.lstat()
    return found.st_size, found.st_mtime_ns


def _check_memory(folder: Path, images: int, size: int) -> None:
    """Raise InputError if the images, and a copy of them while they are split, are more than the memory holds."""
    needed, there = 2 * images * size * size * 3, _memory()
    if needed > there:
        told = f"need {needed / 1e9:.1f} GB of memory, and this machine has {there / 1e9:.1f}"
        raise InputError(f"the {images:,} files of {folder} at {size} px {told}: choose a smaller image size")


def _memory() -> float:
    """Bytes of memory that this machine has; not every system tells."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _drawn(labels: torch.Tensor, share: float) -> torch.Tensor:
    """Which images are drawn for the test set, bool [n]: of each class `share`, at least one and never all."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        mine = torch.nonzero(labels == label).flatten()
        count = min(max(1, round(share * len(mine))), len(mine) - 1)
        chosen[mine[torch.randperm(len(mine), generator=generator)[:count]]] = True
    return chosen


def _in_both(train: torch.Tensor, test: torch.Tensor) -> int:
    """How many images of `test` are in `train` too, pixel by pixel."""
    known, asked = ([hashlib.sha256(image.numpy()).digest() for image in images] for images in (train, test))
    known = set(known)
    return sum(one in known for one in asked)

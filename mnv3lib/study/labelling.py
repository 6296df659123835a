"""Many runs on many images: what each sees, and how often it is right."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mnv3lib import store
from mnv3lib.errors import InputError, local
from mnv3lib.inference import COLUMNS, as_pixels, guess, load_image, printable
from mnv3lib.own.folders import find_files
from mnv3lib.progress import bar
from mnv3lib.provenance import place

if TYPE_CHECKING:
    import pandas

MOST_FILES = 100_000  # in the folders that somebody names, so that / is no answer
Row = tuple[str, str, int, str, float]  # run, image, rank, class, probability
SOURCES = "SOURCES.csv"  # beside the photographs: who made each, and what it shows


def images_folder() -> Path:
    """test_images of the checkout, else test_images here."""
    return place("test_images")


def find_images(paths: Iterable[str | os.PathLike], recursive: bool = True) -> list[Path]:
    """The files named, and of each folder named the files in it, in order, without hidden ones and COMPANIONS.

    `recursive`: those in its subfolders too. Whether they are images is not looked at here. Raises InputError if a
    folder or file is missing, if nothing is left, or if there are more than MOST_FILES.
    """
    paths, found = [local(path) for path in paths], []
    for path in paths:
        if path.is_dir():
            found += find_files(path, recursive, MOST_FILES)
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"there is no file or folder {printable(path)}")
    if not found:
        raise InputError(f"there are no images in {', '.join(map(printable, paths))}")
    return list(dict.fromkeys(found))


def photographs(folder: str | os.PathLike, size: int = 32) -> torch.Tensor:
    """The images in `folder`, in the order of `find_images`, as networks see them: uint8 [n, size, size, 3]."""
    return torch.stack([as_pixels(load_image(file), size) for file in find_images([folder])])


def label(
    paths: Iterable[str | os.PathLike],
    runs: Iterable[str] = (),
    *,
    models: Path | None = None,
    top: int | None = None,
    recursive: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """What every run, or all on CIFAR-100 that kept their weights, sees in every image: a row a guess, best first.

    `paths` are files and folders, `top` and `recursive` as in `guess` and `find_images`. A file that cannot be read
    is told to `report` in a line that names it, and the others go on. An image goes by its file's name, or by its
    path where two have the same name.
    """
    files = find_images(paths, recursive)
    models = models or store.models_folder()
    named = list(dict.fromkeys(runs))
    runs = named or store.runs(models, store.WEIGHTS)
    if not runs:
        raise InputError(f"there are no trained models in {models}: train one with mnv3 train")
    recipes = {run: store.load_record(run, models)["recipe"] for run in runs}
    runs = named or store.of_one_set({run: made["dataset"] for run, made in recipes.items()}, "cifar100")
    sizes = {run: recipes[run]["image_sizes"][-1] for run in runs}
    pixels, rows = {}, []
    for file in bar(files, "images"):
        try:
            image = load_image(file)
            pixels[file] = {size: as_pixels(image, size) for size in set(sizes.values())}
        except InputError as error:
            report(str(error))
    alone = len({file.name for file in pixels}) == len(pixels)
    names = [printable(file.name if alone else file) for file in pixels]
    for run in bar(runs, "models") if pixels else ():
        inputs = torch.stack([each[sizes[run]] for each in pixels.values()])
        for image, best in zip(names, guess(store.load(run, models), inputs, top), strict=True):
            rows += [(run, image, rank, *one) for rank, one in enumerate(best, start=1)]
    return rows


def table(rows: list[Row]) -> "pandas.DataFrame":
    """The rows of `label` with the columns run, image, rank, class, probability."""
    import pandas  # slow to import, and `mnv3 predict` does without

    return pandas.DataFrame(rows, columns=["run", *COLUMNS])


def score(guesses: "pandas.DataFrame", truth: dict[str, str]) -> "pandas.DataFrame":
    """A row a run: run, images (those that `truth` names a class for), right, top1 (percent), low, high, in_best.

    guesses: as `table`; low and high: the 95 % interval of top1; in_best: images with the right class in any guess.
    """
    import pandas

    from mnv3lib.study.evaluation import wilson

    judged = guesses[guesses["image"].isin(truth)]
    judged = judged.assign(right=judged["class"] == judged["image"].map(truth))
    rows = []
    for run, its in judged.groupby("run", sort=False):
        images, right = (its["rank"] == 1).sum(), its[its["right"]]
        first = (right["rank"] == 1).sum()
        rows.append((run, images, first, 100 * first / images, *wilson(first, images), right["image"].nunique()))
    return pandas.DataFrame(rows, columns=["run", "images", "right", "top1", "low", "high", "in_best"])


def credits(folder: str | os.PathLike) -> str:
    """Who made each photograph in `folder`, and its licence, in one line, from SOURCES.csv."""
    return "; ".join(f"{name} {row['author']} ({row['licence']})" for name, row in sources(folder).items())


def sources(folder: str | os.PathLike) -> dict[str, dict[str, str]]:
    """What SOURCES.csv in `folder` tells of each file, by its name; nothing where there is no such list."""
    path = Path(folder) / SOURCES
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for column in ("file", "cifar100_class", "author", "licence"):
        if any(row.get(column) is None for row in rows):
            raise InputError(f"{path} needs the column {column} in every row")
    return {row["file"]: row for row in rows}


def as_text(rows: list[Row], format: str) -> str:
    """The rows of `label` as csv, as json (a list of {run, image, guesses}) or as a table with a line an image.

    Without rows, csv and table have their heading alone.
    """
    if format == "csv":
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([["run", *COLUMNS], *rows])
        return file.getvalue()
    images = [(*key, list(guesses)) for key, guesses in groupby(rows, key=lambda row: row[:2])]
    if format == "json":
        found = [
            {"run": run, "image": image, "guesses": [{"class": row[3], "probability": row[4]} for row in guesses]}
            for run, image, guesses in images
        ]
        return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    lines = [[run, image, *(f"{row[3]} {100 * row[4]:.1f} %" for row in guesses)] for run, image, guesses in images]
    best = max((len(line) - 2 for line in lines), default=0)
    lines.insert(0, ["run", "image", *(f"guess {rank + 1}" for rank in range(best))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(" ".join(map(str.rjust, line, widths)) + "\n" for line in lines)

"""Images of any size, mode and format to labelled guesses."""

import csv
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from mnv3lib import data, evaluation, store
from mnv3lib.errors import InputError, one_line
from mnv3lib.networks import MobileNet
from mnv3lib.provenance import ROOT

SOURCES = "SOURCES.csv"
COMPANIONS = {".csv", ".md", ".txt"}  # what lies beside photographs: lists of sources, licences
BACKGROUND = (255, 255, 255)  # of cut-out images: CIFAR-100's own stand on white
COLUMNS = ["image", "rank", "class", "probability"]


def images_folder() -> Path:
    """test_images of the checkout, else test_images here."""
    checkout = ROOT / "test_images"
    return checkout if checkout.is_dir() else Path("test_images")


def load_image(path: str | os.PathLike) -> Image.Image:
    """The image in a file, upright and in RGB with 8 bits a channel, whatever its format, mode and depth.

    The EXIF orientation is applied, transparent parts become white, of an animation the first frame counts. Raises
    InputError, which names the file, if it is missing, no image, cut off, or larger than Pillow thinks safe (179
    million pixels).
    """
    name = printable(path)
    if not Path(path).is_file():
        raise InputError(f"{name} is no file" if Path(path).exists() else f"there is no file {name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # below the limit a large image is only large
            with Image.open(path) as image:
                if image.format == "EPS":  # Pillow would hand it to Ghostscript, which runs it
                    raise InputError(f"{name} is a PostScript program: make it a PNG")
                return to_rgb(image)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is no image that Pillow can read") from None
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise InputError(f"{name} has more than {limit:,} pixels: make it smaller") from None
    except Exception as error:  # decoders raise all kinds of exceptions on damaged files
        raise InputError(f"{name} cannot be read: {one_line(error, 120)}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image of any mode, upright and in RGB with 8 bits a channel; see `load_image`."""
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        image = image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of more than 8 bits as uint8.

    White is 65535 in 16 bits. 32-bit integers and floats do not tell: it is taken for the least of 1 (floats alone),
    255, 65535 that is not below the highest value, else for that value.
    """
    values = np.nan_to_num(values.astype(np.float64), nan=0, posinf=0, neginf=0)
    if mode.startswith("I;16"):
        white = 65535
    else:
        candidates = (1, 255, 65535) if mode == "F" else (255, 65535)
        white = next((white for white in candidates if values.max() <= white), values.max())
    return np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8)


def as_pixels(image: Image.Image, size: int = 32) -> torch.Tensor:
    """uint8 [size, size, 3]: the shorter side resampled to `size` pixels (Lanczos, antialiased), the middle cut out.

    Both at once, so that a strip of 1 x 50,000 pixels needs no more memory than any other image.
    """
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(square))


@torch.inference_mode()
def guess(network: MobileNet, pixels: torch.Tensor, top: int = 5) -> list[list[tuple[str, float]]]:
    """For each image of uint8 [n, size, size, 3] the `top` likeliest (class, probability), best first."""
    if not network.classes:
        raise InputError("the network has no names of classes: load a trained one with mnv3lib.load")
    if not 1 <= top <= len(network.classes):
        raise InputError(f"top {top}: choose from 1 to {len(network.classes)}, the number of classes")
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    result = []
    for portion in pixels.split(100):
        logits = network(data.normalise(portion.to(device), network.mean, network.std))
        best = logits.softmax(1).topk(top)
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            result.append([(network.classes[index], value) for index, value in zip(indices, values, strict=True)])
    network.train(training)
    return result


def predict(
    network: MobileNet, images: str | os.PathLike | Image.Image | Iterable, top: int = 5, size: int = 32
) -> pd.DataFrame:
    """What a trained network sees in one image or several, given as paths or as Pillow images.

    Returns a row a guess, best first: image (its name, or its number where it has none), rank (from 1), class,
    probability in [0, 1]. `size` is the input in pixels a side, 32 for the networks of the report. Raises InputError
    on a file that cannot be read; `label` goes on with the others.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    names, pixels = [], []
    for number, image in enumerate(images):
        is_image = isinstance(image, Image.Image)
        names.append(str(number) if is_image else printable(Path(image).name))
        pixels.append(as_pixels(to_rgb(image) if is_image else load_image(image), size))
    if not pixels:
        return pd.DataFrame(columns=COLUMNS)
    return table(names, guess(network, torch.stack(pixels), top))


def table(names: list[str], guesses: list[list[tuple[str, float]]]) -> pd.DataFrame:
    """The guesses of each image as rows: image, rank, class, probability."""
    rows = [
        (name, rank, *one)
        for name, several in zip(names, guesses, strict=True)
        for rank, one in enumerate(several, start=1)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def as_text(table: pd.DataFrame, format: str) -> str:
    """The rows of `label` as csv, as json (a list of {run, image, guesses}) or as a table with a line an image.

    Without rows, csv and table have their heading alone.
    """
    if format == "csv":
        return table.to_csv(index=False, lineterminator="\n")
    groups = table.groupby(["run", "image"], sort=False)
    if format == "json":
        found = [
            {"run": run, "image": image, "guesses": rows[["class", "probability"]].to_dict("records")}
            for (run, image), rows in groups
        ]
        return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    lines = [
        [run, image, *(f"{row[4]} {100 * row[5]:.1f} %" for row in rows.itertuples())] for (run, image), rows in groups
    ]
    columns = ["run", "image", *(f"guess {rank}" for rank in table["rank"].unique())]
    if table.empty:
        return f"{' '.join(columns)}\n"
    return pd.DataFrame(lines, columns=columns).to_string(index=False) + "\n"


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """The files named, and of each folder named the files in it, in order, without hidden ones and COMPANIONS.

    Whether they are images is not looked at here. Raises InputError if a folder or file is missing, or if nothing is
    left.
    """
    paths, found = [Path(path) for path in paths], []
    for path in paths:
        if path.is_dir():
            found += sorted(
                file
                for file in path.iterdir()
                if not (file.is_dir() or file.name.startswith(".") or file.suffix.lower() in COMPANIONS)
            )
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"there is no file or folder {printable(path)}")
    if not found:
        raise InputError(f"there are no images in {', '.join(map(printable, paths))}")
    return list(dict.fromkeys(found))


def label(
    paths: Iterable[str | os.PathLike],
    runs: Iterable[str] = (),
    *,
    models: Path | None = None,
    top: int = 5,
    report: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """What every run, or all that kept their weights, sees in every image: the rows of `predict` with the run.

    `paths` are files and folders. A file that cannot be read is told to `report` in a line that names it, and the
    others go on. An image goes by its file's name, or by its path where two have the same name.
    """
    files = find_images(paths)
    models = models or store.models_folder()
    runs = list(runs) or [run for run in store.runs(models) if (Path(models) / run / store.WEIGHTS).is_file()]
    if not runs:
        raise InputError(f"there are no trained models in {models}: train one with mnv3 train")
    sizes = {run: store.load_record(run, models)["recipe"]["image_sizes"][-1] for run in runs}
    quiet = not sys.stderr.isatty()
    read, pixels = [], {size: [] for size in sizes.values()}
    for file in tqdm(files, desc="images", leave=False, disable=quiet):
        try:
            image = load_image(file)
        except InputError as error:
            report(str(error))
            continue
        read.append(file)
        for size, several in pixels.items():
            several.append(as_pixels(image, size))
    if not read:
        return pd.DataFrame(columns=["run", *COLUMNS])
    names = [file.name for file in read]
    if len(set(names)) < len(names):
        names = read
    names = [printable(name) for name in names]
    tables = []
    for run in tqdm(runs, desc="models", leave=False, disable=quiet):
        guesses = guess(store.load(run, models), torch.stack(pixels[sizes[run]]), top)
        tables.append(table(names, guesses).assign(run=run))
    return pd.concat(tables, ignore_index=True)[["run", *COLUMNS]]


def score(guesses: pd.DataFrame, truth: dict[str, str]) -> pd.DataFrame:
    """A row a run: run, images (those that `truth` names a class for), right, top1 (percent), low, high, in_best.

    guesses: as `label`; low and high: the 95 % interval of top1; in_best: images with the right class in any guess.
    """
    judged = guesses[guesses["image"].isin(truth)]
    judged = judged.assign(right=judged["class"] == judged["image"].map(truth))
    rows = []
    for run, its in judged.groupby("run", sort=False):
        first = its.loc[its["rank"] == 1, "right"]
        low, high = evaluation.wilson(int(first.sum()), len(first))
        row = {"run": run, "images": len(first), "right": int(first.sum()), "top1": 100 * first.mean()}
        rows.append(row | {"low": low, "high": high, "in_best": int(its.groupby("image")["right"].any().sum())})
    return pd.DataFrame(rows, columns=["run", "images", "right", "top1", "low", "high", "in_best"])


def credits(folder: str | os.PathLike) -> str:
    """Who made each photograph in `folder`, and its licence, in one line, from SOURCES.csv."""
    return "; ".join(f"{name} {row['author']} ({row['licence']})" for name, row in sources(folder).items())


def photographs(folder: str | os.PathLike, size: int = 32) -> torch.Tensor:
    """The images in `folder`, in the order of `find_images`, as networks see them: uint8 [n, size, size, 3]."""
    return torch.stack([as_pixels(load_image(file), size) for file in find_images([folder])])


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


def printable(path: str | os.PathLike) -> str:
    """A path as text that any terminal and file takes, even where its bytes are no UTF-8 or break the line."""
    return " ".join(os.fsencode(path).decode(errors="replace").splitlines())

"""Accuracy under shift: test images spoilt in six ways, each at five severities.

`mnv3 evaluate --corruptions results` measured the two tables in results.
"""

import io
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
import torch
from PIL import Image

from mnv3lib import data, provenance, store, writing
from mnv3lib.data import Split
from mnv3lib.errors import InputError
from mnv3lib.study import evaluation

EVERY = 5  # of the test images one in so many is taken: each is classified 31 times
STRENGTHS = {  # mildest first: those of CIFAR-10-C (Hendrycks and Dietterich 2019), of brightness ours
    "Gaussian noise": (0.04, 0.06, 0.08, 0.09, 0.1),  # standard deviation, where white is 1
    "Gaussian blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation in pixels
    "brightness": (1.1, 1.2, 1.3, 1.4, 1.6),  # all values times this
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # distance to the mean grey times this
    "pixelation": (0.95, 0.9, 0.85, 0.75, 0.65),  # pixels a side left, as a share
    "JPEG": (80, 65, 58, 50, 40),  # quality
}
COLUMNS = ["run", "corruption", "severity", "images", "top1"]  # that TABLE has, among others
TABLE, BY_IMAGE = "corruptions.csv", "corruptions_by_image.csv"


def spoil(images: torch.Tensor, way: str, strength: float) -> torch.Tensor:
    """uint8 images [n, height, width, 3] spoilt in one of the STRENGTHS' ways, the same every time."""
    from torchvision.transforms.v2 import functional

    def pixelate(image: Image.Image) -> Image.Image:
        fewer = [int(strength * side) for side in image.size]
        return image.resize(fewer, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    def compress(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=strength)
        return Image.open(file)

    if way in ("pixelation", "JPEG"):
        change = {"pixelation": pixelate, "JPEG": compress}[way]
        return torch.stack([torch.from_numpy(np.array(change(Image.fromarray(one.numpy())))) for one in images])
    ways = {
        "Gaussian noise": lambda planes: functional.gaussian_noise(planes, sigma=strength),
        "Gaussian blur": lambda planes: functional.gaussian_blur(planes, [9, 9], [strength, strength]),
        "brightness": lambda planes: functional.adjust_brightness(planes, strength),
        "contrast": lambda planes: functional.adjust_contrast(planes, strength),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ways[way](images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def record(
    runs: Iterable[str],
    folder: Path,
    *,
    models: Path | None = None,
    data_folder: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure the runs (else all on CIFAR-100's test set), write TABLE and BY_IMAGE to `folder`, return TABLE.

    TABLE has a row a run, corruption and severity (0: none): run, corruption, severity, images, top1 in percent,
    torchvision, commit, measured. BY_IMAGE has a row an image: image (its number in the test set) and, under the name
    of each run, in how many of its 30 spoilt states it was right. Both are written after each run; other runs' stay.
    """
    runs = list(runs) or evaluation.comparable(models)
    records = [store.load_record(run, models) for run in runs]
    recipes = {record["run"]: record["recipe"] for record in records}
    for run, recipe in recipes.items():
        if evaluation.measured_on(recipe) != "cifar100 test":
            raise InputError(f"{run} is on {evaluation.measured_on(recipe)}: corruptions are of CIFAR-100's test set")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder: name one for the two tables")
    table, by_image = _table(folder / TABLE, COLUMNS), _table(folder / BY_IMAGE, ["image"])
    for record in records:
        data.need(record, data_folder)
    networks = {run: store.weights_file(run, models) for run in runs}  # all of them first: a typo costs no time
    cases = [("none", 0)] + [(way, severity) for way in STRENGTHS for severity in range(1, 6)]
    test = data.load("cifar100", data_folder).test
    test = test.take(torch.arange(0, len(test), EVERY))
    states = [test.images] + [spoil(test.images, way, STRENGTHS[way][severity - 1]) for way, severity in cases[1:]]
    spoilt = Split(torch.cat(states), test.labels.repeat(len(cases)))
    for run, file in networks.items():
        found = evaluation.measure(store.load_weights(file), spoilt, recipes[run]["image_sizes"][-1], run)
        right = (found["classes"][:, 0] == found["labels"]).reshape(len(cases), len(test))
        rows = pd.DataFrame(cases, columns=["corruption", "severity"]).assign(
            images=len(test), top1=100 * right.mean(1)
        )
        rows.insert(0, "run", run)
        made = {"torchvision": version("torchvision"), "commit": provenance.commit(), "measured": provenance.now()}
        table = pd.concat([table[table["run"] != run], rows.assign(**made)], ignore_index=True)
        by_image = by_image.reindex(range(len(test))).assign(image=range(0, EVERY * len(test), EVERY))
        by_image[run] = right[1:].sum(0)
        for name, content in ((TABLE, table), (BY_IMAGE, by_image)):
            with writing.replacing(folder / name) as temporary:
                content.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
        log(f"{run}: top-1 {rows['top1'][0]:.2f} %, {rows['top1'][1:].mean():.2f} % of the spoilt images")
    return table


def load_tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """TABLE and BY_IMAGE of `folder`, as `record` wrote them; empty where not both are there."""
    if not all((folder / name).is_file() for name in (TABLE, BY_IMAGE)):
        return pd.DataFrame(columns=COLUMNS), pd.DataFrame()
    return _table(folder / TABLE, COLUMNS), _table(folder / BY_IMAGE, ["image"])


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    """One of the two tables, empty where it is not; InputError for a file without these columns."""
    try:
        table = pd.read_csv(path)
        if set(columns) <= set(table):
            return table
    except FileNotFoundError:
        return pd.DataFrame(columns=columns)
    except ValueError:
        pass
    raise InputError(f"{path} is no table that mnv3 evaluate --corruptions wrote: move it away")


def mean(points: np.ndarray) -> tuple[float, float]:
    """The mean over images and half its 95 % interval (Student's), which is about the choice of images."""
    error = np.std(points, ddof=1) / len(points) ** 0.5
    return float(np.mean(points)), float(scipy.stats.t.ppf(0.975, len(points) - 1) * error)

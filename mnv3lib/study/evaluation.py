"""How good a trained model is on the test set: accuracy with intervals, by class, confusion, calibration.

Everything is computed from the five best classes of each image and their probabilities, either measured now ("live")
or as the run recorded them ("recorded").
"""

import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from tqdm import tqdm

from mnv3lib import data, inference, store
from mnv3lib.data import Split
from mnv3lib.errors import InputError
from mnv3lib.networks import MobileNet

BINS = 15
PORTION = 25  # images at a time: their maps stay in the cache, and malloc keeps the memory for the next layer


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share, in percent; (0, 100) where nothing was tried.

    Unlike the usual p +- z s it stays within 0 and 100 and holds for small numbers too (Wilson 1927).
    """
    if trials == 0:
        return 0.0, 100.0
    low, high = binomtest(hits, trials).proportion_ci(method="wilson")
    return 100 * float(low), 100 * float(high)


@dataclass(frozen=True)
class Evaluation:
    """The predictions of one run on its test set, and what follows from them. Accuracies are in percent.

    record: the run's record.json; source: live or recorded; names: of the classes; labels [n]; guesses [n, 5] and
    probabilities [n, 5]: the five best classes, best first.
    """

    record: dict
    source: str
    names: tuple[str, ...]
    labels: np.ndarray
    guesses: np.ndarray
    probabilities: np.ndarray

    def __post_init__(self):
        images = len(self.labels)
        shape = (images, min(5, len(self.names)))
        whole = self.labels.dtype.kind in "iu" and self.guesses.dtype.kind in "iu"
        if not images or not whole or self.guesses.shape != shape or self.probabilities.shape != shape:
            raise InputError(f"{self.run}: its predictions are not the five best classes of each image: train it again")
        numbers = np.concatenate([self.labels.ravel(), self.guesses.ravel()])
        if numbers.min() < 0 or numbers.max() >= len(self.names):
            raise InputError(f"{self.run}: its predictions name a class outside its {len(self.names)}: train it again")
        if not (self.probabilities.min() >= 0 and self.probabilities.max() <= 1.001):
            raise InputError(f"{self.run}: its predictions have probabilities outside 0 and 1: train it again")

    @property
    def run(self) -> str:
        return self.record["run"]

    @cached_property
    def hits(self) -> np.ndarray:
        """Whether each of the five guesses is right, bool [n, 5]."""
        return self.guesses == self.labels[:, None]

    @property
    def top1(self) -> float:
        return _percent(self.hits[:, 0].sum(), len(self.labels))

    @property
    def top5(self) -> float:
        return _percent(self.hits.any(1).sum(), len(self.labels))

    @property
    def superclass_right(self) -> float:
        """The share of images whose best guess lies in the right superclass."""
        return _percent(self._in_superclass.sum(), len(self.labels))

    @property
    def confidence(self) -> float:
        """The mean probability of the best guess."""
        return 100 * float(self.probabilities[:, 0].mean(dtype=np.float64))

    @cached_property
    def superclass_names(self) -> tuple[str, ...]:
        """The 20 superclasses in alphabetical order; where a class has none it stands for itself."""
        return tuple(sorted({data.SUPERCLASS_OF.get(name, name) for name in self.names}))

    @cached_property
    def _superclass(self) -> np.ndarray:
        """The number of each class's superclass."""
        return np.array([self.superclass_names.index(data.SUPERCLASS_OF.get(name, name)) for name in self.names])

    @cached_property
    def _in_superclass(self) -> np.ndarray:
        """Whether the best guess lies in the right superclass, bool [n]."""
        return self._superclass[self.guesses[:, 0]] == self._superclass[self.labels]

    def summary(self) -> dict:
        """One row for the table of all runs; low and high bound the 95 % interval of the accuracy before them."""
        recipe, images = self.record["recipe"], len(self.labels)
        return {
            "run": self.run,
            "model": recipe["model"],
            "width": recipe["width"],
            "parameters": self.record["parameters"],
            "macs": self.record["macs"],
            **_share("top1", self.hits[:, 0].sum(), images),
            **_share("top5", self.hits.any(1).sum(), images),
            "confidence": self.confidence,
            "ece": self.ece,
            "images": images,
            "measured_on": measured_on(recipe),
            "source": self.source,
            "recorded_top1": self.recorded_top1,
        }

    @property
    def recorded_top1(self) -> float:
        return self.record["result"]["top1"]

    @property
    def agrees(self) -> bool:
        """Whether the top-1 is the record's to a hundredth of a point."""
        return abs(self.top1 - self.recorded_top1) < 0.01 - 1e-9

    def per_class(self) -> pd.DataFrame:
        """A row a class: class, superclass, images, top1 with interval, top5, superclass_right, most_taken_for.

        superclass_right is the share of the class's images whose best guess lies in the right superclass, in percent.
        """
        rows = []
        for label, name in enumerate(self.names):
            mine = self.labels == label
            images, hits = int(mine.sum()), self.hits[mine]
            wrong = np.bincount(self.guesses[mine & ~self.hits[:, 0], 0])
            row = {"class": name, "superclass": self.superclass_names[self._superclass[label]], "images": images}
            row |= _share("top1", hits[:, 0].sum(), images)
            row["top5"] = _percent(hits.any(1).sum(), images)
            row["superclass_right"] = _percent(self._in_superclass[mine].sum(), images)
            row["most_taken_for"] = self.names[wrong.argmax()] if len(wrong) else ""
            rows.append(row)
        return pd.DataFrame(rows)

    def per_superclass(self) -> pd.DataFrame:
        """A row a superclass: superclass, images, top1 (the class is right), superclass_right, each with interval."""
        rows = []
        for number, name in enumerate(self.superclass_names):
            mine = self._superclass[self.labels] == number
            images, right = int(mine.sum()), self._in_superclass[mine].sum()
            shares = _share("top1", self.hits[mine, 0].sum(), images) | _share("superclass_right", right, images)
            rows.append({"superclass": name, "images": images} | shares)
        return pd.DataFrame(rows)

    def confusion(self) -> pd.DataFrame:
        """How often a class (row) was taken for another (column): numbers of images, right ones on the diagonal."""
        size = len(self.names)
        counts = np.bincount(self.labels.astype(int) * size + self.guesses[:, 0], minlength=size**2)
        index, columns = pd.Index(self.names, name="class"), pd.Index(self.names, name="taken for")
        return pd.DataFrame(counts.reshape(size, size), index, columns)

    def superclass_confusion(self) -> pd.DataFrame:
        """As `confusion`, between superclasses."""
        of = {name: data.SUPERCLASS_OF.get(name, name) for name in self.names}
        return self.confusion().groupby(of).sum().T.groupby(of).sum().T

    def confused_pairs(self, count: int = 10) -> pd.DataFrame:
        """The pairs of classes most often taken for each other, both directions together.

        Columns: first, second, first_for_second (images of `first` taken for `second`), second_for_first, together,
        same_superclass.
        """
        matrix = self.confusion().to_numpy()
        i, j = np.triu_indices(len(self.names), k=1)
        together = matrix[i, j] + matrix[j, i]
        order = [k for k in np.argsort(-together, kind="stable")[:count] if together[k]]
        i, j = i[order], j[order]
        return pd.DataFrame(
            {
                "first": [self.names[k] for k in i],
                "second": [self.names[k] for k in j],
                "first_for_second": matrix[i, j],
                "second_for_first": matrix[j, i],
                "together": together[order],
                "same_superclass": self._superclass[i] == self._superclass[j],
            }
        )

    def calibration(self, bins: int = BINS) -> pd.DataFrame:
        """The reliability table: images sorted by the probability of the best guess into equally wide bins.

        Columns: low, high (the bin is (low, high]), images, confidence (mean probability of the best guess) and top1,
        both in percent and missing in an empty bin.
        """
        confidence = self.probabilities[:, 0].astype(np.float64).clip(0, 1)
        index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        images = np.bincount(index, minlength=bins)
        with np.errstate(invalid="ignore"):
            mean = 100 * np.bincount(index, confidence, bins) / images
            top1 = 100 * np.bincount(index, self.hits[:, 0], bins) / images
        edges = np.arange(bins + 1) / bins
        return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "images": images, "confidence": mean, "top1": top1})

    @property
    def ece(self) -> float:
        """The expected calibration error, in percentage points; 0 is perfect.

        Over 15 equally wide bins of the best guess's probability: the mean of |accuracy - confidence|, each bin
        weighted by its images (Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3).
        """
        table = self.calibration().dropna()
        return float(((table["top1"] - table["confidence"]).abs() * table["images"]).sum() / len(self.labels))


def _percent(hits: int, images: int) -> float:
    return 100 * float(hits) / images if images else math.nan


def _share(name: str, hits: int, images: int) -> dict[str, float]:
    """The columns `name`, `name`_low and `name`_high: a share and its interval, in percent."""
    low, high = wilson(int(hits), images)
    return {name: _percent(hits, images), f"{name}_low": low, f"{name}_high": high}


def measured_on(recipe: dict) -> str:
    """The set that a run is measured on, in words."""
    return f"{recipe['dataset']} {'test' if recipe['split'] == 'full' else 'hold-out'}"


def trained(models: Path | None = None) -> list[str]:
    """The runs in the folder `models` that can be evaluated: those that kept their weights or their predictions."""
    models = models or store.models_folder()
    kept = (store.WEIGHTS, store.PREDICTIONS)
    return [run for run in store.runs(models) if any(store.has(run, file, models) for file in kept)]


def comparable(models: Path | None = None) -> list[str]:
    """Those of `trained` whose numbers may stand in one table: on CIFAR-100's test set, or, if there are none, all."""
    runs = trained(models)
    on_cifar100 = [run for run in runs if measured_on(store.load_record(run, models)["recipe"]) == "cifar100 test"]
    return on_cifar100 or runs


def evaluate(
    runs: Iterable[str] = (),
    *,
    models: Path | None = None,
    data_folder: Path | None = None,
    recorded: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> list[Evaluation]:
    """Evaluate the runs, or all that are `trained`: live where the test set is on this machine, else as recorded.

    Nothing is downloaded. With `recorded` nothing is measured. `log` gets a line a run, and one more where a live
    top-1 differs from the record's. Raises InputError if a run is unknown, damaged, or has nothing to go by.
    """
    models = models or store.models_folder()
    runs = list(runs) or trained(models)
    if not runs:
        raise InputError(f"there are no trained models in {models}: train one with mnv3 train")
    records = [store.load_record(run, models) for run in runs]  # all of them first, so that a typo costs no time
    found = data.available(data_folder)
    if not (found or recorded) and any(record["recipe"]["dataset"] == "cifar100" for record in records):
        log("CIFAR-100 is not on this machine (see MNV3_DATA), so its runs are shown as they were recorded")
    datasets, evaluations = {}, []
    bar = tqdm(total=0, unit=" images", leave=False, disable=not sys.stderr.isatty())
    for record in records:
        run, recipe = record["run"], record["recipe"]
        start, name = time.perf_counter(), recipe["dataset"]
        live = not recorded and (found or name != "cifar100") and store.has(run, store.WEIGHTS, models)
        if live:
            if name not in datasets:
                datasets[name] = data.load(name, data_folder)
            dataset = datasets[name]
            split = dataset.test if recipe["split"] == "full" else data.holdout(dataset.train)[1]
            network = store.load(run, models)
            if network.classes != dataset.classes:
                raise InputError(f"{run}: its weights have other classes than {name}: train it again")
            bar.reset(total=len(split))
            bar.set_description(run)
            predictions = measure(network, split, recipe["image_sizes"][-1], bar.update)
        else:
            predictions = store.load_predictions(run, models)
        best = (predictions[part] for part in ("labels", "classes", "probabilities"))
        one = Evaluation(record, "live" if live else "recorded", data.CLASSES[name], *best)
        evaluations.append(one)
        bar.clear()
        seconds = f", {time.perf_counter() - start:.0f} s" if live else ""
        log(f"{run}: top-1 {one.top1:.2f} % on {len(one.labels):,} images, {one.source}{seconds}")
        if not one.agrees:
            log(f"{run}: the {one.source} top-1 is {one.top1:.2f} %, but its record says {one.recorded_top1:.2f} %")
    bar.close()
    return evaluations


def measure(
    network: MobileNet, split: Split, size: int = 32, progress: Callable[[int], object] = lambda images: None
) -> dict[str, np.ndarray]:
    """As `inference.best_five`, on the GPU where there is one; `progress` is told the images of each portion.

    The network is left as it was: a copy is measured whose batch norms are folded into the convolutions.
    """
    device = inference.default_device()
    folded = inference.fold(network).to(device, memory_format=torch.channels_last)
    portions = []
    for start in range(0, len(split), PORTION):
        portion = Split(split.images[start : start + PORTION], split.labels[start : start + PORTION]).to(device)
        portions.append(inference.best_five(folded, portion, size))
        progress(len(portion))
    return {name: np.concatenate([portion[name] for portion in portions]) for name in portions[0]}


def summary(evaluations: list[Evaluation]) -> pd.DataFrame:
    """A row a run: run, model, width, parameters, macs, top1 and top5 in percent with their 95 % intervals, mean
    confidence in percent, ece in percentage points, images, measured_on, source (live or recorded), recorded_top1."""
    return pd.DataFrame([evaluation.summary() for evaluation in evaluations])


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `summary` for people: text, with units in the names of the columns."""
    texts = {
        "run": "{run}",
        "parameters (M)": "{parameters:.2f}",
        "MACs (M)": "{macs:.1f}",
        "top-1 %": "{top1:.2f}",
        "95 % interval": "{top1_low:.2f}–{top1_high:.2f}",
        "top-5 %": "{top5:.2f}",
        "top-5 interval": "{top5_low:.2f}–{top5_high:.2f}",
        "ECE (points)": "{ece:.2f}",
        "images": "{images:,}",
        "measured on": "{measured_on}",
        "source": "{source}",
    }
    rows = table.assign(parameters=table["parameters"] / 1e6, macs=table["macs"] / 1e6).to_dict("records")
    return pd.DataFrame([{name: text.format_map(row) for name, text in texts.items()} for row in rows])

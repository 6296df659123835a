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
        right = self._superclass[self.guesses[:, 0]] == self._superclass[self.labels]
        return _percent(right.sum(), len(right))

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

    def summary(self) -> dict:
        """One row for the table of all runs; low and high bound the 95 % interval of the accuracy before them."""
        recipe = self.record["recipe"]
        low, high = wilson(int(self.hits[:, 0].sum()), len(self.labels))
        low5, high5 = wilson(int(self.hits.any(1).sum()), len(self.labels))
        return {
            "run": self.run,
            "model": recipe["model"],
            "width": recipe["width"],
            "parameters": self.record["parameters"],
            "macs": self.record["macs"],
            "top1": self.top1,
            "top1_low": low,
            "top1_high": high,
            "top5": self.top5,
            "top5_low": low5,
            "top5_high": high5,
            "confidence": self.confidence,
            "ece": self.ece,
            "images": len(self.labels),
            "measured_on": measured_on(recipe),
            "source": self.source,
            "recorded_top1": self.record["result"]["top1"],
        }

    def disagreement(self) -> str | None:
        """A sentence where the top-1 differs from the record's by a hundredth of a point or more."""
        recorded = self.record["result"]["top1"]
        if abs(self.top1 - recorded) < 0.01 - 1e-9:
            return None
        return f"{self.run}: the {self.source} top-1 is {self.top1:.2f} %, but its record says {recorded:.2f} %"

    def per_class(self) -> pd.DataFrame:
        """A row a class: class, superclass, images, top1 with interval, top5, superclass_right, most_taken_for.

        superclass_right is the share of the class's images whose best guess lies in the right superclass, in percent.
        """
        confusion = self.confusion().to_numpy()
        right = self._superclass[self.guesses[:, 0]] == self._superclass[self.labels]
        rows = []
        for label, name in enumerate(self.names):
            mine = self.labels == label
            images, hits = int(mine.sum()), int(confusion[label, label])
            low, high = wilson(hits, images)
            wrong = confusion[label].copy()
            wrong[label] = 0
            row = {
                "class": name,
                "superclass": self.superclass_names[self._superclass[label]],
                "images": images,
                "top1": _percent(hits, images),
                "top1_low": low,
                "top1_high": high,
                "top5": _percent(self.hits[mine].any(1).sum(), images),
                "superclass_right": _percent(right[mine].sum(), images),
                "most_taken_for": self.names[wrong.argmax()] if wrong.any() else "",
            }
            rows.append(row)
        return pd.DataFrame(rows)

    def per_superclass(self) -> pd.DataFrame:
        """A row a superclass: superclass, images, top1 (the class is right), superclass_right, each with interval."""
        classes, superclasses = self.confusion().to_numpy(), self.superclass_confusion().to_numpy()
        rows = []
        for index, name in enumerate(self.superclass_names):
            images = int(superclasses[index].sum())
            hits, right = int(classes.diagonal()[self._superclass == index].sum()), int(superclasses[index, index])
            row = {"superclass": name, "images": images}
            for column, count in (("top1", hits), ("superclass_right", right)):
                low, high = wilson(count, images)
                row |= {column: _percent(count, images), f"{column}_low": low, f"{column}_high": high}
            rows.append(row)
        return pd.DataFrame(rows)

    def confusion(self) -> pd.DataFrame:
        """How often a class (row) was taken for another (column): numbers of images, right ones on the diagonal."""
        return _confusion(self.labels, self.guesses[:, 0], self.names)

    def superclass_confusion(self) -> pd.DataFrame:
        """As `confusion`, between superclasses."""
        return _confusion(
            self._superclass[self.labels], self._superclass[self.guesses[:, 0]], self.superclass_names, "superclass"
        )

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


def _confusion(truth: np.ndarray, guess: np.ndarray, names: tuple[str, ...], kind: str = "class") -> pd.DataFrame:
    size = len(names)
    counts = np.bincount(truth.astype(np.int64) * size + guess, minlength=size * size).reshape(size, size)
    return pd.DataFrame(counts, index=pd.Index(names, name=kind), columns=pd.Index(names, name="taken for"))


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
        start = time.perf_counter()
        live = not recorded and (found or recipe["dataset"] != "cifar100")
        if live and store.has(run, store.WEIGHTS, models):
            if recipe["dataset"] not in datasets:
                datasets[recipe["dataset"]] = data.load(recipe["dataset"], data_folder)
            dataset = datasets[recipe["dataset"]]
            split = dataset.test if recipe["split"] == "full" else data.holdout(dataset.train)[1]
            network = store.load(run, models)
            if network.classes != dataset.classes:
                raise InputError(f"{run}: its weights have other classes than {recipe['dataset']}: train it again")
            bar.reset(total=len(split))
            bar.set_description(run)
            predictions, source = measure(network, split, recipe["image_sizes"][-1], bar.update), "live"
        else:
            predictions, source = store.load_predictions(run, models), "recorded"
        evaluation = Evaluation(
            record,
            source,
            data.CLASSES[recipe["dataset"]],
            *(predictions[name] for name in ("labels", "classes", "probabilities")),
        )
        evaluations.append(evaluation)
        bar.clear()
        seconds = f", {time.perf_counter() - start:.0f} s" if source == "live" else ""
        log(f"{run}: top-1 {evaluation.top1:.2f} % on {len(evaluation.labels):,} images, {source}{seconds}")
        if difference := evaluation.disagreement():
            log(f"{difference}")
    bar.close()
    return evaluations


def measure(
    network: MobileNet, split: Split, size: int = 32, progress: Callable[[int], object] = lambda images: None
) -> dict[str, np.ndarray]:
    """As `inference.best_five`, on the GPU where there is one; `progress` is told the images of each portion."""
    device = inference.default_device()
    inference.keep_memory()
    network.to(device, memory_format=torch.channels_last)
    portions = []
    for start in range(0, len(split), 500):
        portion = Split(split.images[start : start + 500], split.labels[start : start + 500]).to(device)
        portions.append(inference.best_five(network, portion, size))
        progress(len(portion))
    return {name: np.concatenate([portion[name] for portion in portions]) for name in portions[0]}


def summary(evaluations: list[Evaluation]) -> pd.DataFrame:
    """A row a run: run, model, width, parameters, macs, top1 and top5 in percent with their 95 % intervals, mean
    confidence in percent, ece in percentage points, images, measured_on, source (live or recorded), recorded_top1."""
    return pd.DataFrame([evaluation.summary() for evaluation in evaluations])

"""How good a trained model is on the test set: accuracy with intervals, by class, confusion, calibration.

Everything is computed from the five best classes of each image and their probabilities, either measured now ("live")
or as the run recorded them ("recorded"); NLL and temperature need all classes, and so a live measurement.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

from mnv3lib import data, inference, store
from mnv3lib.data import Split
from mnv3lib.errors import InputError
from mnv3lib.networks import MobileNet
from mnv3lib.progress import bar
from mnv3lib.study import calibration

RIGHT = ["top1", "top5", "superclass_right"]  # what can be right of an image
PORTION = 25  # images at a time: their maps stay in the cache, and little memory is kept from call to call


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
    probabilities [n, 5]: the five best classes, best first; files: of the images, where they are a person's own;
    scores: calibration.scores of a live measurement.
    """

    record: dict
    source: str
    names: tuple[str, ...]
    labels: np.ndarray
    guesses: np.ndarray
    probabilities: np.ndarray
    files: tuple[Path, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        images = len(self.labels)
        shape = (images, min(5, len(self.names)))
        if not images or self.guesses.shape != shape or self.probabilities.shape != shape:
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
    def has_superclasses(self) -> bool:
        """Whether the classes are CIFAR-100's, which are in superclasses."""
        return self.names == data.CLASSES["cifar100"]

    @cached_property
    def _superclass_of(self) -> dict[str, str]:
        """Of each class; one that has none stands for itself."""
        return {name: data.SUPERCLASS_OF.get(name, name) for name in self.names}

    @cached_property
    def _images(self) -> pd.DataFrame:
        """A row an image: run, class, superclass, what it was taken for, and whether each of RIGHT."""
        best, (names, superclasses) = self.guesses[:, 0], np.array(list(self._superclass_of.items())).T
        table = pd.DataFrame({"class": names[self.labels], "taken for": names[best]})
        table["superclass"] = superclasses[self.labels]
        right = self.hits[:, 0], self.hits.any(1), superclasses[best] == table["superclass"]
        return table.assign(run=self.run, **dict(zip(RIGHT, right, strict=True)))

    def _shares(self, column: str, values: Iterable[str]) -> pd.DataFrame:
        """A row a value of `column` of the images: images, and each of RIGHT in percent with its interval."""
        groups = self._images.groupby(column)
        hits = groups[RIGHT].sum().reindex(values, fill_value=0)
        table = groups.size().reindex(values, fill_value=0).to_frame("images")
        for name in RIGHT:
            table[name] = 100 * hits[name] / table["images"]
            table[[f"{name}_low", f"{name}_high"]] = [*map(wilson, hits[name], table["images"])]
        return table

    @property
    def top1(self) -> float:
        return self._whole["top1"]

    @property
    def top5(self) -> float:
        return self._whole["top5"]

    @property
    def superclass_right(self) -> float:
        """The share of images whose best guess lies in the right superclass."""
        return self._whole["superclass_right"]

    @cached_property
    def _whole(self) -> dict:
        return self._shares("run", [self.run]).to_dict("records")[0]

    @property
    def confidence(self) -> float:
        """The mean probability of the best guess."""
        return 100 * float(self.probabilities[:, 0].mean(dtype=np.float64))

    def summary(self) -> dict:
        """The run's row of the table `summary`."""
        recipe = self.record["recipe"]
        return {
            "run": self.run,
            "model": recipe["model"],
            "width": recipe["width"],
            "parameters": self.record["parameters"],
            "macs": self.record["macs"],
            **{name: value for name, value in self._whole.items() if name.startswith("top")},
            "confidence": self.confidence,
            "ece": self.ece,
            **dict.fromkeys(calibration.SCORES, np.nan),
            **self.scores,
            "images": len(self.labels),
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
        """A row a class: class, superclass, images, top1 with interval, top5, superclass_right, most_taken_for."""
        wrong = self.confusion()
        wrong = wrong.mask(np.eye(len(wrong), dtype=bool), 0)
        table = self._shares("class", self.names).assign(
            superclass=self._superclass_of, most_taken_for=wrong.idxmax(axis=1).where(wrong.any(axis=1), "")
        )
        columns = "superclass images top1 top1_low top1_high top5 superclass_right most_taken_for"
        return table[columns.split()].reset_index()

    def per_superclass(self) -> pd.DataFrame:
        """A row a superclass: superclass, images, top1 (the class is right), superclass_right, each with interval."""
        table = self._shares("superclass", sorted(set(self._superclass_of.values())))
        return table.drop(columns=["top5", "top5_low", "top5_high"]).reset_index()

    def confusion(self) -> pd.DataFrame:
        """How often a class (row) was taken for another (column): numbers of images, right ones on the diagonal."""
        counts = pd.crosstab(self._images["class"], self._images["taken for"])
        return counts.reindex(index=self.names, columns=self.names, fill_value=0)

    def superclass_confusion(self) -> pd.DataFrame:
        """As `confusion`, between superclasses."""
        return self.confusion().groupby(self._superclass_of).sum().T.groupby(self._superclass_of).sum().T

    def confused_pairs(self, count: int = 10) -> pd.DataFrame:
        """The pairs of classes most often taken for each other, both directions together.

        Columns: first, second, first_for_second (images of `first` taken for `second`), second_for_first, together,
        same_superclass.
        """
        counts, names = self.confusion().to_numpy(), np.array(self.names)
        i, j = np.triu_indices(len(names), k=1)
        table = pd.DataFrame({"first": names[i], "second": names[j], "first_for_second": counts[i, j]})
        table = table.assign(second_for_first=counts[j, i], together=counts[i, j] + counts[j, i])
        table["same_superclass"] = table["first"].map(self._superclass_of) == table["second"].map(self._superclass_of)
        table = table[table["together"] > 0].sort_values("together", ascending=False, kind="stable", ignore_index=True)
        return table.head(count)

    def mistakes(self, count: int = 24) -> pd.DataFrame:
        """The wrong guesses that it was surest of: file (where the images have one), class, taken for, probability."""
        table = self._images.assign(probability=self.probabilities[:, 0], file=list(self.files) or None)
        wrong = table[~table["top1"]].sort_values("probability", ascending=False, kind="stable", ignore_index=True)
        return wrong[["file", "class", "taken for", "probability"]].head(count)

    def calibration(self, bins: int = 15) -> pd.DataFrame:
        """The reliability table of the best guesses; see calibration.table."""
        return calibration.table(self.probabilities[:, 0], self.hits[:, 0], bins)

    @property
    def ece(self) -> float:
        """The expected calibration error over 15 bins, in percentage points."""
        return calibration.ece(self.calibration())


def measured_on(recipe: dict) -> str:
    """The set that a run is measured on, in words."""
    return f"{recipe['dataset']} {'test' if recipe['split'] == 'full' else 'hold-out'}"


def trained(models: Path | None = None) -> list[str]:
    """The runs in the folder `models` that can be evaluated: those that kept their weights or their predictions."""
    return store.runs(models, store.WEIGHTS, store.PREDICTIONS)


def comparable(models: Path | None = None) -> list[str]:
    """Those of `trained` whose numbers may stand in one table: on CIFAR-100's test set, else all if on one set."""
    sets = {run: measured_on(store.load_record(run, models)["recipe"]) for run in trained(models)}
    return store.of_one_set(sets, "cifar100 test")


def evaluate(
    runs: Iterable[str] = (),
    *,
    models: Path | None = None,
    data_folder: Path | None = None,
    recorded: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> list[Evaluation]:
    """Evaluate the runs, or all that are `comparable`: live where the test set is on this machine, else as recorded.

    Nothing is downloaded. With `recorded` nothing is measured. `log` gets a line a run, and one more where a live
    top-1 differs from the record's. Raises InputError if a run is unknown, damaged, or has nothing to go by.
    """
    models = models or store.models_folder()
    runs = list(runs) or comparable(models)
    if not runs:
        raise InputError(f"there are no trained models in {models}: train one with mnv3 train")
    records = [store.load_record(run, models) for run in runs]  # all of them first, so that a typo costs no time
    found = data.available(data_folder)
    if not (found or recorded) and any(record["recipe"]["dataset"] == "cifar100" for record in records):
        log("CIFAR-100 is not on this machine (see MNV3_DATA), so its runs are shown as they were recorded")
    sets, evaluations = {}, []
    for record in records:
        run, recipe, start = record["run"], record["recipe"], time.perf_counter()
        name = recipe["dataset"]
        dataset, key = None, (name, recipe["data_digest"], max(recipe["image_sizes"]))
        if not recorded and store.has(run, store.WEIGHTS, models):
            if key not in sets:
                sets[key] = data.of_run(record, data_folder)
                if sets[key] is None and "data" in record:
                    log(f"{run}: {data.why_not(record, data_folder)}")
            dataset = sets[key]
        live = dataset is not None
        if live:
            network = store.load(run, models)
            if network.classes != dataset.classes:
                raise InputError(f"{run}: its weights have other classes than {name}: train it again")
            split = data.parts(dataset, recipe["split"])[1]
            predictions = measure(network, split, recipe["image_sizes"][-1], run)
        else:
            predictions = store.load_predictions(run, models)
        best = (predictions[part] for part in ("labels", "classes", "probabilities"))
        names = data.CLASSES[name] if name in data.CLASSES else tuple(record["data"]["classes"])
        files = dataset.test_files if live and recipe["split"] == "full" else ()
        scores = calibration.scores(predictions["logits"], predictions["labels"]) if live else {}
        one = Evaluation(record, "live" if live else "recorded", names, *best, files, scores)
        evaluations.append(one)
        seconds = f", {time.perf_counter() - start:.0f} s" if live else ""
        log(f"{run}: top-1 {one.top1:.2f} % on {len(one.labels):,} images, {one.source}{seconds}")
        if not one.agrees:
            log(f"{run}: the {one.source} top-1 is {one.top1:.2f} %, but its record says {one.recorded_top1:.2f} %")
    return evaluations


def measure(network: MobileNet, split: Split, size: int = 32, title: str = "") -> dict[str, np.ndarray]:
    """As `inference.best_five`, and the `logits`, on the GPU where there is one, under a bar with the `title`.

    The network is left as it was: a copy is measured whose batch norms are folded into the convolutions.
    """
    inference.keep_memory()
    device = inference.default_device()
    folded = inference.fold(network).to(device, memory_format=torch.channels_last)
    portions = split.images.split(PORTION)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a portion a thread: several threads at one small portion wait for each other
    try:
        with ThreadPoolExecutor(threads if device.type == "cpu" else 1) as pool:
            found = pool.map(lambda portion: inference.logits(folded, portion, size, PORTION), portions)
            logits = torch.cat(list(bar(found, title, total=len(portions), unit=" images", unit_scale=PORTION)))
    finally:
        torch.set_num_threads(threads)
    return inference.ranked(logits, split.labels) | {"logits": logits.numpy()}


def summary(evaluations: list[Evaluation]) -> pd.DataFrame:
    """A row a run: run, model, width, parameters, macs, top1 and top5 in percent with their 95 % intervals, mean
    confidence in percent, ece in percentage points, calibration.SCORES, images, measured_on, source (live or recorded),
    recorded_top1."""
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

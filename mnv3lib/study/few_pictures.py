"""What a trained network is worth where there are few pictures: runs on classes that it has never seen.

notebooks/transfer.yaml lists them.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import yaml
from scipy import stats

from mnv3lib import data, store, training, writing
from mnv3lib.data import Dataset, Split
from mnv3lib.errors import DivergedError, InputError, one_line
from mnv3lib.networks import MobileNet
from mnv3lib.own import transfer
from mnv3lib.provenance import ROOT

HELD_OUT = (
    100  # training pictures of each new class, the last ones, that are never drawn: what is tuned is tuned on them
)
LINEAR = "linear.csv"  # beside the records: pictures, seed, top1, images, seconds
KEYS = {"base": dict, "first": int, "every": int, "pictures": list, "seeds": list, "ways": dict, "tuning": dict}


def read(path: Path = ROOT / "notebooks" / "transfer.yaml") -> dict:
    """What the file lists; InputError if it lists something else."""
    try:
        study = yaml.safe_load(path.read_text(encoding="utf-8"))
        if study.keys() != KEYS.keys() or any(type(study[name]) is not kind for name, kind in KEYS.items()):
            raise ValueError(f"it should have {', '.join(KEYS)}")
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {one_line(error)}") from None
    return study


def subset(whole: Dataset, names: list[str], name: str, count: int | None = None, seed: int = 0, tune=False) -> Dataset:
    """The classes `names` of a data set, with `count` pictures of each to train on, drawn by `seed`, or with all.

    With `tune` the held-out training pictures are in the place of the test set.
    """
    generator, train, held = torch.Generator().manual_seed(seed), [], []
    for label in (whole.classes.index(one) for one in names):
        mine = torch.nonzero(whole.train.labels == label).flatten()
        held.append(mine[-HELD_OUT:])
        train.append(
            mine
            if count is None
            else mine[:-HELD_OUT][torch.randperm(len(mine) - HELD_OUT, generator=generator)[:count]]
        )
    new = torch.full([len(whole.classes)], -1)
    new[[whole.classes.index(one) for one in names]] = torch.arange(len(names))

    def chosen(split: Split, indices: torch.Tensor) -> Split:
        return Split(split.images[indices], new[split.labels[indices]])

    test = chosen(whole.train, torch.cat(held)) if tune else chosen(whole.test, new[whole.test.labels] >= 0)
    train = chosen(whole.train, torch.cat(train))
    digest = hashlib.sha256(f"{whole.name} {names} {count} {seed} {tune}".encode()).hexdigest()[:12]
    facts = {"folder": "", "classes": list(names), "train": len(train), "test": len(test), "test_share": None}
    return Dataset(name, train, test, tuple(names), whole.mean, whole.std, digest, facts=facts | {"pictures": count})


def record(
    folder: Path, whole: Dataset, study: dict, *, tune: bool = False, models: Path | None = None, log: Callable = print
) -> None:
    """Make the runs of `study`, as `read` returns it, that `folder` has no record of.

    With `tune` those of its tuning, with the first seed: all variants meet the same pictures.

    `whole` is CIFAR-100. The network trained on the other classes goes to `models`, by default a folder transfer-base
    beside `folder`, with its weights. A run that was stopped goes on. If one diverges, the others are still made, and
    then DivergedError is raised.
    """
    new = list(whole.classes[study["first"] :: study["every"]])
    others = subset(whole, [one for one in whole.classes if one not in new], f"{whole.name}-others")
    made, _ = transfer.plan(others, **study["base"])
    models = models or folder.with_name("transfer-base")
    training.train(made, dataset=others, models=models, log=log)
    start = store.weights_file(made.run, models)
    rows, failed = [], []
    for count in study["pictures"]:
        for seed in study["seeds"][: 1 if tune else None]:
            images = subset(whole, new, f"{whole.name}-new-{count}{'-held-out' * tune}", count, seed, tune)
            for way, fields in study["tuning" if tune else "ways"].items():
                given = study["base"] | {"variant": way, "seed": seed} | fields
                begin = start if given["recipe"] == "finetune" else None
                planned, source = transfer.plan(images, begin, **given)
                try:
                    training.train(
                        planned, dataset=images, start=source, models=folder, weights=False, log=lambda line: None
                    )
                except DivergedError as error:
                    failed.append(str(error))
                    log(failed[-1])
            rows.append({"pictures": count, "seed": seed} | linear(store.load_weights(start), images))
            log(f"{count} pictures of each class, seed {seed}: done")
    with writing.replacing(folder / LINEAR) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")
    if failed:
        raise DivergedError("; ".join(failed))


def linear(network: MobileNet, images: Dataset) -> dict:
    """A linear classifier on the frozen features: top1 (percent), images, seconds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    start = time.perf_counter()
    train, test = (_features(network, split.images) for split in (images.train, images.test))
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train, images.train.labels)
    top1 = 100 * fitted.score(test, images.test.labels)
    return {"top1": round(top1, 4), "images": len(test), "seconds": round(time.perf_counter() - start, 2)}


@torch.inference_mode()
def _features(network: MobileNet, images: torch.Tensor):
    """What the last layer of a network is given, [n, channels]."""
    inputs = (data.normalise(portion, network.mean, network.std) for portion in images.split(250))
    return torch.cat([network.classifier[:-1](network.avgpool(network.features(one)).flatten(1)) for one in inputs])


def _linear(path: Path) -> pd.DataFrame:
    """LINEAR as `record` wrote it; InputError if it is anything else."""
    try:
        table = pd.read_csv(path)
        if {table[name].dtype.kind for name in ("pictures", "seed", "top1", "seconds")} <= set("iuf"):
            return table
    except (ValueError, KeyError):
        pass
    raise InputError(f"{path} is no table that mnv3 sweep --transfer wrote: move it away")


def results(folder: Path) -> pd.DataFrame:
    """A row for each number of pictures and way: pictures, way, seeds, top1 (mean, percent), low, high, minutes.

    low and high are Student's 95 % interval of the mean over seeds, each of which has drawn its own pictures; all ways
    with as many pictures share one standard deviation. Runs that are none of such a study are left out.
    """
    rows = []
    for run in store.runs(folder):
        one = store.load_record(run, folder)
        made, pictures = one["recipe"], one.get("data", {}).get("pictures")
        if pictures:
            rows.append((pictures, made["variant"], made["seed"], one["result"]["top1"], one["seconds"]))
    table = pd.DataFrame(rows, columns=["pictures", "way", "seed", "top1", "seconds"])
    if (Path(folder) / LINEAR).is_file():
        table = pd.concat([table, _linear(Path(folder) / LINEAR).assign(way="linear")[table.columns]])
    groups = table.groupby(["pictures", "way"], sort=False)
    found = groups["top1"].agg(["count", "mean"]).join(groups["seconds"].mean() / 60)
    found.columns = ["seeds", "top1", "minutes"]
    squares, freedom = groups["top1"].var().fillna(0) * (found["seeds"] - 1), found["seeds"] - 1
    pooled = squares.groupby("pictures").transform("sum") / freedom.groupby("pictures").transform("sum")
    reach = stats.t.ppf(0.975, freedom.groupby("pictures").transform("sum")) * (pooled / found["seeds"]) ** 0.5
    found = found.assign(low=found["top1"] - reach, high=found["top1"] + reach)
    return found.reset_index().sort_values("pictures", kind="stable", ignore_index=True)

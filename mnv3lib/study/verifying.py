"""A recorded run measured anew: what of its record is confirmed, from its weights or by training its first epochs."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from mnv3lib import cost, data, store, training
from mnv3lib.errors import InputError
from mnv3lib.networks import MobileNet
from mnv3lib.own import transfer
from mnv3lib.recipe import Recipe
from mnv3lib.study import evaluation

COLUMNS = ["what", "recorded", "now", "confirmed"]
# How far an epoch may be from the recorded one where processor, threads or code round otherwise: a step's rounding
# changes which way later steps go, as another seed would, though less.
LOSS, TOP1 = 0.1, 3.0  # of the training set: nats, points


def measured(run: str, models: Path | None = None, data_folder: Path | None = None) -> pd.DataFrame:
    """Everything in a run's record that its weights tell again, measured: a row each with the columns COLUMNS.

    Parameters and MACs come from the recipe, the right images from classifying the whole set anew, and the guesses are
    set beside the recorded ones image by image. All are confirmed only where they are equal. Raises InputError where
    the run has no weights, or the set it was measured on is not on this machine.
    """
    models = models or store.models_folder()
    record = store.load_record(run, models)
    if not store.has(run, store.WEIGHTS, models):
        raise InputError(f"{run} was kept without weights: --retrain trains its first epochs again instead")
    data.need(record, data_folder)
    (found,) = evaluation.evaluate([run], models=models, data_folder=data_folder)
    made, result = Recipe(**record["recipe"]), record["result"]
    parameters, macs = cost.totals(MobileNet(made.architecture), made.image_sizes[-1])
    images = len(found.labels)
    rows = [
        ("parameters", record["parameters"], parameters),
        ("MACs", record["macs"], macs),
        ("images", result["images"], images),
        ("right in the first guess", _hits(result, "top1"), int(found.hits[:, 0].sum())),
        ("right in five guesses", _hits(result, "top5"), int(found.hits.any(1).sum())),
    ]
    if store.has(run, store.PREDICTIONS, models):
        kept = store.load_predictions(run, models)["classes"][:, 0]
        same = int((kept == found.guesses[:, 0]).sum()) if len(kept) == images else 0
        rows.append(("first guesses as recorded", images, same))
    return pd.DataFrame([(*row, row[1] == row[2]) for row in rows], columns=COLUMNS)


def retrained(
    run: str,
    epochs: int,
    models: Path | None = None,
    data_folder: Path | None = None,
    log: Callable[[str], None] = print,
) -> pd.DataFrame:
    """The first epochs of a recorded run trained again and set beside its history: columns COLUMNS, two rows an epoch.

    confirmed: equal, or within LOSS and TOP1, which only another processor, thread count or version needs; `exactly`
    tells the two apart. Raises InputError for an imported run, which was not trained here, and for more epochs than the
    run has.
    """
    models = models or store.models_folder()
    record = store.load_record(run, models)
    if "imported" in record:
        raise InputError(f"{run} was imported, so how it was trained is not known here: verify it without --retrain")
    made = Recipe(**record["recipe"])
    if not 1 <= epochs <= made.epochs:
        raise InputError(f"epochs {epochs}: {run} has {made.epochs}, choose from 1 to {made.epochs}")
    data.need(record, data_folder)
    history = store.load_history(run, models)[:epochs]
    if len(history) < epochs:
        raise InputError(f"epochs {epochs}: the history of {run} has only {len(history)}, name as many or fewer")
    dataset = data.of_run(record, data_folder)
    start, found = transfer.find(made.start, models) if made.start else (None, "")
    if found != made.start:
        raise InputError(f"{run} started from {made.start}, and what is here now is {found}")
    now = training.fit_recipe(made, dataset, start, until=epochs, log=log).history
    rows = []
    for old, new in zip(history.to_dict("records"), now, strict=True):
        for name, column, near in (("loss", "train_loss", LOSS), ("training top-1 %", "train_top1", TOP1)):
            rows.append(
                (f"epoch {new['epoch']}, {name}", old[column], new[column], abs(old[column] - new[column]) <= near)
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def exactly(table: pd.DataFrame) -> bool:
    """Whether everything in a table of `retrained` is as recorded to the last digit kept."""
    return bool((table["recorded"] == table["now"]).all())


def _hits(result: dict, name: str) -> int:
    return round(result[name] * result["images"] / 100)

"""Every recorded run beside the earlier report's numbers, what others published, and this project's goals."""

from pathlib import Path

import pandas as pd

from mnv3lib import store, writing
from mnv3lib.recipe import DEFAULTS, is_usual
from mnv3lib.study import evaluation, places, published

ORIGINAL = "original report"
# What this project set out to reach before its first run, in percent of top-1: at least, and at best.
GOALS = {
    ("v3_small", 0.25): (63.5, 67.0),
    ("v3_small", 0.5): (69.0, 72.0),
    ("v3_small", 1.0): (72.5, 75.5),
    ("v3_large", 0.25): (68.0, 71.0),
    ("v3_large", 0.5): (72.5, 75.0),
    ("v3_large", 1.0): (75.0, 78.0),
}
COLUMNS = "run model width recipe usual weight_decay seed epochs parameters macs top1 low high top5 minutes".split()
COLUMNS += "trained_on images_per_second original".split()


def load_runs(models: Path | None = None) -> pd.DataFrame:
    """A row a run on CIFAR-100's test set, smallest network of each version first; not what was imported.

    Columns: run, model, width, recipe, usual (whether it is `modern` as it stands), weight_decay, seed, epochs,
    parameters, macs, top1, low, high (95 % interval, Wilson), top5, minutes, trained_on, images_per_second, original
    (the earlier report's top-1 of that network, missing where it has none).
    """
    original = published.load(ORIGINAL).set_index(["network", "width"])["top1"]
    rows = []
    for record in (store.load_record(run, models) for run in store.runs(models)):
        made, result = record["recipe"], record["result"]
        if made["dataset"] != "cifar100" or made["split"] != "full" or "imported" in record:
            continue
        low, high = evaluation.wilson(round(result["top1"] / 100 * result["images"]), result["images"])
        more = {"usual": is_usual(made), "minutes": record["seconds"] / 60, "trained_on": places.devices(record)}
        more |= {"low": low, "high": high, "original": original.get((made["model"], made["width"]))}
        rows.append(_flat(record) | more)
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"usual": bool, "original": float})
    return table.sort_values(["model", "width", "recipe", "seed", "run"], ignore_index=True)


def write_csv(models: Path) -> Path:
    """Write `models`/runs.csv, a row a run: the fields in which the runs' recipes differ, and what came out.

    Columns: run, those fields, parameters, macs, top1 and top5 (percent), images, seconds, images_per_second,
    device, processor, threads (where the run began), commit, started.
    """
    columns = "parameters macs top1 top5 images seconds images_per_second device processor threads commit started"
    rows = [_flat(store.load_record(run, models)) for run in store.runs(models)]
    table = pd.DataFrame(rows, columns=["run", *DEFAULTS, *columns.split()])
    table = table.drop(columns=[name for name in DEFAULTS if table[name].astype(str).nunique(dropna=False) < 2])
    path = Path(models) / "runs.csv"
    with writing.replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    return path


def _flat(record: dict) -> dict:
    """The fields of a record, of its recipe, its result and its environment side by side."""
    return record | record["recipe"] | record["result"] | record["environment"]


def peers() -> pd.DataFrame:
    """What others published for these networks on CIFAR-100 at 32 pixels a side, as `published.load`, by top-1."""
    table = published.load()
    chosen = (table["classes"] == 100) & (table["resolution"] == 32) & (table["source"] != ORIGINAL)
    return table[chosen].sort_values("top1", ignore_index=True)


def goals(table: pd.DataFrame) -> pd.DataFrame:
    """GOALS beside `table`, as `load_runs` makes it: a row a network, with the mean of the seeds of the usual recipe.

    Columns: model, width, goal, aim, top1 (missing if not trained), seeds (how many), reached (aim, goal, missed or
    not trained), margin (of top1 over the goal, in points), lowest and highest (top1 of a seed).
    """
    rows = []
    for (model, width), (goal, aim) in GOALS.items():
        mine = table[(table["model"] == model) & (table["width"] == width) & table["usual"]]["top1"]
        top1 = mine.mean()
        reached = "not trained" if mine.empty else "aim" if top1 >= aim else "goal" if top1 >= goal else "missed"
        rows.append((model, width, goal, aim, top1, len(mine), reached, top1 - goal, mine.min(), mine.max()))
    columns = "model width goal aim top1 seeds reached margin lowest highest".split()
    return pd.DataFrame(rows, columns=columns)


def time_to_original(models: Path | None = None) -> pd.DataFrame:
    """When each run first was above the earlier report's number for its network.

    Columns: run, original (top-1 in percent), epoch and minutes (missing if it never was), trained_on.
    """
    rows = []
    for row in load_runs(models).dropna(subset=["original"]).itertuples():
        history = store.load_history(row.run, models)
        history["minutes"] = history["seconds"].cumsum() / 60
        above = history[history["test_top1"] > row.original][["epoch", "minutes"]]
        first = above.iloc[0].to_dict() if len(above) else {}
        where = places.trained_on(store.load_record(row.run, models))
        rows.append(first | {"run": row.run, "original": row.original, "trained_on": where})
    table = pd.DataFrame(rows, columns=["run", "original", "epoch", "minutes", "trained_on"])
    return table.astype({"epoch": "Int64"})

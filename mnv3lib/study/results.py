"""The table of results: every recorded run beside the earlier report's numbers, as README and report show it."""

import re
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from mnv3lib import store, writing
from mnv3lib.recipe import DEFAULTS, is_usual, short
from mnv3lib.study import evaluation, places, published

ORIGINAL = "original report"
HEADINGS = {
    "run": "run",
    "parameters": "parameters (M)",
    "macs": "MACs (M)",
    "epochs": "epochs",
    "top1": "top-1 (%)",
    "interval": "95 % interval",
    "top5": "top-5 (%)",
    "minutes": "minutes",
    "trained_on": "trained on",
    "original": "original top-1 (%)",
    "difference": "difference",
}
# What this project set out to reach before its first run, in percent of top-1: at least, and at best.
GOALS = {
    ("v3_small", 0.25): (63.5, 67.0),
    ("v3_small", 0.5): (69.0, 72.0),
    ("v3_small", 1.0): (72.5, 75.5),
    ("v3_large", 0.25): (68.0, 71.0),
    ("v3_large", 0.5): (72.5, 75.0),
    ("v3_large", 1.0): (75.0, 78.0),
}


def recorded(models: Path | None = None) -> pd.DataFrame:
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
        rows.append(
            {
                "run": record["run"],
                "model": made["model"],
                "width": made["width"],
                "recipe": made["recipe"],
                "usual": is_usual(made),
                "weight_decay": made["weight_decay"],
                "seed": made["seed"],
                "epochs": made["epochs"],
                "parameters": record["parameters"],
                "macs": record["macs"],
                "top1": result["top1"],
                "low": low,
                "high": high,
                "top5": result["top5"],
                "minutes": record["seconds"] / 60,
                "trained_on": places.trained_on(record),
                "images_per_second": record["images_per_second"],
                "original": original.get((made["model"], made["width"])),
            }
        )
    columns = "run model width recipe usual weight_decay seed epochs parameters macs top1 low high top5 minutes"
    table = pd.DataFrame(rows, columns=[*columns.split(), "trained_on", "images_per_second", "original"])
    table = table.astype({"usual": bool, "original": float})
    return table.sort_values(["model", "width", "recipe", "seed", "run"], ignore_index=True)


def _for_print(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of HEADINGS as text."""
    shown = pd.DataFrame(
        {
            "run": table["run"],
            "parameters": (table["parameters"] / 1e6).map("{:.3f}".format),
            "macs": (table["macs"] / 1e6).map("{:.2f}".format),
            "epochs": table["epochs"].astype(str),
            "top1": table["top1"].map("{:.2f}".format),
            "interval": [f"{row.low:.2f}–{row.high:.2f}" for row in table.itertuples()],
            "top5": table["top5"].map("{:.2f}".format),
            "minutes": table["minutes"].map("{:.0f}".format),
            "trained_on": table["trained_on"],
            "original": ["–" if pd.isna(value) else f"{value:.2f}" for value in table["original"]],
            "difference": ["–" if pd.isna(value) else f"{value:+.2f}" for value in table["top1"] - table["original"]],
        }
    )
    return shown.rename(columns=HEADINGS)


def style(table: pd.DataFrame) -> Styler:
    """`table`, as `recorded` makes it, for a notebook."""
    styled = _for_print(table).style.hide(axis="index").format(escape="html")
    return styled.set_table_attributes('class="mnv3-rows"')


def html(table: pd.DataFrame) -> str:
    """`table` as HTML, with what it shows escaped."""
    return _for_print(table).to_html(index=False, border=0)


def markdown(table: pd.DataFrame) -> str:
    """`table` in GitHub's Markdown, with the names of runs as code."""
    shown = _for_print(table)
    return as_markdown(shown.assign(run=shown["run"].map("`{}`".format)))


def as_markdown(shown: pd.DataFrame) -> str:
    """A table of text in GitHub's Markdown, numbers to the right."""
    numbers = [all(re.fullmatch(r"[-+]?[\d.,–]+", text) for text in shown[name]) for name in shown.columns]
    lines = [shown.columns, ["---:" if right else "---" for right in numbers], *shown.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_csv(models: Path) -> Path:
    """Write `models`/runs.csv, a row a run: the fields in which the runs' recipes differ, and what came out.

    Columns: run, those fields, parameters, macs, top1 and top5 (percent), images, seconds, images_per_second,
    device, processor, threads (where the run began), commit, started.
    """
    records = [store.load_record(run, models) for run in store.runs(models)]
    recipes = [record["recipe"] for record in records]
    varying = [name for name in DEFAULTS if len({str(one[name]) for one in recipes}) > 1]
    rows = [
        {"run": record["run"]}
        | {name: made[name] for name in varying}
        | {name: record[name] for name in ("parameters", "macs")}
        | record["result"]
        | {name: record[name] for name in ("seconds", "images_per_second")}
        | {name: record["environment"].get(name) for name in ("device", "processor", "threads")}
        | {name: record[name] for name in ("commit", "started")}
        for record, made in zip(records, recipes, strict=True)
    ]
    path = Path(models) / "runs.csv"
    with writing.replacing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")
    return path


def peers() -> pd.DataFrame:
    """What others published for these networks on CIFAR-100 at 32 pixels a side, as `published.load`, by top-1."""
    table = published.load()
    chosen = (table["classes"] == 100) & (table["resolution"] == 32) & (table["source"] != ORIGINAL)
    return table[chosen].sort_values("top1", ignore_index=True)


def peers_for_print() -> pd.DataFrame:
    """`peers` as text."""
    table = peers()
    return pd.DataFrame(
        {
            "published by": table["source"],
            "network": [f"{row.network} {row.width}" for row in table.itertuples()],
            "parameters (M)": table["parameters_m"].map("{:.2f}".format, na_action="ignore").fillna("–"),
            "MACs (M)": table["macs_m"].map("{:.1f}".format, na_action="ignore").fillna("–"),
            "epochs": table["epochs"].astype(str),
            "top-1 (%)": table["top1"].map("{:.2f}".format),
            "note": table["note"],
        }
    )


def goals(table: pd.DataFrame) -> pd.DataFrame:
    """GOALS beside `table`, as `recorded` makes it: a row a network, with the mean of the seeds of the usual recipe.

    Columns: model, width, goal, aim, top1 (missing if not trained), seeds, reached (aim, goal, missed, not trained).
    """
    rows = []
    for (model, width), (goal, aim) in GOALS.items():
        mine = table[(table["model"] == model) & (table["width"] == width) & table["usual"]]["top1"]
        top1 = mine.mean()
        reached = "not trained" if mine.empty else "aim" if top1 >= aim else "goal" if top1 >= goal else "missed"
        rows.append((model, width, goal, aim, top1, len(mine), reached))
    return pd.DataFrame(rows, columns=["model", "width", "goal", "aim", "top1", "seeds", "reached"])


def goals_in_words(table: pd.DataFrame) -> str:
    """Which of the goals in `table`, as `goals` makes it, are reached, and which are not."""
    missed, untrained = (table[table["reached"] == outcome] for outcome in ("missed", "not trained"))
    aims = (table["reached"] == "aim").sum()
    sentences = [
        f"Of the {len(table)} goals that this project set itself, {len(table) - len(missed) - len(untrained)} are "
        f"reached, and {aims or 'none'} of the aims beyond them."
    ]
    single = (table["seeds"] == 1).sum()
    margins = (table["top1"] - table["goal"])[table["reached"].isin(["aim", "goal"])]
    if single and len(margins):
        least = table.loc[margins.idxmin()]
        sentences.append(
            f"{single} of the networks have a single run; the narrowest margin is that of {short(least['model'])} "
            f"{least['width']:g}, {margins.min():.2f} points."
        )
    if len(missed):
        names = [f"{short(row.model)} {row.width:g} by {row.goal - row.top1:.2f} points" for row in missed.itertuples()]
        sentences.append(f"Missed: {', '.join(names)}.")
    if len(untrained):
        names = [f"{short(row.model)} {row.width:g}" for row in untrained.itertuples()]
        sentences.append(f"Not trained yet with the recipe as it stands: {', '.join(names)}.")
    return " ".join(sentences)


def time_to_original(models: Path | None = None) -> pd.DataFrame:
    """When each run first was above the earlier report's number for its network.

    Columns: run, original (top-1 in percent), epoch and minutes (missing if it never was), trained_on.
    """
    rows = []
    for row in recorded(models).dropna(subset=["original"]).itertuples():
        history = store.load_history(row.run, models)
        above = history.index[history["test_top1"] > row.original]
        reached = above[0] if len(above) else None
        rows.append(
            {
                "run": row.run,
                "original": row.original,
                "epoch": None if reached is None else int(history["epoch"][reached]),
                "minutes": None if reached is None else history["seconds"][: reached + 1].sum() / 60,
                "trained_on": places.trained_on(store.load_record(row.run, models), names=True),
            }
        )
    table = pd.DataFrame(rows, columns=["run", "original", "epoch", "minutes", "trained_on"])
    return table.astype({"epoch": "Int64"})

"""Comparisons of recipes: the axes of notebook 05, each a question and changes to one recipe, and what changes give."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
from pandas.io.formats.style import Styler

from mnv3lib import recipe, store
from mnv3lib.errors import InputError, choose
from mnv3lib.provenance import ROOT
from mnv3lib.recipe import DEFAULTS, Recipe

# The columns of `compare` as `style` shows them
HEADINGS = {
    "variant": "variant",
    "change": "what it changes",
    "seeds": "seeds",
    "top1": "top-1 (%)",
    "spread": "standard deviation",
    "difference": "difference (points)",
    "low": "95 % from",
    "high": "to",
    "macs": "MACs (M)",
    "seconds": "minutes",
}


@dataclass(frozen=True)
class Axis:
    """One question; `variants` gives each variant's change to the recipe."""

    question: str
    variants: dict[str, dict]


AXES = {
    "strides": Axis(
        "How many of the stride-2 layers should run at stride 1 when the images have 32 pixels a side?",
        {f"{count}-lowered": {"lowered_strides": count} for count in range(4)},
    ),
}


def folder() -> Path:
    """Where the records of ablations lie; they have no weights."""
    return ROOT / "results" / "ablations"


def recipes(axis: str, **changes) -> dict[str, Recipe]:
    """The recipe of every variant of `axis`; `changes` go to all of them alike (model, width, epochs, seed, ...)."""
    choose("axis", axis, AXES)
    both = changes.keys() & {name for change in AXES[axis].variants.values() for name in change}
    if both:
        raise InputError(f"{', '.join(both)} is what the axis {axis} varies: leave it out")
    return {
        variant: recipe.make(**changes, **change, variant=f"{axis}-{variant}")
        for variant, change in AXES[axis].variants.items()
    }


def compare(records: Iterable[dict], base: str = "base") -> pd.DataFrame:
    """A row a variant: what it changes and what that gives against the runs whose variant is `base`.

    Columns: variant, change (the fields in which its recipe differs from the base's), seeds (how many), top1 (mean, in
    percent), spread (standard deviation between seeds, missing with one), difference (to the base's mean, in points),
    low and high (its 95 % interval), macs, seconds (mean of a run). The base comes first.

    The interval is Student's, with a variance between seeds that all variants share: it is estimated from those with
    several seeds, and missing where there are none. Raises InputError without a record of the base.
    """
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(record["recipe"]["variant"], []).append(record)
    if base not in groups:
        raise InputError(f"there is no run of the variant {base!r} to compare with: {', '.join(groups) or 'no runs'}")
    results = {variant: np.array([one["result"]["top1"] for one in group]) for variant, group in groups.items()}
    freedom = sum(len(values) - 1 for values in results.values())
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in results.values())
    half = float(scipy.stats.t.ppf(0.975, freedom)) * math.sqrt(squares / freedom) if freedom else math.nan
    rows = []
    for variant in sorted(groups, key=lambda name: name != base):
        mine, values = groups[variant], results[variant]
        difference = values.mean() - results[base].mean() if variant != base else math.nan
        reach = half * math.sqrt(1 / len(values) + 1 / len(results[base]))
        rows.append(
            {
                "variant": variant,
                "change": _change(mine[0]["recipe"], groups[base][0]["recipe"]),
                "seeds": len(values),
                "top1": values.mean(),
                "spread": values.std(ddof=1) if len(values) > 1 else math.nan,
                "difference": difference,
                "low": difference - reach,
                "high": difference + reach,
                "macs": mine[0]["macs"],
                "seconds": float(np.mean([one["seconds"] for one in mine])),
            }
        )
    return pd.DataFrame(rows)


def style(table: pd.DataFrame) -> Styler:
    """`table`, as `compare` makes it, for a notebook."""
    formats = dict.fromkeys(("difference", "low", "high"), "{:+.2f}") | {"macs": "{:.1f}", "seconds": "{:.0f}"}
    shown = table.assign(macs=table["macs"] / 1e6, seconds=table["seconds"] / 60)
    styled = shown.style.hide(axis="index").format(formats, precision=2, na_rep="–", escape="html")
    return styled.relabel_index(list(HEADINGS.values()), axis=1)


def _change(recipe: dict, base: dict) -> str:
    """The fields in which `recipe` differs from `base`, as text; a field that one does not have is at its default."""
    names = [name for name in DEFAULTS if name not in ("variant", "seed")]
    recipe, base = ({name: one.get(name, DEFAULTS[name]) for name in names} for one in (recipe, base))
    return ", ".join(f"{name} {recipe[name]}" for name in names if recipe[name] != base[name])


def table(records: dict[str, dict]) -> pd.DataFrame:
    """A row a record of `records` (by variant): variant, seed, epochs, macs, parameters, top1 in percent, seconds."""
    rows = [
        {
            "variant": variant,
            "seed": record["recipe"]["seed"],
            "epochs": record["recipe"]["epochs"],
            "macs": record["macs"],
            "parameters": record["parameters"],
            "top1": record["result"]["top1"],
            "seconds": record["seconds"],
        }
        for variant, record in records.items()
    ]
    return pd.DataFrame(rows, columns=["variant", "seed", "epochs", "macs", "parameters", "top1", "seconds"])


def recorded(axis: str) -> dict[str, dict]:
    """The records of `axis` that are in the repository, by run."""
    choose("axis", axis, AXES)
    records = {run: store.load_record(run, folder()) for run in store.runs(folder())}
    return {run: record for run, record in records.items() if record["recipe"]["variant"].startswith(f"{axis}-")}

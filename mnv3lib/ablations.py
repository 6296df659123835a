"""The variants of notebook 05: each axis asks one question and answers it by changes to one recipe."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mnv3lib import recipe, store
from mnv3lib.errors import InputError, choose
from mnv3lib.provenance import ROOT
from mnv3lib.recipe import Recipe


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

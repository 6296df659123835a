"""The comparisons of notebook 05: the recipes of each axis, the runs to be made, and what the records of them say."""

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
from pandas.io.formats.style import Styler

from mnv3lib import cost, recipe, store
from mnv3lib.errors import InputError, choose
from mnv3lib.networks import MobileNet
from mnv3lib.provenance import ROOT
from mnv3lib.recipe import Recipe
from mnv3lib.study.axes import AXES, BASE_SEEDS, FIRST, SETTING
from mnv3lib.study.places import devices

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
    "trained_on": "trained on",
}
NAMES = {"recipe", "variant", "seed"}  # the fields that do not tell how a run trains, or are repeated on purpose


def folder() -> Path:
    """Where the records of ablations lie; they have no weights."""
    return ROOT / "results" / "ablations"


def recipes(axis: str, **changes) -> dict[str, Recipe]:
    """The base and the variants of `axis` by name; `changes` go to all of them alike (model, width, epochs, seed, ...).

    The base comes first. Where one of the variants is the base already, the base goes by that variant's name.
    """
    both = changes.keys() & {"variant", *varied(axis)}
    if both:
        raise InputError(f"{', '.join(sorted(both))} is what the axis {axis} varies: leave it out")
    one = AXES[axis]
    common = SETTING | one.setting | changes
    base = recipe.make(**common, variant=base_variant(axis))
    made = {}
    for name, change in one.variants.items():
        made[name] = recipe.make(**common | change, variant=f"{axis}-{name}")
        if one.same_budget:
            rate = round(base.learning_rate * base.mean_rate / made[name].mean_rate, 4)
            made[name] = recipe.make(**common | change, learning_rate=rate, variant=f"{axis}-{name}")
    own = [name for name in made if _same(made[name], base.as_dict())]
    return {own[0] if own else "base": base} | {name: one for name, one in made.items() if name not in own}


def varied(axis: str) -> set[str]:
    """The fields of a recipe that variants of `axis` change."""
    choose("axis", axis, AXES)
    return {name for change in AXES[axis].variants.values() for name in change}


def base_variant(axis: str) -> str:
    """What the recipe of the base of `axis` has as its variant."""
    return f"{axis}-base" if AXES[axis].setting else "base"


def plan(names: Iterable[str], seeds: Iterable[int] = (), **changes) -> list[Recipe]:
    """The runs of `names`, in the order in which they should be made: the name of an axis, axis/variant, first or all.

    first: the base and FIRST; all: these and then every axis. With `seeds` every recipe is run with each of them;
    without, the base of SETTING with BASE_SEEDS and everything else with seed 0. The base of an axis with a setting of
    its own is its longest run, and often a trained model already: it comes last, and with the whole axis alone.
    """
    expanded = []
    for name in names:
        choose("ablation", name.split("/")[0], ("first", "all", *AXES))
        expanded += {"first": FIRST, "all": (*FIRST, *AXES)}.get(name, (name,))
    planned = []
    for name in expanded:
        axis, _, variant = name.partition("/")
        made = recipes(axis, **changes)
        base, *variants = made.values()
        if variant:
            choose(f"variant of {axis}", variant, made)
            variants = [made[variant]]
        own = bool(AXES[axis].setting)
        for one in [base, *variants] if not own else variants if variant else [*variants, base]:
            used = tuple(seeds) or (BASE_SEEDS if one is base and not own else (0,))
            planned += [dataclasses.replace(one, seed=seed) for seed in used]
    return list(dict.fromkeys(planned))


def _same(made: Recipe, recorded: dict) -> bool:
    """Whether a recorded recipe trains as `made` does, whatever they are called and with whatever seed."""
    return set(made.differences(recorded)) <= NAMES


def missing(planned: Iterable[Recipe], records: Iterable[dict], ours: Path | None = None) -> list[Recipe]:
    """Those of `planned` that no record is of, whatever it is called.

    Raises InputError where the folder `ours` has a record of another recipe under the name of one of them: it is from
    before the base changed.
    """
    records = list(records)
    left = [made for made in planned if made.seed not in {one["recipe"]["seed"] for one in find(made, records)}]
    old = {made.run for made in left} & set(store.runs(ours) if ours else ())
    if old:
        raise InputError(f"{ours} has runs of these names with another recipe, move them: {', '.join(sorted(old))}")
    return left


def find(made: Recipe, records: Iterable[dict]) -> list[dict]:
    """The records of runs that were trained as `made`, with any seed."""
    return [record for record in records if _same(made, record["recipe"])]


def recorded(ours: Path, models: Path | None = None) -> list[dict]:
    """The records of ablations in `ours`, and of the trained models in `models`, which some compare with.

    `ours` has no default: a page names the folder as a parameter, so that `mnv3 report --check` sees what it reads.
    A recipe with one seed counts once: made again it would come out the same. Imported runs do not count.
    """
    folders = [Path(ours), Path(models or store.models_folder())]
    records = [store.load_record(run, place) for place in folders for run in store.runs(place)]
    records = [record for record in records if "imported" not in record]
    return list({(_training(one), one["recipe"]["seed"]): one for one in reversed(records)}.values())[::-1]


def _training(record: dict) -> str:
    """What tells how a record's run was trained, but for the seed."""
    return json.dumps(record["recipe"] | dict.fromkeys(NAMES), sort_keys=True)


def results(records: Iterable[dict]) -> pd.DataFrame:
    """What the records say of every axis: `compare` for each that has its base and another variant.

    Columns: axis, and those of `compare`, the first row of each axis being its base. All axes share one estimate of the
    spread between seeds, `seed_spread` of all records.
    """
    records = list(records)
    groups = {axis: _by_variant(axis, records) for axis in AXES}
    groups = {axis: group for axis, group in groups.items() if len(group) > 1 and next(iter(group.values()))}
    spread = seed_spread(records)
    tables = [
        compare(
            [_called(record, name) for name, found in group.items() for record in found],
            base=next(iter(group)),
            spread=spread,
        ).assign(axis=axis)
        for axis, group in groups.items()
    ]
    columns = ["axis", *HEADINGS, "compute"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def _by_variant(axis: str, records: Iterable[dict]) -> dict[str, list[dict]]:
    """The records of each variant of `axis` that has some, and of its base, first, even if it has none."""
    made = recipes(axis)
    found = {name: find(one, records) for name, one in made.items()}
    return {name: group for name, group in found.items() if group or name == next(iter(made))}


def _called(record: dict, name: str) -> dict:
    return record | {"recipe": record["recipe"] | {"variant": name}}


def repeated(records: Iterable[dict]) -> list[list[dict]]:
    """The records of each recipe that was run with several seeds."""
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(_training(record), []).append(record)
    return [group for group in groups.values() if len(group) > 1]


def _tops(group: Iterable[dict]) -> np.ndarray:
    return np.array([one["result"]["top1"] for one in group])


def seed_spread(records: Iterable[dict]) -> tuple[float, int]:
    """(standard deviation of top-1 between seeds, its degrees of freedom), from recipes run with several seeds.

    All are taken to have the same deviation; `deviations` tells whether they have. It is missing (NaN) where no recipe
    has two runs.
    """
    groups = [_tops(group) for group in repeated(records)]
    freedom = sum(len(values) - 1 for values in groups)
    squares = sum(float(np.var(values)) * len(values) for values in groups)
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


def deviations(records: Iterable[dict]) -> tuple[list[float], float]:
    """(standard deviation of top-1 of each recipe with three seeds or more, p of Bartlett's test that all are equal).

    p is missing (NaN) with fewer than two such recipes.
    """
    groups = [_tops(group) for group in repeated(records) if len(group) > 2]
    p = float(scipy.stats.bartlett(*groups).pvalue) if len(groups) > 1 else math.nan
    return [float(values.std(ddof=1)) for values in groups], p


def device_effect(records: Iterable[dict]) -> tuple[float, float, int]:
    """(points of top-1 by which runs begun on a GPU are above those on CPUs, half its 95 % interval, how many recipes).

    Least squares with an effect of each recipe, from those that have runs of both; the interval is Student's. It is
    missing (NaN) where there are too few.
    """
    places = [np.array([devices(one).startswith("GPU") for one in group]) for group in repeated(records)]
    groups = zip(map(_tops, repeated(records)), places, strict=True)
    groups = [(tops, on_gpu) for tops, on_gpu in groups if len(set(on_gpu)) == 2]
    freedom = sum(len(tops) - 1 for tops, _ in groups) - 1
    if freedom < 1:
        return math.nan, math.nan, len(groups)
    tops = np.concatenate([tops - tops.mean() for tops, _ in groups])
    on_gpu = np.concatenate([on_gpu - on_gpu.mean() for _, on_gpu in groups])
    effect = tops @ on_gpu / (on_gpu @ on_gpu)
    error = math.sqrt(np.sum((tops - effect * on_gpu) ** 2) / freedom / (on_gpu @ on_gpu))
    return float(effect), float(scipy.stats.t.ppf(0.975, freedom)) * error, len(groups)


def reach(spread: tuple[float, int], first: int, second: int) -> float:
    """Half the width of the 95 % interval (Student's) of a difference of means over so many seeds."""
    deviation, freedom = spread
    if not freedom:
        return math.nan
    return float(scipy.stats.t.ppf(0.975, freedom)) * deviation * math.sqrt(1 / first + 1 / second)


def compare(records: Iterable[dict], base: str = "base", spread: tuple[float, int] | None = None) -> pd.DataFrame:
    """A row a variant: what it changes and what that gives against the runs whose variant is `base`.

    Columns: variant, change (the fields in which its recipe differs from the base's), seeds (how many), top1 (mean, in
    percent), spread (standard deviation between seeds, missing with one), difference (to the base's mean, in points),
    low and high (its 95 % interval), macs, trained_on (each of places.devices that runs have), seconds
    (mean of a run on each of these), compute (MACs of an image, summed over the epochs). The base comes first.

    The interval is Student's, with a variance between seeds that all variants share: `seed_spread` of these records
    unless `spread` is given. It is missing where no recipe has several seeds. Raises InputError without a record of the
    base.
    """
    records = list(records)
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(record["recipe"]["variant"], []).append(record)
    if base not in groups:
        raise InputError(f"there is no run of the variant {base!r} to compare with: {', '.join(groups) or 'no runs'}")
    results = {variant: np.array([one["result"]["top1"] for one in group]) for variant, group in groups.items()}
    spread = spread or seed_spread(records)
    rows = []
    for variant in sorted(groups, key=lambda name: name != base):
        mine, values = groups[variant], results[variant]
        difference = values.mean() - results[base].mean() if variant != base else math.nan
        half = reach(spread, len(values), len(results[base]))
        seconds: dict[str, list[float]] = {}
        for one in mine:
            seconds.setdefault(devices(one), []).append(one["seconds"])
        rows.append(
            {
                "variant": variant,
                "change": _change(mine[0]["recipe"], groups[base][0]["recipe"]),
                "seeds": len(values),
                "top1": values.mean(),
                "spread": values.std(ddof=1) if len(values) > 1 else math.nan,
                "difference": difference,
                "low": difference - half,
                "high": difference + half,
                "macs": mine[0]["macs"],
                "seconds": [float(np.mean(times)) for times in seconds.values()],
                "trained_on": "; ".join(seconds),
                "compute": _compute(mine[0]),
            }
        )
    return pd.DataFrame(rows)


def _compute(record: dict) -> int:
    """MACs of an image, summed over the epochs, which may have images of several sizes."""
    made = Recipe(**record["recipe"])
    if len(made.image_sizes) == 1:
        return record["macs"] * made.epochs
    network = MobileNet(made.architecture)
    macs = {size: cost.totals(network, size)[1] for size in made.image_sizes}
    return sum(macs[made.image_size(epoch)] for epoch in range(made.epochs))


def style(table: pd.DataFrame) -> Styler:
    """The columns of HEADINGS of a `table` that `compare` made, for a notebook."""
    formats = dict.fromkeys(("difference", "low", "high"), "{:+.2f}") | {"macs": "{:.1f}"}
    minutes = ["; ".join(f"{each / 60:.0f}" for each in seconds) for seconds in table["seconds"]]
    shown = table[list(HEADINGS)].assign(macs=table["macs"] / 1e6, seconds=minutes)
    styled = shown.style.hide(axis="index").format(formats, precision=2, na_rep="–", escape="html")
    return styled.relabel_index(list(HEADINGS.values()), axis=1)


def _change(recipe: dict, base: dict) -> str:
    """The fields in which `recipe` differs from `base`, as text."""
    return ", ".join(f"{name} {recipe[name]}" for name in recipe if name not in NAMES and recipe[name] != base[name])

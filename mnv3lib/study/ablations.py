"""The comparisons of notebook 05: the recipes of each axis, the runs to be made, and what their records say."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mnv3lib import cost, recipe, store
from mnv3lib.errors import InputError, choose
from mnv3lib.networks import MobileNet
from mnv3lib.provenance import ROOT
from mnv3lib.recipe import Recipe
from mnv3lib.study import axes, statistics
from mnv3lib.study.places import devices
from mnv3lib.study.statistics import NAMES, Spread, seed_spread

COLUMNS = "axis variant change seeds top1 spread difference low high macs seconds trained_on compute outcome".split()


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
    study = axes.read()
    one = study.axes[axis]
    common = study.setting | one.setting | changes
    base = recipe.make(**common, variant=f"{axis}-base" if one.setting else "base")
    made = {}
    for name, change in one.variants.items():
        made[name] = recipe.make(**common | change, variant=f"{axis}-{name}")
        if one.same_budget:
            rate = round(base.learning_rate * base.mean_rate / made[name].mean_rate, 4)
            made[name] = recipe.make(**common | change, learning_rate=rate, variant=f"{axis}-{name}")
    own = [name for name, one in made.items() if find(one, [{"recipe": base.as_dict()}])]
    return {own[0] if own else "base": base} | {name: one for name, one in made.items() if name not in own}


def varied(axis: str) -> set[str]:
    """The fields of a recipe that variants of `axis` change."""
    choose("axis", axis, axes.read().axes)
    return {name for change in axes.read().axes[axis].variants.values() for name in change}


def plan(names: Iterable[str], seeds: Iterable[int] = (), **changes) -> list[Recipe]:
    """The runs of `names`, in the order in which they should be made: the name of an axis, axis/variant, claims, first
    or all.

    first: what the file of axes lists so; all: these and then every axis; claims: as many seeds of each side of each
    claim as it plans, those of the base that most compare with first. With `seeds` every recipe is run with each of
    them; without, the base of the file's setting with its seeds and everything else with seed 0. The base of an axis
    with a setting of its own is its longest run, and often a trained model already: it comes last, and with the whole
    axis alone.
    """
    study, expanded = axes.read(), []
    for name in names:
        choose("ablation", name.split("/")[0], ("claims", "first", "all", *study.axes))
        expanded += {"first": study.first, "all": [*study.first, *study.axes]}.get(name, [name])
    planned = []
    for name in expanded:
        if name == "claims":
            planned += _of_claims(study.claims, **changes)
            continue
        axis, _, variant = name.partition("/")
        made = recipes(axis, **changes)
        base, *variants = made.values()
        if variant:
            choose(f"variant of {axis}", variant, made)
            variants = [made[variant]]
        own = bool(study.axes[axis].setting)
        for one in [base, *variants] if not own else variants if variant else [*variants, base]:
            used = tuple(seeds) or (study.base_seeds if one is base and not own else (0,))
            planned += [dataclasses.replace(one, seed=seed) for seed in used]
    return list(dict.fromkeys(planned))


def _of_claims(claims: Iterable[axes.Claim], **changes) -> list[Recipe]:
    planned = []
    for claim in sorted(claims, key=lambda claim: -claim.seeds):
        made = recipes(claim.axis, **changes)
        for name in [claim.against or next(iter(made)), *claim.variants]:
            planned += [dataclasses.replace(made[name], seed=seed) for seed in range(claim.seeds)]
    return planned


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
    """The records of runs that were trained as `made`, whatever they are called and with any seed."""
    return [record for record in records if set(made.differences(record["recipe"])) <= NAMES]


def load_records(ours: Path, models: Path | None = None) -> list[dict]:
    """The records of ablations in `ours`, and of the trained models in `models`, which some compare with.

    `ours` has no default: a page names the folder as a parameter, so that `mnv3 report --check` sees what it reads.
    A recipe with one seed counts once: made again it would come out the same. Imported runs do not count.
    """
    folders = [Path(ours), Path(models or store.models_folder())]
    records = [store.load_record(run, place) for place in folders for run in store.runs(place)]
    records = [record for record in records if "imported" not in record]
    return list({(statistics.training(one), one["recipe"]["seed"]): one for one in reversed(records)}.values())[::-1]


def begun_before(records: Iterable[dict]) -> int:
    """How many of the runs had begun by the end of the day on which the tests of the claims were fixed."""
    return sum(record["started"][:10] <= axes.read().planned for record in records)


def results(records: Iterable[dict]) -> pd.DataFrame:
    """What the records say of every axis: `compare` for each that has its base and another variant.

    Columns: axis, and those of `compare`, the first row of each axis being its base. All axes share one estimate of the
    spread between seeds, that of all records.
    """
    records, tables = list(records), []
    spread = seed_spread(records)
    for axis in axes.read().axes:
        found = {name: find(made, records) for name, made in recipes(axis).items()}
        groups = {name: group for name, group in found.items() if group}
        if len(groups) > 1 and next(iter(groups)) == next(iter(found)):
            tables.append(_beside_the_first(groups, spread).assign(axis=axis))
    return pd.concat(tables, ignore_index=True)[COLUMNS] if tables else pd.DataFrame(columns=COLUMNS)


def compare(records: Iterable[dict], base: str = "base", spread: Spread | None = None) -> pd.DataFrame:
    """A row a variant: what it changes and what that gives against the runs whose variant is `base`.

    Columns: variant, change (the fields in which its recipe differs from the base's), seeds (how many), top1 (mean, in
    percent), spread (standard deviation between seeds, missing with one), difference (to the base's mean, in points),
    low and high (its 95 % interval), macs, seconds (mean of a run on each of trained_on), trained_on (each of
    places.devices that runs have), compute (MACs of an image, summed over the epochs), outcome (of the difference, a
    statistics.Outcome). The base comes first.

    The interval is Student's, with a variance between seeds that all variants share: statistics.seed_spread of these
    records unless `spread` is given. It is missing where no recipe has several seeds. Raises InputError without a
    record of the base.
    """
    records = list(records)
    groups: dict[str, list[dict]] = {base: []}
    for record in records:
        groups.setdefault(record["recipe"]["variant"], []).append(record)
    if not groups[base]:
        others = ", ".join(name for name in groups if name != base)
        raise InputError(f"there is no run of the variant {base!r} to compare with: {others or 'no runs'}")
    return _beside_the_first(groups, spread or seed_spread(records))


def _beside_the_first(groups: dict[str, list[dict]], spread: Spread) -> pd.DataFrame:
    """The table of `compare` for the records of each variant, the first being the base."""
    base = next(iter(groups.values()))
    base_top1, base_recipe = statistics.tops(base), base[0]["recipe"]
    rows = []
    for variant, group in groups.items():
        first, top1 = group[0], statistics.tops(group)
        changed = ((name, value) for name, value in first["recipe"].items() if name not in NAMES)
        beside = spread.difference(statistics.of(top1), statistics.of(base_top1))
        difference, outcome = (beside.points, statistics.outcome(beside)) if group is not base else (math.nan, None)
        seconds = pd.Series([float(one["seconds"]) for one in group]).groupby([*map(devices, group)], sort=False).mean()
        rows.append(
            {
                "variant": variant,
                "change": ", ".join(f"{name} {value}" for name, value in changed if value != base_recipe[name]),
                "seeds": len(top1),
                "top1": top1.mean(),
                "spread": top1.std(),
                "difference": difference,
                "low": difference - beside.half,
                "high": difference + beside.half,
                "macs": first["macs"],
                "seconds": seconds.tolist(),
                "trained_on": "; ".join(seconds.index),
                "compute": _compute(first),
                "outcome": outcome,
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

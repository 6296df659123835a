"""What the ablations say, in words: an answer an axis, and a verdict on each claim of the earlier report."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mnv3lib.deploy.latency_text import versus
from mnv3lib.recipe import short
from mnv3lib.study import ablations, results
from mnv3lib.study.axes import BEYOND_CROP_AND_FLIP

MARGIN = 1.0  # points of top-1; less than that counts as no difference
HOW_JUDGED = (
    "What the earlier report claims or asks, and what the recorded runs say of it. A claim holds, or does not, where "
    "the 95 % interval between seeds lies wholly on one side; else it is not decided. But for the versions and the "
    "strides it is tested on V3 Small 0.25 with one thing of the recipe `modern` changed, for ten epochs unless it "
    "says twenty: larger networks and longer training may differ."
)
SAID = "by the earlier report"  # the column that has claimed or asked
HOLDS, FAILS, UNDECIDED, MISSING = "holds", "does not hold", "not decided", "not run yet"


@dataclass(frozen=True)
class Claim:
    """That the difference of `variants` to `against` (the base if empty), in points, lies between `low` and `high`.

    every: whether for each of the variants, or for at least one. question: whether the earlier report only asked.
    """

    text: str
    axis: str
    variants: tuple[str, ...]
    low: float = -math.inf
    high: float = math.inf
    against: str = ""
    every: bool = True
    question: bool = False


CLAIMS = (
    Claim(
        "With the paper's strides accuracy is lower by tens of points",
        "strides",
        ("0-lowered", "0-lowered-rate-0.1"),
        high=-10,
    ),
    Claim(
        "SGD with momentum, as in the recipe `original`, is more accurate than the V3 paper's set-up with RMSProp",
        "optimizer",
        ("original",),
        low=0,
        against="paper",
    ),
    Claim("L2 regularization makes no difference", "weight-decay", ("0",), -MARGIN, MARGIN),
    Claim("Dropout makes no difference", "dropout", ("0.2",), -MARGIN, MARGIN),
    Claim("Random crops and flips gain two points or more", "augmentation", ("none",), high=-2),
    Claim(
        "Kaiming normal makes no difference to torch's initialization", "initialization", ("torch",), -MARGIN, MARGIN
    ),
    Claim(
        "Further augmentation helps, at ten epochs",
        "augmentation",
        tuple(BEYOND_CROP_AND_FLIP),
        low=0,
        every=False,
        question=True,
    ),
    Claim(
        "Further augmentation helps, at twenty epochs",
        "augmentation-long",
        tuple(BEYOND_CROP_AND_FLIP),
        low=0,
        every=False,
        question=True,
    ),
    Claim(
        "The penultimate layer can have a quarter of its channels at no loss",
        "penultimate",
        ("quarter",),
        low=-MARGIN,
        question=True,
    ),
    Claim("The penultimate layer can go at no loss", "penultimate", ("none",), low=-MARGIN, question=True),
    Claim(
        "Squeeze-excitation on Small's last 1x1 convolution, in the paper's table but not in its code, can be left out "
        "at no loss",
        "squeeze-excitation",
        ("last",),
        high=MARGIN,
        question=True,
    ),
)


def verdict(difference: float, half: float, seeds: int, deviation: float) -> str:
    """better, worse, alike (within MARGIN) or undecided: a variant `difference` points, give or take `half`, off.

    seeds: the fewer of the two's; from one seed nothing follows where the difference is below the `deviation` of seeds.
    """
    if math.isnan(half) or (seeds == 1 and abs(difference) < deviation):
        return "undecided"
    if abs(difference) > half:
        return "better" if difference > 0 else "worse"
    return "alike" if abs(difference) + half < MARGIN else "undecided"


def answer(axis: str, table: pd.DataFrame, spread: tuple[float, int]) -> str:
    """The answer to the question of `axis` in words, from ablations.results and its estimate of the spread."""
    rows = table[table["axis"] == axis]
    command = f"mnv3 sweep --ablation {axis}"
    if rows.empty:
        return f"**Not run yet.** `{command}` makes the runs."
    base, variants = rows.iloc[0], rows.iloc[1:]
    kinds = {"better": [], "worse": [], "alike": [], "undecided": []}
    fewest = math.inf
    for row in variants.itertuples():
        kind = verdict(row.difference, row.high - row.difference, min(row.seeds, base["seeds"]), spread[0])
        kinds[kind].append(f"{row.variant} ({row.difference:+.2f}, {_seeds(row.seeds)})")
        fewest = min(fewest, row.seeds) if kind == "undecided" else fewest
    headings = {
        "better": "Better than the base",
        "worse": "Worse than the base",
        "alike": f"Less than {MARGIN:g} point from the base, either way",
        "undecided": "Not decided",
    }
    name = "The base" if base["variant"] == "base" else f"The base, {base['variant']},"
    lines = [f"{name} has {base['top1']:.2f} % ({_seeds(base['seeds'])})."]
    lines += [f"{headings[kind]}: {'; '.join(names)}." for kind, names in kinds.items() if names]
    if kinds["undecided"]:
        lines[-1] += (
            f" More seeds would decide more: `{command} --seed {fewest} {fewest + 1}`, their number fixed first."
        )
    left = [name for name in ablations.recipes(axis) if name not in set(rows["variant"])]
    lines += [f"Not run yet: {', '.join(left)}."] if left else []
    judged = [judge(claim, table, spread) for claim in CLAIMS if claim.axis == axis]
    lines += [f"{one['claim']} ({one[SAID]} {SAID}): **{one['verdict']}**." for one in judged]
    if spread[1]:
        lines.append(f"All at 95 %, with a standard deviation of {spread[0]:.2f} points between seeds.")
    return "\n".join(f"- {line}" for line in lines)


def certainty(spread: tuple[float, int]) -> str:
    """What the intervals rest on, and how many runs it takes to tell something at that spread."""
    deviation, freedom = spread
    if not freedom:
        return "No recipe was run with several seeds yet, so no difference can be told from chance."
    enough = next(seeds for seeds in itertools.count(1) if ablations.reach(spread, seeds, seeds) < MARGIN)
    return (
        f"The 95 % intervals rest on a standard deviation between seeds of {deviation:.2f} points, estimated with "
        f"{freedom} degree{'s' if freedom > 1 else ''} of freedom. So from one run of each, two recipes differ clearly "
        f"only if {ablations.reach(spread, 1, 1):.1f} points or more lie between them, and to find them within "
        f"{MARGIN:g} point of each other takes at least {_seeds(enough)} of each."
    )


def caveats(records: Iterable[dict]) -> str:
    """What the intervals take for granted, tested: that all recipes vary alike, wherever they are trained."""
    records = list(records)
    lines = []
    made = [group[0]["recipe"] for group in ablations.repeated(records)]
    if made:
        names = sorted({f"{short(one['model'])} {one['width']:g}" for one in made})
        lines.append(f"The spread between seeds is that of {', '.join(names)}; for other networks it is an assumption.")
    own, p = ablations.deviations(records)
    if not math.isnan(p):
        told = "no more apart than chance makes them"
        if p < 0.05:
            told = "further apart than chance makes them: the interval of a recipe that varies more is too narrow"
        lines.append(
            f"The standard deviations of the {len(own)} recipes with three seeds or more go from {min(own):.2f} to "
            f"{max(own):.2f} points, {told} (Bartlett's test, p = {p:.2g})."
        )
    effect, half, recipes = ablations.device_effect(records)
    if not math.isnan(effect):
        outcomes = {"undecided": "whether the place matters is not decided", "alike": "the place matters little"}
        told = outcomes.get(verdict(effect, half, recipes, 0.0), "comparisons between places are off by as much")
        lines.append(
            f"Runs begun on a GPU against those on CPUs, in the {recipes} recipes that have both: "
            f"{_points(effect, half)}; {told}."
        )
    return "\n".join(f"- {line}" for line in lines)


def judge(claim: Claim, table: pd.DataFrame, spread: tuple[float, int]) -> dict:
    """claim, SAID, verdict and evidence, from ablations.results and its estimate of the spread."""
    rows = table[table["axis"] == claim.axis].set_index("variant")
    outcomes, evidence = [], []
    for name in claim.variants:
        against = claim.against or (rows.index[0] if len(rows) else "")
        if name not in rows.index or against not in rows.index:
            outcomes.append(MISSING)
            continue
        one, other = rows.loc[name], rows.loc[against]
        outcome, told = _tested(one, other, spread, claim.low, claim.high)
        outcomes.append(outcome)
        evidence.append(f"{name} against {against}: {told}")
    return {
        "claim": claim.text,
        SAID: "asked" if claim.question else "claimed",
        "verdict": _all(outcomes, claim.every),
        "evidence": "; ".join(evidence),
    }


def judge_versions(models: pd.DataFrame, spread: tuple[float, int]) -> dict:
    """As `judge`, that each version is more accurate than the one before; `models` is results.recorded's table.

    Each network of the older version is set beside the most accurate of the newer that has no more MACs; of one with
    several seeds, the mean counts.
    """
    usual = models[models["usual"]].groupby(["model", "width", "epochs", "macs", "weight_decay"], as_index=False)
    usual = usual.agg(top1=("top1", "mean"), seeds=("top1", "size"))
    version = usual["model"].str[:2]
    outcomes, evidence = [], []
    for older, newer in (("v1", "v2"), ("v2", "v3")):
        pairs = 0
        for _, old in usual[version == older].iterrows():
            lean = usual[(version == newer) & (usual["macs"] <= old["macs"]) & (usual["epochs"] == old["epochs"])]
            if lean.empty:
                continue
            new = lean.loc[lean["top1"].idxmax()]
            outcome, told = _tested(new, old, spread, 0, math.inf)
            outcomes.append(outcome)
            evidence.append(
                f"{short(new['model'])} {new['width']:g} ({new['macs'] / 1e6:.1f} M MACs) against "
                f"{short(old['model'])} {old['width']:g} ({old['macs'] / 1e6:.1f} M): {told}"
                + _decays(new["weight_decay"], old["weight_decay"])
            )
            pairs += 1
        outcomes += [] if pairs else [MISSING]
    return {
        "claim": "V3 is more accurate than V2, and V2 than V1, at no more MACs",
        SAID: "claimed",
        "verdict": _all(outcomes, every=True),
        "evidence": "; ".join(evidence),
    }


def _decays(new: float, old: float) -> str:
    """`modern` decays the weights of wide networks less, which by itself makes them more accurate."""
    return "" if new == old else f", with a weight decay of {new:g} against {old:g}"


def judge_times(text: str, times: pd.DataFrame, fast: str, slow: str) -> dict:
    """As `judge`, of the question whether contestant `fast` of timing.measure's table takes less time than `slow`."""
    rows = times.set_index("name")
    outcome = UNDECIDED  # the middle halves overlap
    if rows["p75_ms"][fast] < rows["p25_ms"][slow]:
        outcome = HOLDS
    elif rows["p75_ms"][slow] < rows["p25_ms"][fast]:
        outcome = FAILS
    evidence = f"measured above: {versus(times, slow, fast)}"
    return {"claim": text, SAID: "asked", "verdict": outcome, "evidence": evidence}


def conclusion(verdicts: pd.DataFrame) -> str:
    """How many claims hold, and which were decided."""
    counts = {verdict: int((verdicts["verdict"] == verdict).sum()) for verdict in (HOLDS, FAILS, UNDECIDED, MISSING)}
    told = ", ".join(f"{verdict}: {count}" for verdict, count in counts.items() if count)
    decided = [
        f"{row.verdict.capitalize()}: {row.claim}." for row in verdicts.itertuples() if row.verdict in (HOLDS, FAILS)
    ]
    return "\n".join([f"Of the {len(verdicts)} claims: {told}.", "", *(f"- {line}" for line in decided)])


def claims(table: pd.DataFrame, models: pd.DataFrame, spread: tuple[float, int]) -> pd.DataFrame:
    """A row a claim or question of the earlier report: claim, SAID, verdict, evidence."""
    return pd.DataFrame([judge_versions(models, spread), *(judge(claim, table, spread) for claim in CLAIMS)])


def recorded_claims(models: Path | None = None) -> pd.DataFrame:
    """`claims` of this project's recorded ablations and the trained models in `models` (default: this project's)."""
    records = ablations.recorded(ablations.folder(), models)
    return claims(ablations.results(records), results.recorded(models), ablations.seed_spread(records))


def _tested(one: pd.Series, other: pd.Series, spread: tuple[float, int], least: float, most: float) -> tuple[str, str]:
    """Whether top1 of `one` is `least` to `most` points above that of `other`; and the difference in words."""
    difference, half = one["top1"] - other["top1"], ablations.reach(spread, one["seeds"], other["seeds"])
    alone = min(one["seeds"], other["seeds"]) == 1 and abs(difference) < spread[0]
    told = f"{_points(difference, half)} ({one['seeds']} and {other['seeds']} runs)"
    return UNDECIDED if alone else _within(difference, half, least, most), told


def _within(difference: float, half: float, least: float, most: float) -> str:
    """Whether `difference`, plus or minus `half`, lies between `least` and `most`."""
    low, high = difference - half, difference + half
    if low >= least and high <= most:
        return HOLDS
    return FAILS if high < least or low > most else UNDECIDED


def _all(outcomes: Iterable[str], every: bool) -> str:
    """The verdict on a claim about several differences: that each lies where it says, or that one does."""
    outcomes = set(outcomes)
    deciding, other = (FAILS, HOLDS) if every else (HOLDS, FAILS)
    if deciding in outcomes:
        return deciding
    if outcomes in ({other}, {MISSING}):
        return outcomes.pop()
    return UNDECIDED


def _points(difference: float, half: float) -> str:
    interval = f", 95 % {difference - half:+.2f} to {difference + half:+.2f}" if not math.isnan(half) else ""
    return f"{difference:+.2f} points{interval}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"

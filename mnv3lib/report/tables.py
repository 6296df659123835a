"""DataFrames as people read them: all values as text, under headings with units; as HTML for pages, or as Markdown.

Then the tables that several pages show.
"""

import re
from collections.abc import Callable

import pandas as pd
from IPython.display import HTML

from mnv3lib.study import results
from mnv3lib.study.claims import Verdict, verdicts

HEADINGS = {  # of columns that several tables have, parameters and MACs in millions
    "parameters": "parameters (M)",
    "macs": "MACs (M)",
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "interval": "95 % interval",
    "low": "95 % from",
    "high": "to",
    "spread": "standard deviation",
    "change": "what it changes",
    "original": "original top-1 (%)",
    "source": "published by",
}


COSTS = {"macs": ("M MACs", 1e6), "latency": ("ms", 1), "parameters": ("M parameters", 1e6)}
PARTS = {Verdict.HOLDS: "agree", Verdict.FAILS: "disagree"}


def text(
    table: pd.DataFrame,
    headings: dict[str, str] | None = None,
    formats: dict[str, str | Callable] | None = None,
    precision: int = 2,
    missing: str = "–",
) -> pd.DataFrame:
    """All values of `table` as text, under the `headings` of its columns.

    A column without a heading goes by its name, with spaces for underscores. formats: by column a format string or a
    function; other floats have `precision` digits behind the point, and True and False are yes and no. A missing value
    is `missing`, whatever the format.
    """
    headings, formats = headings or {}, formats or {}
    columns = {
        place: [_as_text(value, formats.get(name), precision, missing) for value in table[name]]
        for place, name in enumerate(table.columns)
    }
    names = [headings.get(name, str(name).replace("_", " ")) for name in table.columns]
    return pd.DataFrame(columns, index=table.index).set_axis(names, axis=1)  # two columns may have one heading


def _as_text(value, how: str | Callable | None, precision: int, missing: str) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return missing
    if how:
        return how.format(value) if isinstance(how, str) else how(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{precision}f}" if isinstance(value, float) else str(value)


def html(shown: pd.DataFrame, kind: str = "mnv3-rows") -> HTML:
    """What `text` returned for a notebook; as a string it is `.data`. Text is escaped, `code` comes out as code.

    kind: a class of the pages' style sheet: mnv3-rows for many columns, mnv3-text for sentences, or none. Ranges of
    numbers stay on one line.
    """
    page = inline(shown.to_html(index=False, border=0, classes=kind))
    return HTML(re.sub(r"<td>([-+]?[\d.,]+–[-+]?[\d.,]+)</td>", r'<td class="range">\1</td>', page))


def inline(page: str) -> str:
    """HTML in which what Markdown has between backticks and between asterisks is made code and emphasis."""
    page = re.sub("`([^`<]+)`", r"<code>\1</code>", page)
    return re.sub(r"(?<![*\w])\*([a-z][^*<]*)\*(?![*\w])", r"<em>\1</em>", page)


def markdown(shown: pd.DataFrame) -> str:
    """What `text` returned in GitHub's Markdown, numbers to the right."""
    numbers = [all(re.fullmatch(r"[-+]?[\d.,–]+", value) for value in column) for _, column in shown.items()]
    rows = [shown.columns, ["---:" if right else "---" for right in numbers], *shown.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def runs(table: pd.DataFrame) -> pd.DataFrame:
    """The table of results.recorded as text."""
    shown = table.assign(
        parameters=table["parameters"] / 1e6,
        macs=table["macs"] / 1e6,
        interval=[f"{row.low:.2f}–{row.high:.2f}" for row in table.itertuples()],
        difference=table["top1"] - table["original"],
    )
    columns = "run parameters macs epochs top1 interval top5 minutes trained_on original difference".split()
    return text(shown[columns], HEADINGS, {"parameters": "{:.3f}", "minutes": "{:.0f}", "difference": "{:+.2f}"})


def comparison(table: pd.DataFrame) -> pd.DataFrame:
    """The table of ablations.compare as text."""
    shown = table.assign(
        macs=table["macs"] / 1e6,
        minutes=["; ".join(f"{each / 60:.0f}" for each in seconds) for seconds in table["seconds"]],
    )
    columns = "variant change seeds top1 spread difference low high macs minutes trained_on".split()
    formats = {"difference": "{:+.2f}", "low": "{:+.2f}", "high": "{:+.2f}", "macs": "{:.1f}"}
    return text(shown[columns], HEADINGS | {"difference": "difference (points)"}, formats)


def peers() -> pd.DataFrame:
    """The table of results.peers as text."""
    table = results.peers().rename(columns={"parameters_m": "parameters", "macs_m": "macs"})
    table["network"] += " " + table["width"].astype(str)
    columns = ["source", "network", "parameters", "macs", "epochs", "top1", "note"]
    return text(table[columns], HEADINGS, {"macs": "{:.1f}"})


def claims(tests: pd.DataFrame) -> pd.DataFrame:
    """The table of claims.tests as text, a row a claim."""
    tested = tests.dropna(subset=["difference"])
    judged = verdicts(tests)
    return pd.DataFrame(
        {
            "claim": judged["claim"],
            "by the earlier report": judged["question"].map({True: "asked", False: "claimed"}),
            "verdict": [
                verdict(row.verdict, tests[tests["claim"] == row.claim]["verdict"]) for row in judged.itertuples()
            ],
            "evidence": [
                "; ".join(map(_evidence, tested[tested["claim"] == claim].itertuples())) for claim in judged["claim"]
            ],
        }
    )


def verdict(verdict: Verdict, parts: pd.Series) -> str:
    """The verdict on a claim; where it is open, also how many of its differences speak clearly."""
    clear = parts[parts.isin([Verdict.HOLDS, Verdict.FAILS])].value_counts(sort=False)
    told = [f"{count} of {len(parts)} clearly {PARTS[part]}{'s' * (count == 1)}" for part, count in clear.items()]
    return f"{verdict}; taken alone, {', '.join(told)}" if verdict == Verdict.UNDECIDED and told else str(verdict)


def _evidence(row) -> str:
    names = f"{row.variant} against {row.against}"
    if row.cost in COSTS:
        unit, scale = COSTS[row.cost]
        names += f", {row.least / scale:.3g} to {row.most / scale:.3g} {unit}"
    return f"{names}: {points(row.difference, row.low, row.high)} ({row.seeds:.0f} and {row.seeds_against:.0f} runs)"


def points(difference: float, low: float, high: float) -> str:
    """A difference in points of top-1 with its 95 % interval, where there is one."""
    return f"{difference:+.2f} points" + ("" if pd.isna(low) else f", 95 % {low:+.2f} to {high:+.2f}")

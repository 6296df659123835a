"""DataFrames as people read them: all values as text, under headings with units; as HTML for pages, or as Markdown.

Then the tables that several pages show.
"""

import re
from collections.abc import Callable, Iterable
from html import escape

import pandas as pd
from IPython.display import HTML

from mnv3lib.recipe import short
from mnv3lib.study import axes, results
from mnv3lib.study.claims import LEVEL, PLANS, Verdict, verdicts

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
MANY = 7  # columns, from which on a table is set smaller
SENTENCE = 40  # characters
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


def html(shown: pd.DataFrame) -> HTML:
    """What `text` returned for a notebook; as a string it is `.data`. Text is escaped, `code` comes out as code.

    For the pages' style sheet a table of many columns is `many`, cells of a column of words are `words`, and of one of
    sentences `sentences` too.
    """
    kinds = [_kind(column) for _, column in shown.items()]
    head = _row("th", [re.sub(r"\S+-\S+", r"<span>\g<0></span>", escape(str(name))) for name in shown], kinds)
    body = "".join(_row("td", map(escape, row), kinds) for row in shown.itertuples(index=False))
    many = " many" if len(kinds) > MANY else ""
    return HTML(inline(f'<table class="mnv3{many}"><thead>{head}</thead><tbody>{body}</tbody></table>'))


def _row(cell: str, values: Iterable[str], kinds: list[str]) -> str:
    cells = (f"<{cell}{kind}>{value}</{cell}>" for value, kind in zip(values, kinds, strict=True))
    return f"<tr>{''.join(cells)}</tr>\n"


def _kind(column: pd.Series) -> str:
    if _numbers(column):
        return ""
    sentences = any(len(value) > SENTENCE and " " in value for value in column)
    return ' class="words sentences"' if sentences else ' class="words"'


def _numbers(column: pd.Series) -> bool:
    """Whether most values are numbers, or ranges of them: what has no letter."""
    return 2 * sum(bool(re.search(r"[^\W\d]", value)) for value in column) < len(column)


def inline(page: str) -> str:
    """HTML in which what Markdown has between backticks and between asterisks is made code and emphasis."""
    page = re.sub("`([^`<]+)`", r"<code>\1</code>", page)
    return re.sub(r"(?<![*\w])\*([a-z][^*<]*)\*(?![*\w])", r"<em>\1</em>", page)


def markdown(shown: pd.DataFrame) -> str:
    """What `text` returned in GitHub's Markdown, numbers to the right."""
    rules = ["---:" if _numbers(column) else "---" for _, column in shown.items()]
    rows = [shown.columns, rules, *shown.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def runs(table: pd.DataFrame) -> pd.DataFrame:
    """The table of results.load_runs as text."""
    shown = table.assign(
        parameters=table["parameters"] / 1e6,
        macs=table["macs"] / 1e6,
        interval=[f"{row.low:.2f}–{row.high:.2f}" for row in table.itertuples()],
        difference=table["top1"] - table["original"],
    )
    columns = "run top1 interval top5 original difference parameters macs epochs minutes trained_on".split()
    if len(set(table["epochs"])) == 1:  # which is then said beside the table
        columns.remove("epochs")
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
    table["network"] = [f"{short(row.network)} {row.width:g}" for row in table.itertuples()]
    columns = ["network", "epochs", "top1", "parameters", "macs", "source", "note"]
    return text(table[columns], HEADINGS, {"macs": "{:.1f}"})


def claims(tests: pd.DataFrame) -> pd.DataFrame:
    """The table of claims.tests as text, a row a claim."""
    tested = tests.assign(compared=compared(tests)).dropna(subset=["difference"])
    judged = verdicts(tests)
    return pd.DataFrame(
        {
            "claim or question": judged["claim"],
            "by the earlier report": judged["question"].map({True: "asked", False: "claimed"}),
            "verdict": [
                verdict(row.verdict, tests[tests["claim"] == row.claim]["verdict"]) for row in judged.itertuples()
            ],
            "evidence": [
                "; ".join(map(_evidence, tested[tested["claim"] == claim].itertuples())) for claim in judged["claim"]
            ],
            "runs of each side that would decide it": [
                _needed(row.verdict, tests[tests["claim"] == row.claim].iloc[0]) for row in judged.itertuples()
            ],
        }
    )


def versions(found: pd.DataFrame) -> pd.DataFrame:
    """The table of claims.versions as text."""
    names = {"macs": "MACs", "latency": "latency", "parameters": "parameters"}
    rows = []
    for row in found.itertuples():
        unit, scale = COSTS[row.cost]
        ahead = f"{row.newer if row.difference > 0 else row.older} is ahead"
        known = row.low == row.low
        rows.append(
            {
                "at equal": names[row.cost],
                "compared": f"{row.newer} with {row.older}",
                "difference (points)": f"{row.difference:+.1f}",
                "95 % interval": f"{row.low:+.1f} to {row.high:+.1f}" if known else "–",
                "judged alone": ("not decided" if row.low <= 0 <= row.high else ahead) if known else "–",
                "all together": ("not decided" if row.p_together >= LEVEL else ahead) if known else "–",
                "over": f"{row.least / scale:.3g} to {row.most / scale:.3g} {unit}",
                "from one end to the other": f"{row.at_least:+.1f} to {row.at_most:+.1f}",
            }
        )
    return pd.DataFrame(rows)


def verdict(verdict: Verdict, parts: pd.Series) -> str:
    """The verdict on a claim; where it is open, also what its differences say when each is judged alone."""
    clear = parts[parts.isin([Verdict.HOLDS, Verdict.FAILS])].value_counts(sort=False)
    if verdict != Verdict.UNDECIDED or clear.empty:
        return str(verdict)
    if len(parts) == 1:
        return f"{verdict}; judged alone, its comparison clearly {PARTS[clear.index[0]]}s"
    told = [
        f"{count} of {len(parts)} comparisons clearly {PARTS[one]}{'s' * (count == 1)}" for one, count in clear.items()
    ]
    return f"{verdict}; judged alone, {', '.join(told)}"


def verdicts_in_short(tests: pd.DataFrame) -> pd.DataFrame:
    """Of `claims`: the claims, who says so, the verdicts, and the differences without their intervals."""
    shown, told = claims(tests).iloc[:, :3], {claim.text: claim.told for claim in axes.read().claims}
    differences = {claim: [] for claim in shown.iloc[:, 0]}
    for row in tests.dropna(subset=["difference"]).itertuples():
        name = told.get(row.claim, {}).get(row.variant, row.variant)
        differences[row.claim].append(f"{name} {row.difference:+.1f}")
    return shown.assign(**{"difference (points)": ["; ".join(each) or "–" for each in differences.values()]})


def _needed(verdict: Verdict, test: pd.Series) -> str:
    if verdict != Verdict.UNDECIDED or pd.isna(test["low"]):
        return "–"
    of_each = " of each network" if pd.isna(test["axis"]) else ""
    return (f"more than {max(PLANS)}" if pd.isna(test["needed"]) else f"about {test['needed']:.0f}") + of_each


def compared(tests: pd.DataFrame) -> list[str]:
    """What each row of claims.tests sets beside what, in words."""
    told = {claim.text: claim.told for claim in axes.read().claims}
    return [
        " against ".join(told.get(row.claim, {}).get(name, name) for name in (row.variant, row.against))
        for row in tests.itertuples()
    ]


def _evidence(row) -> str:
    names = row.compared
    if row.cost in COSTS:
        unit, scale = COSTS[row.cost]
        names += f", {row.least / scale:.3g} to {row.most / scale:.3g} {unit}"
    return f"{names}: {points(row.difference, row.low, row.high)} (runs: {row.seeds:.0f} and {row.seeds_against:.0f})"


def clearly(found: pd.DataFrame) -> str:
    """In how many of the comparisons.at_equal `found` the newer version is clearly the faster one, or the slower."""
    slower = (found["high"] < 1).sum()
    faster = f"clearly in {(found['low'] > 1).sum()} of {len(found)} comparisons"
    return faster + f", and clearly slower in {slower}" * bool(slower)


def span(low: float, high: float) -> str:
    """From one ratio to another; an end that is not known is left open."""
    return "–".join("…" if pd.isna(end) else f"{end:.2f}" for end in (low, high))


def points(difference: float, low: float, high: float) -> str:
    """A difference in points of top-1 with its 95 % interval, where there is one."""
    return f"{difference:+.2f} points" + ("" if pd.isna(low) else f", 95 % {low:+.2f} to {high:+.2f}")

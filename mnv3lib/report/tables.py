"""A DataFrame as people read it: all values as text, under headings with units; as HTML for pages, or as Markdown."""

import re
from collections.abc import Callable

import pandas as pd
from IPython.display import HTML

MISSING = "–"


def text(
    table: pd.DataFrame,
    headings: dict[str, str] | None = None,
    formats: dict[str, str | Callable] | None = None,
    precision: int = 2,
) -> pd.DataFrame:
    """All values of `table` as text, under the `headings` of its columns.

    A column without a heading goes by its name, with spaces for underscores. formats: by column a format string or a
    function; other floats have `precision` digits behind the point, and True and False are yes and no. Missing values
    are MISSING, whatever the format.
    """
    headings, formats = headings or {}, formats or {}
    columns = {
        place: [_as_text(value, formats.get(name), precision) for value in table[name]]
        for place, name in enumerate(table.columns)
    }
    names = [headings.get(name, str(name).replace("_", " ")) for name in table.columns]
    return pd.DataFrame(columns, index=table.index).set_axis(names, axis=1)  # two columns may have one heading


def _as_text(value, how: str | Callable | None, precision: int) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return MISSING
    if how:
        return how.format(value) if isinstance(how, str) else how(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{precision}f}" if isinstance(value, float) else str(value)


def html(shown: pd.DataFrame, kind: str = "mnv3-rows") -> HTML:
    """What `text` returned for a notebook; as a string it is `.data`. Text is escaped, `code` comes out as code.

    kind: a class of the pages' style sheet: mnv3-rows for many columns, mnv3-text for sentences, or none.
    """
    page = shown.to_html(index=False, border=0, classes=kind, justify="unset")
    return HTML(re.sub("`([^`<]+)`", r"<code>\1</code>", page))


def markdown(shown: pd.DataFrame) -> str:
    """What `text` returned in GitHub's Markdown, numbers to the right."""
    numbers = [all(re.fullmatch(r"[-+]?[\d.,–]+", value) for value in column) for _, column in shown.items()]
    rows = [shown.columns, ["---:" if right else "---" for right in numbers], *shown.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)

"""What README and the start page show of the records: the results, what others published, the verdicts on claims."""

import re
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader

from mnv3lib import writing
from mnv3lib.deploy import timing
from mnv3lib.errors import InputError
from mnv3lib.recipe import short
from mnv3lib.report import findings, tables
from mnv3lib.study import ablations, axes, claims, results

MARKERS = ("<!-- results: written by mnv3 report -->", "<!-- end of results -->")
TEMPLATES = Environment(loader=PackageLoader("mnv3lib.report"), autoescape=lambda name: name.endswith(".html.j2"))
TEMPLATES.filters |= {
    "short": short,
    "markdown": tables.markdown,
    "versions": tables.versions,
    "html": lambda shown: tables.html(shown).data,
    "ms": timing.milliseconds,
    "inline": lambda page: tables.inline(str(page)),
}


def goals(table: pd.DataFrame) -> str:
    """Which goals are reached, in Markdown, from the table of results.goals."""
    return TEMPLATES.get_template("goals.md.j2").render(goals=table.to_dict("records"))


def start(models: Path | None = None, **values) -> str:
    """The start page; `values` are its pages, figures and `made`, which tells when and from what."""
    recorded = findings.with_latency(results.load_runs(models))
    tests = findings.tests(recorded, models)
    more = {"verdicts": claims.verdicts(tests).to_dict("records")}
    more |= findings.numbers(recorded, tests, models) | {"runs": _runs(recorded)}
    return _render("index.html.j2", recorded, tests, models, **more, **values)


def block(models: Path | None = None) -> str:
    """What README has between its two markers."""
    recorded = findings.with_latency(results.load_runs(models))
    runs = _runs(recorded)
    runs["run"] = runs["run"].map("`{}`".format)
    return _render("readme.md.j2", recorded, findings.tests(recorded, models), models, runs=runs)


def _runs(recorded: pd.DataFrame) -> pd.DataFrame:
    """The table of runs without its minutes, which depend on where they ran, and beside what: page 02 has them."""
    return tables.runs(recorded).drop(columns="minutes")


def _render(template: str, recorded: pd.DataFrame, tests: pd.DataFrame, models: Path | None, **values) -> str:
    """A template with what both pages have, and with `values`; recorded: with_latency's, tests: claims.tests'."""
    records = ablations.load_records(ablations.folder(), models)
    said = {
        "goals": results.goals(recorded).to_dict("records"),
        "claims": tables.verdicts_in_short(tests),
        "peers": results.peers().to_dict("records"),
        "planned": axes.read().planned,
        "begun": (ablations.begun_before(records), len(records)),
    }
    return TEMPLATES.get_template(template).render(said | values)


def update(readme: Path, models: Path | None = None) -> None:
    """Put `block` between the two markers of `readme`."""
    text = readme.read_text(encoding="utf-8")
    start, end = MARKERS
    if text.count(start) != 1 or text.count(end) != 1:
        raise InputError(f"{readme} should have each of the lines {start} and {end} once")
    between = f"{start}\n\n{block(models)}\n\n{end}"
    new = re.sub(f"{re.escape(start)}.*{re.escape(end)}", lambda _: between, text, flags=re.DOTALL)
    if new != text:
        with writing.replacing(readme) as temporary:
            temporary.write_text(new, encoding="utf-8")

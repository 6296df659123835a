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
from mnv3lib.study import axes, claims, results

MARKERS = ("<!-- results: written by mnv3 report -->", "<!-- end of results -->")
TEMPLATES = Environment(loader=PackageLoader("mnv3lib.report"), autoescape=lambda name: name.endswith(".html.j2"))
TEMPLATES.filters |= {
    "short": short,
    "markdown": tables.markdown,
    "html": lambda shown: tables.html(shown).data,
    "ms": timing.milliseconds,
    "inline": lambda page: tables.inline(str(page)),
}


def goals(table: pd.DataFrame) -> str:
    """Which goals are reached, in Markdown, from the table of results.goals."""
    return TEMPLATES.get_template("goals.md.j2").render(goals=table.to_dict("records"))


def render(template: str, models: Path | None = None, **values) -> str:
    """A template with what the trained models in `models` and the recorded ablations say, and with `values`."""
    recorded = results.recorded(models)
    tests = findings.tests(recorded, models)
    said = {
        "runs": tables.runs(recorded),
        "goals": results.goals(recorded).to_dict("records"),
        "claims": tables.claims(tests),
        "planned": axes.read().planned,
    }
    return TEMPLATES.get_template(template).render(said | values)


def start(models: Path | None = None, **values) -> str:
    """The start page; `values` are its pages, figures and `made`, which tells when and from what."""
    recorded = results.recorded(models)
    tests = findings.tests(recorded, models)
    more = {"peers": results.peers().to_dict("records"), "verdicts": claims.verdicts(tests).to_dict("records")}
    return render("index.html.j2", models, **findings.numbers(recorded, tests, models), **more, **values)


def block(models: Path | None = None) -> str:
    """What README has between its two markers."""
    runs = tables.runs(results.recorded(models))
    runs["run"] = runs["run"].map("`{}`".format)
    peers = tables.peers()
    peers["published by"] = "[" + peers["published by"] + "](" + results.peers()["url"] + ")"
    return render("readme.md.j2", models, runs=runs, peers=peers)


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

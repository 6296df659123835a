"""A DataFrame as text, HTML and Markdown."""

import math

import pandas as pd
import pytest
from bs4 import BeautifulSoup

from mnv3lib.report import tables


@pytest.fixture
def table():
    epochs = pd.array([3, None], dtype="Int64")
    return pd.DataFrame(
        {
            "run": ["<b>one</b> of `modern`", None],
            "top1": [61.256, math.nan],
            "epochs": epochs,
            "lowest_one": [0.125, 2.0],
            "noisy": [True, False],
        }
    )


def test_values_become_text_under_headings(table):
    shown = tables.text(table, {"top1": "top-1 (%)", "epochs": "top-1 (%)"}, {"top1": "{:+.2f}", "noisy": str}, 1)
    assert shown.columns.tolist() == ["run", "top-1 (%)", "top-1 (%)", "lowest one", "noisy"]
    assert shown.to_numpy().tolist() == [
        ["<b>one</b> of `modern`", "+61.26", "3", "0.1", "True"],
        ["–", "–", "–", "2.0", "False"],
    ]
    assert tables.text(table)["noisy"].tolist() == ["yes", "no"]


def test_html_is_escaped_and_has_code(table):
    page = tables.html(tables.text(table)).data
    assert "&lt;b&gt;one&lt;/b&gt; of <code>modern</code>" in page
    assert tables.inline("is *not so* where 2*3*4, **never**") == "is <em>not so</em> where 2*3*4, **never**"
    evidence = "a sentence, " * 50 + "and its end"
    assert evidence in tables.html(pd.DataFrame({"evidence": [evidence]})).data


def test_html_tells_numbers_words_and_sentences_apart():
    shown = {"run": ["one", "two"], "interval": ["61.26–62.10", "–"], "epoch": ["19", "never"], "top-1 (%)": ["1", "–"]}
    shown |= {"where": ["GPU", "–"], "change": ["a", "one word after the other, more than a few"]}
    soup = BeautifulSoup(tables.html(pd.DataFrame(shown)).data, "html.parser")
    kinds = [cell.get("class", []) for cell in soup.tr("th")]
    assert kinds == [["words"], [], ["words"], [], ["words"], ["words", "sentences"]]
    assert all([cell.get("class", []) for cell in row("td")] == kinds for row in soup.tbody("tr"))
    assert [cell.get_text() for cell in soup.tr("th")] == list(shown) and soup.span.get_text() == "top-1"
    assert soup.table["class"] == ["mnv3"]
    many = BeautifulSoup(tables.html(pd.DataFrame([["1"] * 8])).data, "html.parser").table
    assert many["class"] == ["mnv3", "many"]


def test_markdown_has_numbers_to_the_right_and_no_more_cells_than_columns(table):
    table["note"] = ["a | b", ""]
    lines = tables.markdown(tables.text(table)).splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: | --- | --- |"
    assert lines[2] == r"| <b>one</b> of `modern` | 61.26 | 3 | 0.12 | yes | a \| b |"
    assert len(lines) == 4 and len(tables.markdown(tables.text(table[:0])).splitlines()) == 2

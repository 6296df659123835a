"""What README shows of the records, and that it is what the records say now."""

import dataclasses
import re

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from records import record_of

from mnv3lib import commands, recipe, store
from mnv3lib.commands import main
from mnv3lib.errors import InputError
from mnv3lib.provenance import ROOT
from mnv3lib.report import findings, pages, readme, tables
from mnv3lib.study import ablations, results
from mnv3lib.study.claims import Verdict

HISTORY = [dict.fromkeys(store.HISTORY_COLUMNS, 1)]


def save(folder, made, top1):
    more = {"parameters": 347_100, "macs": 9_555_584, "seconds": 4_500.0}
    store.save(folder, record_of(made, top1, images=10_000, **more), HISTORY, None, None)


@pytest.fixture
def models(tmp_path):
    save(tmp_path / "models", recipe.make(width=0.25), 62.13)
    return tmp_path / "models"


def test_readme_has_what_the_records_say():
    start, end = readme.MARKERS
    block = (ROOT / "README.md").read_text().split(start)[1].split(end)[0]
    assert block.strip() == readme.block(ROOT / "trained_models").strip()


def test_readme_is_rewritten_between_its_markers(models, tmp_path):
    start, end = readme.MARKERS
    file = tmp_path / "README.md"
    file.write_text(f"before\n{start}\nold\n{end}\nafter\n")
    readme.update(file, models)
    text = file.read_text()
    assert text.startswith(f"before\n{start}\n") and text.endswith(f"{end}\nafter\n")
    assert "old" not in text.split() and "mobilenet_v3_small_0.25" in text and "80.24" in text
    file.write_text("no markers")
    with pytest.raises(InputError, match=r"README\.md"):
        readme.update(file, models)
    assert file.read_text() == "no markers"


@pytest.mark.parametrize(
    ("output", "models", "written"),
    [("report", "trained_models", True), ("elsewhere", "trained_models", False), ("report", "models", False)],
)
def test_only_the_report_of_the_checkout_writes_its_readme(output, models, written, tmp_path, monkeypatch):
    text = "\n".join(readme.MARKERS)
    (tmp_path / "README.md").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands.report, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "make", lambda **_: "index.html")
    assert main(["report", "--output", output, "--models", models]) == 0
    assert ((tmp_path / "README.md").read_text() != text) is written


def test_the_table_of_runs_says_what_the_records_say(models):
    save(models, recipe.make(model="v1", width=0.25), 60.0)
    lines = tables.markdown(tables.runs(results.load_runs(models))).splitlines()
    assert len(lines) == 2 + 2
    row = next(line for line in lines if "mobilenet_v3_small_0.25" in line)
    assert "| 62.13 | 61.17–63.08 | 90.00 | 60.13 | +2.00 | 0.347 | 9.56 | 75 | CPU |" in row
    assert "| – | – |" in next(line for line in lines if "mobilenet_v1" in line)
    save(models, recipe.make(model="v2", width=0.25, epochs=30), 60.0)
    assert "| 9.56 | 20 | 75 |" in tables.markdown(tables.runs(results.load_runs(models))), "where they differ"


def test_goals_are_told_from_their_numbers():
    goals = results.goals(results.load_runs("no such folder"))
    words = readme.goals(goals)
    assert words.startswith(
        "Of the 6 goals that this project set itself, 0 are reached, and none of the aims beyond them."
    )
    assert " Not trained yet with the recipe as it stands: V3 Small 0.25, V3 Small 0.5, " in words
    missed = goals.assign(reached=["missed", "missed", *["not trained"] * 4], seeds=[2, 2, 0, 0, 0, 0], margin=-1.5)
    assert " Missed: V3 Small 0.25 by 1.50 points, V3 Small 0.5 by 1.50 points. Not" in readme.goals(missed)
    margins, seeds = [1.0, 0.2, 1.0, 1.0, 1.0, 1.0], [3, 1, 3, 3, 3, 1]
    given = {"margin": margins, "seeds": seeds, "lowest": [65.04] + [70.0] * 5, "highest": [66.25] + [70.5] * 5}
    words = readme.goals(goals.assign(reached=["aim", *["goal"] * 5], **given))
    assert words == (
        "Of the 6 goals that this project set itself, 6 are reached, and 1 of the aims beyond them. Of these 6 "
        "networks 2 have a single run; the narrowest margin is that of V3 Small 0.5, 0.20 points. "
        "Another seed can end elsewhere: those of V3 Small 0.25 lie between 65.0 and 66.2 %, those of V3 Small 1 lie "
        "between 70.0 and 70.5 %, those of V3 Large 0.25 lie between 70.0 and 70.5 %, those of V3 Large 0.5 lie "
        "between 70.0 and 70.5 %."
    )


def test_the_start_page_has_code_where_readme_has_backticks(models):
    page = readme.start(models, pages=[], figures=[], made="<made>")
    assert "`" not in page and "<code>original</code>" in page and "<code>modern</code>" in page
    assert "&lt;made&gt;" in page and '<td class="words">mobilenet_v3_small_0.25</td>' in page


def test_verdicts_follow_the_recorded_ablations(models, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "folder", lambda: tmp_path / "ablations")
    line = "| Dropout makes no difference | claimed |"
    assert f"{line} not run yet |" in readme.block(models)
    base, dropout = ablations.recipes("dropout").values()
    for made, seed, top1 in ((base, 0, 61.0), (base, 1, 61.1), (dropout, 0, 51.0), (dropout, 1, 51.1)):
        save(tmp_path / "ablations", dataclasses.replace(made, seed=seed), top1)
    assert f"{line} does not hold | with -10.0 |" in readme.block(models)


def test_the_start_page_answers_from_the_records():
    text = BeautifulSoup(readme.start(pages=pages.pages(), figures=[], made=""), "html.parser").main.get_text(" ")
    text = " ".join(text.split())
    networks = findings.of_networks(results.load_runs())
    best = networks.loc[networks["top1"].idxmax()]
    assert f"has {best['top1']:.2f} % (95 % {best['low']:.1f} to {best['high']:.1f})" in text
    strides = ablations.results(ablations.load_records(ablations.folder())).set_index(["axis", "variant"])
    for axis, variant in (("strides", "0-lowered-rate-0.1"), ("strides-compute", "0-lowered-wider-rate-0.1")):
        assert f"{strides.loc[(axis, variant), 'difference']:+.1f} points (95 %".replace("-", "−") in text
    tests = findings.tests(findings.with_latency(results.load_runs()))
    for row in tests[tests["axis"].isna()].itertuples():
        assert f"{row.difference:+.1f} {row.low:+.1f} to {row.high:+.1f}" in text
    assert "nan" not in text and "None" not in text


def test_the_start_page_draws_the_claims_where_page_05_does():
    table, drawn = (
        readme.start(pages=[], figures=[], judged=judged, made="") for judged in ("", "<figure id='judged'></figure>")
    )
    assert 'aria-label="Claims"' in table and "<figure" not in table
    assert "<figure id='judged'>" in drawn and 'aria-label="Claims"' not in drawn


def test_times_at_equal_accuracy_come_with_what_seeds_can_make_of_them():
    rows = [("v3_small", 0.5, 72.0, 1.0, 20.0), ("v1", 0.25, 70.0, 1.0, 40.0), ("v1", 0.5, 74.0, 4.0, 150.0)]
    rows += [("v2", 0.35, 71.0, 2.0, 50.0), ("v2", 0.5, 73.0, 2.0, 90.0), ("v3_large", 1.0, 76.0, 8.0, 200.0)]
    speed = pd.DataFrame(rows, columns=["model", "width", "top1", "median_ms", "macs"])
    speed = speed.assign(device="cpu", batch=1, runtime="onnxruntime", p90_ms=0.0)
    speed = speed.assign(p25_ms=0.9 * speed["median_ms"], p75_ms=1.1 * speed["median_ms"])
    found = findings.equal(speed, 1.0).set_index("than")
    assert set(found["model"]) == {"v3_small"} and set(found["top1"]) == {72.0}
    assert (found.loc["v2", "ratio"], found.loc["v1", "ratio"]) == pytest.approx((2.0, 2.0))
    assert (found.loc["v1", "low"], found.loc["v1", "high"]) == pytest.approx((2**0.5, 2**1.5))
    wide = speed.assign(top1=speed["top1"].replace(76.0, 73.5))  # then V1 0.5 is ahead of V3 Large in both
    (row,) = findings.beaten(wide).to_dict("records")
    assert (row["model"], row["older"], row["older_width"], row["points"]) == ("v3_large", "v1", 0.5, 0.5)
    assert row["ratio"] == 0.5 and findings.beaten(speed).empty
    assert findings.beaten(wide.assign(p75_ms=3 * wide["median_ms"])).empty, "their middle halves overlap"
    assert findings.equal(wide, 1.0).set_index(["model", "than"]).loc[("v3_large", "v1"), "ratio"] < 1
    assert findings.front(speed)["model"].tolist() == ["v3_small", "v2", "v1", "v3_large"]


def test_several_runs_of_a_network_are_of_one_speed():
    """README's command times each run with weights; a network's seeds must not count once for each of them."""
    networks = pd.DataFrame({"model": ["v3_small"], "width": [0.25], "top1": [65.0], "macs": [1e7], "parameters": [1]})
    rows = [("a", "onnxruntime", 0.4), ("a", "folded", 2.0), ("b", "onnxruntime", 0.5), ("b", "folded", 2.1)]
    measured = pd.DataFrame(rows, columns=["run", "runtime", "median_ms"]).assign(
        model="v3_small", width=0.25, top1=64.0, macs=1e7, parameters=1, calls=1024, batch=1, threads=1, file="x",
        measured="2026-01-01T00:00:00Z",
    )  # fmt: skip
    found = findings.headline(measured, networks)
    assert found[["runtime", "median_ms", "top1"]].to_numpy().tolist() == [
        ["onnxruntime", 0.4, 65.0],
        ["folded", 2.0, 65.0],
    ]
    assert findings.headline(measured[:0], networks).empty


def test_an_open_claim_says_how_many_of_its_comparisons_are_clear():
    hold, fail, open_ = Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED
    assert tables.verdict(open_, pd.Series([fail, open_, fail])) == (
        "not decided; judged alone, 2 of 3 comparisons clearly disagree"
    )
    assert tables.verdict(open_, pd.Series([hold, open_])) == (
        "not decided; judged alone, 1 of 2 comparisons clearly agrees"
    )
    assert tables.verdict(open_, pd.Series([fail])) == "not decided; judged alone, its comparison clearly disagrees"
    assert (
        tables.verdict(open_, pd.Series([open_])) == "not decided" and tables.verdict(fail, pd.Series([fail])) == fail
    )


def test_what_readme_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) > 5 and [link for link in links if not (ROOT / link).exists()] == []


def test_a_heading_of_the_start_page_claims_only_what_the_records_say(models, tmp_path):
    ahead, even = "More accurate than the earlier report", "Beside the earlier report"
    page = readme.start(models, pages=[], figures=[], made="")
    assert even in page and ahead not in page, "two points may be chance"
    save(tmp_path / "clear", recipe.make(width=0.25), 65.0)
    page = readme.start(tmp_path / "clear", pages=[], figures=[], made="")
    assert ahead in page and even not in page
    save(tmp_path / "clear", recipe.make(model="v3_small", width=0.5), 50.0)
    page = readme.start(tmp_path / "clear", pages=[], figures=[], made="")
    assert even in page and ahead not in page

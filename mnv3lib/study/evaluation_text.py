"""Evaluations as text for a terminal or a notebook, and as JSON."""

import json

import pandas as pd
from pandas.io.formats.style import Styler

from mnv3lib import provenance
from mnv3lib.study import places
from mnv3lib.study.evaluation import Evaluation, summary

HEADINGS = {
    "top1": "top-1 (%)",
    "top1_low": "95 % from",
    "top1_high": "to",
    "top5": "top-5 (%)",
    "superclass_right": "superclass right (%)",
    "superclass_right_low": "95 % from",
    "superclass_right_high": "to",
    "confidence": "mean confidence (%)",
    "ece": "ECE (points)",
    "label_smoothing": "label smoothing",
}


def style(table: pd.DataFrame, precision: int = 1, **headings: str) -> Styler:
    """A table of this module, of `Evaluation` or of `labelling.score` for a notebook.

    The columns get the names of HEADINGS or of `headings`; in those and in the names of classes, spaces stand for
    underscores.
    """
    names = HEADINGS | headings
    columns = [names.get(column, column.replace("_", " ")) for column in table.columns]
    shown = table.set_axis(range(len(columns)), axis=1)  # two columns may have one heading
    for position, column in enumerate(table.columns):
        if column in ("class", "superclass", "first", "second", "most_taken_for"):
            shown[position] = shown[position].str.replace("_", " ")
        elif table[column].dtype == bool:
            shown[position] = shown[position].map({True: "yes", False: "no"})
    styled = shown.style.hide(axis="index").format(precision=precision, escape="html").relabel_index(columns, axis=1)
    return styled.set_table_attributes('class="mnv3-rows"')


def measured(evaluations: list[Evaluation]) -> str:
    """Markdown that says what was measured now, where, and what is recorded."""
    live = [one for one in evaluations if one.source == "live"]
    recorded = [one.record for one in evaluations if one.source != "live"]
    sentences = []
    if live:
        machine = provenance.environment()
        differing = [sentence for one in live if (sentence := one.disagreement())]
        sentences = [
            f"**Measured live**: {len(live)} of {len(evaluations)} models, {provenance.now()}, on "
            f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, commit "
            f"{provenance.commit()}.",
            f"{len(live) - len(differing)} of {len(live)} live results agree with the records.",
            *(f"{sentence}." for sentence in differing),
        ]
    if recorded:
        started = sorted(str(one.get("started")) for one in recorded)
        places = sorted({places.trained_on(one, names=True) for one in recorded})
        commits = sorted({str(one.get("commit"))[:12] for one in recorded})
        sentences.append(
            f"**Recorded**, not measured now: {len(recorded)} of {len(evaluations)} models, measured at the end of "
            f"runs started {' to '.join(dict.fromkeys([started[0], started[-1]]))} on {' and '.join(places)}, commit "
            f"{', '.join(commits)}."
        )
    return " ".join(sentences)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `summary` for people: text, with units in the names of the columns."""
    return pd.DataFrame(
        {
            "run": table["run"],
            "parameters (M)": table["parameters"].map(lambda count: f"{count / 1e6:.2f}"),
            "MACs (M)": table["macs"].map(lambda count: f"{count / 1e6:.1f}"),
            "top-1 %": table["top1"].map("{:.2f}".format),
            "95 % interval": _interval(table, "top1"),
            "top-5 %": table["top5"].map("{:.2f}".format),
            "top-5 interval": _interval(table, "top5"),
            "ECE (points)": table["ece"].map("{:.2f}".format),
            "images": table["images"].map("{:,}".format),
            "measured on": table["measured_on"],
            "source": table["source"],
        }
    )


def _interval(table: pd.DataFrame, column: str) -> list[str]:
    bounds = zip(table[f"{column}_low"], table[f"{column}_high"], strict=True)
    return [f"{low:.2f}–{high:.2f}" for low, high in bounds]


def details(evaluation: Evaluation) -> str:
    """Everything by class and superclass, the confusion between superclasses and the calibration of one run."""
    confusion = evaluation.superclass_confusion()
    confusion.columns = range(1, len(confusion) + 1)
    confusion.index = [f"{number:2} {name}" for number, name in zip(confusion.columns, confusion.index, strict=True)]
    sections = {
        "by class (top-1 and top-5 in percent)": evaluation.per_class(),
        "by superclass (percent)": evaluation.per_superclass(),
        "most confused pairs (images)": evaluation.confused_pairs(),
        f"calibration (expected calibration error {evaluation.ece:.2f} points)": evaluation.calibration(),
    }
    texts = [f"{title}\n{_text(table, index=False)}" for title, table in sections.items()]
    texts.append(f"superclasses (rows) taken for others (columns, numbered alike), images\n{_text(confusion)}")
    return "\n\n".join(f"{evaluation.run}: {text}" for text in texts)


def _text(table: pd.DataFrame, **options) -> str:
    return table.to_string(float_format="{:.2f}".format, **options)


def as_json(evaluations: list[Evaluation], with_details: bool = False) -> str:
    """A list with an object a run: the columns of `evaluation.summary`, and with details all the tables."""
    rows = json.loads(summary(evaluations).to_json(orient="records", double_precision=6))
    for row, evaluation in zip(rows, evaluations, strict=True):
        if with_details:
            tables = {
                "classes": (evaluation.per_class(), "records"),
                "superclasses": (evaluation.per_superclass(), "records"),
                "confused_pairs": (evaluation.confused_pairs(), "records"),
                "calibration": (evaluation.calibration(), "records"),
                "confusion": (evaluation.confusion(), "split"),
                "superclass_confusion": (evaluation.superclass_confusion(), "split"),
            }
            row |= {name: json.loads(table.to_json(orient=orient)) for name, (table, orient) in tables.items()}
    return json.dumps(rows, indent=1)

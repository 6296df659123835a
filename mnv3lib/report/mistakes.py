"""The worst mistakes on a person's own images, as thumbnails with the names of their files; never on CIFAR's."""

import base64
import io
from html import escape
from pathlib import Path

from mnv3lib.inference import load_image, printable
from mnv3lib.study.evaluation import Evaluation

PIXELS = 128  # a side, of a thumbnail
STYLE = """body { font-family: sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
img { display: block }"""
GRID = "display: grid; grid-template-columns: repeat(auto-fill, minmax(9em, 1fr)); gap: 1em; overflow-wrap: anywhere"


def page(evaluations: list[Evaluation]) -> str:
    """A page of HTML that needs nothing else: the mistakes of each run that was measured on a person's own images."""
    body = "".join(
        f"<h1>{escape(one.run)}</h1>\n<p>Top-1 {one.top1:.2f} % on {len(one.labels):,} images. "
        + ("The wrong guesses that it was surest of:" if one.top1 < 100 else "")
        + f"</p>\n{thumbnails(one)}\n"
        for one in evaluations
        if one.files
    )
    viewport = '<meta name="viewport" content="width=device-width">'
    head = f'<meta charset="utf-8">{viewport}<title>Mistakes</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}</body></html>\n'


def thumbnails(evaluation: Evaluation, count: int = 24) -> str:
    """The mistakes of one run as HTML: picture, file, what it shows, what it was taken for and how surely."""
    figures = [
        f'<figure style="margin: 0"><img src="{_picture(row.file)}" '
        f'alt="{escape(row.shown)}, taken for {escape(row.taken)}">'
        f"<figcaption>{escape(_file(row.file, evaluation))}: <b>{escape(row.shown)}</b>, taken for {escape(row.taken)} "
        f"({100 * row.probability:.0f} %)</figcaption></figure>"
        for row in evaluation.mistakes(count).set_axis(["file", "shown", "taken", "probability"], axis=1).itertuples()
    ]
    return f'<div style="{GRID}">{"".join(figures)}</div>' if figures else "<p>No guess was wrong.</p>"


def _file(path: Path, evaluation: Evaluation) -> str:
    """Where an image lies in the folder of the data set."""
    folder = Path(evaluation.record.get("data", {}).get("folder", ""))
    return printable(str(path.absolute().relative_to(folder)) if folder in path.absolute().parents else path.name)


def _picture(path: Path) -> str:
    """A small copy of an image as a data address."""
    image = load_image(path)
    image.thumbnail((PIXELS, PIXELS))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"

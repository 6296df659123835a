"""Write a trained model for use without PyTorch, or several as one HTML page.

The file is run in its own runtime and checked against PyTorch on real images, and not written if fp32 logits differ by
more than 1e-4. int8 is measured on the test set.
"""

import argparse
from pathlib import Path

from mnv3lib.commands.options import add_shared, note, path
from mnv3lib.deploy import FORMATS, REFUSED


def add(command) -> None:
    command.add_argument("runs", nargs="+", metavar="RUN", help="a trained model, or several")
    command.add_argument("--format", type=file_format, default="onnx", choices=FORMATS, help="the format of the file")
    command.add_argument(
        "--out", type=path, metavar="PATH", help="where to write it (else here, named after RUN and format)"
    )
    command.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="an ONNX file that takes a photograph of any size; cutting and scaling are inside",
    )
    command.add_argument(
        "--record", type=path, metavar="FOLDER", help="where the accuracy of an int8 ONNX file is recorded"
    )
    add_shared(command, "models", "data")


def file_format(text: str) -> str:
    if text in REFUSED:
        raise argparse.ArgumentTypeError(f"there is no {text}: {REFUSED[text]}")
    return text


def run(options: argparse.Namespace) -> None:
    page = options.format == "html"
    if options.record and options.format != "onnx-int8":
        options.parser.error("--record is of --format onnx-int8")
    if page and options.with_preprocessing:
        options.parser.error("--with-preprocessing is not of --format html, whose page reads pictures by itself")
    if options.out and len(options.runs) > 1 and not page:
        options.parser.error("--out is of one RUN, or of --format html")
    from mnv3lib.deploy import export, formats

    places = {"models": options.models, "data_folder": options.data}
    if page:
        path = options.out or Path("mobilenets.html" if len(options.runs) > 1 else f"{options.runs[0]}.html")
        tell(path, export.export_page(options.runs, path, **places))
        return
    for name in options.runs:
        given = f"{name}_with_preprocessing" if options.with_preprocessing else name
        path = options.out or Path(FORMATS[options.format].format(run=given))
        facts = export.export(name, path, options.format, preprocessing=options.with_preprocessing, **places)
        tell(path, facts)
        if path.is_dir():
            note(f"whoever loads it: {formats.module_of(options.format).LOAD} (in {formats.ABOUT}, with the classes)")
        if options.record:
            note(f"recorded in {export.record(name, facts, options.record, options.models)}")


def tell(path: Path, facts: dict) -> None:
    size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
    text = f"{path}: {size / 1e6:.2f} MB"
    if "gap" in facts:
        text += f"; on {facts['images']} images the fp32 logits differ from PyTorch's by {facts['gap']:.1e} at most"
    print(text)
    if "top1_int8" in facts:
        print(f"top-1 on the test set: {facts['top1_int8']:.2f} %; fp32: {facts['top1']:.2f} %")

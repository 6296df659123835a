"""Write a trained model as ONNX, for use without PyTorch.

The file is checked against PyTorch on real images, and not written if its logits differ by more than 1e-4. int8 is
measured on the test set.
"""

import argparse
from pathlib import Path

from mnv3lib.commands.options import add_shared, note, path
from mnv3lib.deploy import FORMATS


def add(command) -> None:
    command.add_argument("run", metavar="RUN", help="a trained model")
    command.add_argument("--format", default="onnx", choices=FORMATS, help="of the file")
    command.add_argument("--out", type=path, metavar="FILE", help="(else RUN.onnx or RUN_int8.onnx here)")
    command.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="the file takes a photograph of any size; cutting and scaling are inside",
    )
    command.add_argument("--record", type=path, metavar="FOLDER", help="of an int8 file: write its accuracy there")
    add_shared(command, "models", "data")


def run(options: argparse.Namespace) -> None:
    int8 = options.format == "onnx-int8"
    if options.record and not int8:
        options.parser.error("--record is of --format onnx-int8")
    from mnv3lib.deploy import export

    path = options.out or Path(f"{options.run}{'_int8' if int8 else ''}.onnx")
    facts = export.export(
        options.run,
        path,
        options.format,
        preprocessing=options.with_preprocessing,
        models=options.models,
        data_folder=options.data,
    )
    print(
        f"{path}: {path.stat().st_size / 1e6:.2f} MB; on {facts['images']} images the fp32 logits differ from "
        f"PyTorch's by {facts['gap']:.1e} at most"
    )
    if int8:
        print(f"top-1 on the test set: {facts['top1_int8']:.2f} %; fp32: {facts['top1']:.2f} %")
    if options.record:
        note(f"recorded in {export.record(options.run, facts, options.record, options.models)}")

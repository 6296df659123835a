"""The command line: `mnv3`, or `python -m mnv3lib`."""

import argparse
import dataclasses
import os
import re
import signal
import sys
import types
import typing
from pathlib import Path

import pandas as pd
import torch

from mnv3lib import (
    checkpoint,
    data,
    evaluation,
    evaluation_text,
    export,
    importing,
    latency,
    latency_text,
    networks,
    prediction,
    recipe,
    runtimes,
    store,
    training,
    writing,
)
from mnv3lib.axes import AXES
from mnv3lib.errors import InputError, one_line
from mnv3lib.networks import Architecture
from mnv3lib.provenance import ROOT
from mnv3lib.recipe import Recipe

ALIASES = {"small": "v3_small", "large": "v3_large"}
OTHER_NAMES = {"epochs": ["--iter"], "batch_size": ["--batch"]}


class Parser(argparse.ArgumentParser):
    """argparse with one line an error."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a failure, 2 for bad usage, 130 when interrupted."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if getattr(options, "threads", None):
            torch.set_num_threads(options.threads)
        return options.command(options) or 0
    except (InputError, OSError, training.DivergedError, export.ExportError) as error:
        print(f"mnv3: error: {one_line(error, 2000)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mnv3: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="mnv3", description=__doc__.splitlines()[0], formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_train(commands)
    add_sweep(commands)
    add_evaluate(commands)
    add_predict(commands)
    add_export(commands)
    add_latency(commands)
    add_report(commands)
    add_import(commands)
    return parser


def add_command(commands, name: str, function, text: str) -> Parser:
    command = commands.add_parser(
        name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    command.set_defaults(command=function)
    return command


def add_common(command: Parser) -> None:
    command.add_argument("--models", type=Path, default=store.models_folder(), help="the folder of trained models")
    command.add_argument("--data", type=Path, help="the folder of CIFAR-100 (else MNV3_DATA, else ./data)")
    command.add_argument("--threads", type=positive, help="threads of torch (else as many as there are cores)")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def model(text: str) -> str:
    return ALIASES.get(text, text)


def add_train(commands) -> None:
    command = add_command(commands, "train", train, "Train one model, or go on with a run that was stopped.")
    add_common(command)
    command.add_argument("--recipe", default="modern", choices=recipe.RECIPES, help="what is not given here is as in")
    command.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    command.add_argument("--no-weights", action="store_true", help="keep record and history alone")
    fields = command.add_argument_group("the recipe (documented in mnv3lib.networks.Architecture and mnv3lib.Recipe)")
    add_recipe_fields(fields)


def add_recipe_fields(command, *, several: bool = False) -> None:
    """An option for each field of a recipe; its help is what the docstring says and the named recipes' values."""
    named = {name: recipe.make(name) for name in recipe.RECIPES}
    texts = field_texts(Architecture) | field_texts(Recipe)
    hints = typing.get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        if field.name in ("recipe", "num_classes"):
            continue
        values = {name: getattr(made, field.name) for name, made in named.items()}
        same = len(set(values.values())) == 1
        default = values["modern"] if same else ", ".join(f"{name}: {value}" for name, value in values.items())
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):
            kind = kind.__args__[0]
        options = {"type": kind, "metavar": kind.__name__.upper()}
        if field.name == "model":
            options = {"type": model, "metavar": "MODEL"}
        elif field.name == "image_sizes":
            options = {"type": sizes, "metavar": "PIXELS,..."}
        elif kind is bool:
            options = {"type": truth, "metavar": "BOOL", "nargs": "?", "const": True}
        if several:
            options.pop("const", None)
            options["nargs"] = "+"
        command.add_argument(
            f"--{field.name.replace('_', '-')}",
            *OTHER_NAMES.get(field.name, []),
            dest=field.name,
            default=argparse.SUPPRESS,
            help=f"{texts[field.name]} (default: {default})".replace("%", "%%"),
            **options,
        )


def field_texts(documented: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each field, in lines of the form `name: text`."""
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", documented.__doc__, flags=re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in entries}


def truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe that the options describe."""
    names = {field.name for field in dataclasses.fields(Recipe)} - {"recipe"}
    return recipe.make(options.recipe, **{name: value for name, value in vars(options).items() if name in names})


def train(options: argparse.Namespace) -> None:
    made = recipe_of(options)
    record = training.train(
        made,
        dataset=data.load(made.dataset, options.data),
        models=options.models,
        weights=not options.no_weights,
        overwrite=options.overwrite,
    )
    result = record["result"]
    print(f"{record['run']}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % on {result['images']:,} images")


def add_sweep(commands) -> None:
    command = add_command(
        commands,
        "sweep",
        run_sweep,
        "Train a grid of runs, each through notebook 02, side by side on this machine or on a Dask cluster. Runs that "
        "have their record are skipped, and interrupted ones go on.",
    )
    command.add_argument("file", nargs="?", type=Path, help="a YAML file with a list of grids under `runs`")
    command.add_argument(
        "--ablation",
        nargs="+",
        metavar="AXIS",
        help="the runs of an axis of notebook 05, of one variant (AXIS/VARIANT), of those that tell most for their "
        f"time (first) or of all; records only; --seed takes several. Axes: {', '.join(AXES)}",
    )
    command.add_argument(
        "--models", type=Path, help="where the trained models go (else trained_models, or for ablations their folder)"
    )
    command.add_argument("--data", type=Path, help="the folder of CIFAR-100 (else MNV3_DATA, else ./data)")
    command.add_argument("--executed", type=Path, default=Path("build/sweep"), help="where the executed notebooks go")
    command.add_argument("--no-weights", action="store_true", help="keep records and histories alone")
    command.add_argument("--workers", type=positive, default=os.cpu_count(), help="runs side by side on this machine")
    command.add_argument("--threads", type=positive, default=1, help="threads of each run")
    command.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that runs already")
    command.add_argument("--scheduler-file", type=Path, help="that a Dask scheduler wrote")
    command.add_argument("--dry-run", action="store_true", help="only list the runs and whether they are done")
    fields = command.add_argument_group("the grid: one or several values for any field of the recipe")
    fields.add_argument("--recipe", nargs="+", default=argparse.SUPPRESS, help="(default: modern)")
    add_recipe_fields(fields, several=True)


def run_sweep(options: argparse.Namespace) -> int:
    from mnv3lib import ablations, results, sweep  # Dask and Jupyter are slow to import

    names = {field.name for field in dataclasses.fields(Recipe)}
    fields = {name: value for name, value in vars(options).items() if name in names}
    if bool(options.file) == bool(fields or options.ablation):
        raise InputError("name either a YAML file or fields of the recipe, e.g. --model small large --width 0.25 0.5")
    models = options.models or (ablations.folder() if options.ablation else store.models_folder())
    if options.ablation:
        recipes = planned_ablations(options.ablation, fields, models, print if options.dry_run else note)
    else:
        recipes = sweep.distinct(sweep.read(options.file) if options.file else sweep.grid(**fields))
    for name in {made.dataset for made in recipes}:
        data.load(name, options.data)
    jobs = [
        sweep.Job(
            made,
            models=models.absolute(),
            checkpoints=checkpoint.base_folder().absolute(),
            executed=options.executed.absolute(),
            data=data.cifar100_folder(options.data).absolute(),
            threads=options.threads,
            weights=not (options.no_weights or options.ablation),
        )
        for made in recipes
    ]
    if options.dry_run:
        for job in jobs:
            print(f"{job.run}: {'done' if job.is_done else f'{job.epochs_done} of {job.recipe.epochs} epochs'}")
        return 0
    with sweep.connect(options.scheduler, options.scheduler_file, options.workers) as client:
        failed = sweep.sweep(jobs, client)
    for run, reason in failed.items():
        print(f"mnv3: error: {run}: {reason}", file=sys.stderr)
    if store.runs(models):
        print(f"all runs of {models} are in {results.write_csv(models)}")
    return int(bool(failed))


def planned_ablations(names: list[str], fields: dict, models: Path, log) -> list[Recipe]:
    """The runs of the named ablations that are not recorded yet; `log` gets a line for those that are."""
    from mnv3lib import ablations  # pandas and SciPy are slow to import

    several = [name for name, values in fields.items() if name != "seed" and len(values) > 1]
    if several:
        raise InputError(f"{', '.join(several)}: with --ablation only --seed takes several values")
    changes = {name: values[0] for name, values in fields.items() if name != "seed"}
    planned = ablations.plan(names, fields.get("seed", ()), **changes)
    left = ablations.missing(planned, ablations.recorded(models), models)
    if len(left) < len(planned):
        log(f"{len(planned) - len(left)} of {len(planned)} runs are recorded already")
    return left


def add_report(commands) -> None:
    command = add_command(commands, "report", make_report, "Run the notebooks and export the report as HTML.")
    command.add_argument("--models", type=Path, default=store.models_folder(), help="the folder of trained models")
    command.add_argument("--output", type=Path, default=ROOT / "report", help="the folder of the pages")
    command.add_argument("--figures", type=Path, default=ROOT / "figures", help="the folder of the figures")
    command.add_argument("--check", action="store_true", help="only tell whether the report is up to date")


def make_report(options: argparse.Namespace) -> int:
    from mnv3lib import report, results  # Jupyter is slow to import

    if options.check:
        changed = report.outdated(options.output, models=options.models)
        if changed:
            print(f"the report is older than {', '.join(changed)}: run mnv3 report", file=sys.stderr)
        return int(bool(changed))
    try:
        page = report.make(output=options.output, figures=options.figures, models=options.models)
    except report.NotebookError as error:
        print(f"mnv3: error: {error}", file=sys.stderr)
        return 1
    results.update_readme(ROOT / "README.md", options.models)
    print(f"open {page}")
    return 0


def add_evaluate(commands) -> None:
    command = add_command(
        commands,
        "evaluate",
        evaluate,
        "Measure trained models on their test set: live where CIFAR-100 is there, else from the recorded predictions.",
    )
    add_common(command)
    command.add_argument("runs", nargs="*", metavar="RUN", help="which (else all that are trained)")
    command.add_argument("--recorded", action="store_true", help="measure nothing, use the recorded predictions")
    command.add_argument("--format", default="table", choices=["table", "csv", "json"], help="of the output")
    command.add_argument(
        "--details", action="store_true", help="by class and superclass, confusion and calibration too (table, json)"
    )
    command.set_defaults(usage_error=command.error)


def evaluate(options: argparse.Namespace) -> None:
    if options.details and options.format == "csv":
        options.usage_error("--details has several tables and CSV holds one: use --format json")
    evaluations = evaluation.evaluate(
        options.runs, models=options.models, data_folder=options.data, recorded=options.recorded, log=note
    )
    summary = evaluation.summary(evaluations)
    if options.format == "csv":
        print(summary.to_csv(index=False), end="")
    elif options.format == "json":
        print(evaluation_text.as_json(evaluations, options.details))
    else:
        print(evaluation_text.readable(summary).to_string(index=False))
        for one in evaluations if options.details else ():
            print("\n" + evaluation_text.details(one))


def add_predict(commands) -> None:
    command = add_command(
        commands,
        "predict",
        predict,
        "Label images with every trained model. A file that is no image is reported, the rest goes on (exit code 1).",
    )
    command.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="images and folders of images (else test_images)"
    )
    command.add_argument("--run", nargs="+", action="extend", metavar="RUN", help="which models (else all)")
    command.add_argument("--models", type=Path, default=store.models_folder(), help="the folder of trained models")
    command.add_argument("--threads", type=positive, help="threads of torch (else as many as there are cores)")
    command.add_argument("--top", type=positive, default=5, help="guesses an image")
    command.add_argument("--format", default="table", choices=["table", "csv", "json"], help="of the output")
    command.add_argument("--out", type=Path, metavar="FILE", help="where to write it (else to the terminal)")


def predict(options: argparse.Namespace) -> int:
    failures = []

    def failed(line: str) -> None:
        failures.append(line)
        note(line)

    table = prediction.label(
        options.paths or [prediction.images_folder()],
        options.run or (),
        models=options.models,
        top=options.top,
        report=failed,
    )
    text = prediction.as_text(table, options.format)
    if options.out:
        with writing.replacing(options.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    elif not table.empty:
        print(text, end="")
    return 1 if failures else 0


def add_export(commands) -> None:
    command = add_command(
        commands,
        "export",
        export_run,
        "Write a trained model as ONNX, for use without PyTorch. The file is checked against PyTorch on real images, "
        "and not written if its logits differ by more than 1e-4. int8 is measured on the test set.",
    )
    command.add_argument("run", metavar="RUN", help="a trained model")
    command.add_argument("--format", default="onnx", choices=["onnx", "onnx-int8"], help="of the file")
    command.add_argument("--out", type=Path, metavar="FILE", help="(else RUN.onnx or RUN_int8.onnx here)")
    command.add_argument("--models", type=Path, default=store.models_folder(), help="the folder of trained models")
    command.add_argument("--data", type=Path, help="the folder of CIFAR-100 (else MNV3_DATA, else ./data)")


def export_run(options: argparse.Namespace) -> None:
    int8 = options.format == "onnx-int8"
    path = options.out or Path(f"{options.run}{'_int8' if int8 else ''}.onnx")
    facts = export.export(options.run, path, int8=int8, models=options.models, data_folder=options.data)
    print(
        f"{path}: {path.stat().st_size / 1e6:.2f} MB; on {facts['images']} images the fp32 logits differ from "
        f"PyTorch's by {facts['gap']:.1e} at most"
    )
    if int8:
        print(f"top-1 on the test set: {facts['top1_int8']:.2f} %; fp32: {facts['top1']:.2f} %")


def add_latency(commands) -> None:
    command = add_command(
        commands,
        "latency",
        measure_latency,
        "How long a forward pass takes: named runs, or models at widths, or (without either) every trained model and "
        "every width of the four networks, untrained where there is no run. The table says which.",
    )
    command.add_argument("runs", nargs="*", metavar="RUN", help="trained models")
    command.add_argument("--model", type=model, nargs="+", choices=networks.MODELS, help="(else all)")
    command.add_argument("--width", type=float, nargs="+", help=f"(else {' '.join(map(str, latency.WIDTHS))})")
    command.add_argument("--batch", type=positive, nargs="+", help="images at a time (else 1 64; in training 128)")
    command.add_argument("--size", type=positive, default=32, help="pixels a side")
    command.add_argument(
        "--lowered-strides", type=int, default=3, metavar="N", help="of untrained networks; 0 for 224 px"
    )
    command.add_argument(
        "--threads", dest="counts", type=positive, nargs="+", metavar="N", help="of torch (else as many as cores)"
    )
    command.add_argument(
        "--runtime",
        nargs="+",
        default=["channels_last"],
        choices=[*runtimes.RUNTIMES, "all"],
        metavar="RUNTIME",
        help=f"{', '.join(runtimes.RUNTIMES)} or all",
    )
    command.add_argument("--peers", action="store_true", help="torchvision's and timm's networks in the same rounds")
    command.add_argument(
        "--training",
        action="store_true",
        help="images a second in training instead, beside a plain loop (V3 Small 0.25, 1.0 and Large 1.0 if no others "
        "are named)",
    )
    command.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda"], help="auto: the CPU, and a GPU if there is one"
    )
    command.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    command.add_argument("--models", type=Path, default=store.models_folder(), help="the folder of trained models")
    command.add_argument("--format", default="table", choices=["table", "csv", "json"], help="of the output")
    command.add_argument(
        "--out", type=Path, metavar="PATH", help="write a CSV too: to this file, or to a file in this folder"
    )
    command.set_defaults(usage_error=command.error)


def measure_latency(options: argparse.Namespace) -> None:
    table = training_speeds(options) if options.training else latencies(options)
    if options.out:
        path = options.out if options.out.suffix == ".csv" else options.out / latency.file_name(table)
        with writing.replacing(path) as temporary:
            temporary.write_text(latency_text.as_text(table, "csv"), encoding="utf-8")
        note(f"written to {path}")
    print(latency_text.as_text(table, options.format), end="")


def latencies(options: argparse.Namespace) -> pd.DataFrame:
    subjects = latency.subjects(
        options.runs,
        options.model,
        options.width,
        folder=options.models,
        size=options.size,
        lowered_strides=options.lowered_strides,
    )
    if options.peers:
        subjects += latency.theirs(options.model or networks.MODELS, options.size, options.lowered_strides)
    return latency.compare(
        subjects,
        runtimes=list(runtimes.RUNTIMES) if "all" in options.runtime else options.runtime,
        batches=options.batch or [1, 64],
        threads=options.counts,
        devices=latency.devices(options.device),
        size=options.size,
        seconds=options.seconds,
    )


def training_speeds(options: argparse.Namespace) -> pd.DataFrame:
    from mnv3lib import training_speed  # nothing else needs it

    if options.runs or options.peers or options.size != 32 or len(options.batch or []) > 1:
        options.usage_error("--training takes --model, --width, one --batch, --threads, --seconds, --format and --out")
    pairs = training_speed.NETWORKS
    if options.model or options.width:
        pairs = [(one, width) for one in options.model or ["v3_small", "v3_large"] for width in options.width or [1.0]]
    tables = [
        training_speed.compare(
            one, width, batch_size=(options.batch or [128])[0], threads=count, seconds=options.seconds
        )
        for one, width in pairs
        for count in options.counts or [None]
    ]
    return pd.concat(tables, ignore_index=True)


def add_import(commands) -> None:
    command = add_command(
        commands,
        "import",
        import_pth,
        "Make the weights in a .pth file a run, without running what is in the file, and measure it. The keys must be "
        "torchvision's or mnv3lib's own, the classes in alphabetical order.",
    )
    command.add_argument("file", type=Path, metavar="FILE", help="a state dict that torch.save wrote")
    command.add_argument("--run", required=True, metavar="NAME", help="what to call it")
    command.add_argument("--models", type=Path, default=Path("build/imported"), help="the folder that it goes to")
    command.add_argument("--data", type=Path, help="the folder of CIFAR-100 (else MNV3_DATA, else ./data)")
    command.add_argument("--dataset", default="cifar100", choices=data.CLASSES, help="that it was trained on")
    command.add_argument("--model", type=model, required=True, help=f"one of {', '.join(networks.MODELS)}")
    command.add_argument("--width", type=float, default=1.0, help="its width multiplier")
    command.add_argument("--lowered-strides", type=int, default=3, help="stride-2 layers that run at stride 1 in it")
    command.add_argument("--penultimate", type=int, help="channels before its classifier (else the paper's)")
    command.add_argument("--se-last", action="store_true", help="squeeze-excitation on Small's last 1x1 convolution")
    for name in ("mean", "std"):
        command.add_argument(f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"), help="(else the data set's)")


def import_pth(options: argparse.Namespace) -> None:
    dataset = data.load(options.dataset, options.data)
    record = importing.import_pth(
        options.file,
        options.run,
        options.models,
        architecture=Architecture(
            options.model,
            options.width,
            num_classes=len(dataset.classes),
            lowered_strides=options.lowered_strides,
            penultimate=options.penultimate,
            se_last=options.se_last,
        ),
        dataset=dataset,
        mean=options.mean,
        std=options.std,
    )
    print(f"{record['run']}: top-1 {record['result']['top1']:.2f} %, in {options.models}")


def note(line: str) -> None:
    """A line beside the output."""
    print(f"mnv3: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

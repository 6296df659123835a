"""How long a forward pass takes: named runs, or models at widths, or (without either) every trained model and every
width of the four networks, untrained where there is no run. The table says which.
"""

import argparse
from functools import partial
from itertools import product

from mnv3lib import provenance, recipe
from mnv3lib.commands.options import add_shared, model, note, path, positive
from mnv3lib.deploy import AS_THEY_COME, RUNTIMES, WIDTHS
from mnv3lib.errors import InputError


def add(command) -> None:
    command.add_argument("runs", nargs="*", metavar="RUN", help="trained models")
    command.add_argument("--model", type=model, nargs="+", choices=recipe.MODELS, help="which networks (else all)")
    command.add_argument("--width", type=float, nargs="+", help=f"which widths (else {' '.join(map(str, WIDTHS))})")
    command.add_argument("--batch", type=positive, nargs="+", help="images at a time (else 1 64; in training 128)")
    command.add_argument("--size", type=positive, help="pixels a side (else those of the runs, or 32)")
    command.add_argument(
        "--lowered-strides",
        type=int,
        default=3,
        metavar="N",
        help="how many strides of untrained networks are lowered; 0 for 224 px",
    )
    command.add_argument(
        "--threads",
        dest="counts",
        type=positive,
        nargs="+",
        metavar="N",
        help="how many threads torch has (else as many as cores)",
    )
    command.add_argument(
        "--runtime",
        nargs="+",
        default=["channels_last"],
        choices=[*RUNTIMES, "all"],
        metavar="RUNTIME",
        help=f"{', '.join(RUNTIMES)} or all",
    )
    command.add_argument("--peers", action="store_true", help="torchvision's and timm's networks in the same rounds")
    command.add_argument(
        "--training",
        action="store_true",
        help="images a second in training instead, beside a plain loop (V3 Small 0.25 and 1.0, V3 Large 1.0, V2 and V1 "
        "0.5 if no others are named)",
    )
    command.add_argument(
        "--layers",
        action="store_true",
        help="of training: where the time of a step goes, and how far that is from the processor's limits",
    )
    command.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda"], help="auto: the CPU, and a GPU if there is one"
    )
    command.add_argument("--seconds", type=float, default=2.0, help="how long each measurement takes at most")
    command.add_argument(
        "--calls", type=positive, default=200, help="how many calls each makes at most (and five at least)"
    )
    command.add_argument(
        "--accuracy", action="store_true", help="classify CIFAR-100's test set with each file of a trained model, too"
    )
    add_shared(command, "models", "data", "format")
    command.add_argument(
        "--out", type=path, metavar="PATH", help="write a CSV too: to this file, or to a file in this folder"
    )


def run(options: argparse.Namespace) -> None:
    others = ("peers", "size", "device", "runtime", "lowered_strides", "models", "calls", "accuracy", "data")
    changed = any(getattr(options, name) != options.parser.get_default(name) for name in others)
    if options.training and (changed or options.runs or len(options.batch or []) > 1):
        takes = "--layers, --model, --width, one --batch, --threads, --seconds, --format and --out"
        options.parser.error(f"--training takes {takes}")
    if options.layers and not options.training:
        options.parser.error("--layers is about --training")
    if options.peers and not {*AS_THEY_COME, "all"} & set(options.runtime):
        options.parser.error(f"--peers are measured with {', '.join(AS_THEY_COME)}: add one to --runtime")
    import pandas as pd

    from mnv3lib import data, store, writing
    from mnv3lib.deploy import latency, training_speed

    is_file = options.out and options.out.suffix.lower() == ".csv"
    if is_file:  # said before anything is measured
        writing.check_is_text(options.out)
    elif options.out and options.out.exists() and not options.out.is_dir():
        raise InputError(f"{options.out} is no folder: name one, or a file that ends in .csv")
    if options.training:
        pairs = training_speed.NETWORKS
        if options.model or options.width:
            pairs = product(options.model or ["v3_small", "v3_large"], options.width or [1.0])
        (batch,) = options.batch or [128]
        measure = training_speed.layers if options.layers else partial(training_speed.compare, seconds=options.seconds)
        settings = product(pairs, options.counts or [provenance.cores()])
        tables = [measure(*pair, batch_size=batch, threads=count) for pair, count in settings]
        table = pd.concat(tables, ignore_index=True)
    else:
        sizes = {store.load(run, options.models).size for run in options.runs} if not options.size else {options.size}
        if len(sizes) > 1:
            raise InputError(
                f"runs for {' and '.join(map(str, sorted(sizes)))} px: measure them one by one, or say --size"
            )
        size = min(sizes, default=32)
        shape = {"size": size, "lowered_strides": options.lowered_strides}
        subjects = latency.subjects(options.runs, options.model, options.width, folder=options.models, **shape)
        if options.accuracy:
            for subject in subjects:
                if subject.run and store.load_record(subject.run, options.models)["recipe"]["dataset"] != "cifar100":
                    raise InputError(f"--accuracy is on CIFAR-100, and {subject.run} is not: leave it out")
        if options.peers:
            subjects += latency.theirs(options.model or recipe.MODELS, **shape)
        table = latency.compare(
            subjects,
            runtimes=list(RUNTIMES) if "all" in options.runtime else options.runtime,
            batches=options.batch or [1, 64],
            threads=options.counts,
            devices=latency.devices(options.device),
            size=size,
            seconds=options.seconds,
            calls=options.calls,
            dataset=data.load("cifar100", options.data) if options.accuracy else None,
        )
    print(as_text(table, options.format), end="")
    if options.out:
        path = options.out if is_file else options.out / latency.file_name(table)
        with writing.replacing(path) as temporary:
            temporary.write_text(as_text(table, "csv"), encoding="utf-8")
        note(f"written to {path}")


def as_text(table, how: str) -> str:
    """What was measured, as a table to read, CSV or JSON."""
    from mnv3lib.deploy import latency, timing, training_speed

    if how == "csv":
        return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    if how == "json":
        return table.to_json(orient="records", indent=2, double_precision=6) + "\n"
    about = f"{', '.join(table['processor'].unique())}; torch {table['torch'][0]}; {table['measured'].max()}"
    if "direction" in table:
        shown = training_speed.readable_layers(table).to_string(index=False)
        return f"{about}; the layers of a training step\n{shown}\n"
    if "images_per_second" in table:
        return f"{about}; images a second in training\n{training_speed.readable(table).to_string(index=False)}\n"
    text = f"{about}; {table['size'][0]} px; milliseconds\n{latency.readable(table).to_string(index=False)}\n"
    if noisy := table["noisy"].sum():
        text += (
            f"{noisy} of the {len(table)} measurements are noisy (an interquartile range wider than {timing.NOISY:.0%} "
            "of the median): close other programs, use fewer threads than cores or measure for longer.\n"
        )
    return text

"""How long the networks take to answer: which are compared, on which runtime and device, and the table of it."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from mnv3lib import cost, store
from mnv3lib.data import Dataset, Split, some
from mnv3lib.deploy import AS_THEY_COME, RUNTIMES, WIDTHS, formats, peers
from mnv3lib.deploy.formats import CALIBRATION, sized
from mnv3lib.deploy.runtimes import ANYWHERE, Runner, int8_instructions
from mnv3lib.deploy.served import Served
from mnv3lib.deploy.timing import CALLS, measure, milliseconds, random_images, stamp
from mnv3lib.errors import InputError, choose
from mnv3lib.inference import default_device, keep_memory
from mnv3lib.networks import MobileNet
from mnv3lib.recipe import MODELS, Architecture

FROM_FILES = [runtime for runtime in RUNTIMES if runtime not in (*ANYWHERE, "default")]
PROCESSES = 16  # that are measured side by side, where a runtime has one a network
# What a recorded table must have: of a forward pass, of training, or of what a training step is made of
_SETTING = ["file", "model", "width", "batch", "threads", "processor", "torch", "commit", "measured"]
COLUMNS = {
    "latency": [*_SETTING, "library", "run", "runtime", "device", "size", "calls", "median_ms", "p25_ms", "p75_ms"],
    "training": [*_SETTING, "loop", "parameters", "images_per_second", "low", "high", "times"],
    "step": [*_SETTING, "kind", "direction", "milliseconds", "share", "gflop", "gbyte", "gemm", "copy", "at_least"],
}


@dataclass
class Subject:
    """A network to be measured.

    run: where its weights come from, None if untrained. top1: that run's, in percent. library: whose code it is.
    """

    network: nn.Module
    model: str
    width: float
    library: str = "mnv3lib"
    run: str | None = None
    top1: float | None = None


def ours(network: MobileNet, run: str | None = None, top1: float | None = None) -> Subject:
    """A network of this package as a subject."""
    return Subject(network, network.architecture.model, float(network.architecture.width), "mnv3lib", run, top1)


def theirs(models: Sequence[str] = MODELS, size: int = 32, lowered_strides: int = 3) -> list[Subject]:
    """torchvision's and timm's networks at width 1, as far as they have the `models`; see peers.build."""
    return [
        Subject(settle(peers.build(library, model, lowered_strides=lowered_strides), size), model, 1.0, library)
        for library, model in peers.NAMES
        if model in models
    ]


def trained(folder: Path | None = None, runs: Sequence[str] | None = None) -> list[Subject]:
    """The runs called `runs`, else every run in `folder` that has weights. InputError if one cannot be read."""
    if runs is None:
        runs = store.runs(folder, store.WEIGHTS)
    return [ours(store.load(run, folder), run, store.load_record(run, folder)["result"]["top1"]) for run in runs]


def grid(
    models: Sequence[str] = MODELS,
    widths: Sequence[float] = WIDTHS,
    known: Sequence[Subject] = (),
    size: int = 32,
    lowered_strides: int = 3,
) -> list[Subject]:
    """Every model at every width, for 100 classes: out of `known` where it is there, else untrained.

    Of several in `known` that are the same network, it takes the one with the shortest name, which is the usual recipe.
    """
    known = sorted(known, key=lambda subject: (len(subject.run), subject.run), reverse=True)
    shapes = {_shape(subject.network.architecture): subject for subject in known}
    every = (Architecture(model, width, lowered_strides=lowered_strides) for model, width in product(models, widths))
    return [shapes.get(_shape(wanted)) or ours(untrained(wanted, size)) for wanted in every]


def subjects(
    runs: Sequence[str] = (),
    models: Sequence[str] | None = None,
    widths: Sequence[float] | None = None,
    *,
    folder: Path | None = None,
    size: int = 32,
    lowered_strides: int = 3,
) -> list[Subject]:
    """What `mnv3 latency` measures: the named runs, and `models` at `widths` where one of these is given.

    If nothing is given: every run that has weights, and every model at every width that no run is of.
    """
    named = trained(folder, runs) if runs else []
    if runs and not (models or widths):
        return named
    known = trained(folder)
    listed = named if models or widths else known
    wanted = grid(models or MODELS, widths or WIDTHS, known, size, lowered_strides)
    return listed + [one for one in wanted if one.run is None or one.run not in {each.run for each in listed}]


def _shape(architecture: Architecture) -> Architecture:
    """The architecture without what makes no difference once it is trained."""
    return dataclasses.replace(
        architecture,
        dropout=0.0,
        stochastic_depth=0.0,
        initialization="torch",
        zero_init_residual=False,
        norm_momentum=None,
    )


def untrained(architecture: Architecture, size: int = 32) -> MobileNet:
    """A fresh network with seed 0, made ready by `settle`. torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return settle(MobileNet(architecture), size)


def settle(network: nn.Module, size: int = 32) -> nn.Module:
    """Give batch norms of a fresh network the statistics of random images, in place, and switch to eval mode.

    With the statistics they start with, signals fade from layer to layer (in V1 by a factor of 1e13 and more), towards
    denormal numbers, which take a processor many times as long.
    """
    update_bn([random_images(16, size)], network)
    return network.eval()


def devices(choice: str = "auto") -> list[str]:
    """cpu or cuda as chosen; auto: the CPU, and the GPU if torch sees one."""
    choose("device", choice, ("auto", "cpu", "cuda"))
    best = default_device().type
    if choice == "cuda" and best != "cuda":
        raise InputError("device cuda: torch sees no GPU here: choose cpu")
    return sorted({"cpu", best}) if choice == "auto" else [choice]


def compare(
    subjects: Sequence[Subject],
    *,
    runtimes: Sequence[str] = ("channels_last",),
    batches: Sequence[int] = (1, 64),
    threads: Sequence[int] | None = None,
    devices: Sequence[str] = ("cpu",),
    size: int = 32,
    seconds: float = 2.0,
    calls: int = CALLS,
    dataset: Dataset | None = None,
) -> pd.DataFrame:
    """Time a forward pass of each network on each runtime, device and number of threads, with each batch size.

    threads: default as many as torch uses now. On a GPU the first number alone is measured, and PyTorch's runtimes;
    without one of them it is left out. Raises InputError if no device runs any of the runtimes.
    Networks of other libraries are measured on those of AS_THEY_COME alone that are among the runtimes.
    dataset: of trained networks, to be classified by every file, too; its training images then give int8 its ranges.

    Returns a row a measurement: model, width, library, run and top1 (None where untrained), layers (convolutions and
    linear ones), parameters, macs (of one image), size, device, batch, runtime, the columns of `measure` but the name,
    and system, processor, int8_instructions (see runtimes), torch, commit and measured (the time, UTC). The contestants
    of one device, batch and number of threads share their rounds; where they are more than PROCESSES, as some runtimes
    have one a network, only those of the same model and width do. For these runtimes there are
    file_mb (its size on disk, millions of bytes; none for "default"), peak_mib (the most memory that the process has
    had, Python included) and, with a dataset, file_top1 (percent, of its test set by that file).
    """
    keep_memory()
    threads = threads or (torch.get_num_threads(),)
    usable = {"cpu": list(runtimes), "cuda": [runtime for runtime in runtimes if runtime in ANYWHERE]}
    if not any(usable[device] for device in devices):
        raise InputError(f"no device here runs {', '.join(runtimes)}: choose another runtime or --device cpu")
    calibration = dataset and formats.together(sized(some(dataset.train.images, CALIBRATION), size))
    test = dataset and Split(sized(dataset.test.images, size), dataset.test.labels)
    measured = [(_facts(one, size), Runner(one.network, size, calibration)) for one in subjects]
    shapes, apart = {}, len(subjects) * sum(runtime not in ANYWHERE for runtime in runtimes) > PROCESSES
    for fact, runner in measured:
        shapes.setdefault((fact["model"], fact["width"]) if apart else None, []).append((fact, runner))
    tables, accuracies = [], {}
    for device in filter(usable.get, devices):
        for count, batch, group in product(threads[:1] if device == "cuda" else threads, batches, shapes.values()):
            images = random_images(batch, size, device)
            torch.compiler.reset()  # or the networks compiled before count against a limit
            rows, contestants = [], {}
            for (fact, runner), runtime in product(group, usable[device]):
                if fact["library"] == "mnv3lib" or runtime in AS_THEY_COME:
                    contestants[len(rows)] = runner.contestant(runtime, images, count)
                    rows.append(fact | {"device": device, "batch": batch, "runtime": runtime})
                    rows[-1] |= {"file_mb": _megabytes(runner, runtime)}
            if not contestants:  # a group of other libraries' networks alone
                continue
            title = f"{device}, batch {batch}, threads {count}"
            times = measure(contestants, threads=count, seconds=seconds, calls=calls, title=title).drop(columns="name")
            for row, contestant in zip(rows, contestants.values(), strict=True):
                if isinstance(contestant, Served):
                    row["peak_mib"] = contestant.peak()
                if test and row["run"] and row["runtime"] in FROM_FILES:
                    of = row["run"], row["runtime"]
                    accuracies[of] = row["file_top1"] = accuracies.get(of) or formats.top1(contestant, test)
            table = pd.DataFrame(rows).join(times).assign(**stamp(device))
            int8 = int8_instructions() if device == "cpu" else None
            table.insert(table.columns.get_loc("torch"), "int8_instructions", int8)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _megabytes(runner: Runner, runtime: str) -> float | None:
    if runtime in FROM_FILES:
        return sum(file.stat().st_size for file in runner.folder(runtime).iterdir()) / 1e6
    return None


def _facts(subject: Subject, size: int) -> dict:
    layers = cost.layers(subject.network, size)
    known = {name: value for name, value in vars(subject).items() if name != "network"}
    known["layers"] = int((layers["kind"] != "batch norm").sum())
    return known | layers[["parameters", "macs"]].sum().to_dict() | {"size": size}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of `compare`'s table that a reader needs, as text."""
    shown = table[["model"]].assign(width=table["width"].map("{:g}".format))
    shown["weights"] = table["run"].fillna("untrained").where(table["library"] == "mnv3lib", table["library"])
    shown["MMACs"] = (table["macs"] / 1e6).map("{:.1f}".format)
    names = ["device", "threads", "batch", "runtime", "calls"]
    shown[names] = table[names]
    for name in ("median", "p25", "p75", "p90"):
        shown[name] = table[f"{name}_ms"].map(lambda value: milliseconds(value).removesuffix(" ms"))
    return shown.assign(noisy=table["noisy"].map({True: "noisy", False: ""}))


def file_name(table: pd.DataFrame) -> str:
    """What the CSV of such a table is called: when, machine, threads, then pixels and runtimes, or kind (COLUMNS)."""
    machine = "+".join(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in table["processor"].unique())
    threads = "+".join(map(str, sorted(table["threads"].unique())))
    how = "step" if "direction" in table else "training"
    if "runtime" in table:
        used = list(dict.fromkeys(table["runtime"]))
        how = f"{table['size'].iloc[0]}px_" + ("all-runtimes" if set(used) == set(RUNTIMES) else "+".join(used))
    return f"{table['measured'].min()[:16].replace(':', '')}_{machine}_{threads}-threads_{how}.csv"


def relative(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of compare's table with `label`, and `ratio`, `low`, `high`: median and quartiles over the reference's.

    The reference is what most people run: the same network from torchvision (from timm where torchvision has none) on
    the runtime "default" (else "eager"), with the same batch size, threads and input, of the same file. The column
    `reference` names it; rows without one are left out.
    """
    keys = ["file", "device", "threads", "batch", "size", "model", "width"]
    table = table.assign(file=table.get("file", ""))
    theirs = table[table["runtime"].isin(["default", "eager"]) & (table["library"] != "mnv3lib")]
    theirs = theirs.sort_values(["library", "runtime"], ascending=[False, True]).drop_duplicates(keys)
    theirs["reference"] = theirs["library"] + ", " + theirs["runtime"]
    both = table.merge(theirs[[*keys, "reference", "median_ms"]].rename(columns={"median_ms": "unit"}), on=keys)
    unit = both.pop("unit")
    both["label"] = both["runtime"].where(both["library"] == "mnv3lib", both["library"] + ", " + both["runtime"])
    both["ratio"], both["low"], both["high"] = (both[f"{name}_ms"] / unit for name in ("median", "p25", "p75"))
    return both


def newest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table (of `load_tables` or `relative`) from the file measured last, with the most threads there."""
    rows = table[table["file"].isin(table.sort_values("measured")["file"].tail(1))]
    return rows[rows["threads"] == rows["threads"].max()]


def load_tables(folder: Path, kind: str = "latency") -> pd.DataFrame:
    """All tables in `folder` that `mnv3 latency` wrote, one below the other; empty if there is none.

    kind: latency (the columns of `compare`), training (those of training_speed.compare) or step (those of
    training_speed.layers). The column `file` tells where a row is from. Raises InputError for a file of none of these.
    """
    tables = []
    for path in sorted(Path(folder).glob("*.csv")):
        try:
            table = pd.read_csv(path).assign(file=path.name)
            found = next(name for name, columns in COLUMNS.items() if set(columns) <= set(table))
        except (ValueError, StopIteration):
            raise InputError(f"{path} is no table that mnv3 latency wrote: move it away") from None
        if found == kind:
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS[kind])

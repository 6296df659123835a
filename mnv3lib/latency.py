"""How long a call takes: named contestants measured in rounds, and the networks of this package as contestants.

What spoils such tables elsewhere is settled here: warm-up, eval and inference mode, the number of threads, waiting for
the GPU, and denormal numbers (see `settle`).
"""

import dataclasses
import gc
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from mnv3lib import cost, provenance, store
from mnv3lib.errors import InputError, choose
from mnv3lib.networks import MODELS, Architecture, MobileNet
from mnv3lib.training import default_device, keep_memory

WIDTHS = (0.25, 0.5, 0.75, 1.0)
ROUNDS = 5
NOISY = 0.15  # interquartile range over median


def now() -> float:
    """Seconds, once a GPU that is in use has done all it was asked to; torch.utils.benchmark's clock does the same."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(
    contestants: Mapping[str, Callable[[], object]],
    *,
    threads: int | None = None,
    seconds: float = 1.0,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = now,
    title: str = "measuring",
) -> pd.DataFrame:
    """Time named callables against each other.

    There are `rounds` rounds after one of warm-up. In each, every contestant has its turn, in an order that is
    shuffled anew: it is called until `seconds` / `rounds` have gone by, and at least once. So a machine that slows
    down or speeds up does so to all of them. Each is measured for about `seconds`, or for `rounds` calls if it is slow.

    contestants: name to a callable without arguments; who makes it sees to eval and inference mode (`forward` does).
    threads: of torch, while measuring (set back afterwards); None leaves them as they are.
    clock: gives seconds.

    Returns a row a contestant: name, threads, calls, median_ms, p25_ms, p75_ms, p90_ms (milliseconds a call), and
    noisy, true where the interquartile range is wider than 15 % of the median. Raises InputError when there is nothing
    to measure or no time for it.
    """
    if not contestants:
        raise InputError("there is nothing to measure: name at least one contestant")
    if not seconds > 0 or rounds < 1:
        raise InputError(f"seconds {seconds!r}, rounds {rounds!r}: give a time above 0 and at least one round")
    times = {name: [] for name in contestants}
    order, shuffle = list(contestants), random.Random(0).shuffle
    total = len(order) * (rounds + 1)
    with (
        steady(threads) as count,
        tqdm(total=total, desc=title, leave=False, disable=not sys.stderr.isatty()) as bar,
    ):
        for number in range(rounds + 1):
            shuffle(order)
            for name in order:
                taken = turn(contestants[name], seconds / rounds, clock)
                if number > 0:
                    times[name] += taken
                bar.update()
    return pd.DataFrame([{"name": name, "threads": count} | summary(taken) for name, taken in times.items()])


@contextmanager
def steady(threads: int | None):
    """Within it, give torch `threads` threads and keep the garbage collector away; yields the number of threads."""
    threads_before, collecting = torch.get_num_threads(), gc.isenabled()
    try:
        torch.set_num_threads(threads or threads_before)
        gc.disable()
        yield threads or threads_before
    finally:
        torch.set_num_threads(threads_before)
        if collecting:
            gc.enable()


def turn(call: Callable[[], object], seconds: float, clock: Callable[[], float]) -> list[float]:
    """Call until `seconds` have gone by, at least once; how long each call took, in seconds."""
    times = []
    start = end = clock()
    while not times or end - start < seconds:
        before = clock()
        call()
        end = clock()
        times.append(end - before)
    return times


def summary(times: Sequence[float]) -> dict:
    """Calls, median, quartiles and p90 in milliseconds, and whether they scatter too much; `times` in seconds."""
    quantile = (1000 * pd.Series(times)).quantile
    low, median, high = quantile(0.25), quantile(0.5), quantile(0.75)
    return {
        "calls": len(times),
        "median_ms": median,
        "p25_ms": low,
        "p75_ms": high,
        "p90_ms": quantile(0.9),
        "noisy": bool(high - low > NOISY * median),
    }


def forward(network: nn.Module, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A contestant: one forward pass in eval and inference mode."""
    network.eval()

    @torch.inference_mode()
    def call() -> torch.Tensor:
        return network(images)

    return call


def forward_backward(network: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """A contestant: a forward pass in train mode and the gradients of all weights and of `images`, thrown away.

    The network is left in train mode, and its batch norms follow the images.
    """
    network.train().requires_grad_(True)
    images = images.clone().requires_grad_(True)
    wanted = [images, *network.parameters()]

    def call() -> None:
        output = network(images)
        torch.autograd.grad(output, wanted, torch.ones_like(output))

    return call


def random_images(batch: int, size: int = 32, device: str | torch.device = "cpu") -> torch.Tensor:
    """Normal noise [batch, 3, size, size] in channels_last, the same at every call: pixels do not change the speed."""
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images.to(device, memory_format=torch.channels_last)


@dataclass
class Subject:
    """A network to be measured. `run`: where its weights come from, None if untrained; `top1`: that run's, percent."""

    network: MobileNet
    run: str | None = None
    top1: float | None = None

    @property
    def model(self) -> str:
        return self.network.architecture.model

    @property
    def width(self) -> float:
        return float(self.network.architecture.width)


def trained(folder: Path | None = None, runs: Sequence[str] | None = None) -> list[Subject]:
    """The runs called `runs`, else every run in `folder` that has weights. InputError if one cannot be read."""
    if runs is None:
        runs = [run for run in store.runs(folder) if (store.run_folder(run, folder) / store.WEIGHTS).is_file()]
    return [Subject(store.load(run, folder), run, store.load_record(run, folder)["result"]["top1"]) for run in runs]


def grid(
    models: Sequence[str] = MODELS, widths: Sequence[float] = WIDTHS, known: Sequence[Subject] = (), size: int = 32
) -> list[Subject]:
    """Every model at every width, as it is for 32 px and 100 classes: out of `known` where it is there, else untrained.

    Of several in `known` that are the same network, it takes the one with the shortest name, which is the usual recipe.
    """
    known = sorted(known, key=lambda subject: (len(subject.run or ""), subject.run or ""))
    subjects = []
    for model in models:
        for width in widths:
            wanted = Architecture(model, width)
            same = (subject for subject in known if _shape(subject.network.architecture) == _shape(wanted))
            subjects.append(next(same, None) or Subject(untrained(wanted, size)))
    return subjects


def subjects(
    runs: Sequence[str] = (),
    models: Sequence[str] | None = None,
    widths: Sequence[float] | None = None,
    *,
    folder: Path | None = None,
    size: int = 32,
) -> list[Subject]:
    """What `mnv3 latency` measures: the named runs, and `models` at `widths` where one of these is given.

    If nothing is given: every run that has weights, and every model at every width that no run is of.
    """
    asked = bool(models or widths)
    every = trained(folder) if asked or not runs else []
    listed = trained(folder, runs) if runs else [] if asked else every
    if runs and not asked:
        return listed
    names = {subject.run for subject in listed}
    wanted = grid(models or MODELS, widths or WIDTHS, every, size)
    return listed + [subject for subject in wanted if subject.run is None or subject.run not in names]


def _shape(architecture: Architecture) -> Architecture:
    """The architecture without what makes no difference once it is trained."""
    return dataclasses.replace(
        architecture, dropout=0.0, initialization="torch", zero_init_residual=False, norm_momentum=None
    )


def untrained(architecture: Architecture, size: int = 32) -> MobileNet:
    """A fresh network with seed 0, made ready by `settle`. torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return settle(MobileNet(architecture), size)


@torch.no_grad()
def settle(network: nn.Module, size: int = 32) -> nn.Module:
    """Give batch norms of a fresh network the statistics of random images, in place, and switch to eval mode.

    With the statistics they start with, signals fade from layer to layer (in V1 by a factor of 1e13 and more), towards
    denormal numbers, which take a processor many times as long. So an untrained network computes with numbers of
    ordinary size, as a trained one does.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
    network.train()(random_images(16, size))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
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
    batches: Sequence[int] = (1, 64),
    threads: Sequence[int] | None = None,
    devices: Sequence[str] = ("cpu",),
    size: int = 32,
    seconds: float = 1.0,
) -> pd.DataFrame:
    """Time a forward pass of each network, channels_last, for each device, number of threads and batch size.

    threads: default as many as torch uses now. On a GPU only the first number is measured.

    Returns a row a measurement: model, width, run and top1 (None where untrained), layers (convolutions and linear
    ones), parameters, macs (of one image), size, device, batch, runtime, the columns of `measure` but the name, and
    system, processor, torch and measured (the time, UTC). The contestants of one device, batch and number of threads
    share their rounds.
    """
    keep_memory()
    threads = threads or (torch.get_num_threads(),)
    facts = []
    for subject in subjects:
        layers = cost.layers(subject.network, size)
        facts.append(
            {
                "model": subject.model,
                "width": subject.width,
                "run": subject.run,
                "top1": subject.top1,
                "layers": int((layers["kind"] != "batch norm").sum()),
                "parameters": int(layers["parameters"].sum()),
                "macs": int(layers["macs"].sum()),
                "size": size,
            }
        )
    tables = []
    for device in devices:
        environment = provenance.environment(device)
        networks = [subject.network.to(device, memory_format=torch.channels_last) for subject in subjects]
        for count in threads[:1] if device == "cuda" else threads:
            for batch in batches:
                images = random_images(batch, size, device)
                contestants = {str(index): forward(network, images) for index, network in enumerate(networks)}
                title = f"{device}, batch {batch}, threads {count}"
                times = measure(contestants, threads=count, seconds=seconds, title=title).drop(columns="name")
                how = {"device": device, "batch": batch, "runtime": "eager, channels_last"}
                tables.append(pd.DataFrame(facts).assign(**how).join(times))
                tables[-1] = tables[-1].assign(
                    system=environment["system"],
                    processor=environment["processor"] if device == "cpu" else environment["device"],
                    torch=environment["torch"],
                    measured=provenance.now(),
                )
        for subject in subjects:
            subject.network.to("cpu")
    return pd.concat(tables, ignore_index=True)

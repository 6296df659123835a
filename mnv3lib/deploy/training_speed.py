"""Images a second in training: this package's loop beside a plain one, in turns, each in a process of its own.

The plain loop is what one would write first: torchvision's network (of V1, which it does not have, this package's) with
the same strides lowered and torch's default layout, a DataLoader that augments PIL images one by one, SGD. The
processes are separate since `keep_memory` and the threads hold for a whole process.
"""

import itertools
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from mnv3lib import cost, inference, kernels, optimizers, progress, provenance, recipe, training
from mnv3lib.data import Split
from mnv3lib.deploy import peers, processes, served, timing
from mnv3lib.errors import InputError
from mnv3lib.kernels import functions
from mnv3lib.networks import MobileNet

NETWORKS = (("v3_small", 0.25), ("v3_small", 1.0), ("v3_large", 1.0), ("v2", 0.5), ("v1", 0.5))
LOOPS = {
    "mnv3lib": "this package's loop, with compiled kernels where Numba is installed",
    "mnv3lib, torch alone": "this package's loop without them",
    "plain": "plain loop, images loaded in the training process",
    "plain, 2 workers": "plain loop, images loaded by two workers",
}
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
# What of a step is timed together: kind, direction, the events of torch's profiler (functions and records of kernels)
# that count, and those within them that do not.
EVENTS = (
    ("pointwise", "forward", ("Pointwise", "Convolution"), ("squeeze-excitation, forward",)),
    ("pointwise", "backward", ("PointwiseBackward", "ConvolutionBackward"), ("squeeze-excitation, backward",)),
    ("depthwise", "forward", ("Depthwise",), ()),
    ("depthwise", "backward", ("DepthwiseBackward",), ()),
    ("norm, activation", "forward", ("batch_norm, moments", "Activated"), ()),
    ("norm, activation", "backward", ("ActivatedBackward",), ()),
    ("squeeze-excitation", "forward", ("squeeze-excitation, forward",), ()),
    ("squeeze-excitation", "backward", ("squeeze-excitation, backward",), ()),
)
AHEAD = 3  # batches that two workers may hold ready before a turn starts, and which are thrown away


def compare(
    model: str,
    width: float,
    *,
    batch_size: int = 128,
    threads: int | None = None,
    rounds: int = 3,
    seconds: float = 2.0,
) -> pd.DataFrame:
    """Train one network with each of LOOPS in turns; the images are noise, as pixels do not change the speed.

    After a round of warm-up there are `rounds`, in which every loop runs for about `seconds` and at least one step.
    threads: of torch in each process (default: one a core).

    Returns a row a loop: model, width, loop, batch, threads, parameters, images_per_second (median of the rounds),
    low and high (the extremes), peak_mib (the most memory that its process held, workers not counted), times (how many
    times as fast as the faster of the plain loops), kernels (which way this package's loop goes, see kernels.way),
    system, processor, torch, commit, measured.
    """
    made = recipe.make("modern", model=model, width=width, batch_size=batch_size)
    threads = threads or provenance.cores()
    speeds = {loop: [] for loop in LOOPS}
    trains = {loop: processes.start(_loop, loop, made, threads) for loop in LOOPS}
    steps, parameters, peaks = dict.fromkeys(LOOPS, 1), {}, {}
    with progress.bar(title=f"{model} {width:g}", total=len(LOOPS) * (rounds + 1)) as bar:
        for number in range(rounds + 1):
            for loop in LOOPS:
                speed, parameters[loop], peaks[loop] = trains[loop](steps[loop])
                if number == 0:
                    steps[loop] = max(1, round(speed * seconds / batch_size))
                else:
                    speeds[loop].append(speed)
                bar.update()
    table = pd.DataFrame(
        {
            "model": model,
            "width": width,
            "loop": loop,
            "batch": batch_size,
            "threads": threads,
            "parameters": parameters[loop],
            "images_per_second": statistics.median(taken),
            "low": min(taken),
            "high": max(taken),
            "peak_mib": peaks[loop],
        }
        for loop, taken in speeds.items()
    )
    plain = table.loc[table["loop"].str.startswith("plain"), "images_per_second"].max()
    return table.assign(times=table["images_per_second"] / plain, kernels=kernels.way(), **timing.stamp())


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of `compare`'s table that a reader needs, as text."""
    shown = table[["model", "width", "loop", "batch", "threads"]].copy()
    shown["width"] = shown["width"].map("{:g}".format)
    shown["parameters (M)"] = (table["parameters"] / 1e6).map("{:.2f}".format)
    shown["images/s"] = table["images_per_second"].map("{:.1f}".format)
    shown["low–high"] = table["low"].map("{:.1f}".format) + "–" + table["high"].map("{:.1f}".format)
    if "peak_mib" in table:  # not in tables recorded before it was measured
        shown["peak MiB"] = table["peak_mib"].map("{:.0f}".format)
    return shown.assign(times=table["times"].map("{:.2f}".format))


def layers(model: str, width: float, *, batch_size: int = 128, threads: int = 1, steps: int = 5) -> pd.DataFrame:
    """Where the time of a training step goes on the CPU, and how far that is from what the processor can do.

    By torch's profiler, over `steps` steps after two of warm-up; the images are noise.

    Returns a row for each of EVENTS, and one for the rest of a step (images, pooling, classifier, loss, optimizer):
    model, width, batch, threads, kind, direction, milliseconds (a step), share (percent), gflop and gbyte (what has to
    be computed, and read or written at the least, see `_work`), gemm (GFLOP/s, see `_limits`) and copy
    (GB/s, read and written, of a long array), at_least (the milliseconds that the slower of the two would take for it),
    kernels, system, processor, torch, commit, measured. Raises InputError where the compiled kernels do not serve.
    """
    made = recipe.make(model=model, width=width, batch_size=batch_size)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler reports of itself on standard error
    with timing.steady(threads):
        if kernels.way() == "torch":
            raise InputError("the layers of a step are told by the compiled kernels, which do not serve: install numba")
        gemm, copy = _limits()
        train = _ours(made)
        train(2)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            train(steps)
    events = profiled.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    took = defaultdict(float, {event.key: event.cpu_time_total for event in events})
    rows = [
        (kind, direction, sum(took[name] for name in counted) - sum(took[name] for name in within))
        for kind, direction, counted, within in EVENTS
    ]
    table = pd.DataFrame(rows, columns=["kind", "direction", "milliseconds"])
    table.loc[len(table)] = "rest", "", whole - table["milliseconds"].sum()
    table["milliseconds"] /= 1000 * steps
    table.insert(0, "threads", threads)
    table.insert(0, "batch", batch_size)
    table.insert(0, "width", width)
    table.insert(0, "model", model)
    table["share"] = 100 * table["milliseconds"] / table["milliseconds"].sum()
    table = table.merge(_work(made), how="left", on=["kind", "direction"])
    table["gemm"], table["copy"] = gemm, copy
    table["at_least"] = 1000 * np.maximum(table["gflop"] / gemm, table["gbyte"] / copy)
    return table.assign(kernels=kernels.way(), **timing.stamp())


def readable_layers(table: pd.DataFrame) -> pd.DataFrame:
    """`layers`' table as text: with what is reached of a product's GFLOP/s and of a copy's GB/s."""
    shown = table[["model", "width", "batch", "threads", "kind", "direction"]].copy()
    shown["width"] = shown["width"].map("{:g}".format)
    shown["ms"] = table["milliseconds"].map("{:.1f}".format)
    shown["share"] = table["share"].map("{:.0f} %".format)
    seconds = table["milliseconds"] / 1000
    for name, amount, limit in (("GFLOP/s", "gflop", "gemm"), ("GB/s", "gbyte", "copy")):
        speed = table[amount] / seconds
        parts = zip(speed, speed / table[limit], strict=True)
        shown[name] = [f"{reached:.0f} ({part:.0%})" if reached > 0 else "–" for reached, part in parts]
    times = table["milliseconds"] / table["at_least"]
    shown["times the limit"] = times.map("{:.1f}".format).where(times.notna(), "–")
    return shown


def _work(made: recipe.Recipe) -> pd.DataFrame:
    """What a step has to compute and to move at the least: kind, direction, gflop, gbyte.

    A convolution reads its input and writes its output; going back it reads its input, its output and the gradient
    behind it, whose way through the following norm and activation it makes, and writes the gradient before. A norm
    with its activation is made on the way of the convolution that follows in the same block; else it reads and writes
    once, and going back reads its input and the gradient for their sums. So squeeze-excitation only reads for its
    pooling.
    """
    table = cost.layers(MobileNet(made.architecture))
    rows = []

    def work(kind, direction, macs, numbers):
        rows.append((kind, direction, 2 * macs * made.batch_size / 1e9, 4 * numbers * made.batch_size / 1e9))

    for layer, after in itertools.pairwise(table.itertuples()):
        inputs, outputs = math.prod(layer.input), math.prod(layer.output)
        if layer.kind == "batch norm":
            together = made.model == "v1" or layer.layer.split(".")[:2] == after.layer.split(".")[:2]
            if after.layer.endswith("fc1"):
                work("squeeze-excitation", "forward", 0, inputs)
            elif not together or after.kind == "linear":
                work("norm, activation", "forward", 0, 2 * inputs)
                work("norm, activation", "backward", 0, 2 * inputs)
        elif layer.kind != "linear" and not layer.layer.endswith(("fc1", "fc2")):  # those are squeeze-excitation's
            kind = "depthwise" if layer.kind == "depthwise" else "pointwise"
            ways = 1 if layer.Index == 0 else 2  # nobody asks for the gradient of the images
            work(kind, "forward", layer.macs, inputs + outputs)
            work(kind, "backward", ways * layer.macs, ways * inputs + 2 * outputs)
    keys = ["kind", "direction"]
    return pd.DataFrame(rows, columns=[*keys, "gflop", "gbyte"]).groupby(keys, as_index=False).sum()


def _limits() -> tuple[float, float]:
    """GFLOP/s of a product of large matrices, by whichever is fastest here, and GB/s of a copy.

    MKL, which multiplies torch's matrices, seems to leave AVX-512 unused on AMD's processors; oneDNN's convolution and
    this package's do not.
    """
    a, b, long = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.randn(2**25)
    images = torch.randn(64, 512, 8, 8).contiguous(memory_format=torch.channels_last)
    kernel, copy = torch.randn(512, 512, 1, 1), torch.empty_like(long)
    plain = kernel, 1, None, None, None, functions.NONE, None
    products = {
        lambda: a @ b: 1024**3,
        lambda: F.conv2d(images, kernel): 64 * 8 * 8 * 512**2,
        lambda: functions.Pointwise.apply(images, *plain, functions.Later()): 64 * 8 * 8 * 512**2,
    }
    speeds = [2 * macs / min(timing.turn(call, 0.5, timing.now)) / 1e9 for call, macs in products.items()]
    return max(speeds), 2 * 4 * long.numel() / min(timing.turn(lambda: copy.copy_(long), 0.5, timing.now)) / 1e9


def _loop(loop: str, made: recipe.Recipe, threads: int) -> Callable[[int], tuple[float, int, float]]:
    """In a process of its own: what trains some steps and returns images a second, parameters, peak memory in MiB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if "torch alone" in loop:
        os.environ["MNV3_KERNELS"] = "torch"
    train = _ours(made) if loop.startswith("mnv3lib") else _plain(made, 2 if "workers" in loop else 0)
    return lambda steps: (*train(steps), served.peak())


def _noise(images: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (images, 32, 32, 3), np.uint8), generator.integers(0, 100, images)


def _ours(made: recipe.Recipe) -> Callable[[int], tuple[float, int]]:
    """What trains some steps of this package's loop and returns (images a second, parameters)."""
    inference.keep_memory()
    network = MobileNet(made.architecture).to(memory_format=torch.channels_last)
    network.mean, network.std = MEAN, STD
    several = optimizers.make(made, network)

    def train(steps: int) -> tuple[float, int]:
        split = Split(*map(torch.from_numpy, _noise(steps * made.batch_size)))
        row = training.train_epoch(made, network, several, split, epoch=0)
        return row["images_per_second"], _parameters(network)

    return train


def _plain(made: recipe.Recipe, workers: int) -> Callable[[int], tuple[float, int]]:
    """The same of the plain loop."""
    from torchvision.models import get_model

    if ("torchvision", made.model) in peers.NAMES:
        network = get_model(peers.NAMES["torchvision", made.model], num_classes=100, width_mult=made.width)
        peers.lower_strides(network, made.lowered_strides)
    else:
        network = MobileNet(made.architecture)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    batches = _endless(made.batch_size, workers)

    def step() -> None:
        images, labels = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    def train(steps: int) -> tuple[float, int]:
        for _ in range(AHEAD if workers else 0):
            next(batches)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return steps * made.batch_size / (time.perf_counter() - start), _parameters(network)

    return train


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _endless(batch_size: int, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    from torch.utils.data import DataLoader
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    dataset = _Images(*_noise(50_000), transform)
    ahead = {"persistent_workers": True, "prefetch_factor": 1} if workers else {}
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, **ahead)
    while True:
        yield from loader


class _Images(torch.utils.data.Dataset):
    """Arrays as torchvision's CIFAR100 serves them: one PIL image at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])

"""Images a second in training: this package's loop beside a plain one, in turns, each in a process of its own.

The plain loop is what one would write first: torchvision's network with the same strides lowered and torch's default
layout, a DataLoader that augments PIL images one by one, SGD. The processes are separate since `keep_memory` and the
threads hold for a whole process.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from mnv3lib import inference, kernels, optimizers, progress, recipe, training
from mnv3lib.data import Split
from mnv3lib.deploy import peers, processes, timing
from mnv3lib.errors import InputError
from mnv3lib.networks import MobileNet

NETWORKS = (("v3_small", 0.25), ("v3_small", 1.0), ("v3_large", 1.0))
LOOPS = {
    "mnv3lib": "this package's loop, with compiled kernels where Numba is installed and there is one thread",
    "mnv3lib, torch alone": "this package's loop without them",
    "plain": "plain loop, images loaded in the training process",
    "plain, 2 workers": "plain loop, images loaded by two workers",
}
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
# The operators of a step by what is in their name; the first that fits counts, what fits none is the rest. Those with _
# are kernels.py's: a depthwise convolution has the norm and activation before it, and squeeze-excitation those too.
OPERATORS = {
    "convolution, backward": ("convolution_backward", "_ConvolutionBackward", "_DepthwiseBackward"),
    "convolution, forward": ("convolution", "conv2d", "_Convolution", "_Depthwise"),
    "batch norm, activation": (
        *("batch_norm", "hardswish", "hardsigmoid", "hardtanh", "clamp_min", "threshold_backward"),
        *("_Activated", "_Gated"),
    ),
}
AHEAD = 3  # batches that two workers may hold ready before a turn starts, and so do not count


def compare(
    model: str,
    width: float,
    *,
    batch_size: int = 128,
    threads: int | None = None,
    rounds: int = 5,
    seconds: float = 5.0,
) -> pd.DataFrame:
    """Train one network with each of LOOPS in turns; the images are noise, as pixels do not change the speed.

    After a round of warm-up there are `rounds`, in which every loop runs for about `seconds` and at least one step.
    threads: of torch in each process (default: one a core).

    Returns a row a loop: model, width, loop, batch, threads, parameters, images_per_second (median of the rounds),
    low and high (the extremes), peak_mib (the most memory that its process held, workers not counted), times (how many
    times as fast as the faster of the plain loops), kernels (which way this package's loop goes, see kernels.way),
    system, processor, torch, commit, measured. Raises InputError for a model that torchvision does not have.
    """
    made = recipe.make("modern", model=model, width=width, batch_size=batch_size)
    if ("torchvision", model) not in peers.NAMES:
        raise InputError(f"torchvision has no {model}, so there is no plain loop: choose v2, v3_small or v3_large")
    threads = threads or processes.cores()
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


def step_shares(model: str, width: float, *, batch_size: int = 128, threads: int = 1, steps: int = 2) -> pd.Series:
    """Where the time of a training step goes on the CPU, in percent by kind of operator (OPERATORS and the rest).

    By torch's profiler, over `steps` steps after one of warm-up, each operator without those that it calls. The rest
    is made of squeeze-excitation's products, pooling, residuals, copies, the loss and the optimizer.
    """
    made = recipe.make(model=model, width=width, batch_size=batch_size)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler reports of itself on standard error
    with timing.steady(threads):
        train = _ours(made)
        train(1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            train(steps)
    times = dict.fromkeys([*OPERATORS, "rest"], 0.0)
    for event in profiled.key_averages():
        fitting = (kind for kind, parts in OPERATORS.items() if any(part in event.key for part in parts))
        times[next(fitting, "rest")] += event.self_cpu_time_total
    return 100 * pd.Series(times) / sum(times.values())


def _loop(loop: str, made: recipe.Recipe, threads: int) -> Callable[[int], tuple[float, int, float]]:
    """In a process of its own: what trains some steps and returns images a second, parameters, peak memory in MiB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if "torch alone" in loop:
        os.environ["MNV3_KERNELS"] = "torch"
    train = _ours(made) if loop.startswith("mnv3lib") else _plain(made, 2 if "workers" in loop else 0)
    return lambda steps: (*train(steps), _peak_mib())


def _peak_mib() -> float:
    """The most memory this process has held; not known on Windows."""
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


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

    network = get_model(peers.NAMES["torchvision", made.model], num_classes=100, width_mult=made.width)
    peers.lower_strides(network, made.lowered_strides)
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
            step()
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

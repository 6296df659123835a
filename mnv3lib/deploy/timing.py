"""How long a call takes: named contestants measured in rounds.

What spoils such tables elsewhere is settled here: warm-up, eval and inference mode, the number of threads, waiting for
the GPU, and a machine that speeds up and slows down.
"""

import gc
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn

from mnv3lib import progress, provenance
from mnv3lib.deploy.served import Served, turn
from mnv3lib.errors import InputError

ROUNDS = 5
CALLS = 200  # of a contestant, at most, unless more are asked for
NOISY = 0.15  # interquartile range over median


def now() -> float:
    """Seconds, once a GPU that is in use has done all it was asked to; torch.utils.benchmark's clock does the same."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(
    contestants: Mapping[Hashable, Callable[[], object]],
    *,
    threads: int | None = None,
    seconds: float = 2.0,
    calls: int = CALLS,
    clock: Callable[[], float] = now,
    title: str = "measuring",
) -> pd.DataFrame:
    """Time named callables against each other.

    There are ROUNDS rounds after one of warm-up. In each, every contestant has its turn, in an order that is shuffled
    anew: it is called until its share of `seconds` has gone by or it has had its share of `calls`, and at least once.
    So a machine that slows down or speeds up does so to all of them.

    contestants: name to a callable without arguments; who makes it sees to eval and inference mode (`forward` does). A
    Served is timed in its own process.
    threads: of torch, while measuring (set back afterwards); None leaves them as they are. clock: gives seconds.

    Returns a row a contestant: name, threads, calls, median_ms, p25_ms, p75_ms, p90_ms (milliseconds a call), and
    noisy, true where the interquartile range is wider than 15 % of the median. Raises InputError when there is nothing
    to measure or no time for it.
    """
    if not contestants:
        raise InputError("there is nothing to measure: name at least one contestant")
    if not seconds > 0:
        raise InputError(f"seconds {seconds!r}: give a time above 0")
    times = {name: [] for name in contestants}
    order, shuffle = list(contestants), random.Random(0).shuffle
    with steady(threads) as count, progress.bar(title=title, total=len(order) * (ROUNDS + 1)) as bar:
        for number in range(ROUNDS + 1):
            shuffle(order)
            for name in order:
                share = seconds / ROUNDS, calls / ROUNDS
                if isinstance(contestants[name], Served):
                    taken = contestants[name].turn(*share)
                else:
                    taken = turn(contestants[name], share[0], clock, share[1])
                if number > 0:
                    times[name] += taken
                bar.update()
    return pd.DataFrame([{"name": name, "threads": count} | summary(taken) for name, taken in times.items()])


@contextmanager
def steady(threads: int | None):
    """Within it, give torch `threads` threads and keep the garbage collector away; yields the number of threads."""
    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads or before)
    gc.disable()
    try:
        yield threads or before
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()


def summary(times: Sequence[float]) -> dict:
    """Calls, median, quartiles and p90 in milliseconds, and whether they scatter too much; `times` in seconds."""
    median, low, high, rare = 1000 * np.quantile(times, (0.5, 0.25, 0.75, 0.9))
    noisy = bool(high - low > NOISY * median)
    return {"calls": len(times), "median_ms": median, "p25_ms": low, "p75_ms": high, "p90_ms": rare, "noisy": noisy}


def versus(table: pd.DataFrame, first: str, second: str) -> tuple[float, bool]:
    """How many times as long `first` takes as `second`, of `measure`'s table, by their medians.

    And whether that is clear: whether the middle halves of their times are apart.
    """
    rows = table.set_index("name")
    one, other = rows.loc[first], rows.loc[second]
    clear = one["p25_ms"] > other["p75_ms"] or other["p25_ms"] > one["p75_ms"]
    return float(one["median_ms"] / other["median_ms"]), bool(clear)


def forward(network: nn.Module, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A contestant: one forward pass in eval and inference mode."""
    return torch.inference_mode()(partial(network.eval(), images))


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


def stamp(device: str = "cpu") -> dict:
    """What a record tells of its measurement: system, processor (or GPU), torch, commit, measured (the time, UTC)."""
    found = provenance.environment(device)
    processor = found["processor"] if device == "cpu" else found["device"]
    here = {"system": found["system"], "processor": processor, "torch": found["torch"]}
    return here | {"commit": provenance.commit(), "measured": provenance.now()}


def milliseconds(value: float) -> str:
    """Milliseconds with three digits, and no power of ten."""
    return f"{value:,.0f} ms" if value >= 1000 else f"{value:.3g} ms"

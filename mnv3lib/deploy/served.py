"""A network in a process of its own, where its time is taken and its memory is nobody else's.

No torch at the top: the process of a file holds Python, numpy and the file's own runtime.
"""

import math
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np

from mnv3lib.deploy import processes


def turn(
    call: Callable[[], object],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    calls: float = math.inf,
) -> list[float]:
    """Call until `seconds` have gone by or `calls` times, at least once; how long each call took, in seconds."""
    times = []
    start = end = clock()
    while not times or (end - start < seconds and len(times) < calls):
        before = clock()
        call()
        end = clock()
        times.append(end - before)
    return times


class Served:
    """A contestant of `timing.measure` that a process of its own runs, and times."""

    def __init__(self, make: Callable[..., Callable], *arguments):
        """In the process, `make(*arguments)` gives the images of a call and the function that answers to images."""
        self.ask = processes.start(_replies, make, arguments)

    def __call__(self, images: np.ndarray | None = None) -> np.ndarray:
        """The answer to `images`, by default those that are measured."""
        return self.ask(("answer", images))

    def turn(self, seconds: float, calls: float) -> list[float]:
        """`turn` in the process."""
        return self.ask(("turn", seconds, calls))

    def peak(self) -> float | None:
        """The most memory that the process has had so far, in MiB; None where the system does not tell."""
        return self.ask(("peak",))


def _replies(make: Callable[..., Callable], arguments: tuple) -> Callable:
    images, answer = make(*arguments)

    def reply(message):
        if message[0] == "answer":
            return answer(images if message[1] is None else message[1])
        if message[0] == "turn":
            return turn(lambda: answer(images), message[1], calls=message[2])
        return peak()

    return reply


def peak() -> float | None:
    """The most memory that this process has had so far, in MiB; None where the system does not tell."""
    # Not getrusage: what it calls the maximum is that of the process before it became this program, too.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def file(runtime: str, folder: Path, images: np.ndarray, threads: int | None):
    """For `Served`: the file in `folder`, run by the runtime of that name (without -int8)."""
    opened = _onnxruntime if runtime == "onnxruntime" else import_module(f"mnv3lib.deploy.{runtime}_files").opened
    return images, opened(folder, threads)


def _onnxruntime(folder: Path, threads: int | None) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "network.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]

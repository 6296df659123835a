"""What made a result: versions, processor, threads, commit."""

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@cache
def commit() -> str | None:
    """The commit of this checkout, with `-dirty` where the package differs from it; None outside a checkout.

    A repository around an installed package is somebody else's.
    """
    if not (ROOT / ".git").exists():
        return None
    head = _git("rev-parse", "HEAD")
    return head and head + ("-dirty" if _git("status", "--porcelain", "--", "mnv3lib") else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return name


def environment(device: torch.device | str = "cpu") -> dict:
    """Versions, processor, threads and device, as they go into records and stamps."""
    device = torch.device(device)
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of torch, which a checkpoint may not hold
        "mnv3lib": version("mnv3lib"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def trained_on(record: dict, names: bool = False) -> str:
    """What a run was trained on, as "GPU, CPU from epoch 20"; with `names`, which, with how many threads, what for."""
    places = _places(record, names)
    epochs = record["recipe"]["epochs"]
    told = [f"{place} from epoch {after + 1}" if after else place for after, place in places if after < epochs]
    if names:
        told += [f"measured on {place}" for after, place in places if after >= epochs]
    return ("; " if names else ", ").join(told)


def devices(record: dict) -> str:
    """As `trained_on`, without the epochs: "CPU", "GPU" or "GPU, then CPU"."""
    return ", then ".join(place for after, place in _places(record) if after < record["recipe"]["epochs"])


def _places(record: dict, names: bool = False) -> list[tuple[int, str]]:
    """Where a run was begun and where it went on, each with the number of epochs that were done by then.

    An imported run came here trained.
    """
    if "imported" in record:
        return [(0, "an unknown machine"), (record["recipe"]["epochs"], _told(record["environment"], names))]
    places = [(0, _told(record["environment"], names))]
    for entry in record.get("resumed", []):
        place = _told(entry.get("environment", record["environment"]), names)
        if place != places[-1][1]:
            places.append((entry["after_epoch"], place))
    return places


def _told(environment: dict, names: bool) -> str:
    device, threads = environment.get("device", "cpu"), environment.get("threads")
    if not names:
        return "CPU" if device == "cpu" else "GPU"
    if device != "cpu":
        return str(device)
    name = environment.get("processor") or "CPU"
    return f"{name}, {threads} thread{'s' if threads != 1 else ''}" if threads else name

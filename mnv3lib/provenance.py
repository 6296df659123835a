"""What made a result: versions, processor, threads, commit."""

import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

from mnv3lib.errors import local

CPUINFO = Path("/proc/cpuinfo")  # of Linux
ROOT = Path(__file__).resolve().parents[1]


def place(name: str, variable: str | None = None) -> Path:
    """The folder that the environment `variable` names, else `name` in the checkout, else `name` here."""
    if variable and (named := os.environ.get(variable)):
        return local(named)
    return ROOT / name if (ROOT / name).is_dir() else Path(name)


def cache_folder() -> Path:
    """This library's folder in the user's cache."""
    return local(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnv3lib"


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
    """The processor's name as the system gives it, on x86 Linux with more: "AMD EPYC (family 25, model 17)".

    In clouds the name alone is often that of several generations.
    """
    told = {}
    with suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            told.setdefault(key.strip(), value.strip())
    name = told.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= told.keys():
        name += f" (family {told['cpu family']}, model {told['model']})"
    return name


def cores() -> int:
    """How many cores this process may use, which a batch system or `taskset` can make fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(device="cpu") -> dict:
    """Versions, processor, threads and (torch's) device, as they go into records and stamps."""
    import torch  # the rest of this module is asked for by commands that need none

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

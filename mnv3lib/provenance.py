"""What made a result: versions, processor, threads, commit."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def place(name: str, variable: str | None = None) -> Path:
    """The folder that the environment `variable` names, else `name` in the checkout, else `name` here."""
    if variable and (named := os.environ.get(variable)):
        return Path(named).expanduser()
    return ROOT / name if (ROOT / name).is_dir() else Path(name)


def cache_folder() -> Path:
    """This library's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnv3lib"


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

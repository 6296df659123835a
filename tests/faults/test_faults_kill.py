"""Runs that are killed, stopped, or have no room to write: the folder of trained models is whole after each."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from mnv3lib import provenance, store, writing

RUN = "mobilenet_v3_small_0.25_digits"
ARGUMENTS = "train --dataset digits --model small --width 0.25 --batch 32 --image-sizes 8 --lowered-strides 0".split()
NOBODY = 65534


class Children:
    """Processes that run mnv3 on a few digits, see faults_child.py."""

    def __init__(self, folder: Path):
        self.errors = folder / "errors"
        command = [sys.executable, str(Path(__file__).with_name("faults_child.py"))]
        self.parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.parent.stdout.readline() == "ready\n"

    def start(self, place: Path, epochs: int = 2, **job) -> int:
        """Start to train in `place`; returns the process id."""
        job |= {"arguments": [*ARGUMENTS, "--epochs", str(epochs), "--overwrite", "--models", str(place / "models")]}
        job |= {"errors": str(self.errors), "checkpoints": str(place / "checkpoints")}
        self.parent.stdin.write(json.dumps(job) + "\n")
        self.parent.stdin.flush()
        return int(self.parent.stdout.readline())

    def end(self) -> dict:
        """Wait for the process to end; returns its status and how many steps of writing it took."""
        return json.loads(self.parent.stdout.readline())

    def run(self, place: Path, **job) -> dict:
        self.start(place, **job)
        return self.end()

    def told(self) -> str:
        return self.errors.read_text(errors="replace")


@pytest.fixture(scope="module")
def folder():
    """A folder that every user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="mnv3-faults-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def children(folder):
    made = Children(folder)
    yield made
    made.parent.stdin.close()
    made.parent.wait(timeout=60)


@pytest.fixture(scope="module")
def states(children, folder):
    """The weights of an older run and of the one that the tests disturb, each made undisturbed; and its steps."""
    place = folder / "undisturbed"
    assert children.run(place, epochs=1)["status"] == 0, children.told()
    old = (place / "models" / RUN / store.WEIGHTS).read_bytes()
    start = time.monotonic()
    done = children.run(place)
    assert done["status"] == 0, children.told()
    return {
        "old": old,
        "new": (place / "models" / RUN / store.WEIGHTS).read_bytes(),
        "steps": done["steps"],
        "seconds": time.monotonic() - start,
    }


@pytest.fixture
def place(folder, states):
    """A folder with the older run, whose place the disturbed one is to take."""
    with tempfile.TemporaryDirectory(prefix="place-", dir=folder) as name:
        shutil.copytree(folder / "undisturbed" / "models", Path(name) / "models")
        (Path(name) / "models" / RUN / store.WEIGHTS).write_bytes(states["old"])
        yield Path(name)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def whole(place: Path, states: dict) -> str:
    """Which of the states the folder of trained models is in; fails if it is in neither."""
    models = place / "models"
    assert store.runs(models) == [RUN]
    store.load(RUN, models), store.load_record(RUN, models), store.load_history(RUN, models)
    store.load_predictions(RUN, models)
    content = (writing.standing(models / RUN) / store.WEIGHTS).read_bytes()  # listing puts nothing back
    assert content in (states["old"], states["new"])
    return "old" if content == states["old"] else "new"


def ends_well(children: Children, place: Path, states: dict) -> None:
    """Started again and left alone, the run ends as the undisturbed one did, and nothing else is left anywhere."""
    assert children.run(place)["status"] == 0, children.told()
    assert whole(place, states) == "new"
    assert names(place / "models") == [RUN]
    assert names(place / "checkpoints") == []


def test_killed_at_random_moments(children, place, states, trying, long):
    moments, killed = random.Random(5), 0
    while killed < (50 if long else 20):
        pid = children.start(place)
        time.sleep(moments.uniform(0, states["seconds"]))
        os.kill(pid, signal.SIGKILL)
        if children.end()["status"] == -signal.SIGKILL:
            killed += 1
            with trying("SIGKILL at a random moment"):
                whole(place, states)
                if killed % 10 == 0:
                    ends_well(children, place, states)
        else:
            whole(place, states)


def test_killed_at_each_step_of_writing(children, place, states, trying, long):
    """Before, in the middle of and after each call that writes, moves or deletes something."""
    steps = range(1, states["steps"] + 1)
    moments = [(step, act) for step in steps for act in ("kill", "half", "after")]
    for step, act in moments if long else random.Random(5).sample(moments, 20):
        with trying("SIGKILL inside the writing of a checkpoint or a run"):
            assert children.run(place, event=step, act=act)["status"] in (-signal.SIGKILL, 0), children.told()
            whole(place, states)
            ends_well(children, place, states)


@pytest.mark.parametrize(
    ("name", "status", "line"),
    [("SIGTERM", 143, ""), ("SIGINT", 130, "mnv3: interrupted\n")],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_stopped(children, place, states, trying, long, name, status, line):
    steps = random.Random(name).sample(range(1, states["steps"]), 15 if long else 3)
    for step in steps:
        with trying("Ctrl-C" if name == "SIGINT" else name):
            pid = children.start(place, event=step, act="stop")
            wait_for("T", pid)
            os.kill(pid, getattr(signal, name))
            os.kill(pid, signal.SIGCONT)
            assert children.end()["status"] == status
            told = children.told().splitlines(keepends=True)
            assert [one for one in told if "epoch" not in one and "goes on" not in one] == ([line] if line else [])
            whole(place, states)
            ends_well(children, place, states)


def wait_for(state: str, pid: int) -> None:
    """Wait until a process is in the state: T for stopped."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != state:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def complaint(children: Children) -> str:
    """The one line of error that the process told."""
    lines = [line for line in children.told().splitlines() if "epoch" not in line]
    assert len(lines) == 1 and lines[0].startswith("mnv3: error: "), lines
    return lines[0]


def test_files_that_may_not_grow(children, place, states, trying, long):
    """RLIMIT_FSIZE stops a file in the middle, as a full disk does."""
    sizes = random.Random(5).sample(range(1, len(states["new"])), 30 if long else 5)
    for size in sizes:
        with trying("full disk (RLIMIT_FSIZE)"):
            assert children.run(place, limit=size)["status"] == 1, children.told()
            assert "too large" in complaint(children)
            whole(place, states)
            assert names(place / "models") == [RUN]
    ends_well(children, place, states)


def test_full_disk(children, place, states, trying, long):
    """A real one, where this user may mount it."""
    disk = place / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in (place / "models").rglob("*") if path.is_file())
    for share in (0.2, 0.5, 0.9, 1.5, 2.0) if long else (0.5, 1.5):
        options = f"size={int(size * (1 + share)) // 1024}k"
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True).returncode:
            pytest.skip("only a user who may mount a file system can fill one")
        try:
            shutil.copytree(place / "models", disk / "models")
            with trying("full disk (tmpfs)"):
                assert children.run(disk)["status"] == 1, children.told()
                assert "No space left" in complaint(children)
                assert whole(disk, states) == "old"
                subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
                ends_well(children, disk, states)
        finally:
            subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("locked", ["models", "checkpoints"])
def test_read_only_folder(children, place, states, trying, locked):
    user = NOBODY if os.geteuid() == 0 else None  # root may write anywhere
    if user and not all(folder.stat().st_mode & stat.S_IXOTH for folder in provenance.ROOT.parents):
        pytest.skip("nobody but root may look into the checkout")
    (place / "checkpoints").mkdir()
    for path in (place, *place.rglob("*")):
        if user:
            os.chown(path, user, user)
        path.chmod(0o755 if path.is_dir() else 0o644)
    with trying("read-only folder"):
        (place / locked).chmod(0o555)
        assert children.run(place, user=user)["status"] == 1, children.told()
        assert "Permission denied" in complaint(children)
        assert whole(place, states) == "old"
    (place / locked).chmod(0o755)
    ends_well(children, place, states)


def test_two_at_once(children, folder, place, states, trying, long):
    """The second is told so at once and leaves; the first, paused at any step meanwhile, ends as if alone."""
    (folder / "second").mkdir(exist_ok=True)
    second = Children(folder / "second")
    for step in random.Random(7).sample(range(6, states["steps"] - 12), 8 if long else 3):
        pid = children.start(place, event=step, act="stop")
        wait_for("T", pid)
        with trying("two processes at one run"):
            start = time.monotonic()
            assert second.run(place)["status"] == 1
            assert time.monotonic() - start < 5
            assert f"{RUN}" in complaint(second) and "another process" in complaint(second)
            whole(place, states)
            os.kill(pid, signal.SIGCONT)
            assert children.end()["status"] == 0
            assert whole(place, states) == "new"
            assert names(place / "models") == [RUN]
    second.parent.stdin.close()
    second.parent.wait(timeout=60)

"""Writing that leaves the old or the new, whole, however the process ends.

A file is written beside its place and moved there. So is a folder, but no portable call puts one folder in another's
place: for a moment the old one is only at .mnv3-old-NAME. If the process was killed just then, `standing` finds it
there, and whoever writes into the parent folder next puts it back. .mnv3-old-NAME and .mnv3-new-NAME, which is not yet
whole, are touched only by the process that holds .mnv3-lock-NAME.
"""

import os
import shutil
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mnv3lib.errors import InputError

OLD, NEW, LOCK = ".mnv3-old-", ".mnv3-new-", ".mnv3-lock-"
STALE = 24 * 3600  # seconds after which a temporary file is nobody's any more


def check_suffix(path: Path, *suffixes: str) -> None:
    """Raise InputError unless `path` can be a file and ends in one of them: nothing of another kind is written over."""
    check_is_file(path)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path} does not end in {' or '.join(suffixes)}: name a file that does")


def check_is_text(path: Path) -> None:
    """Raise InputError if `path` cannot be a file, or is one and no text, which text should not be written over."""
    check_is_file(path)
    if path.is_file():
        with path.open("rb") as file:
            if b"\0" in file.read(4096):
                raise InputError(f"{path} is there, and no text: name another file")


def check_is_file(path: Path) -> None:
    """Raise InputError if `path` is there and no regular file, which a file should not take the place of."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it")
    # /dev/stdout leads to the file that the shell appends to, which nobody wants replaced.
    stream = path.is_symlink() and path.absolute().parts[1] in ("dev", "proc")
    if stream or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is a device, a pipe or the like: name a file")


@contextmanager
def replacing(path: Path):
    """Give a temporary path beside `path` to write to, and move it there when all went well.

    Whatever happens, `path` is the old file or the new one, whole. A link stays, and what it leads to is replaced.
    InputError if it cannot be a file.
    """
    check_is_file(path)
    path = _without_links(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{path} cannot be written: something above it is no folder") from None
    delete_leftovers(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path):
    """Give a new folder to write to, and move it to `target`, in place of an older one, when all went well.

    One process at a time does this: another waits, for a minute at most, and then raises InputError. A link stays, and
    what it leads to is replaced. InputError if `target` is no folder.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is no folder: move it away")
    target = _without_links(target)
    with only_writer(target):
        clear(target)
        new = target.with_name(NEW + target.name)
        new.mkdir()
        try:
            yield new
            move_folder(new, target)
        finally:
            clear(target)


def _without_links(path: Path) -> Path:
    """Where `path` leads to, if it is a link; InputError if that is in a circle."""
    if not path.is_symlink():
        return path
    try:
        found = path.resolve()
    except (OSError, RuntimeError):  # before Python 3.13
        found = path
    if found.is_symlink():
        raise InputError(f"{path} is a link that leads to itself: name another place")
    return found


def move_folder(new: Path, target: Path) -> None:
    """Move the folder `new` to `target` beside it, in place of an older one, for the `only_writer` of `target`."""
    for path in [*new.rglob("*"), new]:
        sync(path)
    try:
        if target.exists():
            target.rename(target.with_name(OLD + target.name))
        new.rename(target)
        sync(target.parent)
    finally:
        clear(target)


@contextmanager
def only_writer(target: Path, timeout: float = 60, doing: str = "written"):
    """Keep every other process from writing the folder `target`; InputError if one is at it still after `timeout` s.

    The lock is the system's, so it goes with the process that holds it, however that ends.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(LOCK + target.name)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise InputError(f"{target} is being {doing} by another process: wait for it or stop it") from None
    try:
        yield
    finally:
        with suppress(OSError):  # some systems keep a file that is open
            path.unlink()
        lock.release()


def standing(target: Path) -> Path:
    """Where the folder `target` is to be read: at .mnv3-old-NAME if a process was killed while it replaced it."""
    old = target.with_name(OLD + target.name)
    return old if old.exists() and not target.exists() else target


def recover(parent: Path) -> None:
    """Clear up in `parent` after processes that were killed while they replaced folders there.

    A folder that was on its way out comes back, and unfinished ones go. What a live process is writing, and what may
    not be changed, is left alone.
    """
    names = {path.name.removeprefix(kind) for kind in (OLD, NEW, LOCK) for path in parent.glob(f"{kind}*")}
    for name in names:
        with suppress(InputError, OSError), only_writer(parent / name, timeout=0):
            clear(parent / name)


def delete_leftovers(folder: Path, name: str = "*", older: float = STALE) -> None:
    """Delete the temporary files that killed processes left of the file `name` more than `older` seconds ago."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime >= older:
                leftover.unlink()


def sync(path: Path) -> None:
    """Have the system write a file, or the entries of a folder, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if not path.is_dir():  # some systems open no folders
            raise


def clear(target: Path) -> None:
    """Put the old folder back if nothing is in its place, else delete it; delete what is unfinished.

    For the `only_writer` of `target`.
    """
    old, new = target.with_name(OLD + target.name), target.with_name(NEW + target.name)
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(new, ignore_errors=True)
    if old.exists():
        with suppress(OSError):
            old.rename(new)  # half deleted, it is not taken for the old folder
        shutil.rmtree(new, ignore_errors=True)

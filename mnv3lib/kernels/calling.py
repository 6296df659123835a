"""How the compiled loops are called: where they are, with which arrays, and on whose threads."""

import ctypes
import os
from functools import cache

import numpy as np
import torch


@cache
def loops():
    """The module of compiled loops; None without Numba, or where MNV3_KERNELS is `torch`."""
    if os.environ.get("MNV3_KERNELS") == "torch":
        return None
    try:
        from mnv3lib.kernels import loops
    except ImportError:
        return None
    return loops


def chosen() -> bool:
    """Whether the loops serve: with one thread, or where torch's threads can be lent.

    Threads of their own would come too late, since torch's wait for their next layer without giving up their core.
    """
    return loops() is not None and (torch.get_num_threads() == 1 or team() is not None)


def flat(x: torch.Tensor) -> np.ndarray:
    """The numbers as [image, pixel, channel] in a row: a view of a tensor in channels_last, else a copy."""
    return x.detach().permute(0, 2, 3, 1).reshape(-1).numpy()


NOTHING = np.zeros(1, np.float32)


def optional(x: torch.Tensor | None) -> tuple[bool, np.ndarray]:
    return (False, NOTHING) if x is None else (True, flat(x))


def parts_of(images: int) -> int:
    return min(torch.get_num_threads(), images)


def share(images: int, work) -> None:
    """Call work(part, first, last) for each part of the images, on torch's threads if there are several."""
    parts = parts_of(images)
    edges = [images * part // parts for part in range(parts + 1)]
    if parts == 1:
        work(0, 0, images)
        return
    left, failed = iter(range(parts)), []

    def take(_):
        try:
            for part in left:  # whichever is next, since OpenMP may give fewer threads than it is asked for
                work(part, edges[part], edges[part + 1])
        except BaseException as error:
            failed.append(error)

    team()(TASK(take), None, parts, 0)
    if failed:
        raise failed[0]


TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def team():
    """OpenMP's function that has each thread of a team do a task, of the library that torch runs on; else None."""
    try:
        function = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    function.argtypes = TASK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    function.restype = None
    return function

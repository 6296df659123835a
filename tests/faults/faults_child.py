"""Processes to be killed: forks one for each line of JSON on stdin, so that each starts in no time.

A line has: arguments (of mnv3), errors (a file for stderr), and if wanted: limit (bytes a file may have), user (whose
rights it has), event and act (what happens at the event of that number: see `act_at`). The answer is a line with the
process id, and after its end one with its exit status and how many events there were.
"""

import dataclasses
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path

import torch

from mnv3lib import data, provenance
from mnv3lib.commands import main


def act_at(number: int | None, act: str) -> list[str]:
    """Count the steps of writing: calls that write, move, delete or flush. Returns the list that the steps go to.

    At step `number`, `kill` ends the process before it, `half` in the middle of it (half of the bytes are written, half
    of the files deleted), `after` just after it; `stop` pauses it before, until somebody sends SIGCONT.
    """
    steps = []

    def wrap(owner, name, half):
        original = getattr(owner, name)

        def step(*arguments, **options):
            steps.append(name)
            mine = len(steps) == number
            if mine and act in ("kill", "stop"):
                os.kill(os.getpid(), signal.SIGKILL if act == "kill" else signal.SIGSTOP)
            if mine and act == "half":
                half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **options)
            if mine and act == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, step)

    def write_half(path, content, *_):
        content = bytes(content) if not isinstance(content, str) else content.encode()
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])

    def delete_half(folder, *_):
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        for path in files[: len(files) // 2]:
            path.unlink()

    for owner, name in [(Path, "replace"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (os, "fsync")]:
        wrap(owner, name, lambda *_: None)
    wrap(Path, "write_bytes", write_half)
    wrap(Path, "write_text", write_half)
    wrap(shutil, "rmtree", delete_half)
    return steps


def run(job: dict) -> int:
    with Path(job["errors"]).open("wb", buffering=0) as errors:
        os.dup2(errors.fileno(), 2)
        os.dup2(errors.fileno(), 1)
    if job.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    if job.get("user"):
        os.setgid(job["user"])
        os.setuid(job["user"])
    os.environ["MNV3_CHECKPOINTS"] = job["checkpoints"]
    steps = act_at(job.get("event"), job.get("act", ""))
    try:
        return main(job["arguments"])
    except SystemExit as stop:
        return stop.code
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        os.write(job["count"], str(len(steps)).encode())


def serve() -> None:
    torch.set_num_threads(1)
    os.environ["MNV3_KERNELS"] = "torch"  # every child would load or compile Numba's loops anew, and write their cache
    digits = data.load("digits")
    few = dataclasses.replace(
        digits, train=digits.train.take(torch.arange(64)), test=digits.test.take(torch.arange(20))
    )
    data.load = lambda *_, **__: few
    torch.optim.SGD([torch.zeros(1)])  # what is imported and asked for now need not be in every child
    provenance.commit()
    print("ready", flush=True)
    ended = None
    for line in sys.stdin:
        if ended:  # until now nobody else could get its process id, so a late signal does no harm
            os.waitpid(ended, 0)
        job = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os._exit(run(job | {"count": writer}))
        os.close(writer)
        print(child, flush=True)
        ended = child
        end = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        with os.fdopen(reader) as pipe:
            steps = pipe.read().strip()
        status = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        print(json.dumps({"status": status, "steps": int(steps or 0)}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have programs in the background ignore it
    serve()

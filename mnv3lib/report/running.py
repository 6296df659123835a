"""Notebooks run by papermill, one by one or side by side, with their parameters checked first."""

import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError
from traitlets.config import Config

from mnv3lib.errors import NotebookError
from mnv3lib.provenance import cores
from mnv3lib.report.parameters import check as check_parameters


def run_notebook(notebook: Path, output: Path, parameters: dict) -> None:
    """Execute `notebook`, from its own folder, with `parameters` and write it with its outputs to `output`.

    papermill sets the working directory of the whole process, so a process should run one at a time. Raises InputError
    for wrong parameters, before anything runs, and NotebookError when a cell fails; what ran until then is in `output`
    all the same.
    """
    check_parameters(notebook, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    os.environ.pop("JPY_SESSION_NAME", None)  # where JupyterLab started this, nobody watches the bars of the notebook
    alone = multiprocessing.parent_process() is None  # several bars would write over each other
    try:
        with tempfile.TemporaryDirectory() as sockets:
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters,
                kernel_name="python3",
                cwd=str(notebook.parent),
                progress_bar={"desc": notebook.stem} if alone and sys.stderr.isatty() else False,
                config=Config({"KernelManager": _transport(sockets)}),
            )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(f"{notebook.name}, cell {error.exec_count}: {error.ename}: {error.evalue}") from None
    except DeadKernelError:
        raise NotebookError(f"{notebook.name}: its kernel died, probably out of memory: close other programs") from None
    except RuntimeError as error:  # jupyter_client's, where a kernel does not start
        raise NotebookError(f"{notebook.name}: its kernel did not start, run it again: {error}") from error


def _transport(folder: str) -> dict:
    """How papermill and the kernel speak: by sockets that are files of `folder`.

    With TCP, processes that start kernels at once can pick the same port, and one of them waits a minute in vain. So
    they can with the files that jupyter_client 8.10 would name by itself, kernel-ipc-1 to 5 in the working directory.
    """
    if sys.platform == "win32" or len(folder) > 80:  # systems take a hundred characters or so
        return {"transport_encryption": "auto"}  # or ipykernel prints a notice
    return {"transport": "ipc", "ip": f"{folder}/kernel"}


def run_notebooks(
    jobs: Mapping[Path, tuple[Path, dict]], ended: Callable[[Path], None], side_by_side: Sequence[Path] = ()
) -> None:
    """Run notebooks, each with its output and parameters as in `run_notebook`; `ended` is called with each that ends.

    side_by_side: those of them that may run beside each other, the longest first; they share the cores. Then come the
    others, one by one. The first failure, in `ended` too, ends all and is raised.
    """
    beside = [notebook for notebook in side_by_side if notebook in jobs]
    at_once = min(len(beside), cores())
    if at_once > 1:
        _run_at_once(at_once, {notebook: jobs[notebook] for notebook in beside}, ended)
        jobs = {notebook: job for notebook, job in jobs.items() if notebook not in beside}
    for notebook, job in jobs.items():
        run_notebook(notebook, *job)
        ended(notebook)


def _run_at_once(workers: int, jobs: Mapping[Path, tuple[Path, dict]], ended: Callable[[Path], None]) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _prepare, (cores() // workers,)) as pool:
        futures = {pool.submit(run_notebook, notebook, *job): notebook for notebook, job in jobs.items()}
        try:
            for future in as_completed(futures):
                future.result()
                ended(futures[future])
        except BaseException as error:
            for process in multiprocessing.active_children():
                process.kill()  # its kernel notices within a second, and ends too
            if isinstance(error, BrokenProcessPool):
                raise NotebookError("a process that ran a notebook died, probably out of memory") from None
            raise


def _prepare(threads: int) -> None:
    """In a new process: set the threads of its kernels, and have it end when the process that started it does."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()

"""One notebook run by papermill, with its parameters checked first."""

import os
import sys
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError
from traitlets.config import Config

from mnv3lib.errors import NotebookError
from mnv3lib.report.parameters import check as check_parameters


def run_notebook(notebook: Path, output: Path, parameters: dict) -> None:
    """Execute `notebook`, from its own folder, with `parameters` and write it with its outputs to `output`.

    Raises InputError for wrong parameters, before anything runs, and NotebookError when a cell fails; what ran until
    then is in `output` all the same.
    """
    check_parameters(notebook, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            parameters,
            kernel_name="python3",
            cwd=str(notebook.parent),
            progress_bar={"desc": notebook.stem} if sys.stderr.isatty() else False,
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # or ipykernel prints a notice
        )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(f"{notebook.name}, cell {error.exec_count}: {error.ename}: {error.evalue}") from None
    except DeadKernelError:
        raise NotebookError(f"{notebook.name}: its kernel died, probably out of memory: close other programs") from None

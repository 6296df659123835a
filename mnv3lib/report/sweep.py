"""Many runs: a grid of recipes, each trained by notebook 02 through papermill, on this machine or on a Dask cluster."""

import dataclasses
import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import yaml

from mnv3lib import checkpoint, progress, recipe, store, writing
from mnv3lib.errors import InputError, one_line
from mnv3lib.provenance import ROOT
from mnv3lib.recipe import Recipe
from mnv3lib.report import running

NOTEBOOK = ROOT / "notebooks" / "02_train.ipynb"
# The fields that the notebook has a parameter of its own for; the others go through `changes`.
PARAMETERS = ("recipe", "model", "width", "epochs", "batch_size", "seed", "dataset")
NAMED = ("recipe", "model", "width", "dataset", "split", "variant", "seed")  # what the name of a run has
PATIENCE = 120.0  # seconds that this machine may be without a worker
POLL = 2.0  # seconds between two looks at the runs in progress


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep and the folders it works with, all of them seen by every worker."""

    recipe: Recipe
    models: Path
    checkpoints: Path
    executed: Path
    data: Path | None = None
    start: str | None = None
    threads: int = 1
    weights: bool = True

    @property
    def run(self) -> str:
        return self.recipe.run

    @property
    def is_done(self) -> bool:
        """Whether the run has its record; that it is of this recipe, training.made_already tells before a sweep."""
        return store.has(self.run, store.RECORD, self.models)

    @property
    def epochs_done(self) -> int:
        """Complete epochs, as the checkpoint's history tells."""
        if self.is_done:
            return self.recipe.epochs
        return checkpoint.epochs_done(checkpoint.folder_of(self.recipe, self.checkpoints))


def grid(make: Callable[..., Recipe] = recipe.make, /, **fields) -> list[Recipe]:
    """All combinations of the values given: grid(model=["v2", "v1"], seed=[0, 1], epochs=10) are four recipes.

    A field is given one value or a list of them; of `image_sizes`, a list counts as one value. Where fields that no
    name of a run has are given several values, they become part of the `variant`, and so of the name.
    """
    for name, value in fields.items():
        several = isinstance(value, list) and (name != "image_sizes" or any(isinstance(one, list) for one in value))
        fields[name] = value if several else [value]
    made = [make(**dict(zip(fields, chosen, strict=True))) for chosen in itertools.product(*fields.values())]
    unnamed = [name for name in fields if name not in NAMED and len({getattr(one, name) for one in made}) > 1]
    return [_named(one, unnamed) for one in made]


def _named(made: Recipe, fields: list[str]) -> Recipe:
    """The recipe with these fields in its variant, as in "learning-rate-0.1"; its digest where that is too long."""
    if not fields:
        return made
    told = [made.variant] if made.variant else []
    for name in fields:
        value = getattr(made, name)
        text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
        told.append(f"{name}-{text}".replace("_", "-"))
    variant = "-".join(told)
    if not re.fullmatch(recipe.VARIANT, variant):
        variant = f"{made.variant[:40]}-{made.digest}"
    return dataclasses.replace(made, variant=variant)


def read(path: Path, make: Callable[..., Recipe] = recipe.make) -> list[Recipe]:
    """The recipes of a YAML file with a list of grids under `runs`, and in `common` what all of them share."""
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        common, grids = content.pop("common", {}), content.pop("runs")
        grids = [dict(**common | one) for one in grids]
        if content:
            raise KeyError
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path} should have a list of grids under `runs` and, if anything, `common`") from None
    found = [made for fields in grids for made in grid(make, **fields)]
    if not found:
        raise InputError(f"{path} has no runs: each grid under `runs` needs a value for each of its fields")
    return found


def distinct(recipes: Iterable[Recipe]) -> list[Recipe]:
    """The recipes in order; InputError if two that differ have the same name of a run."""
    recipes = list(dict.fromkeys(recipes))
    twice = [run for run, count in Counter(made.run for made in recipes).items() if count > 1]
    if twice:
        raise InputError(f"recipes that differ are both called {twice[0]}: give each a `variant` of its own")
    return recipes


def run_job(job: Job) -> None:
    """Train one run on a worker; nothing is done if it has its record, and an interrupted one goes on."""
    if job.is_done:
        return
    made = job.recipe.as_dict()
    own = {name: made[name] for name in PARAMETERS}
    if job.recipe.data_digest or job.recipe.start:  # whose fields follow from the images and that network: all are said
        changes = {name: value for name, value in made.items() if name not in (*PARAMETERS, "start") and value != ""}
    else:
        default = recipe.make(**own).as_dict()
        changes = {name: value for name, value in made.items() if value != default[name]}
    parameters = own | {
        "changes": changes,
        "start": job.start,
        "threads": job.threads,
        "data_folder": None if job.data is None else str(job.data),
        "save_to": str(job.models),
        "keep_weights": job.weights,
        "models_folder": str(job.models),
        "figures_folder": str(job.executed / f"{job.run}_figures"),
    }
    os.environ["MNV3_CHECKPOINTS"] = str(job.checkpoints)
    # When a worker is killed, its notebook's kernel notices within a second or so, and holds the run until then.
    with writing.only_writer(checkpoint.folder_of(job.recipe, job.checkpoints), doing="trained"):
        pass
    running.run_notebook(NOTEBOOK, job.executed / f"{job.run}.ipynb", parameters)


@contextmanager
def connect(address: str | None = None, scheduler_file: Path | None = None, workers: int = 1):
    """A Dask client: of the cluster at `address` or in `scheduler_file`, else of `workers` processes here."""
    import dask
    from distributed import Client

    settings = {
        # A run is given up only after ten of its workers have died; `retries` would not count those.
        "distributed.scheduler.allowed-failures": 10,
        # No run waits in line at a busy worker, as it would by default, while another worker is idle.
        "distributed.scheduler.worker-saturation": 1.0,
        # Dask's own measurements are made for short tasks, and take time of the cores from hours of training.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.system-monitor.interval": "5s",
    }
    place = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "memory_limit": 0,
        "dashboard_address": "127.0.0.1:0",  # any free port: two sweeps may run side by side
        "silence_logs": 50,
    }
    if address or scheduler_file:
        place = {"address": address, "scheduler_file": scheduler_file and str(scheduler_file), "timeout": 20}
    if scheduler_file and not scheduler_file.is_file():  # Dask would wait for it forever
        raise InputError(f"there is no scheduler file {scheduler_file}: start dask scheduler first")
    with dask.config.set(settings):
        try:
            client = Client(**place)
        except (OSError, ValueError) as error:
            where = address or scheduler_file or "this machine"
            raise InputError(f"no Dask scheduler at {where}: {one_line(error)}") from None
        with client:
            yield client


def sweep(jobs: list[Job], client, log: Callable[[str], None] = progress.say) -> dict[str, str]:
    """Run the jobs on a Dask `client` and return the reason, by run, of each that failed.

    A job whose worker dies is given to another and resumes. One view shows all: a bar that counts epochs, and a line
    for each run that ends; where nobody watches, a line for each epoch instead of the bar. Raises InputError when all
    workers of this machine are gone and stay away.
    """
    waiting = [job for job in jobs if not job.is_done]
    if len(waiting) < len(jobs):
        log(f"{len(jobs) - len(waiting)} of {len(jobs)} runs have their record already")
    futures = {
        client.submit(run_job, job, key=f"{job.run}-{time.time_ns()}", pure=False, priority=-number): job
        for number, job in enumerate(waiting)
    }
    failed, epochs = {}, {job.run: job.epochs_done for job in waiting}
    seen = time.monotonic()
    with progress.bar(total=sum(job.recipe.epochs for job in waiting), unit="epoch") as bar:
        while futures:
            for future in [future for future in futures if future.done()]:
                job = futures.pop(future)
                try:
                    future.result()
                    log(f"{job.run}: top-1 {store.load_record(job.run, job.models)['result']['top1']:.2f} %")
                except Exception as error:  # whatever it is, the other runs go on
                    failed[job.run] = one_line(error, 2000)
                    log(f"{job.run}: failed")
            before, epochs = epochs, {job.run: job.epochs_done for job in waiting}
            for job in waiting if bar.disable else ():
                if before[job.run] < epochs[job.run] < job.recipe.epochs:
                    log(f"{job.run}: {epochs[job.run]} of {job.recipe.epochs} epochs")
            bar.n = sum(epochs.values())
            begun = [f"{run.removeprefix('mobilenet_')} {count}" for run, count in epochs.items() if count]
            bar.set_postfix_str(", ".join(begun[-4:]))
            if not futures:
                break
            if client.nthreads() or not client.cluster:  # of a cluster elsewhere, workers may yet come
                seen = time.monotonic()
            elif time.monotonic() - seen > PATIENCE:
                raise InputError("the workers are gone (out of memory?): start the sweep again, and it goes on")
            time.sleep(POLL)
    return failed

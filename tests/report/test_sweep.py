"""Sweeps: grids of recipes, and many runs on a real Dask scheduler with worker processes."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import dask
import nbformat
import pandas
import photographs
import pytest
from records import record_of

from mnv3lib import build, data, recipe, store, training
from mnv3lib.commands import main
from mnv3lib.errors import InputError
from mnv3lib.own import transfer
from mnv3lib.provenance import ROOT
from mnv3lib.report import parameters, sweep
from mnv3lib.study import few_pictures


def test_grid_is_the_product_in_order():
    made = sweep.grid(model=["v2", "v1"], width=0.5, seed=[0, 1])
    assert [(one.model, one.width, one.seed) for one in made] == [
        ("v2", 0.5, 0),
        ("v2", 0.5, 1),
        ("v1", 0.5, 0),
        ("v1", 0.5, 1),
    ]


def test_image_sizes_are_one_value():
    assert [one.image_sizes for one in sweep.grid(image_sizes=[20, 32])] == [(20, 32)]
    assert [one.image_sizes for one in sweep.grid(image_sizes=[[20, 32], [32]])] == [(20, 32), (32,)]


@pytest.mark.parametrize(
    ("fields", "runs"),
    [
        ({"learning_rate": [0.1, 0.3]}, ["learning-rate-0.1", "learning-rate-0.3"]),
        (
            {"learning_rate": [0.1, 0.3], "variant": ["a", "b"]},
            ["a-learning-rate-0.1", "b-learning-rate-0.1", "a-learning-rate-0.3", "b-learning-rate-0.3"],
        ),
        ({"learning_rate": [0.1, 0.3], "seed": 1}, ["learning-rate-0.1_seed1", "learning-rate-0.3_seed1"]),
        ({"image_sizes": [[20, 32], [32]]}, ["image-sizes-20-32", "image-sizes-32"]),
        ({"nesterov": [True, False], "crop": 2}, ["nesterov-true", "nesterov-false"]),
        ({"crop": [0, 2], "epochs": [1, 2]}, [f"crop-{crop}-epochs-{epochs}" for crop in (0, 2) for epochs in (1, 2)]),
        ({"weight_decay": [1e-5, 0]}, ["weight-decay-1e-05", "weight-decay-0.0"]),
        ({"penultimate": [None, 0]}, ["penultimate-none", "penultimate-0"]),
        ({"nonlinearity": ["hard_swish", "relu"]}, ["nonlinearity-hard-swish", "nonlinearity-relu"]),
        ({"learning_rate": [0.1, 0.1], "epochs": 2}, [""]),
    ],
)  # fmt: skip
def test_names_are_made_from_what_differs(fields, runs):
    made = sweep.distinct(sweep.grid(**fields))
    assert [one.run for one in made] == ["_".join(filter(None, ("mobilenet_v3_small_1.0", name))) for name in runs]


@pytest.mark.parametrize("more", [[], ["--from", "base"], ["--from", "base", "--lowered-strides", "3"]])
def test_a_grid_on_images_of_ones_own_reaches_the_notebook_whole(alone, monkeypatch, capsys, more):
    """The recipe that notebook 02 makes of its parameters is the one that was planned."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(alone / "cache"))
    photographs.draw(alone / "shapes", 4, ("circle", "cross"))
    made = recipe.make(width=0.25)
    network = build("v3_small", width=0.25)
    network.classes = data.CLASSES["cifar100"]
    store.save(alone / "models", record_of(made, 50.0, run="base"), [], network, None)
    jobs, passed = [], {}
    monkeypatch.setattr(sweep, "sweep", lambda given, client: jobs.extend(given) or {})
    monkeypatch.setattr(sweep, "connect", lambda *_: nullcontext())
    options = ["--data", str(alone / "shapes"), "--model", "small", "--width", "0.25", "--image-size", "48"]
    assert main(["sweep", *options, "--seed", "0", "1", *more]) == 0
    assert len(jobs) == 2 and all("shapes" in job.run for job in jobs)
    monkeypatch.setattr(sweep.running, "run_notebook", lambda notebook, out, given: passed.update(given))
    for job in jobs:
        sweep.run_job(job)
        parameters.check(sweep.NOTEBOOK, passed)
        fields = {name: passed[name] for name in ("recipe", "model", "width", "epochs", "seed", "batch_size")}
        images = data.load(passed["dataset"], passed["data_folder"], 48)
        planned, _ = transfer.plan(images, passed["start"], **fields | passed["changes"])
        assert planned == job.recipe and planned.lowered_strides == (3 if len(more) == 4 else 2)


def test_a_file_starts_from_the_network_that_is_named(alone, monkeypatch):
    """Its recipes say so, and where such runs go; what differs otherwise is as in the file."""
    network = build("v3_small", width=0.25)
    network.classes = data.CLASSES["cifar100"]
    store.save(alone / "models", record_of(recipe.make(width=0.25), 50.0, run="base"), [], network, None)
    (alone / "runs.yaml").write_text("runs: [{recipe: finetune, seed: [0, 1]}, {dataset: digits}]")
    jobs, passed = [], {}
    monkeypatch.setattr(data, "load", lambda *_, **__: None)
    monkeypatch.setattr(sweep, "sweep", lambda given, client: jobs.extend(given) or {})
    monkeypatch.setattr(sweep, "connect", lambda *_: nullcontext())
    assert main(["sweep", str(alone / "runs.yaml"), "--from", "base"]) == 0
    assert [job.run for job in jobs] == [
        "mobilenet_v3_small_0.25_finetune",
        "mobilenet_v3_small_0.25_finetune_seed1",
        "mobilenet_v3_small_0.25_finetune_digits",
    ]
    monkeypatch.setattr(sweep.running, "run_notebook", lambda notebook, out, given: passed.update(given))
    for job in jobs:
        sweep.run_job(job)
        parameters.check(sweep.NOTEBOOK, passed)
        fields = {name: passed[name] for name in ("recipe", "model", "width", "epochs", "seed", "batch_size")}
        planned, _ = transfer.plan(data.unread(passed["dataset"]), passed["start"], **fields | passed["changes"])
        assert planned == job.recipe and planned.start.startswith("base@")


def test_a_file_makes_runs_on_images_of_ones_own(alone, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(alone / "cache"))
    photographs.draw(alone / "shapes", 4, ("circle", "cross"))
    path = alone / "runs.yaml"
    path.write_text("runs: [{width: 0.25, image_sizes: [[16], [24]]}]")
    options = ["sweep", str(path), "--data", str(alone / "shapes"), "--dry-run"]
    assert main(options) == 0
    names = [f"mobilenet_v3_small_0.25_shapes_image-sizes-{size}" for size in (16, 24)]
    assert capsys.readouterr().out == "".join(f"{name}: 0 of 20 epochs\n" for name in names)
    for field, message in (
        ("image_sizes: 24", "image_sizes 24: give a list"),
        ("data_digest: abcdef012345", "data_digest: the recipe has 'abcdef012345', and what is here is '"),
    ):
        path.write_text(f"runs: [{{{field}}}]")
        assert main(options) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("start: base@abcdef012345", "start: leave it out of the grids, and name the network to start from by --from"),
        ("models: here", "unknown field of a recipe 'models'"),
        ("make: 1", "unknown field of a recipe 'make'"),
    ],
)
def test_what_is_no_field_of_a_grid_is_named(capsys, tmp_path, field, message):
    (tmp_path / "runs.yaml").write_text(f"runs: [{{{field}}}]")
    assert main(["sweep", str(tmp_path / "runs.yaml"), "--dry-run"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--from", "base"], ["--recipe", "finetune"]])
def test_an_ablation_starts_from_random_weights(capsys, more):
    assert main(["sweep", "--ablation", "dropout", "--dry-run", *more]) == 1
    assert "--ablation: its runs start from random weights: leave out --from" in capsys.readouterr().err


def test_images_are_read_at_the_size_of_the_network_to_start_from(tmp_path):
    network = build("v3_small", width=0.25)
    network.classes, network.size = data.CLASSES["cifar100"], 48
    store.save(tmp_path, record_of(recipe.make(width=0.25), 50.0, run="base"), [], network, None)
    assert transfer.size_for(None, "base", tmp_path) == 48
    assert transfer.size_for([16, 24], "base", tmp_path) == 24
    assert transfer.size_for([]) == 32


def test_transfer_refuses_what_it_would_not_heed(capsys):
    for option in (["--dry-run"], ["--from", "x"], ["--scheduler", "x"]):
        assert main(["sweep", "--transfer", "runs", *option]) == 1
        assert "--transfer takes --models, --data and --threads" in capsys.readouterr().err


def test_transfer_takes_the_folder_one_is_in(tmp_path, monkeypatch):
    """Beside which its network to start from goes."""
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda *_: None)
    monkeypatch.setattr(
        few_pictures, "record", lambda folder, *_, **__: asked.append(folder.with_name("transfer-base"))
    )
    monkeypatch.setattr(few_pictures, "results", lambda folder: pandas.DataFrame())
    assert main(["sweep", "--transfer", "runs", "--models", "."]) == 0
    assert asked == [tmp_path.with_name("transfer-base")]


def test_every_grid_of_the_help_has_names_of_its_own():
    """Two values of each field at once: names that would be too long end with a digest."""
    options = dict(momentum=[0.8, 0.9], warmup=[0.1, 0.2], crop=[0, 2], dropout=[0, 0.1], label_smoothing=[0, 0.1])
    made = sweep.distinct(sweep.grid(variant="v" * 60, **options))
    assert len({one.run for one in made}) == 2**5
    assert {one.run: one for one in sweep.grid(variant="v" * 60, **options)} == {one.run: one for one in made}


def test_trials_go_to_build(capsys, alone, monkeypatch):
    """But into the folder that is named, by an option or by MNV3_MODELS."""
    monkeypatch.chdir(alone)
    monkeypatch.delenv("MNV3_MODELS")
    monkeypatch.setattr(store, "place", lambda name, variable: Path(os.environ.get(variable, name)))
    for one in sweep.grid(dataset="digits", epochs=[1, 20]):
        store.save(Path("build/trained_models"), record_of(one), [{"epoch": 1}], None, None)
    store.save(Path("trained_models"), record_of(recipe.make()), [{"epoch": 1}], None, None)
    options = ["sweep", "--no-weights", "--dry-run", "--dataset"]
    assert main([*options, "digits", "cifar100", "--epochs", "20"]) == 0
    assert main([*options, "digits", "--epochs", "1", "20"]) == 0
    assert capsys.readouterr().out.count(": done\n") == 2 + 1


def test_file_of_grids(tmp_path):
    path = tmp_path / "runs.yaml"
    path.write_text("common: {epochs: 3}\nruns:\n- {model: v3_small, width: [0.25, 0.5]}\n- {model: v1, epochs: 4}\n")
    assert [(one.run, one.epochs) for one in sweep.read(path)] == [
        ("mobilenet_v3_small_0.25", 3),
        ("mobilenet_v3_small_0.5", 3),
        ("mobilenet_v1_1.0", 4),
    ]


@pytest.mark.parametrize("text", ["", "runs: 3", "runs: [3]", "[1]", "runs: []\nmore: 1", "runs: [", "\x00"])
def test_bad_file_is_named(tmp_path, text):
    path = tmp_path / "runs.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"runs\.yaml should have a list of grids under `runs`"):
        sweep.read(path)


@pytest.mark.parametrize("text", ["runs: []", "runs: [{model: v1, width: []}]"])
def test_a_file_without_runs_is_no_success(tmp_path, text):
    path = tmp_path / "runs.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"runs\.yaml has no runs"):
        sweep.read(path)


def test_unknown_field_and_value_are_named(tmp_path):
    path = tmp_path / "runs.yaml"
    path.write_text("runs: [{widht: 1}]")
    with pytest.raises(InputError, match="widht"):
        sweep.read(path)
    with pytest.raises(InputError, match="v4"):
        sweep.grid(model=["v3_small", "v4"])


def test_same_name_for_different_recipes_is_refused():
    once = recipe.make(epochs=2)
    assert sweep.distinct([once, once]) == [once]
    with pytest.raises(InputError, match=r"mobilenet_v3_small_1\.0: give each a `variant`"):
        sweep.distinct([once, recipe.make(epochs=3)])


def test_command_wants_a_file_or_a_grid(capsys):
    assert main(["sweep"]) == 1
    assert "name either a YAML file or fields" in capsys.readouterr().err


def test_dry_run_wants_no_images(capsys, tmp_path):
    options = ["--width", "0.25", "--models", str(tmp_path), "--data", str(tmp_path / "nowhere"), "--dry-run"]
    assert main(["sweep", *options]) == 0
    assert capsys.readouterr().out == "mobilenet_v3_small_0.25: 0 of 20 epochs\n"


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_command_refuses_what_training_would(capsys, monkeypatch, tmp_path, dry):
    """Before anything is read or started: a run of another recipe, or without weights, under a name of the grid."""
    monkeypatch.setattr(data, "load", None)
    one, other = sweep.grid(dataset="digits", width=[0.25, 0.5], epochs=2)
    for made in (dataclasses.replace(one, epochs=1), other):
        store.save(tmp_path, record_of(made), [{"epoch": 1}], None, None)
    options = ["sweep", "--dataset", "digits", "--epochs", "2", "--models", str(tmp_path), *dry]
    assert main([*options, "--width", "0.25", "0.5"]) == 1
    assert f"{one.run} has another recipe (epochs differ)" in capsys.readouterr().err
    assert main([*options, "--width", "0.5"]) == 1
    assert f"{other.run} was kept without weights" in capsys.readouterr().err
    assert main([*options, "--width", "0.5", "--no-weights", "--dry-run"]) == 0
    assert capsys.readouterr().out == f"{other.run}: done\n"


@pytest.mark.parametrize(("file", "models"), [("campaign", "trained_models"), ("tuning", "results/tuning")])
def test_committed_runs_are_of_the_recipes_in_their_file(file, models):
    made = sweep.distinct(sweep.read(ROOT / "notebooks" / f"{file}.yaml"))
    recorded = [training.made_already(one, ROOT / models, weights=False) for one in made]
    assert any(recorded)


def test_command_tells_no_scheduler(capsys, monkeypatch, tmp_path):
    missing = tmp_path / "scheduler.json"
    options = ["--dataset", "digits", "--models", str(tmp_path), "--scheduler-file", str(missing)]
    assert main(["sweep", *options]) == 1
    assert "there is no scheduler file" in capsys.readouterr().err


def jobs_of(recipes, folder):
    return [
        sweep.Job(made, models=folder / "models", checkpoints=folder / "checkpoints", executed=folder / "executed")
        for made in recipes
    ]


def kill_the_worker_of(job, client, killed):
    """SIGKILL the worker process that trains `job`, once the first epoch is complete."""
    while not job.epochs_done:
        time.sleep(0.1)
    pids = client.run(os.getpid)
    address = next(worker for worker, keys in client.processing().items() if any(job.run in key for key in keys))
    os.kill(pids[address], signal.SIGKILL)
    killed.append(pids[address])


def test_sweep_survives_a_killed_worker_and_a_failing_run(tmp_path):
    common = dict(dataset="digits", width=0.25, batch_size=64, image_sizes=(16,))
    long = recipe.make(model="v3_small", epochs=12, **common)
    failing = recipe.make(model="v2", epochs=2, variant="nan", learning_rate=100.0, weight_decay=1.0, **common)
    made = recipe.make(model="v1", epochs=1, **common)
    jobs = jobs_of([long, failing, made], tmp_path)
    training.train(made, models=tmp_path / "models", checkpoints=tmp_path / "checkpoints", log=lambda line: None)
    before = (tmp_path / "models" / made.run / store.RECORD).read_bytes()

    lines, killed = [], []
    with sweep.connect(workers=2) as client:
        measuring = client.run(dask.config.get, "distributed.worker.profile.enabled")
        assert list(measuring.values()) == [False, False], "Dask's profiler slows the training"
        killer = threading.Thread(target=kill_the_worker_of, args=(jobs[0], client, killed), daemon=True)
        killer.start()
        failed = sweep.sweep(jobs, client, log=lines.append)
        killer.join(timeout=10)

    assert killed
    record = store.load_record(long.run, tmp_path / "models")
    assert record["resumed"], "the run was not resumed"
    assert record["recipe"] == json.loads(json.dumps(long.as_dict()))
    assert len(store.load_history(long.run, tmp_path / "models")) == 12
    assert list(failed) == [failing.run]
    assert "DivergedError" in failed[failing.run] and "lower learning_rate" in failed[failing.run]
    assert (tmp_path / "models" / made.run / store.RECORD).read_bytes() == before
    assert lines[0] == "1 of 3 runs have their record already"
    assert any(re.fullmatch(rf"{long.run}: \d+ of 12 epochs", line) for line in lines)
    executed = nbformat.read(tmp_path / "executed" / f"{long.run}.ipynb", as_version=4)
    assert any(long.run in str(cell.get("outputs")) for cell in executed.cells)


class NoWorkers:
    """A Dask client on this machine whose workers are gone: what is submitted is never done."""

    cluster = "local"

    def submit(self, *_, **options):
        self.done = lambda: False
        return self

    def nthreads(self):
        return {}


def test_workers_that_are_gone_end_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "POLL", 0.01)
    monkeypatch.setattr(sweep, "PATIENCE", 0.05)
    with pytest.raises(InputError, match=r"the workers are gone .*start the sweep again"):
        sweep.sweep(jobs_of([recipe.make(dataset="digits")], tmp_path), NoWorkers(), log=lambda line: None)


@contextmanager
def running(*commands, stop=signal.SIGTERM):
    """Processes that get the signal `stop` afterwards."""
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for command in commands
    ]
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(stop)
        for process in processes:
            process.wait(timeout=30)


def sweep_of_two(folder, *options):
    """`mnv3 sweep` of two runs on the cluster that `options` name; both should be made."""
    grid = "--dataset digits --width 0.25 --epochs 1 --image-sizes 16 --batch 64 --seed 0 1 --no-weights".split()
    folders = ["--models", str(folder / "models"), "--executed", str(folder / "executed")]
    assert main(["sweep", *grid, *folders, *options]) == 0
    assert len(store.runs(folder / "models")) == 2


def test_a_cluster_by_its_scheduler_file(long, alone):
    """README's commands for Slurm; as Slurm's jobs where it runs."""
    if not long:
        pytest.skip("a long test")
    slurm = shutil.which("sinfo") and subprocess.run(["sinfo"], capture_output=True).returncode == 0
    dask = [*(["srun", "--quiet"] if slurm else []), sys.executable, "-m", "dask"]
    file = alone / "scheduler.json"
    worker = [*dask, "worker", "--nthreads", "1", "--scheduler-file", file, "--local-directory", alone]
    scheduler = [*dask, "scheduler", "--port", "0", "--dashboard-address", ":0", "--scheduler-file", file]
    with running(scheduler, worker, worker):
        while not file.is_file():
            time.sleep(0.2)
        sweep_of_two(alone, "--scheduler-file", str(file))


def test_a_cluster_over_ssh(long, alone):
    """README's `dask ssh`, with a server of this test's own."""
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if not (long and sshd and importlib.util.find_spec("paramiko")):
        pytest.skip("a long test, which wants OpenSSH's server and paramiko")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", alone / name], check=True)
    ssh, scheduler = free_port(), free_port()
    settings = {
        "Port": ssh,
        "ListenAddress": "127.0.0.1",
        "HostKey": alone / "host",
        "AuthorizedKeysFile": alone / "user.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
        "SetEnv": f"PYTHONPATH={ROOT}",
    }
    (alone / "sshd").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    cluster = [sys.executable, "-m", "dask", "ssh", "--nthreads", "1", "--ssh-port", str(ssh)]
    cluster += ["--ssh-private-key", str(alone / "user"), "--scheduler-port", str(scheduler), "127.0.0.1", "127.0.0.1"]
    with running([sshd, "-D", "-f", alone / "sshd"]):
        time.sleep(1)
        with running(cluster, stop=signal.SIGINT):  # so it ends what it started over there
            time.sleep(20)
            sweep_of_two(alone, "--scheduler", f"tcp://127.0.0.1:{scheduler}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]

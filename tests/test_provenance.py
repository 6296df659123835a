"""What records say about the machine and the code that made them."""

import json
import re
import subprocess

import pytest
import torch

from mnv3lib import provenance
from mnv3lib.study import places


def test_environment_is_json_and_complete():
    environment = json.loads(json.dumps(provenance.environment()))
    assert set(environment) >= {"python", "torch", "mnv3lib", "system", "processor", "threads", "device"}
    assert all(value not in (None, "") for value in environment.values())
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert environment["device"] == "cpu"


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (
            "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nmodel\t\t: 18\n",
            "AMD EPYC (family 25, model 17)",
        ),
        ("model name\t: ARMv7 Processor rev 4 (v7l)\nCPU part\t: 0xd03\n", "ARMv7 Processor rev 4 (v7l)"),
        ("processor\t: 0\n", "a machine"),
        (None, "a machine"),
    ],
    ids=["x86", "ARM", "no name", "no file"],
)
def test_a_processor_is_told_with_its_generation(told, name, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(provenance.platform, "processor", lambda: "")
    monkeypatch.setattr(provenance.platform, "machine", lambda: "a machine")
    if told:
        (tmp_path / "cpuinfo").write_text(told)
    assert provenance.processor.__wrapped__() == name


def test_time_is_utc_to_the_second():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", provenance.now())


def test_commit_is_the_checkouts():
    provenance.commit.cache_clear()
    found = provenance.commit()
    if found is not None:
        head = subprocess.run(
            ["git", "-C", provenance.ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        assert found.removesuffix("-dirty") == head


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """A folder with a repository that has one commit, taken for the checkout."""
    who = ("-c", "user.name=one", "-c", "user.email=one@example.org")
    for command in (("init", "-q"), (*who, "commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    provenance.commit.cache_clear()
    yield tmp_path
    provenance.commit.cache_clear()


def test_commit_is_of_no_repository_around(repository, monkeypatch):
    assert re.fullmatch("[0-9a-f]{40}", provenance.commit())
    installed = repository / "lib" / "site-packages"
    installed.mkdir(parents=True)
    monkeypatch.setattr(provenance, "ROOT", installed)
    provenance.commit.cache_clear()
    assert provenance.commit() is None


def test_no_git_is_no_error(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() is None


def test_trained_on_names_every_place_a_run_has_been_at():
    cpu = {"device": "cpu", "processor": "a processor", "threads": 1}
    gpu = {"device": "a GPU's name", "processor": "a processor", "threads": 1}
    record = {"recipe": {"epochs": 20}, "environment": gpu, "resumed": []}
    assert (places.devices(record), places.trained_on(record)) == ("GPU", "a GPU's name")
    moved = [{"after_epoch": 3, "environment": gpu}, {"after_epoch": 19, "environment": cpu}]
    again = [*moved, {"after_epoch": 19, "environment": cpu}, {"after_epoch": 20, "environment": cpu | {"threads": 2}}]
    assert places.devices(record | {"resumed": again}) == "GPU+CPU"
    assert places.trained_on(record | {"resumed": again}) == (
        "a GPU's name; a processor, 1 thread from epoch 20; measured on a processor, 2 threads"
    )
    nothing_there = [{"after_epoch": 5, "environment": cpu}, {"after_epoch": 5, "environment": gpu}]
    assert places.trained_on(record | {"resumed": nothing_there}) == "a GPU's name"
    old = {"recipe": {"epochs": 20}, "environment": cpu, "resumed": [{"after_epoch": 3, "commit": None}]}
    assert (places.devices(old), places.trained_on(old)) == ("CPU", "a processor, 1 thread")
    imported = {"recipe": {"epochs": 20}, "environment": cpu, "imported": {"file": "old.pth"}}
    assert places.devices(imported) == "an unknown machine"
    assert places.trained_on(imported) == "an unknown machine; measured on a processor, 1 thread"

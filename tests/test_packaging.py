"""What a stranger sets up: one source of versions, a README that tells the truth."""

import re
import tomllib

import pytest
import yaml

from mnv3lib.provenance import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def names(requirements: list[str]) -> set[str]:
    """The normalised names of the packages in a list of requirements."""
    return {re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", line)[0]).lower() for line in requirements}


def test_lock_pins_every_dependency():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line.strip()[0] != "#"]
    assert all(re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+", line) for line in lines)
    project = PROJECT["project"]
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    wanted = project["dependencies"] + extras + PROJECT["dependency-groups"]["dev"]
    assert names(wanted) <= names(lines)


READMES = [ROOT / "README.md", *sorted(ROOT.glob("[!.]*/README.md")), *sorted(ROOT.glob("mnv3lib/*/README.md"))]


def test_conda_uses_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "mnv3lib"
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r requirements.txt", "-e ."]
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    version = python.removeprefix("python=")
    makefile = (ROOT / "Makefile").read_text()
    assert f"make PYTHON=/path/to/python{version}" in makefile and f"--python-version {version} " in makefile
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"


def test_make_tells_of_every_target():
    text = (ROOT / "Makefile").read_text()
    (targets,) = re.findall("^[.]PHONY: help (.*)$", text, flags=re.MULTILINE)
    assert set(re.findall('@echo "make ([a-z]+) ', text)) == set(targets.split())


@pytest.mark.parametrize("file", [str(path.relative_to(ROOT)) for path in READMES])
def test_links_and_names_of_files_exist(file):
    path = ROOT / file
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target

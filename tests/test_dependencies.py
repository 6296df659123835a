"""What is imported is declared, what is declared is imported, and the lock has it."""

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from mnv3lib.provenance import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAMES = packages_distributions()  # by the name that is imported
TOOLS = {"jupyterlab"}  # started, not imported


def name_of(requirement: str) -> str:
    """The name of a distribution as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


DECLARED = {name_of(one) for one in PROJECT["project"]["dependencies"]}
EXTRA = {name_of(one) for group in PROJECT["project"]["optional-dependencies"].values() for one in group}
EXTRA |= {name_of(one) for one in PROJECT["dependency-groups"]["dev"]}


def imported() -> tuple[set[str], set[str]]:
    """The distributions that mnv3lib and the notebooks import at the top, and those that they import in functions."""
    sources = [path.read_text() for path in (ROOT / "mnv3lib").rglob("*.py")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        sources += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    at_top, anywhere = set(), set()
    for tree in map(ast.parse, sources):
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"mnv3lib"}
            for package in packages:
                found = {name_of(one) for one in NAMES.get(package, [package])}
                anywhere |= found
                at_top |= found if node in tree.body else set()
    return at_top, anywhere


def test_what_is_imported_is_declared_and_the_other_way_round():
    at_top, anywhere = imported()
    assert at_top <= DECLARED
    assert anywhere <= DECLARED | EXTRA, "an extra may be imported where it is used alone"
    assert anywhere >= DECLARED - TOOLS


def locked(*path: str) -> dict[str, str]:
    """The version of each package in a lock."""
    lines = [line.partition("==") for line in ROOT.joinpath(*path).read_text().splitlines()]
    return {name_of(name): version.split()[0] for name, equals, version in lines if equals}


def test_the_lock_has_what_is_declared():
    assert set(locked("requirements.txt")) >= DECLARED | EXTRA


def test_the_lock_of_litert_s_converter():
    deploy = ("mnv3lib", "deploy")
    ours, converters = locked("requirements.txt"), locked(*deploy, "tflite-requirements.txt")
    assert set(converters) >= {name_of(one) for one in PROJECT["dependency-groups"]["converter"]}
    assert converters["ai-edge-litert"] == ours["ai-edge-litert"]
    left_out = ROOT.joinpath(*deploy, "tflite-excludes.txt").read_text().splitlines()
    assert not set(converters) & set(left_out)
    assert not [name for name in converters if name.startswith("nvidia")]

"""The layout: a core, and wings that stand on it; and what is imported only where it is used."""

import ast
import subprocess
import sys

import pytest

from mnv3lib.provenance import ROOT

PACKAGE = ROOT / "mnv3lib"
# What each part may import, besides itself.
BELOW = {
    "core": set(),
    "study": {"core"},
    "deploy": {"core"},
    "report": {"core", "study", "deploy"},
    "commands": {"core", "study", "deploy", "report"},
}
SLOW = set("pandas scipy matplotlib papermill dask distributed onnx onnxruntime sklearn torchvision".split())


def part(module: str) -> str:
    """The wing that a module is in, or the core."""
    names = module.split(".")
    return names[1] if len(names) > 1 and names[1] in BELOW else "core"


def imported(path, top_only: bool = False) -> set[str]:
    """The modules that a file imports, those of `from package import module` included."""
    found = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")
CORE = [path for path in FILES if path.relative_to(PACKAGE).parts[0] not in BELOW]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_from_the_core_outwards(path):
    mine = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    others = {part(name) for name in imported(path) if name.startswith("mnv3lib.")} - {mine}
    assert others <= BELOW[mine]


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_imports_nothing_slow_at_its_top(path):
    assert not {name.split(".")[0] for name in imported(path, top_only=True)} & SLOW


@pytest.mark.parametrize(
    "options", [["--help"], ["train", "--help"], ["train", "--colour", "red"], ["train", "--width", "0"]]
)
def test_help_and_errors_do_not_wait_for_torch(options):
    code = (
        "import sys; from mnv3lib.commands import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *options], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.splitlines()[-1] == "False"

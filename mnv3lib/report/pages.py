"""The report: the notebooks run and exported as pages, and which pages are out of date."""

import hashlib
import json
import os
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import nbformat
import yaml
from bs4 import BeautifulSoup

from mnv3lib import data, provenance, store, writing
from mnv3lib.errors import InputError
from mnv3lib.provenance import ROOT
from mnv3lib.report import readme, running
from mnv3lib.report.exporting import export
from mnv3lib.report.parameters import check as check_parameters
from mnv3lib.report.parameters import defaults

SETTINGS = "report.yaml"  # beside the notebooks: what the report passes to them and which it runs side by side
MANIFEST = "manifest.json"
HEADLINES = ("03_accuracy_macs", "04_accuracy_latency_recorded")  # the figures of the start page
CLAIMS = "05_claims"  # and the one that it has with the claims


class Page:
    """A notebook of the report; its first heading is the title, the first paragraph below the summary."""

    def __init__(self, path: Path):
        self.path, self.name, self.file = path, path.stem, f"{path.stem}.html"
        cells = nbformat.read(path, as_version=4).cells
        text = next((cell.source for cell in cells if cell.cell_type == "markdown"), "")
        heading, _, rest = text.partition("\n")
        paragraph = " ".join(rest.strip().split("\n\n")[0].split())
        self.title = heading.lstrip("# ").strip() or self.name
        self.summary = re.sub(r"\[([^]]*)\]\([^)]*\)|[*`$]", r"\1", paragraph)


def pages(folder: Path = ROOT / "notebooks") -> list[Page]:
    """The notebooks in `folder` whose name starts with two digits, in order."""
    return [Page(path) for path in sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))]


def make(
    *,
    notebooks: Path = ROOT / "notebooks",
    output: Path = ROOT / "report",
    figures: Path | None = None,
    models: Path | None = None,
    parameters: dict[str, dict] | None = None,
    changed: bool = False,
    log=print,
) -> Path:
    """Run the notebooks and write `output`/index.html and one page a notebook; returns the index.

    figures: their folder; by default the checkout's for its own report, else one beside `output`, called after it.
    parameters: for each notebook's name what to pass to it; by default what report.yaml beside the notebooks says.
    changed: run only the notebooks that `outdated` names, and keep the other pages and their figures.
    The notebooks that report.yaml names under side_by_side run first, side by side, each other one alone.
    Pages and figures are replaced together after the last notebook has succeeded, so a failure leaves the old ones.
    Raises InputError, before anything runs, if that would replace something else than a report.
    """
    settings = _settings(notebooks)
    parameters = settings["parameters"] if parameters is None else parameters
    all_pages = pages(notebooks)
    if not all_pages:
        raise InputError(f"there are no notebooks in {notebooks}")
    for page in all_pages:
        check_parameters(page.path, parameters.get(page.name, {}))
    if models and not models.is_dir():
        raise InputError(f"there is no folder {models}: name the one with the trained models")
    models = models or store.models_folder()
    ours = output.resolve() == ROOT / "report"
    figures = figures or (ROOT / "figures" if ours else output.with_name(f"{output.name}_figures"))
    made = f"Made {provenance.now()} from commit {provenance.commit()} by mnv3 report on {provenance.processor()}."
    with ExitStack() as stack:
        stack.enter_context(writing.only_writer(output, timeout=0))
        writing.clear(output)
        _refuse_to_replace_others(output, figures)
        wanted = outdated(output, notebooks, models, parameters) if changed else [page.name for page in all_pages]
        due = [page for page in all_pages if page.name in wanted]
        kept = [page for page in all_pages if page not in due]
        work = output.with_name(writing.NEW + output.name)
        stack.callback(writing.clear, output)
        (work / "pages").mkdir(parents=True)
        manifest = {page.name: inputs(page, all_pages, parameters, models) for page in all_pages}
        for page in kept:
            shutil.copyfile(output / page.file, work / "pages" / page.file)
        common = {
            # Relative, because the pages show them and should not show where this machine keeps things.
            "figures_folder": os.path.relpath(work / "figures", notebooks),
            "models_folder": os.path.relpath(models, notebooks),
            **_data_parameters(log),
        }
        jobs = {}
        for page in due:
            known = defaults(page.path)
            shared = {name: value for name, value in common.items() if name in known}
            jobs[page.path] = (work / f"{page.name}.ipynb", shared | parameters.get(page.name, {}))

        def write(notebook: Path) -> None:
            page = Page(notebook)
            html = export(jobs[notebook][0], page, all_pages, made, os.path.relpath(figures, output))
            (work / "pages" / page.file).write_text(html, encoding="utf-8")
            log(f"{page.name}: done")

        log(f"to run: {', '.join(page.name for page in due) or 'nothing'}")
        running.run_notebooks(
            jobs, write, side_by_side=[notebooks / f"{name}.ipynb" for name in settings["side_by_side"]]
        )
        old_figures = tuple(page.name[:3] for page in kept)
        shown = [figure_of(work / "pages", name) for name in HEADLINES]
        judged = figure_of(work / "pages", CLAIMS)
        index = readme.start(models, pages=all_pages, figures=shown, judged=judged, made=made)
        (work / "pages" / "index.html").write_text(index, encoding="utf-8")
        (work / "pages" / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        written = (work / "figures").glob("[0-9][0-9]_*")
        new = {path.name: path for path in sorted(written) if path.suffix in (".svg", ".png", ".csv")}
        gone = _figures_of(output) - new.keys()
        with ExitStack() as copies:  # a full disk shows before anything is replaced
            for name, figure in new.items():
                copy = copies.enter_context(writing.replacing(figures / name))
                shutil.copyfile(figure, copy)
                writing.sync(copy)
            writing.move_folder(work / "pages", output)
        for name in gone:
            if not name.startswith(old_figures):
                (figures / name).unlink(missing_ok=True)
    return output / "index.html"


def _figures_of(output: Path) -> set[str]:
    """The names of the files of figures, and of their tables, that the pages in `output` have links to."""
    links = r'href="[^"]*/(\d\d_[^"/]+\.(?:svg|png|csv))"'
    return {name for page in output.glob("*.html") for name in re.findall(links, page.read_text(encoding="utf-8"))}


def figure_of(folder: Path, name: str) -> str:
    """The figure `name` as the pages in `folder` have it, with its caption; empty where none has it."""
    for page in sorted(folder.glob(f"{name[:2]}_*.html")):
        for figure in BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")("figure"):
            if figure.select_one(f'a.full[href*="/{name}."]'):
                return str(figure)
    return ""


def _refuse_to_replace_others(output: Path, figures: Path) -> None:
    """Raise InputError if `output`, which is replaced as a whole, has files and is no report, or `figures` is in it."""
    if output.exists() and any(output.iterdir()) and not _manifest(output):
        raise InputError(f"{output} has files and no {MANIFEST} of a report: empty it or name another folder")
    if output.resolve() in (figures.resolve(), *figures.resolve().parents):
        raise InputError(f"the figures cannot be in {output}, which is replaced as a whole: name a folder outside it")


def _data_parameters(log) -> dict:
    """Where CIFAR-100 is, fetched if need be; else the notebooks train on digits and read the records."""
    folder = data.cifar100_folder()
    try:
        data.load("cifar100")
    except InputError as error:
        log(f"without CIFAR-100, from the records: {error}")
        return {"dataset": "digits"}
    os.environ["MNV3_DATA"] = str(folder.resolve())  # the notebooks run in another folder
    return {}


def _settings(notebooks: Path) -> dict:
    """What report.yaml says: `parameters` by notebook, and the list `side_by_side`."""
    return {"parameters": {}, "side_by_side": []} | yaml.safe_load((notebooks / SETTINGS).read_text())


def inputs(page: Page, all_pages: list[Page], parameters: dict[str, dict], models: Path) -> dict[str, str]:
    """SHA-256 of all that `page` is made from, by name.

    That is its notebook, what is passed to it, the records and tables in the folders that its parameters name,
    where `models` is that of the trained models, the axes and claims where one of these is that of the ablations, and
    the names and titles of all pages, to which it has links. The library's own code does not count.
    """
    known, passed = defaults(page.path), parameters.get(page.name, {})
    values = known | {"models_folder": models.absolute()} | passed
    read = [name for name in known if name.endswith("_folder") and name != "figures_folder" and values[name]]
    folders = [page.path.parent / values[name] for name in read]
    paths = [page.path]
    for folder in folders:
        paths += sorted(folder.glob(f"[!.]*/{store.RECORD}")) + sorted(folder.glob("*.[cj]s*"))  # .csv and .json
    axes = page.path.with_name("ablations.yaml")
    paths += [axes] if "ablations_folder" in known and axes.is_file() else []
    contents = {os.path.relpath(path, page.path.parent.parent): path.read_bytes() for path in paths}
    contents[SETTINGS] = json.dumps(passed, sort_keys=True).encode()
    contents["titles"] = json.dumps([(other.name, other.title) for other in all_pages]).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def outdated(
    output: Path = ROOT / "report",
    notebooks: Path = ROOT / "notebooks",
    models: Path | None = None,
    parameters: dict[str, dict] | None = None,
) -> dict[str, list[str]]:
    """The pages of the report in `output` that are not up to date, each with what has changed since it was made."""
    output = writing.standing(output)
    parameters = _settings(notebooks)["parameters"] if parameters is None else parameters
    models = models or store.models_folder()
    then, all_pages, changes = _manifest(output), pages(notebooks), {}
    for page in all_pages:
        before, now = then.get(page.name), inputs(page, all_pages, parameters, models)
        if before is None or not (output / page.file).is_file():
            changes[page.name] = [page.file]
        elif before != now:
            changes[page.name] = sorted(
                name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
            )
    return changes


def _manifest(output: Path) -> dict[str, dict[str, str]]:
    """What the pages in `output` were made from; empty where that is missing or damaged."""
    try:
        return {name: dict(made_from) for name, made_from in json.loads((output / MANIFEST).read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}

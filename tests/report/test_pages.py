"""The report: notebooks through papermill, pages that need nothing from elsewhere."""

import http.server
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from html import escape
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from mnv3lib import store
from mnv3lib.commands import main
from mnv3lib.errors import InputError
from mnv3lib.provenance import ROOT
from mnv3lib.report import exporting, pages, parameters, running

OVERRIDES = yaml.safe_load((Path(__file__).parent / "overrides.yaml").read_text())
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


PARAMETERS = 'count = 2  # a number\nname = "a"\nrate = 0.5\nnothing = None'


def write_notebook(path: Path, *cells: str, parameters: str = PARAMETERS) -> None:
    """A notebook with a heading, a cell of parameters, and `cells` of code."""
    parameters = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    opening = new_markdown_cell(
        "# A <b>title</b>\n\nHow much is $a^2 + b$? See [the next](02_second.ipynb).\n\n$$\\frac{1}{2}$$"
    )
    notebook = new_notebook(cells=[opening, parameters, *map(new_code_cell, cells)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@pytest.fixture
def notebooks(tmp_path):
    """A folder with two small notebooks and no parameters for them."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    figure = (
        "from mnv3lib.report import figures\nimport matplotlib.pyplot as plt\nimport pandas as pd\n"
        "figure, axes = plt.subplots()\ndata = pd.DataFrame({'epoch': [1], 'top1': [1 / 3]})\n"
        "figures.show(figure, '01_figure', alt='a \"quoted\" & plain text', caption='Empty.', data=data,"
        " folder=figures_folder)"
    )
    own = PARAMETERS + '\nfigures_folder = "../figures"'
    write_notebook(folder / "01_first.ipynb", figure, "count * 21", parameters=own)
    write_notebook(folder / "02_second.ipynb", "'<script>alert(1)</script>'")
    (folder / "report.yaml").write_text("{}\n")
    return folder


@pytest.fixture
def make(notebooks, tmp_path, monkeypatch):
    """Make the report of the small notebooks, with no trained models, and return its folder."""
    monkeypatch.setattr(pages, "_data_parameters", lambda log: {"dataset": "digits"})
    (tmp_path / "models").mkdir()

    def run(**options):
        pages.make(
            notebooks=notebooks,
            output=tmp_path / "report",
            figures=tmp_path / "figures",
            models=tmp_path / "models",
            log=lambda line: None,
            **options,
        )
        return tmp_path / "report"

    return run


def test_small_report(make, notebooks, tmp_path):
    folder = make(parameters={"01_first": {"count": 3}})
    first = (folder / "01_first.html").read_text()
    assert "63" in first
    assert "<math" in first and "$a^2" not in first
    assert 'href="02_second.html"' in first
    (figure,) = BeautifulSoup(first, "html.parser")("figure")
    assert figure.img["alt"] == 'a "quoted" & plain text' and "Empty." in figure.figcaption.get_text()
    files = [figure.select_one("a.full")["href"], figure.select_one("figcaption a")["href"]]
    assert [file.rpartition(".")[0] for file in files] == ["../figures/01_figure"] * 2
    assert (folder / files[1]).read_text() == "epoch,top1\n1,0.333333\n"
    assert (folder / files[0]).stat().st_size > 1000
    assert "<script>alert(1)" not in (folder / "02_second.html").read_text()
    start = (folder / "index.html").read_text()
    assert 'href="01_first.html"' in start and 'href="02_second.html"' in start


def test_code_is_folded_or_left_out_and_findings_come_first(tmp_path):
    def cell(number: int, *tags: str):
        output = new_output("display_data", data={"text/markdown": f"a sentence {number}"})
        printed = [
            new_output("stream", name=name, text=f"{ROOT}/{name} {number}\n")
            for name in ("stdout", "stderr")
            if tags == ()
        ]
        outputs = [*printed, output]
        return new_code_cell(f"code_{number} = 0", metadata={"tags": list(tags)} if tags else {}, outputs=outputs)

    path = tmp_path / "01_page.ipynb"
    cells = [cell(0), cell(1, "hide-input"), cell(2, "remove-input"), cell(3, "parameters")]
    cells += [new_code_cell("import numpy as np\nfrom pathlib import Path"), cell(4, "remove-input", "findings")]
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A page"), *cells]), path)
    page = pages.Page(path)
    soup = BeautifulSoup(exporting.export(path, page, [page], "made"), "html.parser")
    folded = soup("details")
    assert [found.summary.get_text(" ", strip=True) for found in folded] == [
        "Code 1 line", "What it printed", "Code 1 line", "Parameters 1 line", "Set-up 2 lines",
    ]  # fmt: skip
    assert not any(found.has_attr("open") for found in folded) and "code_1 = 0" in folded[2].get_text()
    assert folded[1].pre.get_text().split() == ["stdout", "0", "stderr", "0"]
    text = soup.find("main").get_text()
    assert [f"code_{number} = 0" in text for number in range(4)] == [True, True, False, True]
    assert all(f"a sentence {number}" in text for number in range(5))
    assert not any("a sentence" in found.get_text() for found in folded), "what a cell shows is not folded with it"
    assert soup.select_one("main .findings").get_text(" ", strip=True) == "a sentence 4"
    assert text.index("a sentence 4") < text.index("a sentence 0"), "findings come first"


def test_a_page_has_contents_anchors_and_neighbours(tmp_path):
    listed = []
    for name in ("01_one", "02_two", "03_three"):
        cells = [new_markdown_cell(f"# {name}"), new_markdown_cell("## Is *it* so?\n\n### Part\n\n## And `that`?")]
        nbformat.write(new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
        listed.append(pages.Page(tmp_path / f"{name}.ipynb"))
    html = exporting.export(listed[1].path, listed[1], listed, "made")
    soup = BeautifulSoup(html, "html.parser")
    links = soup.select("nav.contents ol a")
    assert [link.get_text() for link in links] == ["Is it so?", "Part", "And that?"]
    assert all(soup.find(id=link["href"][1:]).name in ("h2", "h3") for link in links)
    assert [link["href"] for link in soup.select("nav.steps a")] == ["01_one.html", "03_three.html"]
    assert soup.select_one("nav.pages [aria-current]")["href"] == "02_two.html"
    assert soup.select_one("a.open")["href"] == f"#{soup.body['id']}" == "#code"
    assert not soup("script") and len(soup.style.get_text()) < 40_000


def test_only_pages_that_changed_are_made_again(make, notebooks, tmp_path):
    def outdated():
        return pages.outdated(tmp_path / "report", notebooks, tmp_path / "models")

    reading = PARAMETERS + '\nrecorded_folder = "../tables"\nmodels_folder = "../nowhere"'
    write_notebook(notebooks / "03_third.ipynb", "'made', count", parameters=reading)
    assert list(outdated()) == ["01_first", "02_second", "03_third"]
    folder = make()
    assert outdated() == {}
    write_notebook(notebooks / "02_second.ipynb", "6 * 7")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "one.csv").write_text("a table")
    record = tmp_path / "models" / "run" / store.RECORD
    record.parent.mkdir()
    record.write_text("{}")
    (tmp_path / "models" / "linear.csv").write_text("a table beside records")
    assert outdated() == {
        "02_second": ["notebooks/02_second.ipynb"],
        "03_third": ["models/linear.csv", "models/run/record.json", "tables/one.csv"],
    }
    record.unlink()
    for name in ("01_old.png", "02_old.png", "02_holiday.png"):
        (tmp_path / "figures" / name).write_bytes(b"a figure")
    for name in ("01_old", "02_old"):  # the third is no figure of the report
        page = next(folder.glob(f"{name[:2]}_*.html"))
        page.write_text(page.read_text() + f'<a class="full" href="../figures/{name}.png">')
    before = {page.name: page.read_bytes() for page in folder.glob("0*.html")}
    make(changed=True)
    assert outdated() == {}
    after = {page.name: page.read_bytes() for page in folder.glob("0*.html")}
    assert [name for name in before if before[name] != after[name]] == ["02_second.html", "03_third.html"]
    assert "42" in after["02_second.html"].decode()
    left = {name: (tmp_path / "figures" / name).exists() for name in ("01_old.png", "02_old.png", "02_holiday.png")}
    assert left == {"01_old.png": True, "02_old.png": False, "02_holiday.png": True}
    (notebooks / "report.yaml").write_text("parameters: {01_first: {count: 5}}\n")
    assert outdated() == {"01_first": ["report.yaml"]}
    write_notebook(notebooks / "04_fourth.ipynb", "1")
    assert outdated()["02_second"] == ["titles"] and "04_fourth" in outdated()


def test_another_report_leaves_the_checkouts_figures(notebooks, tmp_path, monkeypatch):
    def execute(notebook, executed, parameters):
        shutil.copy(notebook, executed)
        (executed.parent / "figures").mkdir(exist_ok=True)
        (executed.parent / "figures" / "01_new.png").write_bytes(b"")

    monkeypatch.setattr(running, "run_notebook", execute)
    monkeypatch.setattr(pages, "_data_parameters", lambda log: {})
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "01_old.png").write_bytes(b"")
    (tmp_path / "models").mkdir()
    places = {"notebooks": notebooks, "models": tmp_path / "models", "log": str}
    pages.make(output=tmp_path / "mine", **places)
    assert [path.name for path in figures.iterdir()] == ["01_old.png"]
    assert [path.name for path in (tmp_path / "mine_figures").iterdir()] == ["01_new.png"]
    pages.make(output=tmp_path / "report", **places)
    assert sorted(path.name for path in figures.iterdir()) == ["01_new.png", "01_old.png"]
    with pytest.raises(InputError, match=r"there is no folder .*/model: name the one with the trained models"):
        pages.make(output=tmp_path / "report", **places | {"models": tmp_path / "model"})


def test_the_folder_one_is_in_is_no_place_for_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").touch()
    assert main(["report", "--output", "."]) == 1
    assert "has files and no manifest.json of a report" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_failing_cell_leaves_the_old_pages(make, notebooks):
    folder = make()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_notebook(notebooks / "02_second.ipynb", "fine = 1", "raise RuntimeError('the reason')")
    with pytest.raises(running.NotebookError, match=r"02_second\.ipynb, cell 3: RuntimeError: the reason"):
        make()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_kernel_that_dies_is_named(tmp_path):
    write_notebook(tmp_path / "01_first.ipynb", "import os", "os._exit(1)")
    with pytest.raises(running.NotebookError, match=r"01_first\.ipynb: its kernel died"):
        running.run_notebook(tmp_path / "01_first.ipynb", tmp_path / "out.ipynb", {})


MEET = """
import os, time
from pathlib import Path
here, other = Path("HERE"), Path("OTHER")
here.write_text(str(os.getpid()))
deadline = time.monotonic() + 120
while not other.exists():
    assert time.monotonic() < deadline, "nothing runs beside this"
    time.sleep(0.1)
"""


@pytest.fixture
def meeting(notebooks, tmp_path, monkeypatch):
    """Makes both small notebooks wait for each other, then do what is given; returns the files with their kernels."""
    (notebooks / "report.yaml").write_text("side_by_side: [02_second, 01_first]")
    monkeypatch.setattr(running, "cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def write(first: str, second: str) -> list[Path]:
        here = [tmp_path / "first.pid", tmp_path / "second.pid"]
        for path, name, then in zip(here, ("01_first", "02_second"), (first, second), strict=True):
            other = next(one for one in here if one != path)
            cell = MEET.replace("HERE", str(path)).replace("OTHER", str(other))
            write_notebook(notebooks / f"{name}.ipynb", cell, then)
        return here

    return write


def wait_for_the_end_of(kernels: list[Path]) -> None:
    deadline = time.monotonic() + 30
    for path in kernels:
        while Path(f"/proc/{path.read_text()}").exists():
            assert time.monotonic() < deadline, "a kernel goes on"
            time.sleep(0.1)


def test_notebooks_run_side_by_side_with_their_share_of_the_cores(make, meeting):
    meeting(*["print('threads', os.environ['OMP_NUM_THREADS'])"] * 2)
    folder = make()
    for name in ("01_first", "02_second"):
        assert "threads 1" in (folder / f"{name}.html").read_text()


SOCKETS = """
import json, ipykernel
with open(ipykernel.get_connection_file()) as file:
    connection = json.load(file)
there = Path(f"{connection['ip']}-{connection['shell_port']}").exists()
print("sockets", connection["transport"], connection["ip"], there)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="its sockets are no files")
def test_notebooks_that_start_at_once_have_sockets_of_their_own(make, meeting):
    meeting(SOCKETS, SOCKETS)
    folder = make()
    html = [(folder / f"{name}.html").read_text() for name in ("01_first", "02_second")]
    found = [re.search(r"sockets ipc (\S+) True", page).group(1) for page in html]
    assert found[0] != found[1]
    assert not any(Path(ip).parent.exists() for ip in found), "they are cleared away"


def test_where_temporary_files_have_long_paths_notebooks_run_too(notebooks, tmp_path, monkeypatch):
    folder = tmp_path / ("a" * 100)
    folder.mkdir()
    monkeypatch.setattr(running.tempfile, "tempdir", str(folder))
    running.run_notebook(notebooks / "02_second.ipynb", tmp_path / "out.ipynb", {})
    assert (tmp_path / "out.ipynb").is_file() and not list(folder.iterdir())


def test_a_kernel_that_does_not_start_is_one_line(notebooks, tmp_path, monkeypatch):
    kernel = tmp_path / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["false"], "display_name": "none", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    with pytest.raises(running.NotebookError, match=r"^01_first\.ipynb: its kernel did not start, run it again: "):
        running.run_notebook(notebooks / "01_first.ipynb", tmp_path / "out.ipynb", {})


def test_a_failure_ends_what_runs_beside_it(make, meeting, tmp_path):
    kernels = meeting("raise RuntimeError('the reason')", "time.sleep(600)")
    with pytest.raises(running.NotebookError, match=r"01_first\.ipynb, cell 3: RuntimeError: the reason"):
        make()
    assert not (tmp_path / "report").exists()
    wait_for_the_end_of(kernels)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_the_end_of_the_command_ends_all_notebooks(meeting, tmp_path, end):
    kernels = meeting("time.sleep(600)", "time.sleep(600)")
    (tmp_path / "models").mkdir()
    code = (
        "import signal; from pathlib import Path; from mnv3lib.report import pages, running; here = Path.cwd()\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell in the background has it ignored
        "pages._data_parameters, running.cores = lambda log: {}, lambda: 2\n"
        "pages.make(notebooks=here / 'notebooks', output=here / 'report', figures=here / 'figures',"
        " models=here / 'models')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in kernels):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(end)
    told = process.communicate(timeout=60)[1]
    wait_for_the_end_of(kernels)
    assert not (tmp_path / "report").exists()
    if end == signal.SIGINT:
        assert "KeyboardInterrupt" in told
        assert not list(tmp_path.glob(".mnv3-new-*"))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"cuont": 3}, "'cuont': choose from count, name, rate, nothing"),
        ({"count": "three"}, "count='three' should be int"),
        ({"count": True}, "count=True should be int"),
        ({"name": 1}, "name=1 should be str"),
        ({"name": None}, "name=None should be str"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(make, notebooks, parameters, message):
    write_notebook(notebooks / "01_first.ipynb", f"open({str(notebooks / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match=message):
        make(parameters={"02_second": parameters})
    assert not (notebooks / "ran").exists()


def test_an_int_serves_as_a_float_and_anything_as_none(notebooks):
    parameters.check(notebooks / "02_second.ipynb", {"rate": 1, "nothing": 3})


@pytest.fixture(scope="session")
def full_report(tmp_path_factory):
    """All five notebooks with the overrides of the tests, from the records of the repository."""
    folder = tmp_path_factory.mktemp("report")
    patch = pytest.MonkeyPatch()
    (folder / "none").mkdir()
    patch.setattr(pages, "_data_parameters", lambda log: {"data_folder": str(folder / "none"), "dataset": "digits"})
    patch.setenv("MNV3_CHECKPOINTS", str(folder / "checkpoints"))
    try:
        pages.make(output=folder / "report", figures=folder / "figures", parameters=OVERRIDES)
    finally:
        patch.undo()
    return folder / "report"


def test_every_notebook_runs_and_has_its_page(full_report):
    names = [page.name for page in pages.pages()]
    assert names == ["01_versions_explained", "02_train", "03_evaluate", "04_latency", "05_ablations"]
    assert set(OVERRIDES) == set(names)
    assert {path.stem for path in full_report.glob("*.html")} == {"index", *names}


def test_pages_are_whole(full_report):
    """Every figure has its alternative text, no formula is left as LaTeX, no path of this machine shows."""
    for page in full_report.glob("*.html"):
        html = page.read_text()
        soup = BeautifulSoup(html, "html.parser")
        assert all(len(image["alt"]) > 20 for image in soup("img")), page.name
        assert len({heading.get_text() for heading in soup("h1")}) == 1, page.name
        text = re.sub(r"<(style|pre|code)\b.*?</\1>|base64,[^\"]*", "", html, flags=re.DOTALL)
        assert not re.search(r"\$[^$\n]{1,80}\$", text), page.name
        assert str(Path.home()) + "/" not in html.replace(str(full_report.parent), ""), page.name


def loads(html: str) -> list[str]:
    """What a page would fetch: scripts, styles, images and the like from elsewhere."""
    tags = BeautifulSoup(html, "html.parser")(["script", "link", "img", "iframe", "source", "video", "audio", "object"])
    sources = [tag[name] for tag in tags for name in ("src", "href", "data") if tag.has_attr(name)]
    sources += re.findall(r"@import\s+[\"']?([^\"';]+)", html) + re.findall(r"url\(\s*[\"']?([^\"')]+)", html)
    return [source for source in sources if not source.startswith(("data:", "#"))]


def test_pages_name_nothing_to_load(full_report):
    assert loads('<script src="https://cdn.example/x.js"></script>') == ["https://cdn.example/x.js"]
    for page in full_report.glob("*.html"):
        assert loads(page.read_text()) == [], page.name


@pytest.fixture
def proxy():
    """A proxy on this machine that refuses everything and keeps the addresses it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def refuse(self):
            asked.append(self.path)
            self.send_error(502)

        do_GET = do_POST = do_CONNECT = do_HEAD = refuse  # noqa: N815

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], asked
    server.shutdown()


def browse(page: Path, port: int, profile: Path) -> str:
    """Open a page in a real browser behind the proxy; returns the document as the browser has it after loading."""
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --disable-default-apps --disable-extensions"
    command = [CHROMIUM, *quiet.split(), f"--user-data-dir={profile}", f"--proxy-server=http://127.0.0.1:{port}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_browser_asks_for_nothing(full_report, proxy, tmp_path):
    port, asked = proxy

    def foreign():
        return [address for address in asked if not re.search(r"google|gvt1|chrome", address)]  # the browser's own

    control = tmp_path / "control.html"
    control.write_text('<img src="http://example.org/picture.png">')
    browse(control, port, tmp_path / "profile")
    assert any("example.org" in address for address in foreign())
    asked.clear()
    for page in sorted(full_report.glob("*.html")):
        document = browse(page, port, tmp_path / "profile")
        assert "<h1" in document
        assert foreign() == [], page.name


AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not here: npm ci --prefix tests/report fetches it")
def test_pages_are_accessible(full_report, proxy, tmp_path):
    """axe-core, in a real browser, finds nothing to complain about; and finds what is wrong with a page that is bad."""
    run = """axe.run().then(found => {
      document.body.innerHTML = '<pre id="found"></pre>';
      document.getElementById("found").textContent =
        JSON.stringify(found.violations.map(one => [one.id, one.nodes.map(node => node.html.slice(0, 200))]));
    })"""

    def violations(html: str) -> list:
        page = tmp_path / "page.html"
        page.write_text(
            re.sub('<meta[^>]*http-equiv="?Content-Security-Policy"?[^>]*>', "", html)
            + f"<script>{AXE.read_text()}</script><script>{run}</script>"
        )
        document = BeautifulSoup(browse(page, proxy[0], tmp_path / "profile"), "html.parser")
        return json.loads(document.find(id="found").get_text())

    bad = violations(
        "<!DOCTYPE html><html><title>Bad</title><body><main><h1>Bad</h1><img src='data:,'></main></body></html>"
    )
    assert {"image-alt", "html-has-lang"} <= {name for name, _ in bad}
    for page in sorted(full_report.glob("*.html")):
        assert violations(page.read_text()) == [], page.name


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_no_page_is_wider_than_a_phone(proxy, tmp_path):
    """At 390 pixels tables and figures scroll by themselves, and the page as a whole does not."""
    frames = {"wide": '<!DOCTYPE html><p style="width: 500px">wide</p>'}
    frames |= {path.name: path.read_text() for path in sorted((ROOT / "report").glob("*.html"))}
    measure = """addEventListener("load", () => {
      const width = frame => frame.contentDocument.documentElement.scrollWidth;
      const found = [...document.querySelectorAll("iframe")].map(frame => [frame.id, width(frame)]);
      document.body.innerHTML = '<pre id="found"></pre>';
      document.getElementById("found").textContent = JSON.stringify(found);
    })"""
    page = tmp_path / "page.html"
    page.write_text(
        "".join(
            f'<iframe id="{name}" style="width: 390px; border: 0" srcdoc="{escape(html)}"></iframe>'
            for name, html in frames.items()
        )
        + f"<script>{measure}</script>"
    )
    found = json.loads(BeautifulSoup(browse(page, proxy[0], tmp_path / "profile"), "html.parser").find(id="found").text)
    widths = dict(found)
    assert widths.pop("wide") > 500, "this would notice"
    assert widths.keys() == {path.name for path in (ROOT / "report").glob("*.html")}
    assert {name: width for name, width in widths.items() if width > 390} == {}


def test_committed_report_is_small_and_complete():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "report").glob("*.html")}
    assert not any(str(ROOT) in path.read_text() for path in (ROOT / "report").glob("*.html"))
    assert {page.file for page in pages.pages()} | {"index.html"} == set(sizes)
    assert sum(sizes.values()) < 10_000_000


def test_what_pages_read_of_the_ablations_is_among_their_inputs():
    """Else a page would keep quoting an older spread between seeds, and `report --check` would not notice."""
    listed = pages.pages()
    reading = [page for page in listed if "ablations.load_records(" in page.path.read_text()]
    assert len(reading) > 1
    for page in reading:
        inputs = pages.inputs(page, listed, {}, store.models_folder())
        assert any(name.startswith("results/ablations/") for name in inputs), page.name

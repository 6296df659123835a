"""What a stranger sends: nothing of it is run, nothing leaves its folder, and what does not fit is named."""

import errno
import json
import pickle
import shutil
from pathlib import Path

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from records import record_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.models import mobilenet_v3_small

from mnv3lib import data, inference, recipe, store, training
from mnv3lib.commands import main
from mnv3lib.errors import InputError
from mnv3lib.report import exporting, pages, sweep, tables
from mnv3lib.study import evaluation, importing, labelling, places, results

SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture
def run(tmp_path, tiny, few_digits):
    """The folder of a run, trained on a few digits."""
    made = tiny()
    training.train(made, dataset=few_digits, models=tmp_path / "models", checkpoints=tmp_path / "c", log=str)
    return tmp_path / "models" / made.run


@pytest.fixture
def refused(capsys):
    """Run a command that must fail with one line that has `words` in it."""

    def check(arguments, *words):
        assert main([str(argument) for argument in arguments]) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mnv3: error: ")]
        assert len(lines) == 1, lines
        assert all(word in lines[0] for word in words), lines

    return check


def architecture(**changes):
    count = changes.get("num_classes", 10)
    classes = [str(number) for number in range(min(count, 1000))]
    return lambda header: (
        header
        | {
            "architecture": header["architecture"] | changes,
            "classes": classes,
        }
    )


def listed(name, value):
    return lambda header: header | {name: value}


HEADERS = {
    "model 'v9'": architecture(model="v9"),
    "'model'": lambda header: header | {"architecture": {}},
    "width 1": architecture(width=1e300),
    "whole number": architecture(num_classes=10**30),
    "shape": architecture(num_classes=11),
    "penultimate": architecture(penultimate=10**12),
    "classifier.0": architecture(penultimate=100_000),
    "classes": listed("classes", ["0"]),
    "printable": listed("classes", ["a\x1b[2J", *"123456789"]),
    "same name": listed("classes", ["0"] * 10),
    "std": listed("std", [1, 1, 0]),
    "mean": listed("mean", [float("nan"), 0, 0]),
}
TENSORS = {
    "missing": lambda state: state.pop("features.0.0.weight"),
    "superfluous": lambda state: state.update(more=torch.zeros(1)),
    "another shape": lambda state: state.update({"features.0.0.weight": torch.zeros(16, 3, 5, 5)}),
    "type": lambda state: state.update({"classifier.0.bias": state["classifier.0.bias"].double()}),
    "no finite": lambda state: state["classifier.0.bias"].fill_(torch.nan),
    "variances": lambda state: state["features.0.1.running_var"].fill_(-1),
}


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path


def test_weights_that_do_not_fit(run, picture, refused, trying):
    path = run / store.WEIGHTS
    original = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[store.HEADER])
    for word, change in (HEADERS | TENSORS).items():
        with trying("weights that do not fit their header"):
            state = {key: value.clone() for key, value in load_file(path).items()}
            told = header
            if word in HEADERS:
                told = change(header)
            else:
                change(state)
            save_file(state, path, {store.HEADER: json.dumps(told)})
            refused(["predict", picture, "--models", run.parent], word, str(path))
        path.write_bytes(original)


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickles_are_never_run(run, tmp_path, picture, refused, trying):
    trace = tmp_path / "trace"
    old = tmp_path / "old.pth"
    renamed = tmp_path / "renamed.safetensors"
    command = ["import", old, "--model", "small", "--run", "old", "--dataset", "digits", "--models", tmp_path / "in"]
    for content in (Evil(trace), {"state_dict": {"features.0.0.weight": Evil(trace)}}):
        for write in (
            lambda path, content=content: path.write_bytes(pickle.dumps(content)),
            lambda path, content=content: torch.save(content, path),
            lambda path, content=content: torch.save(content, path, _use_new_zipfile_serialization=False),
        ):
            with trying("pickle that would make a file"):
                write(old)
                refused(command, str(old))
                write(renamed)
                with pytest.raises(InputError, match=r"renamed\.safetensors"):
                    store.load_weights(renamed)
                for file in (store.WEIGHTS, store.PREDICTIONS, store.RECORD):
                    kept = (run / file).read_bytes()
                    write(run / file)
                    refused(["predict", picture, "--models", run.parent] if file != store.PREDICTIONS else
                            ["evaluate", "--recorded", "--models", run.parent], file)  # fmt: skip
                    (run / file).write_bytes(kept)
                assert not trace.exists()
    torch.load(old, weights_only=False)  # so would it be
    assert trace.exists()


def test_an_old_checkpoint_is_imported(tmp_path, few_digits, trying, refused, capsys, monkeypatch, picture):
    torch.manual_seed(0)
    theirs = mobilenet_v3_small(num_classes=10).eval()
    path, models = tmp_path / "old.pth", tmp_path / "models"
    torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.state_dict().items()}}, path)
    monkeypatch.setattr(data, "load", lambda *_, **__: few_digits)
    command = ["import", path, "--model", "small", "--lowered-strides", "0", "--dataset", "digits", "--models", models]
    assert main([*map(str, command), "--run", "old", "--mean", ".5", ".5", ".5", "--std", ".2", ".2", ".2"]) == 0
    network = store.load("old", models)
    assert network.mean == (0.5, 0.5, 0.5)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network(images), theirs(images))
    record = store.load_record("old", models)
    assert record["imported"]["file"] == "old.pth"
    assert f"old: top-1 {record['result']['top1']:.2f} %" in capsys.readouterr().out
    assert main(["evaluate", "--models", str(models)]) == main(["predict", str(picture), "--models", str(models)]) == 0
    (recorded,) = evaluation.evaluate(["old"], models=models, recorded=True)
    assert places.trained_on(recorded.record).startswith("an unknown machine; measured on")
    for more, word in (
        (["--run", "old"], "exists"),
        (["--run", "../old"], "no name"),
        (["--run", "b", "--width", "2"], "tensor"),
    ):
        with trying("import that does not fit"):
            refused([*command, *more], word)
    with trying("import that does not fit"):
        torch.save(theirs, path)
        refused([*command, "--run", "b"], "state_dict()")


def test_compressed_checkpoints_are_refused(tmp_path, trying):
    """Torch writes none, and a few kilobytes of one could be terabytes."""
    import zipfile

    path = tmp_path / "old.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as file:
        content = {member.filename: file.read(member) for member in file.infolist()}
    with trying("absurd size"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, value in content.items():
                file.writestr(name, value)
        with pytest.raises(InputError, match="compressed"):
            importing.read_pth(path)


@pytest.mark.parametrize(
    "name", ["../secret", "..", "/etc", "a/../../b", ".hidden", "a\\b", "a\n", "", SCRIPT, "x" * 300]
)
def test_names_of_runs_stay_inside(run, tmp_path, picture, refused, trying, name):
    shutil.copytree(run, tmp_path / "secret")
    for command in (["evaluate", name], ["predict", picture, "--run", name]):
        with trying("name of a run that leads elsewhere"):
            refused([*command, "--models", run.parent], "no name of a run")
    with trying("name of a run that leads elsewhere"), pytest.raises(InputError, match="no name of a run"):
        store.save(run.parent, {"run": name}, [], None, None)
    with trying("name of a run that leads elsewhere"):
        try:
            assert store.run_folder(recipe.make(variant=name).run, run.parent).resolve().parent == run.parent
        except InputError as error:
            assert "variant" in str(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "models", "picture.png", "secret"]


def test_postscript_is_not_run(tmp_path, trying):
    with trying("image that is a program"):
        path = tmp_path / "picture.png"
        Image.new("RGB", (8, 8)).save(path, "EPS")
        with pytest.raises(InputError, match="PostScript"):
            inference.load_image(path)


# The report


def output(kind: str, value: str, **metadata):
    return new_output("display_data", data={kind: value}, metadata=metadata)


def page(tmp_path, *outputs) -> BeautifulSoup:
    """The page of a notebook that has been run."""
    cells = [new_markdown_cell("# A page\n\nA sentence."), new_code_cell("1", outputs=list(outputs))]
    path = tmp_path / "01_page.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    made = pages.Page(path)
    return BeautifulSoup(exporting.export(path, made, [made], "made"), "html.parser")


def test_names_show_as_text(tmp_path, trying, run):
    """Of runs, classes and images, in every kind of output that the notebooks have."""
    picture = tmp_path / "photographs" / IMAGE
    picture.parent.mkdir()
    Image.new("RGB", (40, 40)).save(picture)
    network = store.load(run.name, run.parent)
    network.classes = tuple(SCRIPT if name == "3" else name for name in network.classes)
    store.save_weights(network, run / store.WEIGHTS)
    guesses = labelling.table(labelling.label([picture], models=run.parent, top=10))
    assert {SCRIPT, IMAGE} <= set(guesses["class"]) | set(guesses["image"])
    record = json.loads((run / store.RECORD).read_text())
    record["environment"]["processor"] = record["commit"] = record["started"] = SCRIPT
    table = results.load_runs(run.parent).reindex([0]).assign(run=SCRIPT, epochs=1)
    results_table = tables.html(tables.runs(table)).data
    plain = guesses.assign(run=SCRIPT)
    png = "iVBORw0KGgo="
    told = "".join(f"- {value}\n" for value in (SCRIPT, IMAGE, f"**{SCRIPT}**", f"*{IMAGE}*"))
    outputs = {
        "a table of the report": output("text/html", tables.html(tables.text(plain)).data),
        "the table of results": output("text/html", results_table),
        "pandas": output("text/html", plain.to_html()),
        "pandas without escaping": output("text/html", plain.to_html(escape=False)),
        "Styler without escaping": output("text/html", plain.style.format(precision=2).to_html()),
        "Markdown": output("text/markdown", told),
        "printed": new_output("stream", text=SCRIPT + IMAGE),
        "text": output("text/plain", SCRIPT),
        "alternative text": output("image/png", png, **{"image/png": {"alt": f'">{SCRIPT}{IMAGE}'}}),
        "SVG": output("image/svg+xml", f"<svg>{SCRIPT}</svg>"),
        "JavaScript": output("application/javascript", "alert(1)"),
    }
    for name, one in outputs.items():
        with trying("markup in a name"):
            soup = page(tmp_path, one)
            assert soup("script") == [], name
            assert [image for image in soup("img") if image.has_attr("onerror")] == [], name
            assert soup.find("meta", {"http-equiv": "Content-Security-Policy"})
            if name in ("alternative text",):
                assert SCRIPT in soup.find("img")["alt"]
            elif name not in ("SVG", "JavaScript"):
                assert SCRIPT in soup.find("main").get_text(), name
    for text in (tables.html(tables.text(plain)).data, results_table):
        with trying("markup in a name"):  # in JupyterLab there is no exporter between
            assert not BeautifulSoup(text, "html.parser")(["script", "img"])
            assert SCRIPT in BeautifulSoup(text, "html.parser").get_text()


@pytest.fixture
def quick_report(tmp_path, monkeypatch):
    """Make a report of one notebook, whose run writes a figure, without a kernel; returns what is there afterwards."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    told = 'model = "v3_small"\nwidth = 1.0\nchanges = {}\ndataset = "cifar100"\ndata_folder = None\nstart = None'
    parameters = new_code_cell(told, metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# A page\n\nA sentence."), parameters, new_code_cell("1")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), notebooks / "01_page.ipynb")
    (notebooks / "report.yaml").write_text("{}\n")
    (tmp_path / "models").mkdir()
    content = [b"old"]

    def execute(notebook, executed, parameters):
        shutil.copy(notebook, executed)
        for name in ("01_a", "01_b"):
            figure = executed.parent / "figures" / f"{name}.png"
            figure.parent.mkdir(exist_ok=True)
            figure.write_bytes(content[0])

    monkeypatch.setattr(pages.running, "run_notebook", execute)
    monkeypatch.setattr(pages, "_data_parameters", lambda log: {})

    def make(new=b"old", **options):
        content[0] = new
        folders = {name: tmp_path / name for name in ("notebooks", "figures", "models")}
        pages.make(output=tmp_path / "report", log=str, **folders | options)

    return make


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_without_room_leaves_the_old_one(quick_report, tmp_path, monkeypatch, trying):
    quick_report()
    before = tree(tmp_path)

    def full(original, number):
        calls = []

        def call(*arguments, **options):
            calls.append(arguments)
            if len(calls) == number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments, **options)

        return call

    places = [(shutil, "copyfile", 1), (shutil, "copyfile", 2), (Path, "write_text", 1), (Path, "write_text", 2)]
    places += [(Path, "write_text", 3), (Path, "rename", 1), (Path, "rename", 2)]
    for owner, name, number in places:
        with trying("full disk while the report is written"):
            monkeypatch.setattr(owner, name, full(getattr(owner, name), number))
            with pytest.raises(OSError, match="No space left"):
                quick_report(b"new")
            monkeypatch.undo()
            assert tree(tmp_path) == before, (name, number)
            monkeypatch.setattr(pages, "_data_parameters", lambda log: {})
            monkeypatch.setattr(
                pages.running, "run_notebook", lambda notebook, executed, _: executing(notebook, executed)
            )


def executing(notebook, executed):
    """What `quick_report` does in place of a run."""
    shutil.copy(notebook, executed)
    (executed.parent / "figures").mkdir(exist_ok=True)
    for name in ("01_a", "01_b"):
        (executed.parent / "figures" / f"{name}.png").write_bytes(b"new")


def test_a_report_leaves_the_files_of_others(quick_report, tmp_path, trying):
    """Whatever folders it is told to write to, and whatever lies beside them."""
    for name in ("report/thesis.txt", "report/manifest.json", "figures/wedding.png", ".report-backup/thesis.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"name": "an application"}')
    before = tree(tmp_path)
    with trying("somebody's files in the folder of the report"):
        with pytest.raises(InputError, match=r"report has files and no manifest\.json of a report: .* another folder"):
            quick_report()
        assert tree(tmp_path) == before
    shutil.rmtree(tmp_path / "report")
    before = tree(tmp_path)
    for figures in ("report", "report/figures"):
        with trying("figures in the folder of the report"), pytest.raises(InputError, match="figures cannot be in"):
            quick_report(figures=tmp_path / figures)
    with trying("somebody's files beside the report"):
        quick_report()
        quick_report(b"new")
        assert before.items() < tree(tmp_path).items()


def test_a_report_killed_between_two_renames_comes_back(quick_report, tmp_path, trying):
    quick_report()
    with trying("SIGKILL while the report is replaced"):
        (tmp_path / "report").rename(tmp_path / ".mnv3-old-report")
        (tmp_path / ".mnv3-new-report" / "pages").mkdir(parents=True)
        (tmp_path / ".mnv3-new-report" / "pages" / "01_page.html").write_text("half")
        before = tree(tmp_path)
        assert pages.outdated(tmp_path / "report", tmp_path / "notebooks", tmp_path / "models") == {}
        assert tree(tmp_path) == before, "to look changes nothing"
        quick_report(b"new")
        assert (tmp_path / "report" / "01_page.html").is_file()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("parameters", "word"),
    [({"widht": 1.0}, "widht"), ({"width": "1"}, "float"), ({"width": -1.0}, "width -1"), ({"model": "v9"}, "v9"),
     ({"changes": {"momentum": 2}}, "momentum 2"), ({"changes": {"colour": 1}}, "colour")],
)  # fmt: skip
def test_parameters_are_refused_before_anything_runs(quick_report, tmp_path, monkeypatch, trying, parameters, word):
    monkeypatch.setattr(pages.running, "run_notebook", None)
    with trying("wrong parameter"), pytest.raises(InputError, match=rf"01_page\.ipynb.*{word}"):
        quick_report(parameters={"01_page": parameters})
    assert not (tmp_path / "report").exists()


# Batches and training


def test_a_step_that_breaks_the_network_is_not_kept(tiny, few_digits, tmp_path, monkeypatch, trying):
    """The loss is from before the last step of an epoch, and still finite."""
    made, path = tiny(epochs=3), tmp_path / "run" / "checkpoint.pt"
    original = training.train_epoch

    def spoil(recipe, network, several, split, epoch, step):
        row = original(recipe, network, several, split, epoch, step)
        if epoch == 1:
            name, value = where
            dict(network.state_dict())[name].fill_(value)
        return row

    monkeypatch.setattr(training, "train_epoch", spoil)
    for where in (("classifier.0.bias", torch.nan), ("features.0.1.running_var", torch.inf)):
        with trying("weights that are no longer numbers"):
            with pytest.raises(training.DivergedError, match="after epoch 2: lower learning_rate") as caught:
                training.fit_recipe(made, few_digits, state=path, log=str)
            assert where[0] in str(caught.value)
            state = torch.load(path, weights_only=True)
            assert len(state["history"]) == 1
            assert all(torch.isfinite(value).all() for value in state["network"].values())


def test_a_damaged_record_does_not_end_the_sweep(tiny, tmp_path, trying, monkeypatch):
    class Ended:
        def done(self):
            return True

        def result(self):
            return None

    class Client:
        def submit(self, function, job, **_):
            folder = job.models / job.run
            folder.mkdir(parents=True)
            (folder / store.RECORD).write_text("{" if job.recipe.seed == 1 else json.dumps(record_of(job.recipe)))
            return Ended()

    monkeypatch.setattr(sweep, "POLL", 0)
    jobs = [sweep.Job(tiny(seed=seed), tmp_path / "m", tmp_path / "c", tmp_path / "e") for seed in range(3)]
    lines = []
    with trying("damaged record in a sweep"):
        failed = sweep.sweep(jobs, Client(), log=lines.append)
        assert list(failed) == [jobs[1].run]
        assert store.RECORD in failed[jobs[1].run]
        assert sum("top-1 50.00 %" in line for line in lines) == 2


@pytest.mark.parametrize("model", ["v1", "v2", "v3_small", "v3_large"])
def test_the_same_again(tiny, few_digits, tmp_path, trying, model):
    """Trained twice on one machine with one number of threads: the same file of weights."""
    with trying("the same run again"):
        contents = set()
        for folder in (tmp_path / "a", tmp_path / "b"):
            made = tiny(model=model, epochs=2, dropout=0.1)
            training.train(made, dataset=few_digits, models=folder, checkpoints=folder / "c", log=str)
            contents.add((folder / made.run / store.WEIGHTS).read_bytes())
        assert len(contents) == 1


def test_architecture_of_an_import_is_checked_first(tmp_path, refused, trying, monkeypatch):
    """Before the images, which may have to be downloaded, and before the file."""
    monkeypatch.setattr(data, "load", None)
    command = ["import", tmp_path / "none.pth", "--model", "v2", "--run", "a", "--models", tmp_path]
    with trying("import that does not fit"):
        refused([*command, "--width", "-1"], "width -1")

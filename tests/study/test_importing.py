"""Checkpoints as others write them: whose weights are taken, under which keys, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import mobilenet_v3_small

import mnv3lib
from mnv3lib import data, store
from mnv3lib.commands import main
from mnv3lib.errors import InputError
from mnv3lib.recipe import Architecture
from mnv3lib.study import importing

SMALL = Architecture("v3_small", width=0.25, num_classes=10, penultimate=8, lowered_strides=0)


@pytest.fixture(scope="module")
def raw():
    torch.manual_seed(0)
    return mnv3lib.networks.MobileNet(SMALL).state_dict()


@pytest.fixture(scope="module")
def average(raw):
    return {key: value / 2 if value.is_floating_point() else value for key, value in raw.items()}


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def taken(content, tmp_path, weights=None):
    torch.save(content, tmp_path / "a.pth")
    return importing.read_pth(tmp_path / "a.pth", weights)


def same(found, state):
    return found.tensors.keys() == state.keys() and all(torch.equal(found.tensors[key], state[key]) for key in state)


def swapped(key):
    """As torch.compile, checkpointing and FSDP put a module around one inside the network."""
    return key.replace("features.1.", "features.1._checkpoint_wrapped_module.").replace(
        "features.2.", "features.2._fsdp_wrapped_module._orig_mod."
    )


FORMS = {
    "alone": lambda raw: raw,
    "DataParallel": lambda raw: prefixed(raw, "module."),
    "torch.compile": lambda raw: prefixed(raw, "_orig_mod."),
    "compiled, then parallel": lambda raw: prefixed(raw, "module._orig_mod."),
    "parallel, then compiled": lambda raw: prefixed(raw, "_orig_mod.module."),
    "Lightning": lambda raw: {"state_dict": prefixed(raw, "model.") | {"loss.weight": torch.ones(10)}, "epoch": 3},
    "a wrapper nobody knows": lambda raw: {"run": {"networks": [prefixed(raw, "backbone.1.")]}},
    "SWA": lambda raw: prefixed(raw, "module.") | {"n_averaged": torch.tensor(3)},
    "thop": lambda raw: raw | {"total_ops": torch.zeros(1), "features.0.0.total_params": torch.zeros(1)},
    "wrapped inside": lambda raw: {swapped(key): value for key, value in raw.items()},
    "with its optimizer": lambda raw: {
        "model": raw,
        "optimizer": {"exp_avg": parameters(raw), "state": {0: {"momentum_buffer": torch.ones(3)}}},
        "args": {"lr": 0.1},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_wrappers_come_off(raw, tmp_path, form):
    found = taken(FORMS[form](raw), tmp_path)
    assert same(found, raw)
    assert found.others == []


AVERAGES = {
    "torchvision": (lambda raw, average: {"model": raw, "model_ema": prefixed(average, "module.")}, "model_ema.module"),
    "timm": (lambda raw, average: {"state_dict": raw, "state_dict_ema": average}, "state_dict_ema"),
    "ema-pytorch": (
        lambda raw, average: prefixed(raw, "online_model.") | prefixed(average, "ema_model."),
        "ema_model",
    ),
    "Lightning": (
        lambda raw, average: {"state_dict": prefixed(raw, "net.") | prefixed(average, "net_ema.module.")},
        "state_dict.net_ema.module",
    ),
    "SWA": (lambda raw, average: {"model": raw, "swa_model": prefixed(average, "module.")}, "swa_model.module"),
    "raw behind": (lambda raw, average: {"ema": average, "net": raw}, "ema"),
}


@pytest.mark.parametrize("form", AVERAGES)
def test_the_average_is_taken_and_an_option_takes_the_other(raw, average, tmp_path, form):
    make, name = AVERAGES[form]
    found = taken(make(raw, average), tmp_path)
    assert same(found, average)
    assert found.name == name
    (other,) = found.others
    assert same(taken(make(raw, average), tmp_path, other), raw)


def parameters(state):
    return {key: value for key, value in state.items() if "running" not in key and "num_batches" not in key}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda raw, average: {"best": raw, "last": average}, ("best, last", "--weights")),
        (lambda raw, average: prefixed(raw, "student.") | prefixed(average, "teacher."), ("student, teacher",)),
        (lambda raw, average: {"ema": raw, "swa": average}, ("ema, swa", "--weights")),
        (lambda raw, average: {"model": raw, "ema": {"shadow": parameters(average)}}, ("averages", "ema.shadow")),
        (
            lambda raw, average: {"model": raw, "ema": {"shadow_params": list(parameters(average).values())}},
            ("averages", "--weights"),
        ),
        (lambda raw, average: {"conv1.weight": torch.ones(1)}, ("no network", "conv1.weight")),
        (lambda raw, average: {}, ("no network",)),
    ],
)
def test_what_cannot_be_decided_is_named(raw, average, tmp_path, make, words):
    with pytest.raises(InputError) as caught:
        taken(make(raw, average), tmp_path)
    assert all(word in str(caught.value) for word in words), caught.value
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_are_not_there_and_those_that_are(raw, average, tmp_path):
    content = {"model": raw, "ema": {"shadow": parameters(average)}}
    assert same(taken(content, tmp_path, "model"), raw)
    with pytest.raises(InputError, match=r"'best'.*choose from model"):
        taken(content, tmp_path, "best")


def test_a_file_that_holds_itself_is_read(raw, tmp_path):
    content = {"model": raw}
    content["self"] = content
    content["twice"] = [content] * 1000
    assert same(taken(content, tmp_path), raw)


def test_safetensors_are_read(raw, tmp_path):
    save_file({key: value.clone() for key, value in prefixed(raw, "model.").items()}, tmp_path / "a.safetensors")
    assert same(importing.read_pth(tmp_path / "a.safetensors"), raw)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit")
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "script.pth")
    files = {
        "git-lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        "page.pth": (b"<!DOCTYPE html><html></html>", "web page"),
        "keras.pth": (b"\x89HDF\r\n\x1a\n", "Keras"),
        "packed.pth": (b"\x1f\x8b\x08\x00", "unpack"),
        "script.pth": (None, "TorchScript"),
    }
    for name, (content, word) in files.items():
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} is .*{word}"):
            importing.read_pth(tmp_path / name)


@pytest.mark.parametrize("share", (0.005, 0.02, 0.04, 0.1, 0.5, 0.99))
def test_a_download_that_broke_off_is_called_damaged(raw, tmp_path, share):
    """torch's reader answers the shortest with an OSError, as a disk would."""
    torch.save({"model": raw}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"a\.pth is damaged"):
        importing.read_pth(tmp_path / "a.pth")


def test_the_record_tells_which_weights_and_the_mend_names_three_tensors(
    raw, average, few_digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(data, "load", lambda *_, **__: few_digits)
    path, models = tmp_path / "a.pth", tmp_path / "models"
    torch.save({"model": raw, "model_ema": prefixed(average, "module.")}, path)
    command = ["import", str(path), "--model", "small", "--width", "0.25", "--dataset", "digits", "--models"]
    command += [str(models), "--lowered-strides", "0"]
    assert main([*command, "--penultimate", "8", "--run", "a"]) == 0
    assert "weights are those of model_ema.module; not taken: model" in capsys.readouterr().err
    origin = store.load_record("a", models)["imported"]
    assert (origin["weights"], origin["not_taken"], origin["keys"]) == ("model_ema.module", ["model"], "torchvision")
    assert torch.equal(store.load("a", models).features[0][0].weight, average["features.0.0.weight"])
    assert main([*command, "--penultimate", "8", "--run", "b", "--weights", "model"]) == 0
    assert torch.equal(store.load("b", models).features[0][0].weight, raw["features.0.0.weight"])
    capsys.readouterr()
    assert main([*command, "--run", "c"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "classifier.0.weight is of another shape" in line and "penultimate" in line
    torch.save({key.replace("block", "conv"): value for key, value in raw.items()}, path)
    assert main([*command, "--penultimate", "8", "--run", "c"]) == 1
    line = capsys.readouterr().err
    assert line.count("features.1.block") <= 3 < line.count("more") + 3
    assert "is missing" in line


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "mobilenetv3_large_100", "mobilenetv2_100"])
def test_timms_networks_give_the_same_logits(name, few_digits, tmp_path):
    """Also where a variance is near zero, and in whatever order the file has them."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=10)
    with torch.no_grad():
        theirs.train()(torch.randn(4, 3, 32, 32))
    theirs.bn1.running_var[0] = 1e-5
    model = {"mobilenetv3_small_100": "v3_small", "mobilenetv3_large_100": "v3_large"}.get(name, "v2")
    torch.save({"state_dict_ema": dict(sorted(theirs.eval().state_dict().items()))}, tmp_path / "a.pth")
    architecture = Architecture(model, num_classes=10, lowered_strides=0)
    record = importing.import_pth(
        tmp_path / "a.pth", "a", tmp_path / "models", architecture=architecture, dataset=few_digits
    )
    assert record["imported"]["keys"] == "timm"
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(store.load("a", tmp_path / "models")(images), theirs(images), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("size", [4, 600])
def test_a_size_that_no_run_can_have_is_refused(size, few_digits, tmp_path):
    with pytest.raises(InputError, match=f"image size {size}: give a whole number from 8 to 512"):
        importing.import_pth("a.pth", "a", tmp_path, architecture=SMALL, dataset=few_digits, size=size)
    assert not any(tmp_path.iterdir())


def test_timms_others_are_refused(tmp_path):
    state = {"conv_stem.weight": torch.zeros(1), "bn1.running_mean": torch.zeros(1), "blocks.0.1.odd.weight": None}
    with pytest.raises(InputError, match="ReLU6"):
        importing.from_timm(state, Architecture("v1"))
    with pytest.raises(InputError, match=r"blocks\.0\.1\.odd\.weight is in no V2 or V3"):
        importing.from_timm(state, SMALL)
    del state["blocks.0.1.odd.weight"]
    with pytest.raises(InputError, match="2 tensors where this one has"):
        importing.from_timm(state, SMALL)


def test_torchvisions_narrow_v3_is_called_that(few_digits, tmp_path):
    torch.save(mobilenet_v3_small(width_mult=0.5, num_classes=10).state_dict(), tmp_path / "a.pth")
    architecture = Architecture("v3_small", width=0.5, num_classes=10)
    with pytest.raises(InputError, match="torchvision's, which narrows V3 in another way"):
        importing.import_pth(tmp_path / "a.pth", "a", tmp_path, architecture=architecture, dataset=few_digits)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]

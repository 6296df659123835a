"""Every runtime gives the same answers, and the peers are what ours are compared with."""

import multiprocessing

import pandas as pd
import pytest
import torch
from torch import nn

from mnv3lib import cost, networks
from mnv3lib.deploy import latency, peers, runtimes, timing
from mnv3lib.errors import InputError


@pytest.fixture(scope="module")
def small():
    """A network with what matters of a MobileNet, small enough to be compiled in a test."""
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ]
    return latency.settle(nn.Sequential(*layers), 8)


@pytest.mark.parametrize("runtime", runtimes.RUNTIMES)
def test_every_runtime_answers_as_pytorch(runtime, small, long):
    if runtime == "tflite" and not long:
        pytest.skip("fetches LiteRT's converter: try it with --long")
    if runtime == "compiled" and not runtimes.compiler():
        pytest.skip("there is no C++ compiler")
    images = timing.random_images(3, 8)
    with torch.inference_mode():
        expected = small(images)
    answer = runtimes.Runner(small, 8).contestant(runtime, images, threads=1)()
    tolerance = 0.1 if runtime.endswith("-int8") else 1e-5
    torch.testing.assert_close(torch.as_tensor(answer), expected, atol=tolerance, rtol=0)
    assert not small.training


def test_without_a_compiler_the_mend_is_told(small, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"install g\+\+"):
        runtimes.Runner(small, 8).contestant("compiled", timing.random_images(1, 8))


def test_the_process_of_the_default_runtime_ends_with_its_callable(small):
    before = set(multiprocessing.active_children())
    call = runtimes.Runner(small, 8).contestant("default", timing.random_images(1, 8), threads=1)
    (process,) = set(multiprocessing.active_children()) - before
    assert call().shape == (1, 5)
    del call
    process.join(timeout=20)
    assert process.exitcode == 0


def test_unknown_runtime(small):
    with pytest.raises(InputError, match="runtime 'tensorrt'"):
        runtimes.Runner(small, 8).contestant("tensorrt", timing.random_images(1, 8))


@pytest.mark.parametrize("lowered", [0, 3])
@pytest.mark.parametrize("model", ["v2", "v3_small", "v3_large"])
def test_torchvisions_network_is_ours_with_the_same_weights(model, lowered):
    theirs = latency.settle(peers.build("torchvision", model, lowered_strides=lowered))
    ours = networks.build(model, lowered_strides=lowered)
    ours.load_state_dict(theirs.state_dict())
    images = timing.random_images(2)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs(images))


@pytest.mark.parametrize("model", ["v1", "v2", "v3_small", "v3_large"])
def test_timms_network_has_the_same_cost(model):
    pytest.importorskip("timm")
    assert cost.totals(peers.build("timm", model)) == cost.totals(networks.build(model))


def test_peers_that_there_are_not():
    with pytest.raises(InputError, match="network of torchvision 'v1'"):
        peers.build("torchvision", "v1")
    with pytest.raises(InputError, match="library 'keras'"):
        peers.build("keras", "v1")


def test_compare_puts_runtimes_and_libraries_into_one_table(tmp_path):
    subjects = latency.grid(["v3_small"], [0.25]) + latency.theirs(["v2"])
    table = latency.compare(
        subjects, runtimes=["eager", "folded"], batches=[1], threads=[1], seconds=0.01, devices=["cpu"]
    )
    assert table[["library", "runtime"]].to_numpy().tolist() == [
        ["mnv3lib", "eager"],
        ["mnv3lib", "folded"],
        ["torchvision", "eager"],  # other libraries' networks are not folded
        ["timm", "eager"],
    ]
    assert table["macs"][2] == cost.totals(networks.build("v2"))[1]
    name = latency.file_name(table.assign(measured="2026-01-02T03:04:05Z", processor="A (R) Chip"))
    assert name == "2026-01-02T0304_a-r-chip_1-threads_32px_eager+folded.csv"
    table.to_csv(tmp_path / name, index=False)
    again = latency.load_tables(tmp_path)
    assert again["median_ms"].tolist() == pytest.approx(table["median_ms"].tolist())
    assert set(again["file"]) == {name}
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"other\.csv is no table"):
        latency.load_tables(tmp_path)


def test_nothing_recorded(tmp_path):
    assert latency.load_tables(tmp_path).empty
    assert isinstance(latency.load_tables(tmp_path / "no folder"), pd.DataFrame)


@pytest.mark.parametrize(("most", "rounds"), [(16, [2]), (1, [1, 1])])
def test_networks_share_their_rounds_where_their_processes_fit_side_by_side(most, rounds, monkeypatch):
    measured = []

    def measure(contestants, **options):
        measured.append(len(contestants))
        return timing.measure(contestants, **options)

    monkeypatch.setattr(latency, "PROCESSES", most)
    monkeypatch.setattr(latency, "measure", measure)
    latency.compare(
        latency.grid(["v3_small", "v2"], [0.25]), runtimes=["onnxruntime"], batches=[1], threads=[1], seconds=0.01
    )
    assert measured == rounds

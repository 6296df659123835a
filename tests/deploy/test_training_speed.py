"""The benchmark of the training loops: what it counts, and that each loop really trains."""

import math

import pytest
import torch

from mnv3lib import build, cost, kernels, recipe
from mnv3lib.commands import main
from mnv3lib.deploy import latency, training_speed
from mnv3lib.errors import InputError


def test_ratios_are_to_the_faster_plain_loop_and_the_warm_up_does_not_count(monkeypatch):
    asked = []
    speeds = {
        "mnv3lib": iter([999, 30, 60, 40]),
        "mnv3lib, torch alone": iter([512, 25, 29, 27]),
        "plain": iter([128, 10, 12, 11]),
        "plain, 2 workers": iter([256, 20, 22, 18]),
    }

    def start(make, loop, made, threads):
        def train(steps):
            asked.append((loop, steps))
            return next(speeds[loop]), 7, 100.0 + len(loop)

        return train

    monkeypatch.setattr(training_speed.processes, "start", start)
    table = training_speed.compare("v3_small", 0.25, rounds=3, seconds=4, threads=2).set_index("loop")
    assert table["images_per_second"].to_dict() == {
        "mnv3lib": 40,
        "mnv3lib, torch alone": 27,
        "plain": 11,
        "plain, 2 workers": 20,
    }
    assert table["peak_mib"]["plain"] == 105
    assert set(table["kernels"]) == {kernels.way()}
    assert table["times"]["mnv3lib"] == 2
    assert table.loc["mnv3lib", ["low", "high"]].tolist() == [30, 60]
    assert dict(asked) == {  # four seconds' worth of batches of 128
        "mnv3lib": 31,
        "mnv3lib, torch alone": 16,
        "plain": 4,
        "plain, 2 workers": 8,
    }
    assert [loop for loop, _ in asked[:4]] == list(training_speed.LOOPS)
    assert latency.file_name(table.reset_index()).endswith("_2-threads_training.csv")


@pytest.mark.parametrize(("loop", "model"), [("_ours", "v3_small"), ("_plain", "v3_small"), ("_plain", "v1")])
def test_each_loop_trains(loop, model, monkeypatch):
    stepped = []
    before = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *args: stepped.append(before(self, *args)))
    made = recipe.make(model=model, width=0.25, batch_size=4)
    train = getattr(training_speed, loop)(*([made] if loop == "_ours" else [made, 0]))
    speed, parameters = train(2)
    assert speed > 0
    assert parameters > 100_000
    assert len(stepped) == 2
    train(1)
    assert len(stepped) == 3


def test_layers_of_a_step_are_all_found_and_add_up():
    pytest.importorskip("numba")
    threads = torch.get_num_threads()
    table = training_speed.layers("v3_small", 0.25, batch_size=16, steps=1)
    assert table["share"].sum() == pytest.approx(100)
    assert list(table["kind"].unique()) == ["pointwise", "depthwise", "norm, activation", "squeeze-excitation", "rest"]
    assert (table["share"] > 0.5).all()  # a function that has got another name would have gone into the rest
    assert torch.get_num_threads() == threads
    convolutions = cost.layers(build("v3_small", width=0.25)).query("kind in ('standard', 'pointwise', 'depthwise')")
    macs = convolutions[~convolutions["layer"].str.contains("fc")]["macs"]
    assert table["gflop"].sum() == pytest.approx(2 * 16 * (3 * macs.sum() - macs.iloc[0]) / 1e9)
    limited = table.dropna(subset=["at_least"])
    assert len(limited) >= 7
    assert (limited["gflop"] <= limited["at_least"] / 1000 * limited["gemm"] * 1.001).all()
    assert (limited["gbyte"] <= limited["at_least"] / 1000 * limited["copy"] * 1.001).all()
    text = training_speed.readable_layers(table)
    assert text["times the limit"].iloc[-1] == "–"
    assert latency.file_name(table).endswith("_1-threads_step.csv")


def test_what_a_layer_moves_at_the_least():
    work = training_speed._work(recipe.make(model="v1", width=1.0, batch_size=2)).set_index(["kind", "direction"])
    depthwise = [layer for layer in cost.layers(build("v1")).itertuples() if layer.kind == "depthwise"]
    numbers = sum(math.prod(layer.input) + math.prod(layer.output) for layer in depthwise)
    assert work["gbyte"]["depthwise", "forward"] == pytest.approx(2 * 4 * numbers / 1e9)
    assert work["gbyte"]["depthwise", "backward"] == pytest.approx(2 * 8 * numbers / 1e9)
    assert "squeeze-excitation" not in work.index.get_level_values("kind")


def test_layers_are_of_the_compiled_kernels_alone(monkeypatch):
    monkeypatch.setattr(kernels, "way", lambda: "torch")
    with pytest.raises(InputError, match="numba"):
        training_speed.layers("v3_small", 0.25)


def test_the_loop_with_torch_alone_has_no_kernels(monkeypatch):
    monkeypatch.setenv("MNV3_KERNELS", "")
    kernels.calling.loops.cache_clear()
    monkeypatch.setattr(training_speed, "_ours", lambda made: lambda steps: (kernels.way(), 7))
    way, parameters, peak = training_speed._loop("mnv3lib, torch alone", None, 1)(1)
    kernels.calling.loops.cache_clear()
    assert (way, parameters) == ("torch", 7)
    assert peak > 100


def test_command_line_in_real_processes(capsys, tmp_path):
    arguments = ["--model", "small", "--width", "0.25", "--batch", "4", "--threads", "1", "--seconds", "0.01"]
    assert main(["latency", "--training", *arguments, "--out", str(tmp_path / "speed.csv")]) == 0
    text = capsys.readouterr().out
    for loop in training_speed.LOOPS:
        assert loop in text
    assert len((tmp_path / "speed.csv").read_text().splitlines()) == 1 + len(training_speed.LOOPS)


def test_what_cannot_be_compared(capsys):
    with pytest.raises(SystemExit):
        main(["latency", "--layers"])
    assert "--training" in capsys.readouterr().err
    for option in ("--peers", "--device cuda", "--runtime eager", "--lowered-strides 0", "--models elsewhere"):
        with pytest.raises(SystemExit):
            main(["latency", "--training", *option.split()])
        assert "--training takes" in capsys.readouterr().err

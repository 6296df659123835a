"""The measuring function against a clock under our hands, and what the package measures with it."""

import json
import time

import pandas as pd
import pytest
import torch
from records import record_of

from mnv3lib import cost, inference, networks, recipe, store
from mnv3lib.commands import latency as latency_command
from mnv3lib.commands import main
from mnv3lib.deploy import comparisons, latency, profiling, timing
from mnv3lib.deploy.comparisons import Reached
from mnv3lib.errors import InputError


class Clock:
    """Time that passes only when a contestant lets it."""

    def __init__(self):
        self.time, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.time

    def contestant(self, name: str, durations):
        durations = iter(durations)

        def call():
            self.calls.append(name)
            self.time += next(durations)

        return call


def forever(value: float):
    while True:
        yield value


def test_summary_is_of_the_calls_after_the_warm_up():
    clock = Clock()
    durations = [9.0, *(value / 1000 for value in (10, 20, 30, 40, 50))]
    row = timing.measure({"a": clock.contestant("a", durations)}, seconds=0.01, clock=clock).iloc[0]
    assert row["calls"] == 5
    assert row[["median_ms", "p25_ms", "p75_ms", "p90_ms"]].tolist() == pytest.approx([30, 20, 40, 46])
    assert row["noisy"]


def test_a_steady_contestant_is_not_noisy():
    clock = Clock()
    table = timing.measure({"a": clock.contestant("a", forever(0.125))}, seconds=5, clock=clock)
    assert table["calls"].item() == 40
    assert table["median_ms"].item() == 125
    assert not table["noisy"].item()


@pytest.mark.parametrize(("spread", "noisy"), [(0.02, False), (0.2, True)])
def test_noisy_says_that_the_interquartile_range_is_wide(spread, noisy):
    row = timing.summary([1 - spread, 1 - spread / 2, 1, 1 + spread / 2, 1 + spread])
    assert row["noisy"] is noisy


def test_contestants_take_turns():
    clock = Clock()
    contestants = {name: clock.contestant(name, forever(1.0)) for name in "abc"}
    timing.measure(contestants, seconds=0.1, clock=clock)
    rounds = ["".join(clock.calls[start : start + 3]) for start in range(0, len(clock.calls), 3)]
    assert len(rounds) == 1 + timing.ROUNDS
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 1  # not always in the same order


def test_a_machine_that_slows_down_slows_all_down():
    clock = Clock()

    def slowing(work: float):
        while True:
            yield work * (1 + clock.time / 100)

    contestants = {name: clock.contestant(name, slowing(work)) for name, work in {"a": 0.1, "b": 0.2}.items()}
    table = timing.measure(contestants, seconds=20, clock=clock).set_index("name")
    assert table["median_ms"]["b"] / table["median_ms"]["a"] == pytest.approx(2, rel=0.1)


def test_a_known_sleep_is_measured():
    row = timing.measure({"sleep": lambda: time.sleep(0.01)}, seconds=0.1).iloc[0]
    assert 10 <= row["median_ms"] < 60  # a busy machine wakes late, never early
    assert row["calls"] >= timing.ROUNDS


def test_threads_are_as_told_and_set_back():
    before = torch.get_num_threads()
    seen = []
    table = timing.measure({"a": lambda: seen.append(torch.get_num_threads())}, threads=before + 1, seconds=0.01)
    assert set(seen) == {before + 1}
    assert table["threads"].item() == before + 1
    assert torch.get_num_threads() == before

    def broken():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        timing.measure({"a": broken}, threads=before + 1, seconds=0.01)
    assert torch.get_num_threads() == before


def test_nothing_to_measure_is_one_clear_line():
    with pytest.raises(InputError, match="contestant"):
        timing.measure({})
    for seconds in (0, -1, float("nan")):
        with pytest.raises(InputError, match="seconds"):
            timing.measure({"a": print}, seconds=seconds)


def test_forward_is_in_eval_and_inference_mode():
    network = networks.build("v3_small", 0.25).train()
    statistics = network.features[0][1].running_mean.clone()
    output = timing.forward(network, timing.random_images(2))()
    assert output.is_inference()
    assert not network.training
    assert torch.equal(statistics, network.features[0][1].running_mean)


def test_untrained_networks_have_no_denormal_activations():
    tiny = torch.finfo(torch.float32).tiny
    for model in recipe.MODELS:
        network = latency.untrained(networks.Architecture(model, 0.25))
        outputs = []
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d):
                module.register_forward_hook(lambda *arguments, to=outputs: to.append(arguments[2].clone()))
        timing.forward(network, timing.random_images(1))()
        assert not any(((output != 0) & (output.abs() < tiny)).any() for output in outputs)
        assert 0.01 < min(output.std() for output in outputs) <= max(output.std() for output in outputs) < 100


def test_untrained_networks_are_the_same_every_time_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    first, second = (latency.untrained(networks.Architecture("v3_small", 0.25)).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(state, torch.get_rng_state())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with two runs of one network, of which one is a variant, and a run without weights."""
    folder = tmp_path_factory.mktemp("models")
    for changes in ({}, {"seed": 1}, {"width": 0.5}):
        made = recipe.make("modern", **{"model": "v3_small", "width": 0.25} | changes)
        network = networks.MobileNet(made.architecture)
        network.classes = tuple(str(index) for index in range(100))
        store.save(folder, record_of(made), [{"epoch": 1}], network if made.width == 0.25 else None, None)
    return folder


def test_the_grid_takes_trained_weights_where_there_are_any(models):
    known = latency.trained(models)
    assert [subject.run for subject in known] == ["mobilenet_v3_small_0.25", "mobilenet_v3_small_0.25_seed1"]
    subjects = latency.grid(["v3_small", "v1"], [0.25, 0.5], known)
    assert [(one.model, one.width, one.run) for one in subjects] == [
        ("v3_small", 0.25, "mobilenet_v3_small_0.25"),
        ("v3_small", 0.5, None),
        ("v1", 0.25, None),
        ("v1", 0.5, None),
    ]


def test_subjects_by_name_by_shape_or_all(models, monkeypatch):
    monkeypatch.setattr(latency, "WIDTHS", (0.25,))
    runs = lambda *args: [subject.run for subject in latency.subjects(*args, folder=models)]  # noqa: E731
    name = "mobilenet_v3_small_0.25_seed1"
    assert runs([name]) == [name]
    assert runs([name], ["v1"], [0.25]) == [name, None]
    assert runs([], ["v3_small"], [0.25]) == ["mobilenet_v3_small_0.25"]
    everything = runs()
    assert everything[:2] == ["mobilenet_v3_small_0.25", name]
    assert everything[2:] == [None] * 3  # of the four networks one is trained
    with pytest.raises(InputError, match="no_such_run"):
        runs(["no_such_run"])


def test_compare_says_what_was_measured(models):
    table = latency.compare(
        latency.subjects([], ["v3_small"], [0.25, 0.5], folder=models), batches=[1, 2], threads=[1], seconds=0.01
    )
    assert len(table) == 4
    assert table["batch"].tolist() == [1, 1, 2, 2]
    assert table["run"].isna().tolist() == [False, True] * 2
    assert set(table["threads"]) == {1}
    assert set(table["runtime"]) == {"channels_last"}
    assert table["macs"][0] == cost.totals(networks.build("v3_small", 0.25))[1]
    assert (table["median_ms"] > 0).all()
    assert {"processor", "torch", "system", "measured", "noisy"} <= set(table)


@pytest.mark.parametrize("model", recipe.MODELS)
def test_folding_batch_norm_keeps_the_answers(model):
    network = latency.untrained(networks.Architecture(model, 0.25))
    images = timing.random_images(2)
    folded = inference.fold(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(
        timing.forward(folded, images)(), timing.forward(network, images)(), rtol=1e-4, atol=1e-4
    )


def test_layer_times_cover_every_layer_once():
    network = latency.untrained(networks.Architecture("v3_small", 0.25))
    table = profiling.layer_times(network, timing.random_images(1), threads=1, seconds=0.05)
    assert table["layer"].is_unique
    assert table["kind"].iloc[-1] == "rest"
    assert table["macs"].sum() == cost.totals(network)[1]
    assert (table["median_ms"].iloc[:-1] > 0).all()
    kinds = table["kind"].value_counts()
    gates = [name for name, module in network.named_modules() if isinstance(module, profiling.SqueezeExcitation)]
    assert kinds["squeeze-excitation"] == len(gates)
    assert kinds["depthwise"] == 11
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_hard_swish_maps_are_where_the_paper_has_them():
    maps = profiling.hard_swish_maps(networks.build("v3_large", lowered_strides=0), size=224)
    assert maps[0] == (16, 112, 112)
    assert maps[1] == (240, 28, 28)
    assert maps[-2:] == [(960, 7, 7), (1280,)]
    assert not profiling.hard_swish_maps(networks.build("v2", 0.25))


def test_command_line(models, tmp_path, capsys):
    common = ["latency", "mobilenet_v3_small_0.25", "--models", str(models), "--seconds", "0.01", "--device", "cpu"]
    assert main([*common, "--batch", "1", "2", "--threads", "1", "--out", str(tmp_path / "out.csv")]) == 0
    text = capsys.readouterr().out
    assert "mobilenet_v3_small_0.25" in text
    assert "milliseconds" in text
    assert pd.read_csv(tmp_path / "out.csv")["batch"].tolist() == [1, 2]
    assert main([*common, "--batch", "1", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["run"] == "mobilenet_v3_small_0.25"
    noisy = pd.DataFrame([{"noisy": True}, {"noisy": False}])
    shown = latency_command.as_text(pd.read_csv(tmp_path / "out.csv").assign(**noisy), "table")
    assert "1 of the 2 measurements are noisy (an interquartile range wider than 15% of the median)" in shown
    assert main(["latency", "no_such_run", "--models", str(models)]) == 1
    assert "no_such_run" in capsys.readouterr().err
    (tmp_path / "note.txt").write_text("a note")
    assert main([*common, "--batch", "1", "--out", str(tmp_path / "note.txt")]) == 1
    shown = capsys.readouterr()
    assert "is no folder: name one, or a file that ends in .csv" in shown.err and not shown.out
    assert main([*common, "--batch", "1", "--out", str(tmp_path / "two.CSV")]) == 0 and (tmp_path / "two.CSV").is_file()
    with pytest.raises(SystemExit):
        main([*common, "--peers", "--runtime", "onnxruntime"])
    assert "add one to --runtime" in capsys.readouterr().err


def test_networks_of_other_libraries_that_no_runtime_takes_leave_the_rest_measured(monkeypatch):
    monkeypatch.setattr(latency, "PROCESSES", 0)  # so that each shape is a group of its own
    ours, theirs = latency.subjects([], ["v3_small"], [0.25]), latency.theirs(["v2"])
    table = latency.compare([*ours, *theirs], runtimes=["folded", "onnxruntime"], batches=[1], seconds=0.01, calls=5)
    assert set(table["model"]) == {"v3_small"}


def measured(**milliseconds) -> pd.DataFrame:
    """Contestants with a middle half of 10 % around the median."""
    rows = [
        {"name": name, "median_ms": value, "p25_ms": 0.95 * value, "p75_ms": 1.05 * value}
        for name, value in milliseconds.items()
    ]
    return pd.DataFrame(rows)


def test_versus_says_whether_the_middle_halves_are_apart():
    table = measured(a=10.0, b=10.5, c=20.0)
    assert timing.versus(table, "c", "a") == (2.0, True)
    assert timing.versus(table, "a", "c") == (0.5, True)
    assert timing.versus(table, "b", "a") == (pytest.approx(1.05), False)


def test_growth_is_from_the_narrowest_to_the_widest():
    table = measured(a=4.0, b=1.0, c=2.0, d=5.0).assign(
        model=["v1", "v1", "v1", "v2"], width=[1.0, 0.25, 0.5, 1.0], macs=[160, 10, 40, 7], device="cpu", batch=1
    )
    (row,) = comparisons.growth(table).itertuples()  # V2 has one width alone
    assert (row.model, row.macs, row.time) == ("v1", 16, 4)


def test_misleading_finds_the_network_with_fewer_macs_and_more_time():
    table = measured(a=10.0, b=20.0, c=21.0).assign(
        model=["v1", "v2", "v3_small"], width=1.0, macs=[100, 50, 60], device="cpu", batch=1
    )
    (row,) = comparisons.misleading(table).itertuples()
    assert (row.lean, row.heavy, row.macs, row.time) == ("V2 1", "V1 1", 2, 2)
    (row,) = comparisons.misleading(table.assign(macs=[50, 60, 100])).itertuples()
    assert row.lean is None


def test_prices_are_found_again():
    rows = pd.DataFrame({"layers": [30, 50, 60, 60], "macs": [6e8, 3e8, 6e7, 2e8], "batch": 2, "device": "cpu"})
    rows["median_ms"] = 0.1 * rows["layers"] + 20 * 2 * rows["macs"] / 1e9
    (row,) = comparisons.prices(rows.assign(model=["v1", "v2", "v3_small", "v3_large"], width=1.0)).itertuples()
    assert (row.layer, row.gmac, row.error) == pytest.approx((0.1, 20, 0), abs=1e-9)
    assert (row.most, row.least) == ("V3 Small 1", "V1 1")
    assert (row.most_share, row.least_share) == pytest.approx((6 / 8.4, 3 / 27))
    negative = rows.assign(median_ms=20 * 2 * rows["macs"] / 1e9 - 0.01 * rows["layers"], model="v1", width=1.0)
    assert comparisons.prices(negative)[["layer", "gmac", "most"]].isna().all(axis=None)


def test_front_keeps_what_nobody_beats():
    table = measured(a=1.0, b=2.0, c=3.0, d=4.0).assign(top1=[60.0, 59.0, 65.0, None])
    assert cost.pareto_front(table, "median_ms")["name"].tolist() == ["a", "c"]


def test_at_equal_macs_the_time_is_interpolated_between_widths():
    table = pd.DataFrame(
        {
            "model": ["v2", "v2", "v1", "v3_small"],
            "width": [0.5, 1.0, 1.0, 1.0],
            "macs": [1e6, 4e6, 9e6, 2e6],
            "top1": [50.0, 60.0, 70.0, 55.0],
            "median_ms": [1.0, 4.0, 5.0, 1.0],
            "device": "cpu",
            "batch": 1,
        }
    )
    (row,) = comparisons.at_equal(table, "macs").itertuples()  # V1 has but one network
    assert (row.network, row.at, row.model) == ("V3 Small 1", 2e6, "v2")
    assert row.ratio == pytest.approx(2)
    (row,) = comparisons.at_equal(table, "top1", uncertain=2.5).itertuples()
    assert row.at == 55
    # a quarter of the way: half as much time or twice
    assert (row.ratio, row.low, row.high) == pytest.approx((2, 2**0.5, 2**1.5))
    (row,) = comparisons.at_equal(table, "top1", uncertain=6).itertuples()
    assert row.ratio == pytest.approx(2) and pd.isna(row.low) and pd.isna(row.high), "no V2 has so little or so much"
    assert comparisons.at_equal(table.assign(macs=[1e6, 1.5e6, 9e6, 2e6]), "macs").empty


def test_a_device_that_runs_no_runtime_is_left_out():
    """A GPU, where only PyTorch's own runtimes are measured; before anything is measured in vain."""
    with pytest.raises(InputError, match="no device here runs onnxruntime"):
        latency.compare([], runtimes=["onnxruntime"], devices=["cuda"])


def test_newest_goes_by_the_time_and_not_by_the_name():
    rows = [("2026-11-26_xeon.csv", 1, "2026-11-26T10:00:00Z"), ("2026-11-26_epyc.csv", 1, "2026-11-26T11:00:00Z")]
    rows += [("2026-11-26_epyc.csv", 2, "2026-11-26T11:05:00Z"), ("mine.csv", 2, "2020-01-01T00:00:00Z")]
    table = pd.DataFrame(rows, columns=["file", "threads", "measured"])
    (row,) = latency.newest(table).itertuples()
    assert (row.file, row.threads) == ("2026-11-26_epyc.csv", 2)
    assert latency.newest(table[:0]).empty


def test_relative_is_to_torchvision_else_to_timm_and_within_one_file():
    rows = [
        ("a", "v1", "mnv3lib", "eager", 2.0),
        ("a", "v1", "timm", "eager", 4.0),
        ("a", "v2", "mnv3lib", "onnxruntime", 3.0),
        ("a", "v2", "torchvision", "eager", 6.0),
        ("a", "v2", "timm", "eager", 12.0),
        ("b", "v2", "mnv3lib", "eager", 1.0),
        ("c", "v2", "torchvision", "eager", 3.0),
        ("c", "v2", "torchvision", "default", 4.0),
    ]
    table = pd.DataFrame(rows, columns=["file", "model", "library", "runtime", "median_ms"])
    table = table.assign(p25_ms=table["median_ms"] / 2, p75_ms=2 * table["median_ms"])
    found = latency.relative(table.assign(device="cpu", threads=1, batch=1, size=32, width=1.0))
    assert found[found["file"] == "c"].set_index("label")["ratio"]["torchvision, eager"] == 0.75
    found = found[found["file"] == "a"]
    ratio = found.set_index(["model", "label"])["ratio"].to_dict()
    assert ratio == {
        ("v1", "eager"): 0.5,
        ("v1", "timm, eager"): 1.0,
        ("v2", "onnxruntime"): 0.5,
        ("v2", "torchvision, eager"): 1.0,
        ("v2", "timm, eager"): 2.0,
    }
    assert found["low"].iloc[0] == 0.25
    assert set(found["reference"]) == {"timm, eager", "torchvision, eager"}
    assert comparisons.ratios(found, "timm, eager").to_dict() == {(1, "v1"): 1, (1, "v2"): 2}
    assert comparisons.ratios(found, "onnxruntime", "timm, eager").to_dict() == {(1, "v2"): 0.25}
    assert comparisons.ratios(found, "openvino").empty
    assert comparisons.ratios(found[:0], "onnxruntime", "timm, eager").empty


def test_goals_say_who_reached_them():
    labels = ("folded", "onnxruntime", "onnxruntime-int8", "eager", "torchvision, eager")
    ratios = {
        "v1": [9, 9, 9, 9, 1],  # torchvision has none: it does not count
        "v2": [0.95, 0.5, 0.4, 1, 0.98],
        "v3_small": [0.8, 0.2, 0.3, 0.9, 0.98],
        "v3_large": [0.88, 0.2, 0.3, 1.05, 0.98],
    }
    rows = pd.DataFrame(
        {"model": model, "batch": 1, "label": label, "ratio": ratio, "low": 0.95 * ratio, "high": 1.05 * ratio}
        for model, measured in ratios.items()
        for label, ratio in zip(labels, measured, strict=True)
    )
    speeds = pd.DataFrame(
        {
            "model": ["v3_small"] * 3,
            "width": [0.25, 1.0, 1.0],
            "loop": ["mnv3lib", "mnv3lib", "plain"],
            "times": [2, 2.9, 4],
        }
    )
    table = comparisons.goals(rows, speeds)
    small = table[(table["goal"] == "eager") & (table["model"] == "v3_small")]
    assert small["measured"].item() == pytest.approx(0.9 / 0.98)
    assert small["aim"].item() == 1.02
    found = {
        (goal, model, width): verdict
        for goal, model, width, verdict in zip(
            table["goal"], table["model"], table["width"], table["reached"], strict=True
        )
    }
    yes, undecided, no = Reached
    assert found == {
        ("eager", "v2", 1): undecided,  # 1.02 by the medians, 1.13 by the middle halves
        ("eager", "v3_small", 1): yes,
        ("eager", "v3_large", 1): undecided,
        ("folded", "v2", 1): no,
        ("folded", "v3_small", 1): yes,
        ("folded", "v3_large", 1): undecided,
        ("onnxruntime", "v2", 1): no,
        ("onnxruntime", "v3_small", 1): yes,
        ("onnxruntime", "v3_large", 1): yes,
        ("int8", "v2", 1): yes,
        ("int8", "v3_small", 1): no,
        ("int8", "v3_large", 1): no,
        ("training", "v3_small", 0.25): yes,
        ("training", "v3_small", 1): no,
    }


def test_the_redesigned_last_stage_saves_what_the_paper_says():
    network = networks.build("v3_large", lowered_strides=0, num_classes=1000)
    before = profiling.original_last_stage(network)
    saved = cost.totals(before, 224)[1] - cost.totals(network, 224)[1]
    assert saved == pytest.approx(30e6, rel=0.2)  # section 5.1: 30 million
    latency.settle(before, 64)
    assert timing.forward(before, timing.random_images(2, 64))().shape == (2, 1000)
    with pytest.raises(InputError, match="V3"):
        profiling.original_last_stage(networks.build("v2"))

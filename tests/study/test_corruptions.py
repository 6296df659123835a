"""Spoilt images: how they are spoilt, what is recorded of them, and whether the committed record fits the models."""

import numpy as np
import pytest
import torch

from mnv3lib import inference, store
from mnv3lib.commands import main
from mnv3lib.provenance import ROOT
from mnv3lib.study import corruptions, evaluation

RUN, OTHER = "mobilenet_v3_small_0.25", "mobilenet_v3_small_0.25_seed1"


@pytest.fixture
def photographs():
    """Some of the test images, uint8 [n, 32, 32, 3]."""
    files = sorted((ROOT / "test_images").glob("*.jpg"))[:8]
    return torch.stack([inference.as_pixels(inference.load_image(file)) for file in files])


@pytest.mark.parametrize("way", corruptions.STRENGTHS)
def test_each_severity_is_further_from_the_image_and_always_the_same(photographs, way):
    before = photographs.clone()
    spoilt = [corruptions.spoil(photographs, way, strength) for strength in corruptions.STRENGTHS[way]]
    assert all((one.shape, one.dtype) == (photographs.shape, torch.uint8) for one in spoilt)
    distances = [(one.float() - photographs.float()).square().mean().item() for one in spoilt]
    assert distances == sorted(distances) and distances[0] > 0
    again = corruptions.spoil(photographs, way, corruptions.STRENGTHS[way][-1])
    assert torch.equal(again, spoilt[-1]) and torch.equal(photographs, before)


def test_noise_is_of_the_strength_it_says(photographs):
    noise = corruptions.spoil(torch.full((50, 32, 32, 3), 128, dtype=torch.uint8), "Gaussian noise", 0.1).float() - 128
    assert noise.std().item() == pytest.approx(25.5, rel=0.03)


def test_the_interval_of_a_mean_covers_it_in_19_of_20_cases():
    generator = np.random.default_rng(0)
    found = [corruptions.mean(generator.normal(2, 1, 20)) for _ in range(2000)]
    assert np.mean([abs(points - 2) < half for points, half in found]) == pytest.approx(0.95, abs=0.015)


def test_a_record_is_written_run_by_run(tmp_path, monkeypatch, cifar100, capsys):
    monkeypatch.setattr(corruptions, "EVERY", 500)
    monkeypatch.setattr(corruptions, "STRENGTHS", {"contrast": corruptions.STRENGTHS["contrast"]})
    assert main(["evaluate", RUN, "--corruptions", str(tmp_path)]) == 0
    assert main(["evaluate", OTHER, "--corruptions", str(tmp_path)]) == 0
    assert f"{OTHER}: top-1 " in capsys.readouterr().out
    table, by_image = corruptions.load_tables(tmp_path)
    assert table["run"].tolist() == 6 * [RUN] + 6 * [OTHER]
    assert table["severity"].tolist() == 2 * [0, 1, 2, 3, 4, 5]
    assert by_image["image"].tolist() == list(range(0, 10_000, 500))
    spoilt = table[table["severity"] > 0].groupby("run")["top1"].sum() / 100 * 20
    assert by_image[[RUN, OTHER]].sum().tolist() == pytest.approx(spoilt[[RUN, OTHER]].tolist())
    recorded = store.load_predictions(RUN, ROOT / "trained_models")
    hits = recorded["classes"][::500, 0] == recorded["labels"][::500]
    assert table["top1"].iloc[0] == pytest.approx(100 * hits.mean(), abs=5.1), "images as they are, all but one alike"
    first = table[table["run"] == RUN]
    assert main(["evaluate", RUN, "--corruptions", str(tmp_path)]) == 0
    again = corruptions.load_tables(tmp_path)[0]
    assert len(again) == 12
    assert again[again["run"] == RUN]["top1"].tolist() == first["top1"].tolist()
    (tmp_path / corruptions.BY_IMAGE).unlink()  # as after a kill between the two
    assert main(["evaluate", RUN, "--corruptions", str(tmp_path)]) == 0
    assert len(corruptions.load_tables(tmp_path)[0]) == 12


def test_a_run_on_other_images_is_refused_by_name(tmp_path, digits_record, capsys):
    models, run = digits_record
    assert main(["evaluate", run, "--models", str(models), "--corruptions", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert run in error and "CIFAR-100" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [corruptions.TABLE, corruptions.BY_IMAGE])
@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "a\n1,2\n"], ids=["empty", "foreign", "ragged"])
def test_foreign_tables_are_told_before_anything_is_measured(tmp_path, monkeypatch, capsys, name, text):
    monkeypatch.setattr(corruptions.data, "load", None)
    (tmp_path / name).write_text(text)
    assert main(["evaluate", RUN, "--models", str(ROOT / "trained_models"), "--corruptions", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"{name} is no table that mnv3 evaluate --corruptions wrote: move it away" in error
    assert error.count("\n") == 1 and (tmp_path / name).read_text() == text
    assert main(["evaluate", RUN, "--models", str(ROOT / "trained_models"), "--corruptions", str(tmp_path / name)]) == 1
    assert f"{name} is no folder" in capsys.readouterr().err


@pytest.fixture
def digits_record(tmp_path, tiny):
    from records import record_of

    made = tiny()
    store.save(tmp_path / "models", record_of(made), [], None, None)
    return tmp_path / "models", made.run


def test_the_committed_record_has_every_model_and_fits_it():
    models = ROOT / "trained_models"
    table, by_image = corruptions.load_tables(ROOT / "results")
    assert set(table["run"]) == set(evaluation.comparable(models)) == set(by_image) - {"image"}
    for run, rows in table.groupby("run"):
        assert len(rows) == 1 + 5 * len(corruptions.STRENGTHS), run
        predictions = store.load_predictions(run, models)
        some = slice(None, None, corruptions.EVERY)
        hits = predictions["classes"][some, 0] == predictions["labels"][some]
        assert rows["images"].unique().tolist() == [len(hits)]
        assert rows["top1"].iloc[0] == pytest.approx(100 * hits.mean(), abs=0.15), run
        mean = 100 * by_image[run].mean() / (len(rows) - 1)
        assert mean == pytest.approx(rows["top1"].iloc[1:].mean(), abs=1e-3), run

import shutil

import pandas as pd
import pytest
from PIL import Image

from mnv3lib.provenance import ROOT
from mnv3lib.study import labelling, scaling

RUN = "mobilenet_v3_small_0.25"


def test_each_way_gives_a_picture_that_is_much_the_same():
    image = Image.open(ROOT / "test_images" / "mushroom.png").convert("RGB")
    usual = scaling.as_pixels(image).numpy().astype(int)
    for way, (_, pixels) in scaling.ways().items():
        found = pixels(image)
        assert found.shape == (32, 32, 3)
        assert found.dtype == "uint8"
        if way != "blue and red exchanged":
            assert abs(found.astype(int).mean((0, 1)) - usual.mean((0, 1))).max() < 12, way


def test_guesses_are_counted_by_way(tmp_path):
    for name in ("bee.jpg", "SOURCES.csv"):
        shutil.copy(ROOT / "test_images" / name, tmp_path)
    Image.new("RGB", (40, 40), (90, 90, 90)).save(tmp_path / "grey.png")
    table = scaling.compare(tmp_path, [RUN]).set_index("way")
    assert (table["guesses"] == 2).all()
    assert (table["labelled"] == 1).all()
    usual = labelling.label([tmp_path / "bee.jpg"], [RUN], top=1)[0][3]
    assert table.loc["as mnv3 predict does", ["changed", "right"]].tolist() == [0, usual == "bee"]
    assert (table["changed"] <= 1).all(), "one colour stays one colour"


def test_the_record_has_every_way_and_fits_itself():
    table = pd.read_csv(ROOT / "results" / "scaling.csv").set_index("way")
    assert table.index.tolist() == ["as mnv3 predict does", *scaling.ways()]
    assert (table["right"] <= table["labelled"]).all()
    share = table["changed"] / table["guesses"]
    assert share["as mnv3 predict does"] == 0
    assert share["nearest"] > share["bilinear"] > share["Lanczos"], "the more is left out, the more changes"
    assert share["bicubic, antialiased"] == pytest.approx(0, abs=0.01), "what another library repeats"

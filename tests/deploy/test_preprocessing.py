"""A photograph comes down to the same 32 x 32 pixels, and the same guess, by every way that this project offers."""

import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import mnv3lib
from mnv3lib import inference
from mnv3lib.commands import main
from mnv3lib.deploy import onnx_files
from mnv3lib.errors import ExportError
from mnv3lib.provenance import ROOT
from mnv3lib.study import labelling

RUN = "mobilenet_v3_small_0.25"
SIZES = [(1, 1), (1, 9), (31, 33), (32, 32), (33, 200), (601, 77)]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """The photographs, and noise of odd sizes, which shows each level that is off."""
    noise = np.random.default_rng(0)
    made = [Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8)) for width, height in SIZES]
    return [inference.load_image(file) for file in labelling.find_images([labelling.images_folder()])] + made


@pytest.fixture(scope="module")
def network():
    return mnv3lib.load(RUN)


def torchvision(image: Image.Image) -> np.ndarray:
    pixels = v2.functional.pil_to_tensor(inference.square(image))
    return v2.functional.resize(pixels, [32, 32], v2.InterpolationMode.BICUBIC, antialias=True).permute(1, 2, 0).numpy()


def test_onnx_scales_as_predict_does(images):
    opened = onnx_files.open_session(
        onnx.parser.parse_model(onnx_files.PREPROCESSING.format(size=32)).SerializeToString()
    )
    for image in images:
        found = np.rint(255 * opened.run(None, {"image": np.asarray(image)})[0][0])
        gap = np.abs(found - inference.as_pixels(image).permute(2, 0, 1).numpy())
        assert gap.max() <= 1, image.size
        assert (gap > 0).mean() < 0.001, image.size  # where Pillow's whole numbers round another way


def test_torchvision_scales_as_predict_does(images):
    for image in images:
        gap = np.abs(torchvision(image).astype(int) - inference.as_pixels(image).numpy())
        assert gap.max() <= 1, image.size


def test_a_file_with_preprocessing_guesses_as_predict_does(images, network, tmp_path, monkeypatch):
    path = tmp_path / f"{RUN}_with_preprocessing.onnx"  # beside the file without, not in its place
    monkeypatch.chdir(tmp_path)
    assert main(["export", RUN, "--with-preprocessing", "--data", str(tmp_path)]) == 0
    opened = onnx_files.session(path)
    assert opened.get_modelmeta().custom_metadata_map["input"] == onnx_files.PICTURE
    expected = mnv3lib.predict(network, images, top=1)["class"].tolist()
    logits = [opened.run(None, {"image": np.asarray(image)})[0] for image in images]
    assert [network.classes[one.argmax()] for one in logits] == expected
    scaled = torch.from_numpy(np.stack([torchvision(image) for image in images[:20]]))
    assert [best[0][0] for best in inference.guess(network, scaled, 1)] == expected[:20]


def test_preprocessing_that_scales_otherwise_is_not_written(network, images, tmp_path, monkeypatch):
    otherwise = onnx_files.PREPROCESSING.replace("exclude_outside = 1", "exclude_outside = 0")
    monkeypatch.setattr(onnx_files, "PREPROCESSING", otherwise)
    pixels = torch.stack([inference.as_pixels(image) for image in images[:8]])
    with pytest.raises(ExportError, match="differ from PyTorch's"):
        onnx_files.write(network, tmp_path / "network.onnx", pixels, preprocessing=True)
    assert not list(tmp_path.iterdir())


def test_int8_takes_no_photographs(tmp_path, capsys):
    out = tmp_path / "x.onnx"
    assert main(["export", RUN, "--with-preprocessing", "--format", "onnx-int8", "--out", str(out)]) == 1
    assert "--with-preprocessing" in capsys.readouterr().err
    assert not out.exists()


def test_the_readmes_lines_without_pytorch_say_what_predict_says(network, tmp_path, monkeypatch, capsys):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "mnv3lib/deploy/README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    (lines,) = [block for block in blocks if "onnxruntime" in block]
    assert "torch" not in lines
    shutil.copytree(ROOT / "test_images", tmp_path / "test_images")
    with Image.open(tmp_path / "test_images" / "bee.jpg") as image:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(tmp_path / "test_images" / "half-transparent.png")
    monkeypatch.chdir(tmp_path)
    assert main(["export", RUN, "--data", str(tmp_path)]) == 0
    capsys.readouterr()
    photographs = labelling.find_images(["test_images"])
    for photograph in photographs:
        names = {}
        exec(lines.replace("test_images/bee.jpg", photograph.as_posix()), names)
        pixels = inference.as_pixels(inference.load_image(photograph)).permute(2, 0, 1)
        np.testing.assert_array_equal(np.rint(255 * names["values"][0]), pixels, photograph.name)
    assert photographs
    firsts = dict(zip([one.name for one in photographs], capsys.readouterr().out.split(), strict=True))
    expected = mnv3lib.predict(network, photographs, top=1).set_index("image")["class"]
    assert firsts == expected.to_dict()

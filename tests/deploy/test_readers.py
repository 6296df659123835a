"""Every program that reads ONNX files reads ours as PyTorch has it: OpenCV once took V3 for another network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import readers
import torch

from mnv3lib import store
from mnv3lib.deploy import onnx_files

RUNS = ["mobilenet_v1_0.25", "mobilenet_v2_0.35", "mobilenet_v3_small_0.25", "mobilenet_v3_large_0.25"]
IMAGES = 200
HERE = {"onnxruntime": IMAGES, "opencv_classic": IMAGES, "opencv_new": IMAGES, "openvino": IMAGES, "reference": 2}
ELSEWHERE = {  # what has to be installed beside what is here; torch and numpy are here
    "onnxruntime 1.17": ["onnxruntime==1.17.*", "numpy<2"],
    "opencv 4.12": ["opencv-python-headless==4.12.*"],
    "onnx2torch": ["onnx2torch", "--no-deps"],
    "tract": ["tract"],
    "tvm": ["apache-tvm"],
}


@pytest.fixture(scope="module")
def images(cifar100) -> torch.Tensor:
    return cifar100.test.images[:IMAGES]


@pytest.fixture(scope="module", params=RUNS)
def exported(request, images, tmp_path_factory):
    """The file of a run, its inputs, and PyTorch's logits for them."""
    network = store.load(request.param)
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    onnx_files.write(network, path, images)
    inputs = torch.cat(list(onnx_files.floats(images)))
    with torch.inference_mode():
        return path, inputs.numpy(), onnx_files.Normalised(network).eval()(inputs).numpy()


@pytest.mark.parametrize("reader", HERE)
def test_a_reader_gives_pytorchs_logits(reader, exported):
    path, inputs, expected = exported
    for batch in (1, 20):
        count = HERE[reader]
        found = readers.logits(reader, path, inputs[:count], batch)
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=onnx_files.TOLERANCE)


@pytest.fixture(scope="module", params=ELSEWHERE)
def elsewhere(request, long, tmp_path_factory):
    """A reader and the folder that it is installed in."""
    if not long:
        pytest.skip("installs packages: try it with --long")
    folder = tmp_path_factory.mktemp("reader")
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", folder]
    installed = subprocess.run([*command, *ELSEWHERE[request.param]], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"{request.param} does not install here: {installed.stderr.strip().splitlines()[-1]}")
    yield request.param.split()[0], folder
    shutil.rmtree(folder)


def test_a_reader_of_its_own_needs_gives_pytorchs_logits(elsewhere, exported, tmp_path):
    (reader, folder), (path, inputs, expected) = elsewhere, exported
    np.save(tmp_path / "images.npy", inputs)
    for batch in (1, 20):
        command = [sys.executable, readers.__file__, reader, path, tmp_path / "images.npy", tmp_path / "logits.npy"]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        ran = subprocess.run([*command, str(batch)], env=environment, capture_output=True, text=True)
        assert not ran.returncode, ran.stderr
        found = np.load(tmp_path / "logits.npy")
        np.testing.assert_allclose(found, expected, rtol=0, atol=onnx_files.TOLERANCE)


def test_in_a_browsers_runtime(long, exported, tmp_path_factory):
    """onnxruntime-web, under Node."""
    if not long or not shutil.which("npm"):
        pytest.skip("installs packages by npm: try it with --long")
    path, inputs, expected = exported
    folder = tmp_path_factory.getbasetemp() / "web"
    if not folder.exists():
        command = ["npm", "install", "--silent", "--prefix", folder, "onnxruntime-web@1.30"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.copy(Path(__file__).with_name("reader.mjs"), folder)
    inputs.tofile(folder / "images.raw")
    for batch in (1, 20):
        command = ["node", "reader.mjs", path, "images.raw", "logits.raw", str(batch)]
        subprocess.run(command, cwd=folder, check=True)
        found = np.fromfile(folder / "logits.raw", np.float32).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=0, atol=onnx_files.TOLERANCE)

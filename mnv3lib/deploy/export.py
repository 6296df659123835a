"""A trained run out of PyTorch, in the formats of FORMATS; each file is tried on real images in its own runtime."""

import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from mnv3lib import data, store, writing
from mnv3lib.data import Split
from mnv3lib.deploy import FORMATS, formats, int8, onnx_files, timing, webpage
from mnv3lib.deploy.formats import CALIBRATION, sized
from mnv3lib.errors import InputError, choose


def export(
    run: str,
    path: Path,
    file_format: str = "onnx",
    *,
    preprocessing: bool = False,
    models: Path | None = None,
    data_folder: Path | None = None,
) -> dict:
    """Write the run of that name to `path`, and return what was found out.

    file_format: of FORMATS, but for html (see `export_page`); preprocessing: see onnx_files.write, for "onnx" alone.
    Keys: images (how many it was checked on), gap (of the fp32 logits), and, for int8, top1 and top1_int8 (percent, on
    the test set).
    """
    choose("format", file_format, FORMATS)
    if file_format.startswith("onnx"):
        writing.check_suffix(path, ".onnx")
    if preprocessing and file_format != "onnx":
        raise InputError("--with-preprocessing is of --format onnx: other files take images that are scaled already")
    network = store.load(run, models)
    quantized = file_format.endswith("-int8")
    images, dataset = _real(run, models, data_folder, needed=quantized)
    test = Split(sized(dataset.test.images, images.shape[1]), dataset.test.labels) if quantized else None
    calibration = sized(data.some(dataset.train.images, CALIBRATION), images.shape[1]) if quantized else None
    if not file_format.startswith("onnx"):
        facts = formats.write(network, path, file_format, images, run=run, calibration=calibration, test=test)
        return facts | {"images": len(images)}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.onnx" if quantized else path
        gap = onnx_files.write(network, whole, images, run=run, preprocessing=preprocessing)
        facts = {"gap": gap, "images": len(images)}
        if quantized:
            model = int8.quantized(network, formats.together(calibration), network.mean, network.std)
            model.metadata_props.extend(onnx_files.metadata(whole))
            with writing.replacing(path) as temporary:
                temporary.write_bytes(model.SerializeToString())
            for name, file in (("top1", whole), ("top1_int8", path)):
                facts[name] = formats.top1(onnx_files.opened(file), test)
    return facts


def export_page(
    runs: Sequence[str], path: Path, *, models: Path | None = None, data_folder: Path | None = None
) -> dict:
    """Write one HTML page with the runs of these names to `path`; returns gap and images, as `export` does."""
    writing.check_suffix(path, ".html", ".htm")
    networks = {run: store.load(run, models) for run in runs}
    accuracies = {run: store.load_record(run, models)["result"]["top1"] for run in runs}
    images = {run: _real(run, models, data_folder)[0] for run in runs}
    gap = webpage.write(networks, accuracies, path, images)
    return {"gap": gap, "images": min(map(len, images.values()))}


def _real(
    run: str, models: Path | None, data_folder: Path | None, needed: bool = False
) -> tuple[torch.Tensor, data.Dataset]:
    """200 test images in the size that `run` takes, and their data set; digits if it is not `needed` and not there."""
    told = store.load_record(run, models)
    dataset = data.of_run(told, data_folder)
    if dataset is None and needed and "data" in told:
        raise InputError(f"{run}: int8 needs its images, and {data.why_not(told, data_folder)}")
    if dataset is None:  # real images in any case
        dataset = data.load(told["recipe"]["dataset"] if needed else "digits", data.for_cifar100(data_folder))
    return sized(dataset.test.images[:200], told["recipe"]["image_sizes"][-1]), dataset


def record(run: str, facts: dict, folder: Path, models: Path | None = None) -> Path:
    """Write what `export` found out about an int8 file of `run` to `folder`, with the digest of the run's weights."""
    path = Path(folder) / f"{run}.json"
    accuracies = {name: facts[name] for name in ("top1", "top1_int8")}
    content = {
        "run": run,
        "weights": store.digest(store.weights_file(run, models)),
        **accuracies,
        "onnxruntime": version("onnxruntime"),
    }
    content |= timing.stamp()
    with writing.replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def load_int8_record(run: str, folder: Path, models: Path | None = None) -> dict | None:
    """What `record` wrote of the weights that `run` has now; None if there is nothing."""
    path = Path(folder) / f"{run}.json"
    if not path.is_file() or not store.has(run, store.WEIGHTS, models):
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found["weights"] == store.digest(store.weights_file(run, models)) else None
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path} is no record of an int8 file: delete it") from None

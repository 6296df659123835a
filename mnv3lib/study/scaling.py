"""The same photograph, scaled otherwise: how many first guesses change.

results/scaling.csv is made again by: python -c "from mnv3lib.study import scaling; scaling.record()"
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from mnv3lib import store, writing
from mnv3lib.inference import as_pixels, guess, load_image, square
from mnv3lib.provenance import ROOT
from mnv3lib.study import labelling

if TYPE_CHECKING:
    import pandas

SIZE = 32
PIXELS = tuple[str, Callable[[Image.Image], np.ndarray]]  # the distribution that scales, and how


def ways() -> dict[str, PIXELS]:
    """From an RGB image to uint8 [SIZE, SIZE, 3]; each does one thing otherwise than `inference.as_pixels`."""
    import cv2
    from torchvision.transforms import v2

    def pillow(method: str) -> PIXELS:
        return "Pillow", lambda image: np.asarray(square(image).resize((SIZE, SIZE), Image.Resampling[method]))

    def torchvision(method: str, antialias: bool) -> PIXELS:
        scale = v2.Resize([SIZE, SIZE], v2.InterpolationMode(method), antialias=antialias)
        return "torchvision", lambda image: scale(v2.functional.pil_to_tensor(square(image))).permute(1, 2, 0).numpy()

    def opencv(method: int) -> PIXELS:
        return "opencv-python-headless", lambda image: cv2.resize(
            np.asarray(square(image)), (SIZE, SIZE), interpolation=method
        )

    return {
        "Lanczos": pillow("LANCZOS"),
        "box": pillow("BOX"),
        "bilinear": pillow("BILINEAR"),
        "nearest": pillow("NEAREST"),
        "bicubic, antialiased": torchvision("bicubic", True),
        "bilinear, antialiased": torchvision("bilinear", True),
        "bilinear, not antialiased": torchvision("bilinear", False),
        "INTER_AREA": opencv(cv2.INTER_AREA),
        "INTER_LINEAR": opencv(cv2.INTER_LINEAR),
        "INTER_CUBIC": opencv(cv2.INTER_CUBIC),
        "squeezed to a square, not cut": ("Pillow", lambda image: np.asarray(image.resize((SIZE, SIZE)))),
        "blue and red exchanged": ("Pillow", lambda image: as_pixels(image, SIZE).numpy()[..., ::-1]),
    }


def compare(
    folder: Path | None = None, runs: list[str] | None = None, models: Path | None = None
) -> "pandas.DataFrame":
    """A row a way: way, software, version, guesses, changed, labelled, right.

    guesses: photographs in `folder` (else test_images) times `runs` (else all with weights that take SIZE pixels);
    changed: first guesses that differ from `mnv3 predict`'s; labelled: guesses on photographs whose class
    SOURCES.csv tells, right: how many of these are right.
    """
    import pandas

    folder = folder or labelling.images_folder()
    files = labelling.find_images([folder])
    images = [load_image(file) for file in files]
    if runs is None:
        kept = store.runs(models, store.WEIGHTS)
        runs = [run for run in kept if store.load_record(run, models)["recipe"]["image_sizes"][-1] == SIZE]
    truth = labelling.sources(folder)
    truth = [truth.get(file.name, {}).get("cifar100_class") for file in files] * len(runs)
    networks = [store.load(run, models) for run in runs]

    def firsts(pixels: Callable[[Image.Image], np.ndarray]) -> list[str]:
        scaled = torch.stack([torch.from_numpy(np.array(pixels(image))) for image in images])
        return [best[0][0] for network in networks for best in guess(network, scaled, 1)]

    all_ways = {"as mnv3 predict does": ("Pillow", lambda image: as_pixels(image, SIZE).numpy())} | ways()
    usual = firsts(all_ways["as mnv3 predict does"][1])
    rows = []
    for way, (software, pixels) in all_ways.items():
        found = firsts(pixels)
        changed = sum(one != other for one, other in zip(found, usual, strict=True))
        right = sum(one == true for one, true in zip(found, truth, strict=True))
        rows.append((way, software, version(software), len(found), changed, sum(map(bool, truth)), right))
    columns = ["way", "software", "version", "guesses", "changed", "labelled", "right"]
    return pandas.DataFrame(rows, columns=columns)


def record(path: Path = ROOT / "results" / "scaling.csv") -> None:
    """Write what `compare` finds as CSV."""
    table = compare()
    with writing.replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")

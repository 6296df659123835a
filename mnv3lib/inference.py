"""What a trained network says: images of any size, mode and format in, guesses and accuracies out."""

import copy
import ctypes
import os
import platform
import warnings
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mnv3lib import data
from mnv3lib.data import Split
from mnv3lib.errors import InputError, one_line
from mnv3lib.networks import MobileNet
from mnv3lib.provenance import place

if TYPE_CHECKING:
    import pandas

COMPANIONS = {".csv", ".md", ".txt"}  # what lies beside photographs: lists of sources, licences
BACKGROUND = (255, 255, 255)  # of cut-out images: CIFAR-100's own stand on white
COLUMNS = ["image", "rank", "class", "probability"]  # of what `predict` returns


def images_folder() -> Path:
    """test_images of the checkout, else test_images here."""
    return place("test_images")


def load_image(path: str | os.PathLike) -> Image.Image:
    """The image in a file, upright and in RGB with 8 bits a channel, whatever its format, mode and depth.

    The EXIF orientation is applied, transparent parts become white, of an animation the first frame counts. Raises
    InputError, which names the file, if it is missing, no image, cut off, or larger than Pillow thinks safe (179
    million pixels).
    """
    name = printable(path)
    if not Path(path).is_file():
        raise InputError(f"{name} is no file" if Path(path).exists() else f"there is no file {name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # below the limit a large image is only large
            with Image.open(path) as image:
                if image.format == "EPS":  # Pillow would hand it to Ghostscript, which runs it
                    raise InputError(f"{name} is a PostScript program: make it a PNG")
                return to_rgb(image)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is no image that Pillow can read") from None
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise InputError(f"{name} has more than {limit:,} pixels: make it smaller") from None
    except Exception as error:  # decoders raise all kinds of exceptions on damaged files
        raise InputError(f"{name} cannot be read: {one_line(error, 120)}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image of any mode, upright and in RGB with 8 bits a channel; see `load_image`."""
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        image = image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of more than 8 bits as uint8.

    White is 65535 in 16 bits. 32-bit integers and floats do not tell: it is taken for the least of 1 (floats alone),
    255, 65535 that is not below the highest value, else for that value.
    """
    values = np.nan_to_num(values.astype(np.float64), nan=0, posinf=0, neginf=0)
    if mode.startswith("I;16"):
        white = 65535
    else:
        candidates = (1, 255, 65535) if mode == "F" else (255, 65535)
        white = next((white for white in candidates if values.max() <= white), values.max())
    return np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8)


def as_pixels(image: Image.Image, size: int = 32) -> torch.Tensor:
    """uint8 [size, size, 3]: the shorter side resampled to `size` pixels (Lanczos, antialiased), the middle cut out.

    Both at once, so that a strip of 1 x 50,000 pixels needs no more memory than any other image.
    """
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(square))


@torch.inference_mode()
def guess(network: MobileNet, pixels: torch.Tensor, top: int = 5) -> list[list[tuple[str, float]]]:
    """For each image of uint8 [n, size, size, 3] the `top` likeliest (class, probability), best first."""
    if not network.classes:
        raise InputError("the network has no names of classes: load a trained one with mnv3lib.load")
    if not 1 <= top <= len(network.classes):
        raise InputError(f"top {top}: choose from 1 to {len(network.classes)}, the number of classes")
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    result = []
    for portion in pixels.split(100):
        logits = network(data.normalise(portion.to(device), network.mean, network.std))
        best = logits.softmax(1).topk(top)
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            result.append([(network.classes[index], value) for index, value in zip(indices, values, strict=True)])
    network.train(training)
    return result


def predict(
    network: MobileNet, images: str | os.PathLike | Image.Image | Iterable, top: int = 5, size: int = 32
) -> "pandas.DataFrame":
    """What a trained network sees in one image or several, given as paths or as Pillow images.

    Returns a row a guess, best first: image (its name, or its number where it has none), rank (from 1), class,
    probability in [0, 1]. `size` is the input in pixels a side, 32 for the networks of the report. Raises InputError
    on a file that cannot be read; `label` goes on with the others.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    names, pixels = [], []
    for number, image in enumerate(images):
        is_image = isinstance(image, Image.Image)
        names.append(str(number) if is_image else printable(Path(image).name))
        pixels.append(as_pixels(to_rgb(image) if is_image else load_image(image), size))
    return table(names, guess(network, torch.stack(pixels), top) if pixels else [])


def table(names: list[str], guesses: list[list[tuple[str, float]]]) -> "pandas.DataFrame":
    """The guesses of each image as rows: image, rank, class, probability."""
    import pandas  # slow to import, and little else here needs it

    several = zip(names, guesses, strict=True)
    rows = [(name, rank, *one) for name, best in several for rank, one in enumerate(best, start=1)]
    return pandas.DataFrame(rows, columns=COLUMNS)


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """The files named, and of each folder named the files in it, in order, without hidden ones and COMPANIONS.

    Whether they are images is not looked at here. Raises InputError if a folder or file is missing, or if nothing is
    left.
    """
    paths, found = [Path(path) for path in paths], []
    for path in paths:
        if path.is_dir():
            found += sorted(
                file
                for file in path.iterdir()
                if not (file.is_dir() or file.name.startswith(".") or file.suffix.lower() in COMPANIONS)
            )
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"there is no file or folder {printable(path)}")
    if not found:
        raise InputError(f"there are no images in {', '.join(map(printable, paths))}")
    return list(dict.fromkeys(found))


def photographs(folder: str | os.PathLike, size: int = 32) -> torch.Tensor:
    """The images in `folder`, in the order of `find_images`, as networks see them: uint8 [n, size, size, 3]."""
    return torch.stack([as_pixels(load_image(file), size) for file in find_images([folder])])


def printable(path: str | os.PathLike) -> str:
    """A path as text that any terminal and file takes, even where its bytes are no UTF-8 or break the line."""
    return " ".join(os.fsencode(path).decode(errors="replace").splitlines())


def resize(inputs: torch.Tensor, size: int) -> torch.Tensor:
    """Float images [n, 3, height, width] resampled (bilinear, antialiased) to `size` pixels a side if they differ."""
    if inputs.shape[-1] == size:
        return inputs
    return F.interpolate(inputs, (size, size), mode="bilinear", antialias=True)


@torch.inference_mode()
def best_five(network: MobileNet, split: Split, size: int = 32, batch_size: int = 500) -> dict[str, np.ndarray]:
    """`labels` [n], the five best `classes` [n, 5], best first, and their `probabilities` [n, 5] for every image."""
    network.eval()
    classes, probabilities = [], []
    for start in range(0, len(split), batch_size):
        pixels = split.images[start : start + batch_size]
        logits = network(resize(data.normalise(pixels, network.mean, network.std), size))
        best = logits.softmax(1).topk(min(5, logits.shape[1]))
        classes.append(best.indices.cpu())
        probabilities.append(best.values.cpu())
    return {
        "labels": split.labels.cpu().numpy().astype(np.uint8),
        "classes": torch.cat(classes).numpy().astype(np.uint8),
        "probabilities": torch.cat(probabilities).numpy().astype(np.float32),
    }


def accuracy(predictions: dict[str, np.ndarray]) -> dict:
    """`top1` and `top5` of what `best_five` returned, in percent, and how many `images` that were."""
    hits = predictions["classes"] == predictions["labels"][:, None]
    return {
        "top1": round(100 * float(hits[:, 0].mean()), 4),
        "top5": round(100 * float(hits.any(1).mean()), 4),
        "images": len(hits),
    }


def fold(network: nn.Module) -> nn.Module:
    """A copy in eval mode in which each batch norm has gone into the convolution before it; the answers stay."""
    folded = copy.deepcopy(network).eval()
    for sequence in [module for module in folded.modules() if isinstance(module, nn.Sequential)]:
        for (name, layer), (norm_name, norm) in pairwise(list(sequence.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                sequence.add_module(name, fuse_conv_bn_eval(layer, norm))
                sequence.add_module(norm_name, nn.Identity())
    return folded


def default_device() -> torch.device:
    """CUDA where there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_memory() -> None:
    """Tell glibc's allocator to keep what is freed.

    By default it gives the activations back to the system after every step, and the page faults of asking for them
    again cost a third of the training time on CPUs.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 256 * 2**20)

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

if TYPE_CHECKING:
    import pandas

BACKGROUND = (255, 255, 255)  # of cut-out images: CIFAR-100's own stand on white
COLUMNS = ["image", "rank", "class", "probability"]  # of what `predict` returns


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


def guess(network: MobileNet, pixels: torch.Tensor, top: int = 5) -> list[list[tuple[str, float]]]:
    """For each image of uint8 [n, size, size, 3] the `top` likeliest (class, probability), best first."""
    if not network.classes:
        raise InputError("the network has no names of classes: load a trained one with mnv3lib.load")
    if not 1 <= top <= len(network.classes):
        raise InputError(f"top {top}: choose from 1 to {len(network.classes)}, the number of classes")
    training = network.training
    classes, probabilities = best(network, pixels, pixels.shape[1], top, batch_size=100)
    network.train(training)
    named = [[network.classes[index] for index in row] for row in classes.tolist()]
    return [list(zip(*row, strict=True)) for row in zip(named, probabilities.tolist(), strict=True)]


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


def printable(path: str | os.PathLike) -> str:
    """A path as text that any terminal and file takes, even where its bytes are no UTF-8 or break the line."""
    return " ".join(os.fsencode(path).decode(errors="replace").splitlines())


def resize(inputs: torch.Tensor, size: int) -> torch.Tensor:
    """Float images [n, 3, height, width] resampled (bilinear, antialiased) to `size` pixels a side if they differ."""
    if inputs.shape[-1] == size:
        return inputs
    return F.interpolate(inputs, (size, size), mode="bilinear", antialias=True)


@torch.inference_mode()
def best(
    network: MobileNet, images: torch.Tensor, size: int, count: int, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` likeliest classes and their probabilities, [n, count] each, best first, of uint8 images.

    images: [n, height, width, 3], resampled to `size` pixels a side. The network is left in eval mode.
    """
    network.eval()
    device = next(network.parameters()).device
    found = []
    for portion in images.split(batch_size):
        inputs = data.normalise(portion.to(device), network.mean, network.std)
        found.append(network(resize(inputs, size)).softmax(1).topk(count))
    return torch.cat([one.indices.cpu() for one in found]), torch.cat([one.values.cpu() for one in found])


def best_five(network: MobileNet, split: Split, size: int = 32, batch_size: int = 500) -> dict[str, np.ndarray]:
    """`labels` [n], the five best `classes` [n, 5], best first, and their `probabilities` [n, 5] for every image."""
    count = min(5, network.architecture.num_classes)
    classes, probabilities = best(network, split.images, size, count, batch_size)
    return {
        "labels": split.labels.cpu().numpy().astype(np.uint8),
        "classes": classes.numpy().astype(np.uint8),
        "probabilities": probabilities.numpy().astype(np.float32),
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
        libc.mallopt(m_trim_threshold, -1)
        libc.mallopt(m_top_pad, 256 * 2**20)

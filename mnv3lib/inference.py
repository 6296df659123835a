"""What a trained network says: images of any size, mode and format in, guesses and accuracies out."""

import copy
import ctypes
import io
import numbers
import os
import platform
import re
import warnings
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mnv3lib import data
from mnv3lib.data import Split
from mnv3lib.errors import AssumedWarning, InputError, local, one_line, whole
from mnv3lib.networks import MobileNet, evaluating

if TYPE_CHECKING:
    import pandas

ROUNDING = 1e-5  # that floats may lie outside 0 to 1
BACKGROUND = (255, 255, 255)  # of cut-out images: CIFAR-100's own stand on white
BYTES = bytes | bytearray | memoryview
PLUGINS = (  # how a file begins, what it is, which module lets Pillow read it, and that one's package
    (rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "HEIC", "pillow_heif", "pillow-heif"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "JPEG XL", "pillow_jxl", "pillow-jxl-plugin"),
)
GIT_LFS = b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself with git lfs pull"
NO_PICTURES = (  # how a file begins, what it is and what to do
    (rb"%PDF", "a PDF: make each picture in it a PNG"),
    (rb"\s*<(\?xml|svg)", "a drawing (SVG): make it a PNG"),
    (rb"\s*<", "a web page: download the picture itself"),
    (rb".{4}ftyp", "a film, or a format that Pillow does not know: make a PNG of it"),
    (rb"\x93NUMPY", "an array of NumPy: load it, and hand it to mnv3lib.predict"),
    GIT_LFS,
)
# What lies beside photographs: lists of sources, licences, labels, what Windows keeps about a folder.
COMPANIONS = {*".csv .md .txt .json .xml .yaml .yml .html .ini .db".split()}
COLUMNS = ["image", "rank", "class", "probability"]  # of what `predict` returns


def load_image(path: str | os.PathLike) -> Image.Image:
    """The image in a file, upright and in RGB with 8 bits a channel, whatever its format, mode and depth.

    The EXIF orientation is applied, transparent parts become white, of an animation the first frame counts. Raises
    InputError, which names the file, if it is missing, no image, cut off, or larger than Pillow thinks safe (179
    million pixels). An AssumedWarning tells where the file leaves open which value is white.
    """
    name, path = printable(path), local(path)
    if not path.is_file():
        raise InputError(f"{name} is no file" if path.exists() else f"there is no file {name}")
    with _reading(name), path.open("rb") as file, _open(file, name) as image:
        return to_rgb(image, name)


@contextmanager
def _reading(name: str):
    """Make every complaint about a picture an InputError of one line that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # below the limit a large image is only large
            warnings.simplefilter("default", AssumedWarning)
            yield
    except InputError:
        raise
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise InputError(f"{name} has more than {limit:,} pixels: make it smaller") from None
    except Exception as error:  # decoders raise all kinds of exceptions on damaged files
        raise InputError(f"{name} cannot be read: {one_line(error, 120)}") from None


def _open(file: BinaryIO, name: str) -> Image.Image:
    """A file as Pillow opens it, with the plugin for its format where that is installed."""
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(40)
        for form, what, module, package in PLUGINS:
            if re.match(form, start, re.DOTALL):
                try:
                    plugin = import_module(module)
                except ImportError:
                    mend = f"pip install {package}, or make it a PNG"
                    raise InputError(f"{name} is {what}, which Pillow reads with {package} alone: {mend}") from None
                getattr(plugin, "register_heif_opener", lambda: None)()  # the other one does it when it is imported
                file.seek(0)
                with suppress(UnidentifiedImageError):
                    return Image.open(file)
        for form, what in NO_PICTURES:
            if re.match(form, start, re.DOTALL):
                raise InputError(f"{name} is {what}") from None
        raise InputError(f"{name} is no image that Pillow can read") from None
    if image.format == "EPS":  # Pillow would hand it to Ghostscript, which runs it
        raise InputError(f"{name} is a PostScript program: make it a PNG")
    return image


def to_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """A Pillow image of any mode, upright and in RGB with 8 bits a channel; see `load_image`."""
    deep = ";16" in str(getattr(image, "tile", ""))  # Pillow keeps 8 bits of the 16 of each colour
    image.load()
    if 0 in image.size:
        raise InputError(f"{name} has no pixels")
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        image = image.copy()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode, name)).convert("RGB")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    if deep and 0 < (high := max(high for _, high in image.convert("RGB").getextrema())) < 64:
        message = f"{name} has 16 bits a colour and values up to {high * 257} alone: 65535 is taken for white"
        warnings.warn(message, AssumedWarning, stacklevel=2)
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str, name: str) -> np.ndarray:
    """Grey values of more than 8 bits as uint8.

    White is 65535 in 16 bits. 32-bit integers and floats do not tell: it is taken for the least of 1 (floats alone),
    255, 65535 that is not below the highest value, else for that value. Values below zero, or all of them dark, let an
    AssumedWarning tell it.
    """
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    values = np.where(finite, values, 0)
    low, high = values.min(), values.max()
    candidates = (65535,) if mode.startswith("I;16") else (255, 65535) if mode == "I" else (1, 255, 65535)
    white = next((white for white in candidates if high <= white), high)
    if low < 0 or 0 < high <= white / 4 or white not in candidates or not finite.all():
        told = f"grey values from {low:g} to {high:g}" + ("" if finite.all() else " and some that are no numbers")
        message = f"{name} has {told}: 0 is taken for black and {white:g} for white"
        warnings.warn(message, AssumedWarning, stacklevel=3)
    return np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8)


def as_pixels(image: Image.Image, size: int = 32) -> torch.Tensor:
    """uint8 [size, size, 3]: the middle square, on whole pixels, scaled bicubically with antialiasing.

    Every other way that an image of this project goes to a network repeats this rule, pixel by pixel:
    - The square's side is the image's shorter one; it begins at (width - side) // 2 and (height - side) // 2, and
      nothing outside it counts. A square of `size` pixels stays as it is.
    - Columns are scaled first, rows then. With scale = side / size and wide = max(scale, 1), output i lies at
      centre = (i + 0.5) * scale, and is the weighted mean of the inputs j from floor(centre - 2 * wide + 0.5) to
      floor(centre + 2 * wide + 0.5) - 1 that are inside the square. Input j weighs cubic((j + 0.5 - centre) / wide)
      over the sum of these weights, with cubic(x) = 1.5|x|^3 - 2.5|x|^2 + 1 for |x| < 1,
      -0.5|x|^3 + 2.5|x|^2 - 4|x| + 2 for |x| < 2, else 0.
    - Each of both results is rounded to whole grey levels (halves up) and clipped to 0 and 255.
    It is Pillow's BICUBIC, torchvision's of uint8 with antialias (one grey level off at most), and what
    `deploy.onnx_files` puts into a file.
    """
    # Cut before, since resize(box=...) mixes in what lies around the box.
    scaled = square(image).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(scaled))


def square(image: Image.Image) -> Image.Image:
    """The middle square, which `as_pixels` scales."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def guess(network: MobileNet, pixels: torch.Tensor, top: int | None = None) -> list[list[tuple[str, float]]]:
    """For each image of uint8 [n, size, size, 3] the `top` likeliest (class, probability), best first.

    By default they are five, or all where there are fewer classes.
    """
    if not network.classes:
        raise InputError("the network has no names of classes: load a trained one with mnv3lib.load")
    top = min(5, len(network.classes)) if top is None else top
    if not isinstance(top, numbers.Integral) or not 1 <= top <= len(network.classes):
        raise InputError(f"top {top}: choose a whole number from 1 to {len(network.classes)}, how many classes it has")
    classes, probabilities = top_k(logits(network, pixels, pixels.shape[1], batch_size=100), int(top))
    named = [[network.classes[index] for index in row] for row in classes.tolist()]
    return [list(zip(*row, strict=True)) for row in zip(named, probabilities.tolist(), strict=True)]


def predict(network: MobileNet, images, top: int | None = None, size: int | None = None) -> "pandas.DataFrame":
    """What a trained network sees in one picture or several, each in any of the forms that `picture` takes.

    Returns a row a guess, best first: image (the name of its file, or its number where it has none), rank (from 1),
    class, probability in [0, 1]. `top` is how many: five, or all where there are fewer classes. `size` is the input in
    pixels a side, else what the network was trained for.
    Raises InputError on what cannot be read; `label` goes on with the others.
    """
    import pandas  # slow to import, and little else here needs it

    size = network.size if size is None else size
    whole("size", size, 1, 512)
    arrays = isinstance(images, np.ndarray | torch.Tensor) and images.ndim < 4
    if arrays or isinstance(images, str | os.PathLike | Image.Image | BYTES) or hasattr(images, "read"):
        images = [images]
    if not isinstance(images, Iterable):
        images = [images]  # which `picture` refuses
    names, pixels = [], []
    for number, image in enumerate(images):
        names.append(printable(Path(image).name) if isinstance(image, str | os.PathLike) else str(number))
        pixels.append(as_pixels(picture(image, f"image {number}"), size))
    guesses = guess(network, torch.stack(pixels), top) if pixels else []
    several = zip(names, guesses, strict=True)
    rows = [(name, rank, *one) for name, best in several for rank, one in enumerate(best, start=1)]
    return pandas.DataFrame(rows, columns=COLUMNS)


def picture(source, name: str = "the image") -> Image.Image:
    """One picture in RGB, upright and with 8 bits a channel; see `load_image`.

    source: a path, a Pillow image, the bytes of a file, a file open in binary mode, an array [height, width, 3] or
    [height, width], or a tensor [3, height, width] as torchvision has them: both of uint8, or of floats from 0 to 1.
    """
    if isinstance(source, str | os.PathLike):
        return load_image(source)
    with _reading(name):
        if isinstance(source, Image.Image):
            return to_rgb(source, name)
        if isinstance(source, np.ndarray | torch.Tensor):
            return _from_array(source, name)
        if isinstance(source, io.TextIOBase):
            raise InputError(f"{name} is a file open as text: open it with mode 'rb'")
        if hasattr(source, "read"):
            with suppress(AttributeError, OSError):  # as Pillow does: the whole file counts
                source.seek(0)
            source = source.read()
        if isinstance(source, BYTES):
            with _open(io.BytesIO(source), name) as image:
                return to_rgb(image, name)
    raise InputError(f"{name} is of type {type(source).__name__}: give a path, a Pillow image, bytes, a file, an array")


def _from_array(values: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    is_tensor = isinstance(values, torch.Tensor)
    shape, kind = list(values.shape), str(values.dtype).removeprefix("torch.")
    channels = shape[0 if is_tensor else -1] if len(shape) == 3 else 1
    is_float = values.dtype.is_floating_point if is_tensor else values.dtype.kind == "f"
    if len(shape) not in (2, 3) or channels not in (1, 3) or 0 in shape or not (is_float or kind == "uint8"):
        form = "a tensor [3, height, width]" if is_tensor else "an array [height, width, 3]"
        raise InputError(f"{name} is {kind} {shape}: give {form} of uint8, or of floats from 0 to 1")
    if is_tensor:
        values = values.detach().cpu().to(torch.float32 if is_float else torch.uint8).numpy()
        values = values.transpose(1, 2, 0) if len(shape) == 3 else values
    if is_float:
        if not (values.min() >= -ROUNDING and values.max() <= 1 + ROUNDING):
            low, high = values.min(), values.max()
            raise InputError(f"{name} has floats from {low:.3g} to {high:.3g}: give them from 0 to 1, not normalised")
        values = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(
        np.ascontiguousarray(values.squeeze(-1) if channels == 1 and len(shape) == 3 else values)
    ).convert("RGB")


def printable(path: str | os.PathLike) -> str:
    """A path as text that any terminal and file takes, even where its bytes are no UTF-8 or break the line."""
    return " ".join(os.fsencode(path).decode(errors="replace").splitlines())


def resize(inputs: torch.Tensor, size: int) -> torch.Tensor:
    """Float images [n, 3, height, width] resampled (bilinear, antialiased) to `size` pixels a side if they differ."""
    if inputs.shape[-1] == size:
        return inputs
    return F.interpolate(inputs, (size, size), mode="bilinear", antialias=True)


@torch.inference_mode()
def logits(network: MobileNet, images: torch.Tensor, size: int, batch_size: int) -> torch.Tensor:
    """What the network says of uint8 images [n, height, width, 3], resampled to `size` pixels a side: [n, classes]."""
    device = next(network.parameters()).device
    found = []
    with evaluating(network):
        for portion in images.split(batch_size):
            inputs = data.normalise(portion.to(device), network.mean, network.std)
            found.append(network(resize(inputs, size)).cpu())
    return torch.cat(found)


def top_k(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` likeliest classes and their probabilities, [n, count] each, best first."""
    found = logits.softmax(1).topk(count)
    return found.indices, found.values


def best_five(network: MobileNet, split: Split, size: int = 32, batch_size: int | None = None) -> dict[str, np.ndarray]:
    """`labels` [n], the five best `classes` [n, 5] (or all, of fewer), best first, and their `probabilities` [n, 5]."""
    batch_size = batch_size or max(1, min(500, 500 * 32**2 // size**2))  # of larger images fewer fit into the memory
    return ranked(logits(network, split.images, size, batch_size), split.labels)


def ranked(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, np.ndarray]:
    """As `best_five`, from logits [n, classes]."""
    known = logits.shape[1]
    classes, probabilities = top_k(logits, min(5, known))
    kind = np.uint8 if known <= 256 else np.uint16
    return {
        "labels": labels.cpu().numpy().astype(kind),
        "classes": classes.numpy().astype(kind),
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

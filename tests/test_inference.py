import io
import os
import re
import sys
import warnings
import zlib

import numpy as np
import pandas
import pytest
import torch
from PIL import Image, ImageCms, ImageFile

import mnv3lib
from mnv3lib import data, inference
from mnv3lib.errors import AssumedWarning, InputError
from mnv3lib.provenance import ROOT
from mnv3lib.study import labelling

RED, GREEN, BLUE, YELLOW = (200, 30, 40), (30, 180, 60), (20, 40, 190), (230, 220, 20)
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def quarters(size=(64, 48)) -> Image.Image:
    """Red and green above, blue and yellow below: shows how an image is turned."""
    image = Image.new("RGB", size)
    width, height = size[0] // 2, size[1] // 2
    for colour, corner in ((RED, (0, 0)), (GREEN, (width, 0)), (BLUE, (0, height)), (YELLOW, (width, height))):
        image.paste(colour, (*corner, corner[0] + width, corner[1] + height))
    return image


def corners(image: Image.Image) -> list[tuple[int, int, int]]:
    """The colours near the four corners, row by row."""
    width, height = image.size
    return [image.getpixel((x, y)) for y in (4, height - 5) for x in (4, width - 5)]


def close(colours, expected, tolerance=12) -> bool:
    return np.abs(np.array(colours, int) - np.array(expected, int)).max() <= tolerance


@pytest.fixture(scope="module")
def network() -> mnv3lib.MobileNet:
    torch.manual_seed(0)
    made = mnv3lib.build("v3_small", width=0.25, num_classes=10).eval()
    made.classes, made.mean, made.std = data.CLASSES["digits"], (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return made


@pytest.fixture
def folder(tmp_path):
    """Two photographs with the companions that such a folder has."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    quarters().save(photographs / "b.png")
    quarters().save(photographs / "a.JPG")
    for name in ("SOURCES.csv", "README.md", "licence.TXT", ".hidden"):
        (photographs / name).write_text("no image")
    (photographs / "subfolder").mkdir()
    return photographs


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_orientation_is_undone(tmp_path, orientation, suffix):
    upright = quarters()
    # What a camera stores is the inverse of what the tag asks for: 6 (turn clockwise) and 8 are each other's.
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"image.{suffix}", exif=exif, **({"quality": 95} if suffix != "tiff" else {}))
    image = inference.load_image(tmp_path / f"image.{suffix}")
    assert image.size == upright.size
    assert close(corners(image), [RED, GREEN, BLUE, YELLOW], 40 if suffix == "webp" else 20)


def test_damaged_exif_does_not_cost_the_image(tmp_path):
    quarters().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffgarbage", quality=95)
    assert inference.load_image(tmp_path / "a.jpg").size == (64, 48)


FORMATS = {
    "RGB": ["png", "jpg", "bmp", "gif", "tiff", "webp", "ppm", "tga", "pcx", "jp2", "ico", "dds", "sgi", "avif"],
    "L": ["png", "jpg", "bmp", "gif", "tiff", "pgm", "tga", "pcx"],
    "P": ["png", "bmp", "gif", "tiff", "tga"],
    "1": ["png", "bmp", "tiff", "pbm", "xbm"],
    "LA": ["png", "tiff", "tga"],
    "RGBA": ["png", "tiff", "webp", "tga", "ico"],
    "CMYK": ["jpg", "tiff"],
    "YCbCr": ["jpg", "tiff"],
    "I;16": ["png", "tiff"],
    "I": ["tiff"],
    "F": ["tiff"],
}


@pytest.mark.parametrize(("mode", "suffix"), [(mode, suffix) for mode in FORMATS for suffix in FORMATS[mode]])
def test_every_mode_and_format_gives_the_same_picture(tmp_path, mode, suffix):
    grey = quarters().convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(np.asarray(grey).astype(np.int32) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    elif mode == "P":
        image = quarters().quantize(4)
    else:
        image = quarters().convert(mode)
    assert image.mode == mode
    options = {"jpg": {"quality": 95, "subsampling": 0}, "ico": {"sizes": [(64, 48)], "bitmap_format": "png"}}
    image.save(tmp_path / f"image.{suffix}", **options.get(suffix, {}))
    read = inference.load_image(tmp_path / f"image.{suffix}")
    assert (read.mode, read.size) == ("RGB", (64, 48))
    if mode == "1":
        assert set(read.get_flattened_data()) == {(0, 0, 0), (255, 255, 255)}
    else:
        expected = quarters() if mode in ("RGB", "P", "RGBA", "CMYK", "YCbCr") else grey.convert("RGB")
        assert close(corners(read), corners(expected), 45 if suffix in ("webp", "avif", "dds", "gif") else 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa", "P", "RGB", "L", "1"])
def test_transparent_parts_are_white(mode, tmp_path):
    if mode in ("P", "RGB", "L", "1"):
        image = Image.new("RGB", (8, 8), (0, 0, 0)).convert(mode)
        image.save(tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
        read = inference.load_image(tmp_path / "a.png")
    else:
        image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        image = image.convert("LA").convert(mode) if mode == "La" else image.convert(mode)
        read = inference.to_rgb(image)
    assert read.getpixel((3, 3)) == (255, 255, 255)


def test_a_palette_with_transparency_of_its_own():
    image = Image.new("PA", (8, 8), (1, 0))
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((0, 0), (1, 255))
    read = inference.to_rgb(image)
    assert (read.getpixel((0, 0)), read.getpixel((3, 3))) == (RED, (255, 255, 255))


def test_half_transparent_is_half_way_to_white():
    read = inference.to_rgb(Image.new("RGBA", (4, 4), (0, 100, 200, 128)))
    assert close([read.getpixel((0, 0))], [(127, 177, 227)], 1)


@pytest.mark.filterwarnings("ignore::mnv3lib.errors.AssumedWarning")
@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0, 32768, 65535], np.uint16, [0, 128, 255]),
        ([0, 100, 255], np.uint16, [0, 0, 1]),
        ([0, 128, 255], np.int32, [0, 128, 255]),
        ([-5, 32768, 65535], np.int32, [0, 128, 255]),
        ([0, 500_000, 1_000_000], np.int32, [0, 128, 255]),
        ([0, 0.5, 1], np.float32, [0, 128, 255]),
        ([0, 128, 255], np.float32, [0, 128, 255]),
        ([-1, np.nan, 0.2], np.float32, [0, 0, 51]),
        ([np.inf, 0, 1], np.float32, [0, 0, 255]),
        ([0, 0, 0], np.float32, [0, 0, 0]),
    ],
)
def test_deep_grey_values_keep_their_scale(values, kind, expected):
    read = inference.to_rgb(Image.fromarray(np.array([values], kind)))
    assert [read.getpixel((x, 0))[0] for x in range(3)] == pytest.approx(expected, abs=1)


def test_lab_and_big_endian_16_bits(tmp_path):
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(quarters(), *profiles, outputMode="LAB").save(tmp_path / "lab.tiff")
    assert close(corners(inference.load_image(tmp_path / "lab.tiff")), [RED, GREEN, BLUE, YELLOW], 12)
    values = np.array([[0, 32768, 65535]], ">u2")
    (tmp_path / "big.pgm").write_bytes(b"P5 3 1 65535\n" + values.tobytes())
    assert [inference.load_image(tmp_path / "big.pgm").getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_the_first_frame_of_an_animation_counts(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert close([inference.load_image(tmp_path / f"a.{suffix}").getpixel((8, 8))], [RED], 12)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tiff", "webp", "ppm", "tga", "jp2", "avif"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_cut_off_files_are_refused_by_name(tmp_path, suffix, share):
    Image.fromarray(NOISE).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=rf"cut\.{suffix}") as error:
        inference.load_image(tmp_path / f"cut.{suffix}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(60), b"GIF89a", b"\xff\xd8\xff"]
)
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(InputError, match=r"odd\.png"):
        inference.load_image(tmp_path / "odd.png")


def test_what_is_no_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*none\.png"):
        inference.load_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is no file"):
        inference.load_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png is no file"):
        inference.load_image(tmp_path / "pipe.png")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    side = (30_000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + bytes([8, 2, 0, 0, 0]))
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")
    )
    with pytest.raises(InputError, match=r"bomb\.png has more than 178,956,970 pixels"):
        inference.load_image(tmp_path / "bomb.png")


def test_the_middle_square_is_scaled():
    image = Image.new("RGB", (300, 100), RED)
    image.paste(BLUE, (100, 0, 200, 100))
    pixels = inference.as_pixels(image)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == torch.uint8
    assert close(pixels.reshape(-1, 3).numpy(), [BLUE], 15)
    upright = inference.as_pixels(image.transpose(Image.Transpose.ROTATE_90))
    assert (upright.permute(1, 0, 2).int() - pixels.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 9_000), (9_000, 1), (31, 33), (2_000, 1_500)])
def test_any_size_and_shape(network, size):
    table = mnv3lib.predict(network, Image.new("RGB", size, RED), top=3)
    assert len(table) == 3


def test_a_fine_pattern_becomes_its_mean_and_not_its_samples():
    board = np.indices((320, 320)).sum(0) % 2 * 255
    pixels = inference.as_pixels(Image.fromarray(board.astype(np.uint8)).convert("RGB"))
    assert (pixels.float() - 127.5).abs().max() < 3


def test_guesses_are_those_of_the_network(network):
    image = Image.fromarray(NOISE).resize((32, 32))
    table = mnv3lib.predict(network, image)
    inputs = data.normalise(torch.from_numpy(np.array(image))[None], network.mean, network.std)
    best = network(inputs).softmax(1)[0].topk(5)
    assert table["class"].tolist() == [network.classes[index] for index in best.indices]
    assert table["probability"].tolist() == pytest.approx(best.values.tolist(), rel=1e-5)
    assert table["rank"].tolist() == [1, 2, 3, 4, 5]
    assert table.columns.tolist() == ["image", "rank", "class", "probability"]


def test_predict_takes_paths_and_images_and_leaves_the_network_as_it_was(network, folder):
    frozen = network.train().features[0][1].eval()
    table = mnv3lib.predict(network, [folder / "b.png", str(folder / "a.JPG"), quarters()], top=2)
    assert [module for module in network.modules() if not module.training] == [frozen]
    with frozen.register_forward_hook(lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
        mnv3lib.predict(network, quarters())
    assert [module for module in network.modules() if not module.training] == [frozen]
    network.eval()
    assert table["image"].tolist() == ["b.png"] * 2 + ["a.JPG"] * 2 + ["2"] * 2
    again = mnv3lib.predict(network, folder / "b.png", top=2)
    assert again["probability"].tolist() == pytest.approx(table["probability"][:2].tolist(), abs=1e-6)
    assert mnv3lib.predict(network, []).empty


def test_every_form_of_a_picture_gives_the_same_guesses(network, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path)
    tensor = torch.from_numpy(NOISE.copy()).permute(2, 0, 1)
    with path.open("rb") as file:
        file.read(10)  # wherever it stands, as Pillow does
        forms = [path, str(path), Image.open(path), path.read_bytes(), bytearray(path.read_bytes()), file]
        forms += [
            memoryview(path.read_bytes()),
            io.BytesIO(path.read_bytes()),
            NOISE,
            NOISE / 255,
            tensor,
            tensor / 255,
        ]
        forms += [(tensor / 255).double().requires_grad_(), np.asfortranarray(NOISE), NOISE[:, ::-1][:, ::-1]]
        expected = mnv3lib.predict(network, path)[["class", "probability"]]
        for form in forms[1:]:
            file.seek(5)
            pandas.testing.assert_frame_equal(mnv3lib.predict(network, form)[["class", "probability"]], expected)
        table = mnv3lib.predict(network, forms, top=1)
    assert table["image"].tolist() == ["a.png", "a.png", *map(str, range(2, len(forms)))]
    assert len(set(table["probability"])) == 1
    assert len(mnv3lib.predict(network, np.stack([NOISE] * 3), top=1)) == 3
    assert len(mnv3lib.predict(network, NOISE, top=np.int64(2))) == 2
    white = np.full((8, 8, 3), 1.0, np.float32)  # a mean or a resize can end a rounding above 1
    assert mnv3lib.predict(network, white * np.float32(1.000001)).equals(mnv3lib.predict(network, white))
    grey = NOISE[:, :, 0]
    grey_tensor = torch.from_numpy(grey.copy())
    found = [mnv3lib.predict(network, one, top=1) for one in (grey, grey[..., None], grey_tensor, grey_tensor[None])]
    assert len({one["probability"][0] for one in found}) == 1


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (3, "image 0 is of type int: give a path"),
        (None, "type NoneType"),
        ([["a.png"]], "image 0 is of type list"),
        (object(), "type object"),
        (NOISE.transpose(2, 0, 1), r"image 0 is uint8 \[3, 48, 64\]: give an array \[height, width, 3\]"),
        (torch.from_numpy(NOISE), r"uint8 \[48, 64, 3\]: give a tensor \[3, height, width\]"),
        (NOISE.astype(np.uint16), "uint16"),
        (NOISE > 3, "bool"),
        (NOISE[:0], r"\[0, 64, 3\]"),
        (np.zeros(3), "give an array"),
        (torch.randn(3, 8, 8), "floats from .* not normalised"),
        (NOISE.astype(np.float32), "floats from 0 to 255"),
        (torch.full((3, 8, 8), torch.nan), "floats from nan"),
        (b"", "image 0 is no image"),
        (b"GIF89a", "image 0"),
        (io.StringIO("text"), "open as text: open it with mode 'rb'"),
        (Image.new("RGB", (0, 5)), "image 0 has no pixels"),
        ("https://example.org/a.png", "https://example.org/a.png is a web address: download it"),
        ("", "an empty path"),
        ({"a.png": 1}, "there is no file a.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_picture_is_refused_in_a_line(network, image, words):
    with pytest.raises(InputError, match=words) as caught:
        mnv3lib.predict(network, image)
    assert len(str(caught.value).splitlines()) == 1


def test_in_jupyter_such_an_error_is_one_line(capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.run_cell("import mnv3lib; mnv3lib.build('v3_small', width=-1)")
    out = capsys.readouterr().out.strip()
    assert out == "InputError: width -1: give a number above 0, at most 4"


OTHERS = {
    "HEIC": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "pip install pillow-heif, or make it a PNG"),
    "JPEG XL": (b"\xff\x0a\xfa\x1f\x01\x91", "pip install pillow-jxl-plugin"),
    "JPEG XL in a box": (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "pip install pillow-jxl-plugin"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a drawing"),
    "SVG with its declaration": (b"<?xml version='1.0'?><svg/>", "a drawing"),
    "PDF": (b"%PDF-1.7\n", "a PDF"),
    "film": (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00", "a film"),
    "array": (b"\x93NUMPY\x01\x00v\x00", "hand it to mnv3lib.predict"),
    "page": (b"<!DOCTYPE html><html></html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_formats_that_are_not_read_are_named_with_their_mend(what, network, tmp_path, monkeypatch):
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    content, mend = OTHERS[what]
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(InputError, match=rf"photo\.jpg is .*{mend}"):
        inference.load_image(tmp_path / "photo.jpg")
    with pytest.raises(InputError, match=mend):
        mnv3lib.predict(network, content)


@pytest.mark.parametrize(("module", "what"), [("pillow_heif", "HEIC"), ("pillow_jxl", "JPEG XL")])
def test_plugins_of_pillow_are_used_where_they_are(module, what, monkeypatch, tmp_path):
    """A stand-in that reads any file of the format as one red pixel, in the way that the plugin comes to be used."""
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    content, _ = OTHERS[what]

    class File(ImageFile.ImageFile):
        def _open(self):
            self._mode, self._size = "RGB", (1, 1)

        def load(self):
            self.im = Image.new("RGB", (1, 1), RED).im
            return Image.Image.load(self)

    def register():
        Image.register_open("OTHER", File, lambda prefix: prefix.startswith(content[:8]))

    plugin = type(sys)(module)
    if module == "pillow_heif":
        plugin.register_heif_opener = register
    else:
        register()
    monkeypatch.setitem(sys.modules, module, plugin)
    (tmp_path / "photo").write_bytes(content)
    assert inference.load_image(tmp_path / "photo").getpixel((0, 0)) == RED


def test_heic_and_jpeg_xl_are_read(tmp_path):
    """With the plugins themselves, where they are installed."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    quarters().save(tmp_path / "a.heic", quality=95)
    pytest.importorskip("pillow_jxl")
    quarters().save(tmp_path / "a.jxl", quality=95)
    for name in ("a.heic", "a.jxl"):
        assert close(corners(inference.load_image(tmp_path / name)), [RED, GREEN, BLUE, YELLOW], 20)


@pytest.mark.parametrize(
    ("values", "kind", "told"),
    [
        ([0, 2000, 4095], np.uint16, "grey values from 0 to 4095: 0 is taken for black and 65535 for white"),
        ([0, 1023, 3], np.uint16, "65535 for white"),
        ([0, 16383, 3], np.uint16, "65535 for white"),
        ([0, 16385, 3], np.uint16, None),
        ([0, 65535, 9], np.uint16, None),
        ([0, 0, 0], np.uint16, None),
        ([-1, 0, 1], np.float32, "grey values from -1 to 1: 0 is taken for black and 1 for white"),
        ([0, 0.5, 1.01], np.float32, "from 0 to 1.01: .* 255 for white"),
        ([0, 0.5, 1], np.float32, None),
        ([0, 0.5, np.nan], np.float32, "and some that are no numbers"),
        ([0, 200, 255], np.int32, None),
        ([-7, 200, 255], np.int32, "from -7 to 255"),
        ([0, 20, 70_000], np.int32, "70000 for white"),
        ([0, 300, 4095], np.int32, "65535 for white"),
    ],
)
def test_what_is_assumed_of_depth_and_range_is_told(values, kind, told, tmp_path):
    Image.fromarray(np.array([values], kind)).save(tmp_path / "deep.tiff")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inference.load_image(tmp_path / "deep.tiff")
    assert len(caught) == (told is not None)
    if told:
        assert caught[0].category is AssumedWarning
        assert re.search(rf"deep\.tiff has .*{told}", str(caught[0].message))


@pytest.mark.parametrize(("highest", "warned"), [(4095, True), (16_000, True), (65_535, False)])
def test_colours_of_16_bits_of_which_few_are_used_are_told(highest, warned, tmp_path):
    """Pillow hands on the upper 8 bits of each."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    size = (1).to_bytes(4, "big") * 2
    body = chunk(b"IHDR", size + bytes([16, 2, 0, 0, 0])) + chunk(
        b"IDAT", zlib.compress(b"\x00" + highest.to_bytes(2, "big") * 3)
    )
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b""))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inference.load_image(tmp_path / "deep.png")
    assert len(caught) == warned
    assert not warned or "16 bits a colour" in str(caught[0].message)


def test_predict_says_what_is_missing(network):
    with pytest.raises(InputError, match="from 1 to 10"):
        mnv3lib.predict(network, quarters(), top=11)
    with pytest.raises(InputError, match=r"mnv3lib\.load"):
        mnv3lib.predict(mnv3lib.build("v1", width=0.25), quarters())


def test_every_test_image_opens_and_is_in_the_list_of_sources():
    folder = ROOT / "test_images"
    files = labelling.find_images([folder])
    assert labelling.photographs(folder).shape == (20, 32, 32, 3)
    sources = labelling.sources(folder)
    assert {file.name for file in files} == set(sources)
    classes = {row["cifar100_class"] for row in sources.values()} - {""}
    assert classes <= set(data.CLASSES["cifar100"])
    for row in sources.values():
        assert row["author"] in labelling.credits(folder)
    castle = inference.load_image(folder / "castle.jpg")
    assert castle.width > castle.height  # stored turned by 90 degrees

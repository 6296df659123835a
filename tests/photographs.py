"""Folders of photographs, drawn: what a person's own images look like to the library."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

SHAPES = ("circle", "cross", "square", "stripes", "triangle")
FORMATS = ("png", "jpg", "webp")


def draw(folder: Path, count: int, classes=SHAPES, seed: int = 0) -> Path:
    """`count` photographs of each class in `folder`/<class>: PNG, JPEG and WebP, each of another size and colour."""
    luck = random.Random(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = shape(name, luck)
            image.save(folder / name / f"{number:03}.{FORMATS[number % len(FORMATS)]}")
    return folder


def shape(name: str, luck: random.Random) -> Image.Image:
    """A photograph of a shape: bright on dark, somewhere near the middle."""
    width, height = luck.randint(40, 90), luck.randint(40, 90)
    image = Image.new("RGB", (width, height), tuple(luck.randint(0, 90) for _ in range(3)))
    pen, colour = ImageDraw.Draw(image), tuple(luck.randint(150, 255) for _ in range(3))
    x, y = width / 2 + luck.uniform(-3, 3), height / 2 + luck.uniform(-3, 3)
    r = min(width, height) * luck.uniform(0.3, 0.42)
    if name == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif name == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    elif name == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    elif name == "cross":
        pen.line((x - r, y - r, x + r, y + r), colour, int(r / 2))
        pen.line((x - r, y + r, x + r, y - r), colour, int(r / 2))
    else:
        for step in range(5):
            top = y - r + step * r / 2
            pen.rectangle((x - r, top, x + r, top + r / 4), fill=colour)
    return image

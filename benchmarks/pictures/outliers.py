"""Images without a digit, to measure acceptance rules on: other fonts, data sets and generators than `export.outliers`.

Every image has MNIST's form, as `serving.codecs.pictures.ink` would convert a picture of it.
"""

import string
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.errors import BenchmarkError
from export.outliers import CANVAS, draw_text, to_mnist
from serving.model.tensors import SIDE, Images
from training.data.mnist_files import parse_images, read_file

LOOKALIKES = "OoDQIilZzSsBbqg"
"""Letters that many fonts write like a digit."""
REPEATS = 3
"""Of each character in a family, in a face chosen at random."""


def font_families(folder: Path) -> list[list[Path]]:
    """Return the font files below `folder`, by the folder they are in. Raises `BenchmarkError` if there are none."""
    families = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".ttf", ".otf", ".woff"}:
            families[path.parent].append(path)
    if not families:
        raise BenchmarkError(f"--fonts-dir: there is no font (.ttf, .otf or .woff) below {folder}")
    return list(families.values())


def draw_characters(
    families: list[list[Path]], characters: str, rng: np.random.Generator
) -> tuple[Images, list[str]]:
    """Draw every character in every family; return the images and their characters."""
    drawn = [
        (to_mnist(draw_text(each, faces[rng.integers(len(faces))])), each)
        for faces in families
        for each in characters
        for _ in range(REPEATS)
    ]
    return np.stack([image for image, _ in drawn]), [character for _, character in drawn]


def draw_letters(families: list[list[Path]], rng: np.random.Generator) -> dict[str, Images]:
    """Draw A to Z and a to z: all of them, and those that no font writes like a digit."""
    images, letters = draw_characters(families, string.ascii_letters, rng)
    unlike = np.array([letter not in LOOKALIKES for letter in letters])
    return {"letters": images, "letters unlike digits": images[unlike]}


def draw_others(digits: Images, count: int, rng: np.random.Generator) -> dict[str, Images]:
    """Draw `count` images of each kind that needs no font; pairs are made of `digits`."""
    levels = np.linspace(0, 255, count).astype(np.uint8)
    noise = rng.normal(
        rng.uniform(0, 150, (count, 1, 1)), rng.uniform(10, 80, (count, 1, 1)), (count, SIDE, SIDE)
    )
    return {
        "two digits": np.stack([_pair(digits[rng.integers(len(digits), size=2)], rng) for _ in range(count)]),
        "scribbles": np.stack([_curve(rng) for _ in range(count)]),
        "noise": noise.clip(0, 255).astype(np.uint8),
        "empty fields": np.broadcast_to(levels[:, None, None], (count, SIDE, SIDE)).copy(),
    }


def read_fashion(folder: Path, count: int) -> Images:
    """Return the first test images of Fashion-MNIST (Xiao, Rasul, Vollgraf 2017). Raises `DatasetError`."""
    return parse_images(read_file(folder, "t10k-images-idx3-ubyte"))[:count].numpy()


def _pair(pair: Images, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Two digits in one picture, from touching each other to well apart."""
    canvas = np.zeros((SIDE, 3 * SIDE), np.uint8)
    left = int(rng.integers(18, 32))
    canvas[:, :SIDE] = pair[0]
    np.maximum(canvas[:, left : left + SIDE], pair[1], out=canvas[:, left : left + SIDE])
    return to_mnist(canvas)


def _curve(rng: np.random.Generator) -> NDArray[np.uint8]:
    """One to three chains of cubic Bézier curves."""
    image = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(image)
    width = int(rng.integers(4, 12))
    t = np.linspace(0, 1, 30)[:, None]
    for _ in range(int(rng.integers(1, 4))):
        end = rng.uniform(5, CANVAS - 5, (1, 2))
        for _ in range(int(rng.integers(1, 4))):
            a, b, c, d = np.concatenate([end, rng.uniform(5, CANVAS - 5, (3, 2))])
            path = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
            pen.line([(float(x), float(y)) for x, y in path], fill=255, width=width, joint="curve")
            end = d[None]
    return to_mnist(np.asarray(image))

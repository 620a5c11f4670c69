"""A sheet of paper with ink on it, in some light, photographed by some camera."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.pictures.strokes import Ink

Levels = NDArray[np.float32]
"""Linear brightness 0–255, `float32 [H, W, 3]`."""


@dataclass
class Sheet:
    """A picture while it is drawn: paper, then ink, then light, then the camera."""

    rng: Generator
    levels: Levels

    @classmethod
    def of(cls, rng: Generator, size: tuple[int, int], colour: tuple[float, float, float]) -> "Sheet":
        """Return an empty sheet of (height, width) pixels in one colour."""
        return cls(rng, np.full((*size, 3), colour, np.float32))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return self.levels.shape[0], self.levels.shape[1]

    def ink(self, coverage: Ink, colour: tuple[float, float, float]) -> None:
        """Cover the sheet with ink where `coverage` is 1, in part where it is less."""
        self.levels += coverage[..., None] * (np.array(colour, np.float32) - self.levels)

    def lines(
        self, spacing: float, colour: tuple[float, float, float], *, squared: bool, width: float = 1.0
    ) -> None:
        """Print lines, or squares, that many pixels apart."""
        for axis in (0, 1) if squared else (0,):
            start = self.rng.uniform(0, spacing)
            at = np.arange(self.size[axis], dtype=np.float32)
            away = np.abs((at - start + spacing / 2) % spacing - spacing / 2)
            coverage = np.clip(width / 2 + 0.5 - away, 0, 1)
            self.ink(np.broadcast_to(coverage[:, None] if axis == 0 else coverage, self.size), colour)

    def light(self, factor: NDArray[np.float32]) -> None:
        """Multiply the brightness by `float32 [H, W]`."""
        self.levels *= factor[..., None]

    def polygon(self, corners: list[tuple[float, float]], *, blur: float = 0.7) -> Ink:
        """Return 1 inside of a polygon of (column, row) corners, with an edge blurred by that many pixels."""
        mask = Image.new("L", self.size[::-1])
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        return np.asarray(mask.filter(ImageFilter.GaussianBlur(blur)), np.float32) / np.float32(255)

    def grain(self, deviation: float) -> None:
        """Add the sensor's noise: normal, independent between pixels and mostly between channels."""
        common = self.rng.normal(0, deviation, (*self.size, 1)).astype(np.float32)
        self.levels += common * 0.8 + self.rng.normal(0, deviation * 0.6, self.levels.shape).astype(
            np.float32
        )

    def image(self) -> Image.Image:
        """Return the picture as RGB."""
        return Image.fromarray(np.clip(np.rint(self.levels), 0, 255).astype(np.uint8))


def png(image: Image.Image) -> tuple[bytes, str]:
    """Encode as PNG."""
    target = io.BytesIO()
    image.save(target, "PNG", compress_level=1)
    return target.getvalue(), "image/png"


def jpeg(image: Image.Image, quality: int = 88, **options: object) -> tuple[bytes, str]:
    """Encode as JPEG."""
    target = io.BytesIO()
    image.save(target, "JPEG", quality=quality, **options)
    return target.getvalue(), "image/jpeg"

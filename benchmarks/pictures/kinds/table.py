"""The kinds of pictures users send; every parameter is drawn from a range.

    content, media_type = KINDS["vignette"].draw(digit, numpy.random.default_rng(0))

`digit` is `uint8 [28, 28]`, light on black, as in MNIST.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numpy.random import Generator

from benchmarks.pictures.kinds import camera, light, paper, pens, screen
from benchmarks.pictures.random_sheet import File


class Kind(NamedTuple):
    """A kind of picture."""

    description: str
    draw: Callable[[Any, Generator], File]
    """From a digit of MNIST; or, if not `of_mnist`, from its label alone."""
    of_mnist: bool = True


KINDS = {
    "light on dark": Kind("white ink on black, any size and place", screen.light_on_dark),
    "dark on light": Kind("black ink on white, any size and place", screen.dark_on_light),
    "MNIST": Kind("a test digit as it is, 28×28", screen.mnist),
    "MNIST inverted": Kind("a test digit in black on white, 28×28", screen.mnist_inverted),
    "paint 28×28": Kind("28×28, black on white, neither centred nor scaled", screen.thumbnail),
    "32–96 pixels": Kind("small pictures in either polarity", screen.small),
    "two colours": Kind("any two colours 60 levels apart", screen.colours),
    "transparent": Kind("ink on a transparent background", screen.transparent),
    "faint": Kind("45 to 80 levels of contrast", pens.faint),
    "hairline": Kind("strokes of one to two pixels", screen.hairline),
    "thin pen": Kind("strokes of 2 to 4 % of the digit's height", pens.of_width(0.02, 0.04)),
    "marker": Kind("strokes of 12 to 20 % of the digit's height", pens.of_width(0.12, 0.2)),
    "pencil": Kind("grey, grainy strokes", pens.pencil),
    "chalk": Kind("grainy white on a wiped board", pens.chalk),
    "lined paper": Kind("lines 8 to 20 % apart", paper.ruled(squared=False)),
    "squared paper": Kind("squares of 5 to 20 %", paper.ruled(squared=True)),
    "form": Kind("a printed box around the digit", paper.form),
    "vignette": Kind("corners with 33 to 67 % less light", light.vignette),
    "side light": Kind("35 to 60 % of the light at the far side", light.side_light),
    "hard shadow": Kind("the sharp edge of a shadow across the picture", light.shadow(0, 0.004)),
    "soft shadow": Kind("a blurred edge of a shadow", light.shadow(0.02, 0.15)),
    "dark table": Kind("a sheet on a dark table, one to three edges in view", paper.table),
    "specks": Kind("three to twelve specks of dust", paper.specks),
    "staple": Kind("a staple or a binder's hole", paper.staple),
    "noise": Kind("sensor noise of 10 to 24 levels", camera.noise),
    "blurred": Kind("out of focus by 0.5 to 1.8 % of the side", camera.blurred),
    "compressed": Kind("JPEG of quality 8 to 30", camera.compressed),
    "distant": Kind("a digit of 8 to 20 % of the side", camera.distant),
    "cropped": Kind("cut out along the digit's edge", camera.cropped),
    "EXIF": Kind("stored rotated, orientation in EXIF", camera.rotated_exif),
    "file modes": Kind("CMYK, 16 bits, palette, one bit", camera.modes),
    "phone": Kind("12 megapixels, uneven light", camera.phone),
    "everything": Kind("lines, vignette, shadow, specks and noise", light.everything),
    "typed": Kind("digits of typed fonts: DejaVu, STIX, Computer Modern", screen.typed, of_mnist=False),
    "canvas": Kind("50 digits drawn with the mouse in a browser", screen.canvas, of_mnist=False),
}
"""By name; in the order of the report."""

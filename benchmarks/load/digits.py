"""The digits that benchmarks send: real ones, so that JSON and PNG bodies have the sizes they have in use.

`digits.png` is a sheet of the first ten training digits of each class, row d holding the digits d. It is part
of MNIST (Y. LeCun, C. Cortes; CC BY-SA 3.0), unchanged but for the arrangement.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHEET = Path(__file__).with_name("digits.png")

Images = NDArray[np.uint8]
"""`uint8 [N, 28, 28]`, white ink on black."""


def load_digits() -> Images:
    """Return the 100 digits as `uint8 [100, 28, 28]`, the classes 0 to 9 in turns."""
    sheet = np.asarray(Image.open(SHEET, formats=["PNG"]))
    by_class = sheet.reshape(10, 28, 10, 28).swapaxes(1, 2)  # class, number, row, column
    return np.ascontiguousarray(by_class.swapaxes(0, 1).reshape(100, 28, 28))

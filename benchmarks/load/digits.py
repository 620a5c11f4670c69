"""The digits that benchmarks send: real ones, so that JSON and PNG bodies have realistic sizes.

`digits.png` is a sheet of the first ten training digits of each class, the digits d in row d. It is part of MNIST
(Y. LeCun, C. Cortes; CC BY-SA 3.0), rearranged only.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from serving.model.tensors import Images

SHEET = Path(__file__).with_name("digits.png")


def load_digits() -> Images:
    """Return the 100 digits as `uint8 [100, 28, 28]`, of the classes 0 to 9 cyclically."""
    sheet = np.asarray(Image.open(SHEET, formats=["PNG"]))
    by_class = sheet.reshape(10, 28, 10, 28).swapaxes(1, 2)  # class, number, row, column
    return np.ascontiguousarray(by_class.swapaxes(0, 1).reshape(100, 28, 28))

"""Draw the test digits of the page: `python -m serving.http.page.draw_digits FOLDER_WITH_MNIST`.

Every 25th of MNIST's 10,000 test digits, none chosen by hand; the same bytes at every call. The file is gzipped: 400
labels of one byte each, then 400 images of 784 bytes.

MNIST was made by Yann LeCun, Corinna Cortes and Christopher J. C. Burges; Y. LeCun and C. Cortes hold its copyright.
The file is distributed under MNIST's licence, CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/).
"""

import gzip
import sys
from pathlib import Path

import numpy as np

from distillery.files import write_atomically

EVERY = 25
FILE = Path(__file__).parent / "files" / "digits.bin"
_IMAGE_HEADER, _LABEL_HEADER = 16, 8  # bytes of an IDX file


def draw(folder: Path) -> bytes:
    """Return the content of the file. Raises `OSError`."""
    labels = _read(folder / "t10k-labels-idx1-ubyte.gz")[_LABEL_HEADER:]
    images = _read(folder / "t10k-images-idx3-ubyte.gz")[_IMAGE_HEADER:].reshape(-1, 784)
    return gzip.compress(labels[::EVERY].tobytes() + images[::EVERY].tobytes(), mtime=0)


def _read(path: Path) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)


if __name__ == "__main__":
    write_atomically(FILE, draw(Path(sys.argv[1])))

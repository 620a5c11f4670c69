"""Draw the sample of this folder from the whole of MNIST: `python tests/data/digits/draw.py FOLDER_WITH_MNIST`.

Of every digit the same number, evenly spread over the file's order; the same bytes at every call.
"""

import gzip
import struct
import sys
from pathlib import Path

import torch

from training.data.mnist import Digits, load_test, load_training

HERE = Path(__file__).parent


def draw(digits: Digits, per_digit: int) -> Digits:
    chosen = []
    for label in range(10):
        members = torch.nonzero(digits.labels == label).flatten()
        chosen.append(members[torch.arange(per_digit) * len(members) // per_digit])
    places = torch.cat(chosen).sort().values
    return Digits(digits.images[places], digits.labels[places])


def write(name: str, digits: Digits) -> None:
    images, labels = digits.images.numpy(), digits.labels.byte().numpy()
    headers = struct.pack(">4i", 0x803, *images.shape), struct.pack(">2i", 0x801, len(labels))
    for kind, header, content in zip(("images", "labels"), headers, (images, labels), strict=True):
        packed = gzip.compress(header + content.tobytes(), 9, mtime=0)
        (HERE / f"{name}-{kind}.idx.gz").write_bytes(packed)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write("train", draw(load_training(folder)[0], 60))
    write("test", draw(load_test(folder), 20))

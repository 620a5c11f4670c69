"""Constant load for the compose file's profile `load`: real digits to every model of a service, at a rate per model.

    python docker/load.py http://127.0.0.1:8000 benchmarks/load/digits.png 20

It runs in the image of the service, with what that has: neither the client of `serving.client` nor the benchmarks.
"""

import json
import sys
import time
from itertools import count
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from PIL import Image


def pixels(sheet: Path) -> list[bytes]:
    """Return the digits of a sheet of ten by ten, 784 bytes each."""
    image = Image.open(sheet).convert("L")
    boxes = [
        (28 * column, 28 * row, 28 * column + 28, 28 * row + 28) for column in range(10) for row in range(10)
    ]
    return [image.crop(box).tobytes() for box in boxes]


def send(url: str, models: list[str], digits: list[bytes], rate: float) -> None:
    """Send `rate` requests per second to each model; returns when the service does not respond."""
    began = time.monotonic()
    for number in count():
        time.sleep(max(0.0, began + number / (rate * len(models)) - time.monotonic()))
        headers = {"Content-Type": "application/octet-stream"}
        model, digit = models[number % len(models)], digits[number // len(models) % len(digits)]
        with urlopen(Request(f"{url}/predict/{model}", digit, headers), timeout=10):  # noqa: S310
            pass


def main() -> None:
    """Send until the process is ended; a service that is not there yet, or no more, is tried again each second."""
    url, sheet, rate = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    digits = pixels(sheet)
    while True:
        try:
            with urlopen(f"{url}/models", timeout=10) as answer:  # noqa: S310
                models = [model["name"] for model in json.load(answer)["models"]]
            send(url, models, digits, rate)
        except (URLError, OSError) as error:
            print(f"{url}: {error}; trying again", flush=True)
            time.sleep(1)


if __name__ == "__main__":
    main()

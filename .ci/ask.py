"""Serve ./models and ask every model for 200 real digits; run by .ci/serving-alone, without torch around."""

import gzip
import json
import sys
import urllib.request
from pathlib import Path

from benchmarks.servers import running_service

IMAGE_HEADER, LABEL_HEADER, PIXELS = 16, 8, 784
LEAST_RIGHT = 180


def digits() -> tuple[list[list[int]], list[int]]:
    """The 200 committed test digits, each as 784 integers, and their labels."""
    folder = Path("tests/digits")
    pixels = gzip.decompress((folder / "test-images.idx.gz").read_bytes())[IMAGE_HEADER:]
    labels = gzip.decompress((folder / "test-labels.idx.gz").read_bytes())[LABEL_HEADER:]
    return [list(pixels[i : i + PIXELS]) for i in range(0, len(pixels), PIXELS)], list(labels)


def main() -> int:
    """Return the exit status: 0 when every model is right about nearly all of them."""
    images, labels = digits()
    body = json.dumps({"images": images}).encode()
    status = 0
    with running_service(Path("models")) as url:
        with urllib.request.urlopen(f"{url}/models", timeout=10) as response:
            models = json.load(response)["models"]
        for model in models:
            request = urllib.request.Request(
                f"{url}/predict/{model['name']}", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=10) as response:
                predictions = json.load(response)["predictions"]
            right = sum(p["digit"] == label for p, label in zip(predictions, labels, strict=True))
            print(f"{model['name']:<16}{right} of {len(labels)} right")
            if right < LEAST_RIGHT:
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())

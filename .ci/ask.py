"""Serve with these options and classify 200 real digits with every model; run by .ci/serving-alone, without torch."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np

from serving.client import Client

IMAGE_HEADER, LABEL_HEADER = 16, 8
MIN_CORRECT = 180


def main() -> int:
    """Return the exit status: 0 when every model classifies at least 180 correctly and the service ends cleanly."""
    folder = Path("tests/data/digits")
    pixels = gzip.decompress((folder / "test-images.idx.gz").read_bytes())[IMAGE_HEADER:]
    labels = gzip.decompress((folder / "test-labels.idx.gz").read_bytes())[LABEL_HEADER:]
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)
    program = Path(sys.executable).with_name(
        "distillery-serve"
    )  # as installed: -m would take the folder's modules
    command = [program, "--port", "0", *sys.argv[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            url = service.stdout.readline().split()[3]  # distillery-serve: ready at http://…
            with Client(url) as client:
                correct = {
                    model: int((client.predict(images, model=model).digits == list(labels)).sum())
                    for model in client.models()
                }
        finally:
            service.terminate()
    for name, count in correct.items():
        print(f"{name:<16}{count} of {len(labels)} correct")
    return service.returncode or int(min(correct.values()) < MIN_CORRECT)


if __name__ == "__main__":
    sys.exit(main())

"""Classify image files with a running service, from Python.

make serve                                                  # in another terminal
.venv/bin/python examples/ask.py examples/seven.png
"""

import sys
from pathlib import Path

from serving.client import Client

URL = "http://127.0.0.1:8000"
files = [Path(name) for name in sys.argv[1:]] or [Path("examples/seven.png")]

with Client(URL) as client:
    result = client.predict_pictures([file.read_bytes() for file in files])  # PNG, JPEG, WebP, GIF or BMP

print(f"model {result.model}")
for file, digit, probabilities in zip(files, result.digits, result.probabilities, strict=True):
    print(f"{file}: {digit} (probability {probabilities[digit]:.3f})")
print(f"inference {result.timing.inference_ms:.2f} ms, total {result.timing.total_ms:.2f} ms")

"""Inputs and results of bulk scoring."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from serving.model.tensors import Images

Score = Callable[..., int]
"""Runs the command with these arguments and returns its exit status."""


def png(pixels: Images) -> bytes:
    """Return a grey picture as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rows(out: Path, kind: str = "predictions") -> list[dict[str, Any]]:
    """Return all rows of a run, in the order of inputs and items."""
    table = pq.read_table(out / kind) if (out / kind).exists() else None
    found: list[dict[str, Any]] = table.to_pylist() if table else []
    return sorted(found, key=lambda row: (row["source"], row["index"]))


def files(out: Path) -> dict[str, bytes]:
    """Return the files of results by their paths."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.parquet"))}

"""What `distillery-train report` says of a network, lying beside its checkpoint, goes where its graph goes."""

import json
from filecmp import cmp
from pathlib import Path

from pydantic import TypeAdapter

from export.errors import ExportError
from training.report.report import CARD, REPORT

FIGURES = TypeAdapter(dict[str, float])


def documents(checkpoint: Path) -> list[Path]:
    """Return the model card and the report beside `checkpoint`: both, or nothing where none was written."""
    return [path for name in (CARD, REPORT) if (path := checkpoint.with_name(name)).is_file()]


def headline(checkpoint: Path) -> dict[str, float] | None:
    """Return the chief figures of the report beside `checkpoint`, None without one. Raises `ExportError`."""
    path = checkpoint.with_name(REPORT)
    if not path.is_file():
        return None
    try:
        return FIGURES.validate_python(json.loads(path.read_bytes())["headline"])
    except (ValueError, KeyError, TypeError):
        raise ExportError(
            f"{path} has no headline of names and numbers; write it again with distillery-train report"
        ) from None


def is_published(checkpoint: Path, folder: Path) -> bool:
    """Return whether `folder` of a model repository has the documents beside `checkpoint` as they are now."""
    for name in (CARD, REPORT):
        source, copy = checkpoint.with_name(name), folder / name
        if source.is_file() != copy.is_file() or (source.is_file() and not cmp(source, copy, shallow=False)):
            return False
    return True

"""Figures that several sections share: style, colours, and a PNG file with the names of its sources."""

from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

SOURCE_KEY = "Source"  # a key that the PNG specification defines
COLOURS = ("#0072b2", "#e69f00", "#009e73")
"""Okabe and Ito's, safe for colour-blind readers."""


def style() -> AbstractContextManager[None]:
    """Return a context in which figures are drawn in the style of the documents."""
    return mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def save(figure: Figure, path: Path, names: str) -> None:
    """Write a figure to `path` (PNG) with the names of the results it shows inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={SOURCE_KEY: names})


def drawn_from(path: Path) -> str | None:
    """Return the names of the results that a figure shows; None where there is no such figure."""
    if not path.is_file():
        return None
    with Image.open(path, formats=["PNG"]) as image:
        source = image.info.get(SOURCE_KEY)
    return str(source) if source else None

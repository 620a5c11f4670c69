"""Figure of the kinds of pictures: a sheet of all of them, and a thumbnail of each."""

import io

from matplotlib.figure import Figure
from PIL import Image, ImageOps

from benchmarks.load.digits import load_digits
from benchmarks.pictures.converted import picture_of
from benchmarks.report.markdown import Sources, slug

THUMBNAIL = 72
"""Longer side, pixels."""
_COLUMNS = 8
_PAPER = "#d0d0e8"  # behind transparent pictures


def pictures_figure(sources: Sources) -> Figure:
    """Draw a sheet of all kinds."""
    thumbnails = list(_thumbnails(sources).items())
    rows = -(-len(thumbnails) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * 1.1, rows * 1.3), layout="constrained")
    for axes in figure.subplots(rows, _COLUMNS).flat:
        axes.axis("off")
        if thumbnails:
            kind, thumbnail = thumbnails.pop(0)
            axes.imshow(thumbnail)
            axes.set_title(kind, fontsize=8)
    return figure


def thumbnail_files(sources: Sources) -> dict[str, bytes]:
    """Return a PNG file of each kind, by name."""
    files = {}
    for kind, thumbnail in _thumbnails(sources).items():
        file = io.BytesIO()
        thumbnail.quantize(64).save(file, format="PNG", optimize=True)
        files[f"{slug(kind)}.png"] = file.getvalue()
    return files


def _thumbnails(sources: Sources) -> dict[str, Image.Image]:
    digits = load_digits()
    thumbnails = {}
    for number, row in enumerate(sources["pictures"].data["rows"]):
        content, _ = picture_of(
            row["kind"], digits[number], number % 10, number, 0
        )  # digits are in cyclic order
        with Image.open(io.BytesIO(content)) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGBA")
        upright.thumbnail((THUMBNAIL, THUMBNAIL))
        paper = Image.new("RGBA", upright.size, _PAPER)
        thumbnails[row["kind"]] = Image.alpha_composite(paper, upright).convert("RGB")
    return thumbnails

"""Section `pictures`: predictions by kind of picture, with a thumbnail of each."""

import io
import re
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from PIL import Image, ImageOps

from benchmarks.load.digits import load_digits
from benchmarks.pictures.converted import picture_of
from benchmarks.report.figures import save, style
from benchmarks.report.markdown import limits, measured, table
from benchmarks.report.sections import Section, Sources

THUMBNAIL = 72
"""Longer side, pixels."""
_COLUMNS = 8
_PAPER = "#d0d0e8"  # behind transparent pictures


def pictures_section(sources: Sources, figure: str) -> str:
    """Return the Markdown: a row per kind with the share of correct predictions of every model."""
    source = sources["pictures"]
    data = source.data
    names = list(data["models"])
    folder = figure.rpartition("/")[0]
    lines = [["", "kind", *(f"`{name}`" for name in names), "CPU time"]]
    for row in data["rows"]:
        shares = [f"{row['correct'][name]:.1%}" for name in names]
        thumbnail = f"![{row['kind']}]({folder}/{slug(row['kind'])}.png)"
        lines.append([thumbnail, f"**{row['kind']}**: {row['description']}", *shares, f"{row['ms']:.1f} ms"])
    means = [mean(row["correct"][name] for row in data["rows"]) for name in names]
    lines.append(["", "**mean**", *(f"**{share:.1%}**" for share in means), ""])
    note = (
        f"{data['digits']} {data['split']} digits per kind, drawn with seed {data['seed']}. CPU time: decoding and "
        "conversion to 28×28, median, one thread."
    )
    return "\n\n".join([table(lines), note, limits(source), measured("pictures", source)])


def draw_pictures(sources: Sources, path: Path, names: str) -> None:
    """Write a sheet of all kinds to `path`, and a thumbnail of each into the same folder."""
    digits = load_digits()
    thumbnails = []
    for number, row in enumerate(sources["pictures"].data["rows"]):
        content, _ = picture_of(
            row["kind"], digits[number], number % 10, number, 0
        )  # digits are in cyclic order
        with Image.open(io.BytesIO(content)) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGBA")
        upright.thumbnail((THUMBNAIL, THUMBNAIL))
        thumbnail = Image.alpha_composite(Image.new("RGBA", upright.size, _PAPER), upright).convert("RGB")
        path.parent.mkdir(parents=True, exist_ok=True)
        thumbnail.quantize(64).save(path.parent / f"{slug(row['kind'])}.png", optimize=True)
        thumbnails.append((row["kind"], thumbnail))
    rows = -(-len(thumbnails) // _COLUMNS)
    with style():
        figure = Figure(figsize=(_COLUMNS * 1.1, rows * 1.3), layout="constrained")
        for axes in figure.subplots(rows, _COLUMNS).flat:
            axes.axis("off")
            if thumbnails:
                kind, thumbnail = thumbnails.pop(0)
                axes.imshow(thumbnail)
                axes.set_title(kind, fontsize=8)
        save(figure, path, names)


def slug(kind: str) -> str:
    """Return the name of a kind as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


SECTION = Section(
    name="pictures",
    kinds=("pictures",),
    to_markdown=pictures_section,
    figure="pictures/all.png",
    draw=draw_pictures,
)

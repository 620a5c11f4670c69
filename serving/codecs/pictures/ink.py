"""Find the ink of a digit in the pixels of a picture, and convert it to an image as in MNIST.

1. Background: what remains when everything narrower than a third of the picture is removed (morphological closing for
   dark ink, opening for light ink). It follows shadows, vignettes and the edge of the sheet.
2. Ink: the relative difference to it, above the noise and above Otsu's threshold (Otsu 1979), so that print fainter
   than the ink is left out.
3. Components: those that touch the picture's border, span the picture or enclose others count little; the largest and
   its neighbours are the digit. Dark or light ink: whichever differs more from the frame around it.
4. Form: light ink on black, the longer side of its box scaled to 20 pixels, the centre of mass in the middle of 28×28
   (LeCun, Cortes, Burges, *The MNIST database*). Strokes thinner than in MNIST are thickened.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from serving.model.tensors import SIDE

Plane = NDArray[np.uint8]
"""`uint8 [H, W]`"""
Levels = NDArray[np.float32]
"""`float32 [H, W]`"""
Box = tuple[slice, slice]
"""Rows and columns of a component."""

WORKING_SIDE = 320  # larger pictures are scaled down to this first
COVERED = 0.3  # of a pixel: less is left out at the edges of a digit

_BOX = 20
_NOISE = 0.01  # of the background: less is not worth a filter
_MIN_CONTRAST = 24  # of 255, between ink and frame; less is paper, noise or an empty picture
_WINDOW = 0.35  # of the shorter side; wider structures belong to the background
_NEAR = 0.15  # of the digit's longer side; components within this distance are parts of it
_PART = 0.05  # of the digit's mass; smaller components are specks
_DISCOUNT = 0.002  # of the mass of components that are probably not the digit
_SOLID = 0.8  # of its box; a digit covers less
_MOST_COMPONENTS = 100
_LINE = (
    0.06  # of the picture's other side: a component that spans one side and is narrower than this is a line
)
_SPACES = 12  # areas that a digit may divide its box into
_MARGIN = 0.3  # of the longer side, added around a digit that touches the picture's border
_STROKE = 0.09  # of the digit's longer side: the narrowest stroke that MNIST has
_RIM = 2  # pixels around the ink that it may cover in part
_ADJACENT = np.ones((3, 3), np.int8)


class Glyph(NamedTuple):
    """The ink of one digit, or of a part of one."""

    box: Box
    mask: NDArray[np.bool_]
    """`bool [h, w]`, the size of the box."""


class Coverage(NamedTuple):
    """How much of each pixel ink covers, in a part of the picture."""

    levels: Levels
    """0 to 1."""
    top: int
    """Row of the picture; negative above it, as the next one is left of it."""
    left: int


class Ink(NamedTuple):
    """The ink of one polarity, and its components."""

    strength: Levels
    """Relative difference to the background; 0 without ink."""
    labels: NDArray[np.int32]
    """`int32 [H, W]`: component 1–N of each pixel, 0 for none."""
    boxes: Sequence[Box]
    """Of each component."""
    weights: NDArray[np.float64]
    """`[N]`: sum of the strength, discounted where a component is probably not part of a digit."""
    contrast: float
    """Levels of 255 between the heaviest component and the frame around it."""
    digit: Glyph
    """The heaviest component and those near it."""


def to_mnist(pixels: NDArray[np.uint8]) -> Plane | None:
    """Convert `uint8 [H, W]` or `[H, W, 3]`, at most `WORKING_SIDE` a side, to `uint8 [28, 28]`; None without ink."""
    plane = brightness(pixels)
    if (same := _as_it_is(plane)) is not None:
        return same
    ink = find_ink(plane)
    if ink is None or _at_border(ink.digit.box, plane.shape, within=3):
        ink = find_ink(_with_margin(plane), plane.shape) or ink
    return normalise(ink.strength, ink.digit) if ink else None


def find_ink(plane: Levels, picture: tuple[int, ...] | None = None) -> Ink | None:
    """Return the ink of the polarity that a digit is written in; None where there is none.

    `picture` is the shape without a margin, if one was added.

    The spaces within a digit look like ink of the other polarity, so a digit around the other one's is taken, unless it
    is a solid area: a label with a digit on it. Otherwise the one that differs more from the frame around it is taken.
    """
    inks = (_ink(plane, picture or plane.shape, dark=dark) for dark in (True, False))
    found = [ink for ink in inks if ink]
    if len(found) < 2:
        return found[0] if found else None
    for one, other in (found, found[::-1]):
        if _contains(one.digit.box, other.digit.box):
            return other if one.digit.mask.mean() > _SOLID else one
    return max(found, key=lambda ink: ink.contrast)


def glyph_of(labels: NDArray[np.int32], boxes: Sequence[Box], parts: Sequence[int]) -> Glyph:
    """Return components (from 0) as one glyph."""
    box = union([boxes[part] for part in parts])
    return Glyph(box, np.isin(labels[box], np.asarray(parts) + 1))


def normalise(strength: Levels, glyph: Glyph) -> Plane:
    """Return the ink of a glyph as `uint8 [28, 28]`."""
    return to_image(coverage_of(strength, glyph).levels)


def coverage_of(strength: Levels, glyph: Glyph, size: int | None = None) -> Coverage:
    """Return how much of each pixel the ink of a glyph covers.

    Strokes that are narrower than in MNIST are thickened, for a digit whose longer side has `size` pixels; by default
    the glyph's own.
    """
    rows, columns = (slice(max(side.start - _RIM, 0), side.stop + _RIM) for side in glyph.box)
    around = strength[rows, columns]
    mask = np.zeros(around.shape, bool)
    top, left = glyph.box[0].start - rows.start, glyph.box[1].start - columns.start
    mask[top : top + glyph.mask.shape[0], left : left + glyph.mask.shape[1]] = glyph.mask
    full = np.percentile(around[mask], 75)
    near = ndimage.binary_dilation(mask, _ADJACENT, iterations=_RIM)
    levels = np.where(near, np.clip(around / full * 1.6 - 0.3, 0, 1), 0).astype(np.float32)
    coverage = _crop(Coverage(levels, rows.start, columns.start))
    return _thicken(coverage, size or max(coverage.levels.shape))


def to_image(levels: Levels) -> Plane:
    """Return the coverage of a digit as `uint8 [28, 28]`."""
    return _centre(_fit(levels))


def brightness(pixels: NDArray[np.uint8]) -> Levels:
    """Return the brightness of `uint8 [H, W]` or `[H, W, 3]`, or its colour channel with clearly more contrast."""
    levels = pixels.astype(np.float32)
    if levels.ndim == 2:
        return levels
    red, green, blue = np.moveaxis(levels, 2, 0)
    planes: list[Levels] = [
        red * np.float32(0.299) + green * np.float32(0.587) + blue * np.float32(0.114),
        red,
        green,
        blue,
    ]
    coarse = [one[::4, ::4] for one in planes]  # enough to compare the channels
    if max(float(np.abs(one - coarse[0]).max()) for one in coarse) < _MIN_CONTRAST:
        return planes[0]
    window = max(1, round(min(coarse[0].shape) * _WINDOW))
    contrasts = [float(np.std(one - ndimage.uniform_filter(one, window, mode="nearest"))) for one in coarse]
    contrasts[0] *= 1.4
    return planes[int(np.argmax(contrasts))]


def _as_it_is(plane: Levels) -> Plane | None:
    """Return a picture that has MNIST's form already, or is the negative of one; None for all others."""
    if plane.shape != (SIDE, SIDE):
        return None
    image: Plane = np.rint(plane).astype(np.uint8)
    if np.median(image) > 127:
        image = 255 - image
    rows, columns = (np.nonzero(image.any(axis=1 - axis))[0] for axis in (0, 1))
    if not len(rows) or image.max() < 254:
        return None
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    middle = [_middle(image.sum(axis=1 - axis)) for axis in (0, 1)]
    in_form = _BOX - 1 <= longer <= _BOX and all(13.4 < one < 14.6 for one in middle)
    return image if in_form else None


def _ink(plane: Levels, picture: tuple[int, ...], *, dark: bool) -> Ink | None:
    background = _background(plane, dark=dark)
    # Relative to the background, as light multiplies both; the constants keep noise in black areas small.
    strength = (background - plane) / (background + 8) if dark else (plane - background) / (background + 68)
    tenth, third = np.percentile(
        strength[::2, ::2], (10, 30)
    )  # of the background, even where ink covers half of the picture
    if third - tenth > _NOISE:
        strength = ndimage.gaussian_filter(strength, 0.8)
        tenth, third = np.percentile(strength[::2, ::2], (10, 30))
    least = max(0.07, third + 4 * (third - tenth))
    np.maximum(strength, 0, out=strength)
    above = strength[strength > least]
    if not len(above):
        return None
    threshold = max(least, min(_otsu(above), 0.6 * np.percentile(above, 95)))
    labels, count = ndimage.label(strength > threshold, _ADJACENT)
    if not count:
        return None
    boxes = ndimage.find_objects(labels)
    weights = _weights(strength, labels, boxes, picture)
    if not weights.any():
        return None
    contrast = _contrast(-plane if dark else plane, labels, boxes, int(weights.argmax()))
    if contrast < _MIN_CONTRAST:
        return None
    return Ink(strength, labels, boxes, weights, contrast, glyph_of(labels, boxes, _digit(boxes, weights)))


def _digit(boxes: Sequence[Box], weights: NDArray[np.float64]) -> list[int]:
    """Return the heaviest component and, repeatedly, those near it."""
    first = int(weights.argmax())
    parts, box = [first], boxes[first]
    left = [part for part in np.nonzero(weights >= _PART * weights[first])[0].tolist() if part != first]
    while True:
        reach = _NEAR * max(side.stop - side.start for side in box)
        near = [part for part in left if _gap(box, boxes[part]) < reach]
        if not near:
            return parts
        parts += near
        left = [part for part in left if part not in near]
        box = union([box, *(boxes[part] for part in near)])


def _background(plane: Levels, *, dark: bool) -> Levels:
    """Close dark structures, or open light ones, at a quarter of the size.

    The picture is continued beyond its border by point reflection, so that a corner darker than its surroundings does
    not look like a dark structure.
    """
    height, width = plane.shape
    factor = max(1, min(4, min(height, width) // 24))
    small = _resize(plane if dark else -plane, -(-height // factor), -(-width // factor))
    window = max(3, round(min(small.shape) * _WINDOW)) | 1
    margins = [min(window, side - 1) for side in small.shape]
    padded = np.pad(small, [(margin, margin) for margin in margins], "reflect", reflect_type="odd")
    closed = ndimage.grey_closing(padded, (window, window))
    closed = closed[margins[0] : margins[0] + small.shape[0], margins[1] : margins[1] + small.shape[1]]
    # Without the erosion, smoothing would extend light areas over dark ones, and their rim would look like ink.
    smooth = ndimage.gaussian_filter(ndimage.grey_erosion(closed, (3, 3)), 1, mode="nearest")
    return _resize(smooth if dark else -smooth, height, width)


def _otsu(values: Levels) -> float:
    """Return the threshold that maximises the variance between the values below and above it."""
    counts, edges = np.histogram(values.astype(np.float64), 64)  # float32 values may be too close for 64 bins
    below = np.cumsum(counts)[:-1]
    sums = np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    total = below[-1] + counts[-1]
    between = (sums[-1] * below / total - sums[:-1]) ** 2 / np.maximum(below * (total - below), 1)
    return float(edges[1 + int(between.argmax())])


def _weights(
    strength: Levels, labels: NDArray[np.int32], boxes: Sequence[Box], picture: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return the sum of each component's strength, discounted for its place, and 0 for the lines of the paper."""
    weights: NDArray[np.float64] = np.bincount(labels.ravel(), strength.ravel())[1:].astype(np.float64)
    areas = np.bincount(labels.ravel())[1:]
    order = np.argsort(weights)
    weights[order[:-_MOST_COMPONENTS]] = 0  # texture, and bounds the time that the rest takes
    heaviest = order[-_MOST_COMPONENTS:].tolist()
    for index in heaviest:
        rows, columns = boxes[index]
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        if _at_border((rows, columns), strength.shape):
            weights[index] *= _DISCOUNT
        if tall > 0.93 * picture[0] or wide > 0.93 * picture[1]:
            weights[index] *= 0 if _is_ruled(labels[rows, columns] == index + 1, picture) else _DISCOUNT
        elif areas[index] < 0.25 * tall * wide and _encloses(index, heaviest, boxes, weights):
            weights[index] *= _DISCOUNT
    return weights


def _is_ruled(mask: NDArray[np.bool_], picture: tuple[int, ...]) -> bool:
    """Return whether a component that spans the picture is a line, or squares: it has many more holes than a digit."""
    if mask.shape[0] < _LINE * picture[0] or mask.shape[1] < _LINE * picture[1]:
        return True
    return int(ndimage.label(~mask)[1]) > _SPACES


def _encloses(index: int, others: Sequence[int], boxes: Sequence[Box], weights: NDArray[np.float64]) -> bool:
    """Return whether a component surrounds another one of at least a tenth of its weight, as a form's box does."""
    return any(
        weights[other] > 0.1 * weights[index]
        and all(
            a.start < b.start and b.stop < a.stop for a, b in zip(boxes[index], boxes[other], strict=True)
        )
        for other in others
    )


def _contrast(plane: Levels, labels: NDArray[np.int32], boxes: Sequence[Box], main: int) -> float:
    """Return the level of a component above the brightest fifth of the frame around its box.

    The spaces within a digit differ from the strokes around them, too, but not from all of their frame.
    """
    rows, columns = boxes[main]
    margin = max(2, max(rows.stop - rows.start, columns.stop - columns.start) // 8)
    frame = np.zeros(plane.shape, bool)
    frame[
        max(rows.start - margin, 0) : rows.stop + margin,
        max(columns.start - margin, 0) : columns.stop + margin,
    ] = True
    frame[rows.start + 1 : rows.stop - 1, columns.start + 1 : columns.stop - 1] = False
    return float(np.median(plane[labels == main + 1]) - np.percentile(plane[frame], 80))


def _with_margin(plane: Levels) -> Levels:
    """Return the picture with a margin in the median brightness of its border."""
    border = np.concatenate([plane[0], plane[-1], plane[:, 0], plane[:, -1]])
    return np.pad(plane, round(_MARGIN * max(plane.shape)), constant_values=np.median(border))


def _at_border(box: Box, shape: tuple[int, ...], within: int = 0) -> bool:
    return any(
        side.start <= within or side.stop >= length - within for side, length in zip(box, shape, strict=True)
    )


def _contains(outer: Box, inner: Box) -> bool:
    return all(a.start - 1 <= b.start and b.stop <= a.stop + 1 for a, b in zip(outer, inner, strict=True))


def _gap(one: Box, other: Box) -> int:
    """Return the distance between two boxes, the larger of both axes, in pixels."""
    gaps: list[int] = [max(a.start - b.stop, b.start - a.stop, 0) for a, b in zip(one, other, strict=True)]
    return max(gaps)


def union(boxes: Sequence[Box]) -> Box:
    """Return the smallest box around all of them."""
    rows, columns = (
        slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in (0, 1)
    )
    return rows, columns


def _crop(coverage: Coverage) -> Coverage:
    levels, top, left = coverage
    rows, columns = np.nonzero(levels > COVERED)
    first_row, first_column = int(rows.min()), int(columns.min())
    inner = levels[first_row : rows.max() + 1, first_column : columns.max() + 1]
    return Coverage(inner, top + first_row, left + first_column)


def _thicken(coverage: Coverage, size: int) -> Coverage:
    """Widen strokes that are narrower than MNIST's in a digit of `size` pixels."""
    levels, top, left = coverage
    solid = np.pad(levels > 0.5, 1)
    if not solid.any():
        return coverage
    # In a strip of width w, the distances to its edge have the mean w / 4.
    width = 4 * float(ndimage.distance_transform_edt(solid)[solid].mean()) - 1
    grow = (_STROKE * size - max(width, 0.5)) / 2
    if grow <= 0:
        return coverage
    margin = int(np.ceil(grow)) + 1
    padded = np.pad(levels, margin)
    away = ndimage.distance_transform_edt(padded <= 0.5)
    thick = np.maximum(padded, np.clip(grow + 0.5 - away, 0, 1)).astype(np.float32)
    return _crop(Coverage(thick, top - margin, left - margin))


def _fit(coverage: Levels) -> Plane:
    """Scale the longer side to 20 pixels, the shorter one in proportion, and the strongest ink to 255."""
    height, width = coverage.shape
    scale = _BOX / max(height, width)
    fitted = np.clip(_resize(coverage, max(1, round(height * scale)), max(1, round(width * scale))), 0, None)
    image: Plane = np.rint(fitted * (255 / max(float(fitted.max()), 1e-6))).astype(np.uint8)
    return image


def _centre(ink: Plane) -> Plane:
    """Place in a 28×28 image, with the centre of mass in the middle as far as the image allows."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    top, left = (
        min(max(round(SIDE / 2 - _middle(ink.sum(axis=1 - axis))), 0), SIDE - ink.shape[axis])
        for axis in (0, 1)
    )
    image[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return image


def _middle(weights: NDArray[np.uint64]) -> float:
    """Centre of mass along one axis, in pixels; that of MNIST's digits is pixel 14 of 0–27."""
    return float(np.average(np.arange(len(weights)), weights=weights))


def _resize(levels: Levels, height: int, width: int) -> Levels:
    """Scale with averaging over the area that a pixel covers."""
    image = Image.fromarray(np.ascontiguousarray(levels, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)

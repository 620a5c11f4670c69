"""Find the digits of a line in a picture, and all ways to cut those that touch.

A component wider than a digit is cut where little ink is crossed. Each piece between two cuts is a candidate; the model
classifies all of them in one batch, and `read` takes the sequence with the least cost. (Over-segmentation with a search
over the classifier's scores: Matan, Burges, LeCun, Denker 1992, *Multi-digit recognition using a space displacement
neural network*, section 1.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from serving.codecs.pictures.ink import (
    COVERED,
    Box,
    Glyph,
    Ink,
    Levels,
    Plane,
    brightness,
    coverage_of,
    find_ink,
    glyph_of,
    normalise,
    to_image,
    union,
)

_PART = 0.03  # of the heaviest component's weight; lighter ones are specks
_HEIGHT = 0.3  # of the line's height; a lower component is not a digit by itself
_NEAR = 0.2  # of the line's height: parts of a digit within this distance belong together
_WIDEST_JOINED = 1.2
_NARROWEST = 0.12  # of the line's height: a piece of a digit
_WIDEST = 1.5
_SINGLE = 0.45  # a component up to this width is one digit
_LOWEST = 0.4  # of the line's height, a piece of a component
_CUTS = 8  # per height of a component's width, at most
_MOST_CUTS = 32
_PIECE = 0.15  # of a vertical stroke: cuts that separate less ink from each other are one
_MOST_INK = 2.0  # stroke widths that a cut may cross
_MOVE_COST = 0.02  # per column that a cut moves sideways
# Of a component's height: the rows through whose pixels cuts are searched.
_WAYPOINTS = (0.2, 0.35, 0.5, 0.65, 0.8)
# Costs are negative log likelihoods. Chosen for the greatest likelihood of 1,600 numbers of validation digits, three
# quarters of them touching, among all sequences of their candidates (LeCun, Bottou, Bengio, Haffner 1998,
# *Gradient-based learning applied to document recognition*, discriminative forward training), classified in turn by
# both int8 students of `quick` and the teacher.
_DIGIT_COST = 2.12
_CUT_COST = -2.4  # with the digit that it adds, a cut costs little: the classifier decides
_INK_COST = 2.14  # per stroke width of ink that a cut crosses
_HEIGHT_COST = 9.66
_LOGIT_WEIGHT = 0.54
_PROBABILITY_WEIGHT = 0.73
_CONFIDENCE_WEIGHT = 2.28


class Candidate(NamedTuple):
    """A piece of the line that may be a digit."""

    start: int
    """Number of the cut to its left; the first piece starts at 0."""
    stop: int
    """Number of the cut to its right."""
    box: Box
    image: Plane
    """`uint8 [28, 28]`"""
    cost: float
    """Of its cuts, and of its height where it differs from the line's; as a negative log likelihood."""


def find_line(pixels: NDArray[np.uint8], most: int) -> list[Candidate] | None:
    """Return all candidates of the line in `uint8 [H, W]` or `[H, W, 3]`, from left to right; [] without ink.

    None where there are more than `most`.
    """
    ink = find_ink(brightness(pixels))
    if ink is None:
        return []
    groups = _groups(ink)
    height = float(np.median([_height(group.box) for group in groups]))
    candidates: list[Candidate] = []
    starts = [0]
    for index, group in enumerate(groups):
        candidates += _pieces(ink.strength, group, height, starts[-1])
        starts.append(max(one.stop for one in candidates))
        if index and _near(groups[index - 1].box, group.box, height):
            both = _joined(groups[index - 1], group)
            image = normalise(ink.strength, both)
            candidates.append(_candidate(both.box, image, height, starts[index - 1], starts[index + 1], 0.0))
        if len(candidates) > most:
            return None
    return candidates


def read(
    candidates: Sequence[Candidate], logits: NDArray[np.float32], confidence: Sequence[float] | None = None
) -> list[int]:
    """Return the candidates that form the most probable number, from left to right.

    `logits` is `[N, 10]`; `confidence` of each candidate is None for a model that has none.
    """
    costs = _costs(candidates, logits)
    if confidence is not None:  # low for pieces of digits and for two digits in one
        costs -= _CONFIDENCE_WEIGHT * np.log(np.maximum(confidence, 1e-9))
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for index in sorted(range(len(candidates)), key=lambda one: candidates[one].start):
        one = candidates[index]
        if one.start not in best:
            continue
        cost, path = best[one.start]
        if one.stop not in best or cost + costs[index] < best[one.stop][0]:
            best[one.stop] = cost + costs[index], [*path, index]
    return best[max(best)][1]


def _costs(candidates: Sequence[Candidate], logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the negative log likelihood `[N]` of each candidate with its most probable digit.

    The largest logit counts in addition to its probability: it is small for pieces of digits and for two digits in one.
    """
    largest = logits.max(axis=1).astype(np.float64)
    log_probabilities = -np.log(np.exp(logits - largest[:, np.newaxis]).sum(axis=1))
    costs = np.array([candidate.cost for candidate in candidates], np.float64)
    costs += _DIGIT_COST - _LOGIT_WEIGHT * largest - _PROBABILITY_WEIGHT * log_probabilities
    return costs


def _groups(ink: Ink) -> list[Glyph]:
    """Join components that lie above each other, and low ones with their neighbour; return them from left to right."""
    parts = np.nonzero(ink.weights >= _PART * ink.weights.max())[0].tolist()
    groups: list[list[int]] = []
    for part in sorted(parts, key=lambda one: ink.boxes[one][1].start):
        if groups and _overlap(_box(ink, groups[-1])[1], ink.boxes[part][1]) > 0.5:
            groups[-1].append(part)
        else:
            groups.append([part])
    boxes = [_box(ink, group) for group in groups]
    tallest = max(map(_height, boxes))
    digits = [place for place, box in enumerate(boxes) if _height(box) >= _HEIGHT * tallest]
    for place, group in enumerate(groups):
        if place not in digits:
            nearest = min(digits, key=lambda one: _distance(boxes[one], boxes[place]))
            if _distance(boxes[nearest], boxes[place]) < _NEAR * tallest:
                groups[nearest] = [*groups[nearest], *group]
    return [glyph_of(ink.labels, ink.boxes, groups[place]) for place in digits]


def _box(ink: Ink, parts: Sequence[int]) -> Box:
    return union([ink.boxes[part] for part in parts])


def _height(box: Box) -> int:
    return int(box[0].stop - box[0].start)


def _distance(one: Box, other: Box) -> int:
    """Return the distance between two boxes along the line, in pixels; negative where they overlap."""
    return int(max(one[1].start, other[1].start) - min(one[1].stop, other[1].stop))


def _near(one: Box, other: Box, height: float) -> bool:
    """Return whether two groups may be parts of one digit."""
    return _distance(one, other) < _NEAR * height and other[1].stop - one[1].start < _WIDEST_JOINED * height


def _joined(one: Glyph, other: Glyph) -> Glyph:
    box = union([one.box, other.box])
    mask = np.zeros([side.stop - side.start for side in box], bool)
    for glyph in (one, other):
        rows, columns = (
            slice(side.start - whole.start, side.stop - whole.start)
            for side, whole in zip(glyph.box, box, strict=True)
        )
        mask[rows, columns] |= glyph.mask
    return Glyph(box, mask)


def _overlap(one: slice, other: slice) -> float:
    """Return the common part of two ranges, relative to the shorter one."""
    common = min(one.stop, other.stop) - max(one.start, other.start)
    return float(common / min(one.stop - one.start, other.stop - other.start))


def _pieces(strength: Levels, glyph: Glyph, height: float, first: int) -> list[Candidate]:
    """Return the pieces between any two cuts of a glyph, that of its whole width included."""
    cuts = _cuts(glyph.mask, height)
    costs = [0.0, *(cut.cost for cut in cuts), 0.0]
    top, left = (side.start for side in glyph.box)
    boxes = _boxes(glyph.mask, _numbers(cuts, glyph.mask.shape, 0, 0), len(costs))
    coverage = coverage_of(strength, glyph, _height(glyph.box))
    numbers = _numbers(cuts, coverage.levels.shape, coverage.top - top, coverage.left - left)
    windows = _boxes(coverage.levels > COVERED, numbers, len(costs))
    found = []
    for start in range(len(cuts) + 1):
        for stop in range(start + 1, len(cuts) + 2):
            if not any(boxes[start:stop]) or not any(windows[start:stop]):
                continue
            box = union([one for one in boxes[start:stop] if one])
            tall, wide = ((side.stop - side.start) / height for side in box)
            whole = start == 0 and stop == len(cuts) + 1
            if whole or (_NARROWEST < wide < _WIDEST and tall > _LOWEST):
                window = union([one for one in windows[start:stop] if one])
                inside = (numbers[window] >= start) & (numbers[window] < stop)
                image = to_image(np.where(inside, coverage.levels[window], 0))
                cost = (costs[start] + costs[stop]) / 2
                found.append(
                    _candidate(_moved(box, top, left), image, height, first + start, first + stop, cost)
                )
    return found


def _numbers(cuts: Sequence["_Cut"], shape: tuple[int, ...], top: int, left: int) -> NDArray[np.intp]:
    """Return the number of cuts to the left of each pixel, in a window at `top` and `left` of the component.

    Beyond the component, a cut continues straight up or down.
    """
    numbers = np.zeros(shape, np.intp)
    columns = np.arange(left, left + shape[1])
    for cut in cuts:
        rows = np.clip(np.arange(top, top + shape[0]), 0, len(cut.path) - 1)
        numbers += columns >= cut.path[rows, np.newaxis]
    return numbers


def _boxes(ink: NDArray[np.bool_], numbers: NDArray[np.intp], count: int) -> list[Box | None]:
    """Return the box around the ink between each two neighbouring cuts; None without ink."""
    return list(ndimage.find_objects(np.where(ink, numbers + 1, 0), count))


def _moved(box: Box, top: int, left: int) -> Box:
    rows, columns = box
    return slice(rows.start + top, rows.stop + top), slice(columns.start + left, columns.stop + left)


def _candidate(box: Box, image: Plane, height: float, start: int, stop: int, cost: float) -> Candidate:
    unlike = abs(float(np.log(_height(box) / height)))
    return Candidate(start, stop, box, image, cost + _HEIGHT_COST * unlike)


class _Cut(NamedTuple):
    path: NDArray[np.intp]
    """`[H]`: the column of the first pixel to its right, by row."""
    cost: float


def _cuts(mask: NDArray[np.bool_], height: float) -> list[_Cut]:
    """Return the paths from top to bottom that cross the least ink, from left to right.

    The best path through each pixel of a few rows is found by dynamic programming; of paths that separate nearly the
    same ink, the cheapest is kept.
    """
    if mask.shape[1] < _SINGLE * height:
        return []
    stroke = max(1.0, 4 * float(ndimage.distance_transform_edt(np.pad(mask, 1)).sum() / mask.sum()) - 1)
    costs, paths = _cheapest_paths(mask / stroke)
    before: NDArray[np.int64] = np.pad(np.cumsum(mask, axis=1), ((0, 0), (1, 0)))
    left = np.take_along_axis(before, paths.T, axis=1).T  # [N, H]: ink to the left of each path, by row
    ink_left = left.sum(axis=1)
    least = _PIECE * stroke * height
    free = (costs <= _MOST_INK) & (ink_left >= least) & (mask.sum() - ink_left >= least)
    most = min(_CUTS * mask.shape[1] / height, _MOST_CUTS)
    chosen: list[int] = []
    for one in np.argsort(costs, kind="stable").tolist():
        if len(chosen) >= most:
            break
        if free[one]:
            chosen.append(one)
            free &= np.abs(left - left[one]).sum(axis=1) >= least
    chosen.sort(key=lambda one: int(ink_left[one]))
    return [_Cut(paths[one], _CUT_COST + _INK_COST * float(costs[one])) for one in chosen]


def _cheapest_paths(costs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the cheapest path through every pixel of the rows `_WAYPOINTS`: costs `[N]`, columns by row `[N, H]`.

    A path moves by at most one column per row.
    """
    tall, wide = costs.shape
    above, from_above = _cheapest(costs)
    below, from_below = (each[::-1] for each in _cheapest(costs[::-1]))
    rows = [round((tall - 1) * share) for share in _WAYPOINTS]
    paths = np.zeros((len(rows), tall, wide), np.intp)
    for path, middle in zip(paths, rows, strict=True):
        path[middle] = np.arange(wide)
        for row in range(middle, 0, -1):
            path[row - 1] = path[row] + from_above[row][path[row]]
        for row in range(middle, tall - 1):
            path[row + 1] = path[row] + from_below[row][path[row]]
    return (above + below - costs)[rows].ravel(), paths.transpose(0, 2, 1).reshape(-1, tall)


def _cheapest(costs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the least cost of a path from the first row to each pixel, and where it comes from: -1, 0 or 1 column."""
    total = costs.copy()
    moves = np.zeros(costs.shape, np.intp)
    for row in range(1, len(costs)):
        padded = np.pad(total[row - 1], 1, constant_values=np.inf)
        options = np.stack([padded[1:-1], padded[:-2] + _MOVE_COST, padded[2:] + _MOVE_COST])
        choice = options.argmin(axis=0)
        moves[row] = np.array((0, -1, 1))[choice]
        total[row] += options.min(axis=0)
    return total, moves

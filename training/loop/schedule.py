"""Learning rate schedules as pure functions of the history, so that a resumed training needs no scheduler state."""

import math
from collections.abc import Sequence

WARM_UP = 0.25
START = 1 / 25
PLATEAU_FACTOR = 0.1
PLATEAU_THRESHOLD = 1e-4


def one_cycle(progress: float) -> float:
    """Return the fraction of the highest rate at `progress` (0..1): from 1/25 up along a cosine, then down to 0.

    Smith and Topin 2018, arXiv:1708.07120, with cosines instead of lines.
    """
    if progress < WARM_UP:
        return START + (1 - START) * (1 - math.cos(math.pi * progress / WARM_UP)) / 2
    return (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


def plateau(losses: Sequence[float], patience: int) -> float:
    """Return the fraction of the first rate after these validation losses, one per epoch so far.

    It is divided by ten after more than `patience` epochs that did not lower the best loss by 0.01 %, like torch's
    ReduceLROnPlateau with `factor=0.1`.
    """
    share, best, bad = 1.0, math.inf, 0
    for loss in losses:
        if loss < best * (1 - PLATEAU_THRESHOLD):
            best, bad = loss, 0
            continue
        bad += 1
        if bad > patience:
            share, bad = share * PLATEAU_FACTOR, 0
    return share

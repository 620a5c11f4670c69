"""When queries arrive, decided before the first of them is sent, and the same for the same seed.

LoadGen's Server scenario draws a Poisson process: the gaps between queries are exponential and independent.
Offline is the schedule in which everything has arrived at the start.
"""

import numpy as np
from numpy.typing import NDArray


def poisson_arrivals(rate: float, queries: int, seed: int) -> NDArray[np.float64]:
    """Return the ascending times, in seconds from the start, of `queries` arrivals at `rate` a second.

    The first query arrives after the first gap: a schedule does not begin with an arrival by appointment.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, queries)
    return np.cumsum(gaps)


def all_at_once(queries: int) -> NDArray[np.float64]:
    """Return the schedule of the Offline scenario: every query has arrived when the clock starts."""
    return np.zeros(queries)


def draw_samples(library: int, queries: int, seed: int) -> NDArray[np.int64]:
    """Return which sample of a library of `library` each query asks for: uniform, with replacement."""
    return np.random.default_rng([seed, 1]).integers(library, size=queries)

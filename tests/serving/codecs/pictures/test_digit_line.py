"""The choice among the candidates of a line; whole pictures are read in tests/serving/http/predictions/test_read.py."""

import numpy as np

from serving.codecs.pictures.digit_line import Candidate, read


def candidate(start: int, stop: int) -> Candidate:
    """A candidate of two cuts, at 30 columns each, 40 rows high."""
    box = slice(0, 40), slice(30 * start, 30 * stop)
    return Candidate(start, stop, box, np.zeros((28, 28), np.uint8), cost=1.0)


def test_pieces_of_a_digit_are_not_read_if_the_model_is_not_confident() -> None:
    candidates = [candidate(0, 1), candidate(1, 2), candidate(0, 2)]
    logits = np.zeros((3, 10), np.float32)
    logits[[0, 1, 2], [6, 3, 0]] = 8, 8, 9  # a zero, whose halves resemble a 6 and a 3
    assert read(candidates, logits, [0.99, 0.99, 0.99]) == [0, 1]
    assert read(candidates, logits, [0.3, 0.3, 0.99]) == [2]
    assert read(candidates, logits) == [0, 1]  # of a model without confidence

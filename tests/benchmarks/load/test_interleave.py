"""The order of interleaved cases."""

from collections import Counter
from itertools import pairwise

from benchmarks.load.interleave import interleave


def rounds_of(cases: int, rounds: int) -> list[list[int]]:
    order: list[int] = []
    interleave(range(cases), rounds, order.append)
    return [order[start : start + cases] for start in range(0, len(order), cases)]


def test_every_round_measures_every_case_once() -> None:
    rounds = rounds_of(5, 7)
    assert len(rounds) == 7
    assert all(sorted(measured) == [0, 1, 2, 3, 4] for measured in rounds)
    assert interleave("ab", 3, str.upper) == [["A"] * 3, ["B"] * 3]


def test_every_case_takes_every_place_in_a_round_and_is_preceded_by_both_neighbours() -> None:
    rounds = rounds_of(4, 8)
    for case in range(4):
        assert {measured.index(case) for measured in rounds} == {0, 1, 2, 3}
    followers = Counter(pair for measured in rounds for pair in pairwise(measured))
    assert all((second, first) in followers for first, second in followers)

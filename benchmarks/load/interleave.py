"""Interleaved rounds: the order in which cases that are compared are measured."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Case = TypeVar("Case")
Measured = TypeVar("Measured")


def interleave(
    cases: Sequence[Case], rounds: int, measure: Callable[[Case], Measured]
) -> list[list[Measured]]:
    """Measure every case once per round; return the rounds of each case.

    A round is short, so that background load meets all of its cases; ratios are taken within a round.
    """
    measured: list[list[Measured]] = [[] for _ in cases]
    for index in _order(len(cases), rounds):
        measured[index].append(measure(cases[index]))
    return measured


def _order(cases: int, rounds: int) -> Iterator[int]:
    """Yield case numbers: each round starts one case later, and every other round runs backwards.

    So no case always follows the same one.
    """
    for number in range(rounds):
        direction = -1 if number % 2 else 1
        for place in range(cases):
            yield (number + direction * place) % cases

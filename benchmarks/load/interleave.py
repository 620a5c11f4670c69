"""The order in which cases that are compared are measured."""

from collections.abc import Iterator


def interleave(cases: int, rounds: int) -> Iterator[int]:
    """Yield case numbers so that every case is measured once per round.

    A round is short, so that background load meets all of its cases; ratios are taken within a round. Each round
    starts one case later, and every other round runs backwards, so that no case always follows the same one.
    """
    for number in range(rounds):
        direction = -1 if number % 2 else 1
        for place in range(cases):
            yield (number + direction * place) % cases

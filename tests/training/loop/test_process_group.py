"""Processes that `torchrun` starts with different settings, and networks with several interfaces."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import HashStore

from distillery import DistilleryError
from training.distributed import _require_equal


def errors(*settings: dict[str, Any]) -> list[str]:
    """Return the error of each rank, given its settings."""
    store = HashStore()

    def compare(rank: int) -> str:
        try:
            _require_equal(settings[rank], store, rank, len(settings))
        except DistilleryError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(settings)) as pool:
        return list(pool.map(compare, range(len(settings))))


def test_equal_settings_are_accepted() -> None:
    assert errors(*[{"seed": 1, "student": {"hidden": [8]}}] * 3) == ["", "", ""]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"seed": 2, "student": {"hidden": [8]}},
            "seed is 2 on rank 1, and 1 on rank 0; run the same command",
        ),
        ({"seed": 1, "student": {"hidden": [9]}}, "student.hidden is [9] on rank 1, and [8] on rank 0"),
        ({"seed": 1}, "student.hidden is None on rank 1, and [8] on rank 0"),
    ],
)
def test_a_setting_that_differs_is_named_on_rank_0_and_where_it_differs(
    other: dict[str, Any], message: str
) -> None:
    same = {"seed": 1, "student": {"hidden": [8]}}
    first, second, third = errors(same, other, same)
    assert message in first
    assert message in second
    assert third == ""

"""The fuzz targets on their seeds, on mutations without guidance, and a short run of the fuzzer itself."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.table import TARGETS
from tests.fuzz.target import Target, resident_bytes
from tests.support.service import ROOT

MUTATIONS = 500
MAX_GROWTH_BYTES = 32_000_000
RUNS = 1000
EACH = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@EACH
def test_every_seed_is_valid_or_rejected_by_a_documented_error(target: Target) -> None:
    for seed in target.seeds():
        target.run(seed)


@pytest.mark.slow
@EACH
def test_no_mutated_input_causes_an_unhandled_exception(target: Target) -> None:
    choices = random.Random(target.name)  # noqa: S311 - not a secret
    seeds = target.seeds()
    words = [*target.words, b"\0", b"\xff", b"\r\n", b"0"]

    def mutation(data: bytes, max_size: int) -> bytes:
        start = choices.randrange(len(data) + 1)
        end = choices.choice((start, start + 1, start + choices.randrange(64)))
        new = choices.choice((b"", choices.randbytes(1), choices.choice(words), data[end : end + 32]))
        return (data[:start] + new + data[end:])[:max_size]

    used = 0
    for number in range(MUTATIONS):
        if number == MUTATIONS // 2:
            used = resident_bytes()
        data = choices.choice(seeds)
        for _ in range(choices.randrange(1, 4)):
            data = (
                target.mutate(data, target.max_bytes, choices, mutation)
                if target.mutate
                else mutation(data, target.max_bytes)
            )
        target.run(data)
    assert resident_bytes() - used < MAX_GROWTH_BYTES


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_fuzzer_runs_and_counts_its_inputs(tmp_path: Path) -> None:
    pytest.importorskip("atheris")  # no wheel for other platforms than Linux on x86-64
    result = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", tmp_path, "v2", f"-runs={RUNS}", "-seed=1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Done {RUNS} runs" in result.stderr

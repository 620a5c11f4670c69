"""A short run of the fuzzer; `make fuzz` runs it longer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service import ROOT

RUNS = 3000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_mutated_body_causes_an_unhandled_exception(tmp_path: Path) -> None:
    pytest.importorskip("atheris")  # no wheel for other platforms than Linux on x86-64
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    command = [sys.executable, "-m", "tests.serving.codecs.fuzz", corpus, f"-runs={RUNS}", "-seed=1"]
    result = subprocess.run(
        [*command, f"-artifact_prefix={tmp_path}/"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Done {RUNS} runs" in result.stderr

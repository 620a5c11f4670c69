"""Digits, and the command run in this process."""

import gzip
from pathlib import Path

import numpy as np
import pytest

import distillery
from serving.model.tensors import Images
from serving.scoring.__main__ import COMMANDS
from tests.support.scoring import Score, png
from tests.support.service import ROOT


@pytest.fixture(scope="session")
def digits() -> Images:
    """200 real digits, `uint8 [200, 28, 28]`."""
    content = gzip.decompress((ROOT / "tests/data/digits/test-images.idx.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)


@pytest.fixture(scope="session")
def pictures(digits: Images) -> list[bytes]:
    """Some of them as PNG files, dark on white, as people send them."""
    return [png(255 - np.kron(digit, np.ones((2, 2), np.uint8))) for digit in digits[:12]]


@pytest.fixture
def score(one_model: Path) -> Score:
    """Run the command with these arguments, in this process by default, and return its exit status."""

    def run(*arguments: object) -> int:
        flags = ["--models-dir", str(one_model), "--processes", "0", *map(str, arguments)]
        return distillery.main("distillery-score", COMMANDS, default="score", arguments=flags)

    return run

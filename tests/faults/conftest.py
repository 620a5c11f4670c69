"""Commands that tests kill, starve of space and lock out; what they do undisturbed, once, for comparison."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults.command_cases import Case, run_cases
from tests.support.forkserver import ForkServer
from tests.support.training.samples import write_as_mnist


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample digits as MNIST's files."""
    folder = tmp_path_factory.mktemp("digits")
    write_as_mnist(folder)
    return folder


@pytest.fixture(scope="session")
def server(digits: Path) -> Iterator[ForkServer]:
    """The server that starts commands.

    Where the machine allows that, its mounts are its own, and permissions bind it even if it is root.
    """
    prefix = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount"]
    prefix += ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    variables = {"DISTILLERY_DATA_DIR": str(digits), "COLUMNS": "200"}
    prefix = prefix if _runs(prefix) else []
    with ForkServer.start("tests.support.faults.commands", prefix=prefix, **variables) as server:
        yield server


def _runs(prefix: list[str]) -> bool:
    try:
        return not subprocess.run([*prefix, "true"], check=False).returncode
    except FileNotFoundError:
        return False


@pytest.fixture(scope="session")
def cases(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """The commands by name, each having run once."""
    with run_cases(server, tmp_path_factory.mktemp("cases")) as cases:
        yield cases

"""What only root may do: control groups and mounts."""

import os
import subprocess
from pathlib import Path
from shutil import which

import pytest

from tests.support.service import ROOT

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="this machine gives no root rights")
"""For tests whose own process makes network namespaces."""


def root_command(script: str, *arguments: str | Path) -> list[str]:
    """Return the command that runs a shell script as root; skip the test where that is not allowed."""
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n", f"PYTHONPATH={ROOT}"]
    if sudo and (not which("sudo") or subprocess.run([*sudo, "true"], check=False).returncode):
        pytest.skip("this machine gives no root rights without a password")
    return [*sudo, "sh", "-ec", script, "sh", *map(str, arguments)]


def as_root(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script as root. Raises `CalledProcessError`."""
    command = root_command(script, *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)

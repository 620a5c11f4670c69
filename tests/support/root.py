"""What only root may do: control groups and mounts."""

import os
import subprocess
from pathlib import Path

from tests.support.service import ROOT


def as_root(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script as root. Raises `CalledProcessError`."""
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n", f"PYTHONPATH={ROOT}"]
    command = [*sudo, "sh", "-ec", script, "sh", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)

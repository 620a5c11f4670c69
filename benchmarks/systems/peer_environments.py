"""A virtual environment per peer, created on first use and kept in `.cache/peers/<name>`.

The requirements of an environment are written into it last: an incomplete one, or one with other requirements, is
created again. A lock file makes concurrent processes wait for each other.
"""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from benchmarks.errors import BenchmarkError
from benchmarks.systems.peer import Peer
from distillery.files import require_writable, write_atomically

ENVIRONMENTS = Path(".cache/peers")
MARKER = "requirements.txt"


def peer_environment(peer: Peer, folder: Path = ENVIRONMENTS) -> Path:
    """Return the Python of the peer's environment. Raises `BenchmarkError` when pip fails."""
    home = (folder / peer.folder.name).absolute()
    python, marker = home / "bin/python", home / MARKER
    requirements = peer.folder / "requirements.txt"
    expected = f"# python {platform.python_version()}\n{requirements.read_text(encoding='utf-8')}"
    require_writable(folder)
    with FileLock(home.with_suffix(".lock")):
        if marker.is_file() and marker.read_text(encoding="utf-8") == expected:
            return python
        shutil.rmtree(home, ignore_errors=True)
        print(f"installing {peer.name} in {folder / peer.folder.name} (once)", file=sys.stderr, flush=True)
        _run(peer, [sys.executable, "-m", "venv", str(home)])
        quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
        _run(peer, [str(python), "-m", "pip", "install", *quiet, "--requirement", str(requirements)])
        write_atomically(marker, expected.encode())
        return python


def versions_in(python: Path, packages: list[str]) -> dict[str, str]:
    """Return the versions of these packages in an environment. Raises `BenchmarkError` for a missing one."""
    program = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    done = subprocess.run(
        [str(python), "-c", program, *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"{python} lacks one of {packages}: {done.stderr.strip()[-500:]}")
    return dict(json.loads(done.stdout))


def _run(peer: Peer, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stderr or done.stdout).strip()[-1000:]
        raise BenchmarkError(f"{peer.name} could not be installed: {' '.join(command)} failed:\n{output}")

"""A virtual environment for every peer, made when it is first wanted and kept under `.cache/peers/<name>`.

What an environment was made from is written into it last: a half-made one, or one whose requirements.txt has
changed since, is made again. Who comes while another process makes one waits for it.
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

ENVIRONMENTS = Path(".cache/peers")
MADE_FROM = "made-from.txt"


def peer_environment(peer: Peer, folder: Path = ENVIRONMENTS) -> Path:
    """Return the Python of the peer's environment, made if need be. Raises `BenchmarkError` when pip fails."""
    home = (folder / peer.folder.name).absolute()
    python = home / "bin/python"
    requirements = peer.folder / "requirements.txt"
    wanted = f"# python {platform.python_version()}\n{requirements.read_text(encoding='utf-8')}"
    made_from = home / MADE_FROM
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if made_from.is_file() and made_from.read_text(encoding="utf-8") == wanted:
            return python
        shutil.rmtree(home, ignore_errors=True)
        print(f"installing {peer.name} into {folder / peer.folder.name} (once)", file=sys.stderr, flush=True)
        _call(peer, [sys.executable, "-m", "venv", str(home)])
        quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
        _call(peer, [str(python), "-m", "pip", "install", *quiet, "--requirement", str(requirements)])
        made_from.write_text(wanted, encoding="utf-8")
        return python


def versions_in(python: Path, packages: list[str]) -> dict[str, str]:
    """Return the versions that an environment has of these packages. Raises `BenchmarkError` for a missing one."""
    program = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    done = subprocess.run(
        [str(python), "-c", program, *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"{python} does not have all of {packages}: {done.stderr.strip()[-500:]}")
    return dict(json.loads(done.stdout))


def _call(peer: Peer, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-1000:]
        raise BenchmarkError(f"{peer.name} could not be installed: {' '.join(command)} said:\n{said}")

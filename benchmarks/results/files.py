"""Result files: every measurement with the machine, the versions and the commit it was made with.

    benchmarks/results/<kind>-<date>-<id>.json

The benchmark commands write them, `distillery-bench render` reads the newest of each kind. Results are published, so
the machine's name is left out and absolute paths in the command are shortened.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from distillery.files import write_atomically
from distillery.machine import usable_cores

RESULTS = Path("benchmarks/results")
PACKAGES = ("litserve", "numpy", "onnxruntime", "orjson", "torch", "torchvision", "uvicorn", "uvloop")
"""Packages that can influence a result; the versions of the installed ones are kept."""
LOAD_AT_START = os.getloadavg()[0]
"""Of the minute before this process started: the load that does not come from the measurement."""


def write_result(kind: str, data: dict[str, Any], *, folder: Path = RESULTS) -> Path:
    """Write `data` as a new file of this `kind` (a word such as `session`) and return its path.

    `data` is JSON; samples are stored as histograms (`benchmarks.load.latency.compact`), so that a file stays below
    300 kB. The rest of the document is `describe_run`. Raises `ValueError` for an invalid kind, `FileError`.
    """
    if not re.fullmatch(r"[a-z]+(?:_[a-z]+)*", kind):
        raise ValueError(f"a kind of result is words joined by underscores, found {kind!r}")
    now = datetime.now(UTC)
    document = {"kind": kind, "date": now.isoformat(timespec="seconds"), **describe_run(), "data": data}
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    # A list of numbers stays on one line; a line break cannot be inside a JSON string.
    text = re.sub(r"\[\n[\s\d.,eE+-]+\]", lambda numbers: f"[{' '.join(numbers[0][1:-1].split())}]", text)
    name = f"{kind}-{now:%Y%m%dT%H%M%SZ}-{hashlib.sha256(text.encode()).hexdigest()[:6]}.json"
    path = folder / name
    write_atomically(path, text.encode())
    return path


def latest(kind: str, *, folder: Path = RESULTS) -> Path | None:
    """Return the newest file of this `kind`, or None where there is none."""
    return max(folder.glob(f"{kind}-*.json"), default=None)  # the date in the name sorts by time


def read_result(path: Path) -> dict[str, Any]:
    """Read a result. Raises `BenchmarkError` for a file that `write_result` did not write."""
    try:
        document = json.loads(path.read_bytes())
        if document.keys() >= {"kind", "date", "machine", "versions", "commit", "data"}:
            return dict(document)
    except (ValueError, AttributeError):
        pass
    raise BenchmarkError(f"{path} is not a result of distillery-bench; delete it or measure again")


def describe_run() -> dict[str, Any]:
    """Return the command line, the commit, the machine and the versions of this process."""
    commit, changed = _commit()
    return {
        "command": " ".join(map(_shorten, [Path(sys.argv[0]).name, *sys.argv[1:]])),
        "commit": commit,
        "uncommitted_changes": changed,
        "machine": {
            "cpu": _cpu_model(),
            "cores": usable_cores(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "os": _operating_system(),
            "kernel": platform.release(),
            "load_average": round(LOAD_AT_START, 2),
        },
        "versions": {"python": platform.python_version(), **_package_versions()},
    }


def warn_if_busy() -> None:
    """Warn on standard error where other processes keep the machine busy."""
    cores = usable_cores()
    if cores * 0.25 < LOAD_AT_START:
        print(
            f"the machine is busy: load average {LOAD_AT_START:.1f} on {cores} cores before the measurement",
            file=sys.stderr,
        )


def _shorten(argument: str) -> str:
    flag, equals, value = argument.rpartition("=")
    return f"{flag}{equals}{Path(value).name}" if value.startswith("/") else argument


def _cpu_model() -> str:
    with suppress(FileNotFoundError):  # Linux alone has it
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):  # absent on some ARM kernels
                return line.partition(":")[2].strip()
    return platform.machine()


def _operating_system() -> str:
    with suppress(OSError):  # Linux alone has such a file
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return f"{platform.system()} {platform.release()}"


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> tuple[str | None, bool]:
    """Return the commit of this source tree, and whether a file that influences results differs from it."""
    home = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(home), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        unrelated = (":!benchmarks/results/*.json", ":!docs", ":!*.md")
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ".", *unrelated))
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or not a clone
        return None, False

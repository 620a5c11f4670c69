"""Files that are complete or absent, so that no reader and no resumed command sees half of one."""

import hashlib
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file next to `path`, flush it to disk, and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp's 0600 would hide the file from other users of a shared run
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sha256(content: bytes) -> str:
    """Return the SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def is_outdated(source: Path, *outputs: Path) -> bool:
    """Return whether any of `outputs` is missing or older than `source`, a file or a symbolic link."""
    changed = source.lstat().st_mtime_ns
    return any(not path.exists() or path.stat().st_mtime_ns < changed for path in outputs)

"""Files that are complete or absent, so that no reader and no resumed command sees half of one."""

import hashlib
import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file next to `path`, flush it to disk, and rename it to `path`.

    Other users can read the file as far as the umask allows, as any file that is not temporary.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256(content: bytes) -> str:
    """Return the SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def is_outdated(source: Path, *outputs: Path) -> bool:
    """Return whether any of `outputs` is missing or older than `source`, a file or a link."""
    changed = source.lstat().st_mtime_ns
    return any(not path.exists() or path.stat().st_mtime_ns < changed for path in outputs)

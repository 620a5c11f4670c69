"""Find out what an input is: by the name of the file, or as IDX by its first bytes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.scoring.inputs.arrays import idx_file, npy_file
from serving.scoring.inputs.base import Block, Input, InputError, Part, Unreadable, file_stamp
from serving.scoring.inputs.folder import folder, is_picture_name
from serving.scoring.inputs.parquet import parquet_file
from serving.scoring.inputs.tar import tar_file

_KINDS = "a folder of pictures, .tar, .parquet, .npy, or IDX as MNIST has it, also .gz"
_COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True)
class Broken(Input):
    """An input that cannot be read at all: one part, in which the reason is set aside."""

    reason: str

    def parts(self, items: int) -> Iterator[Part]:  # noqa: ARG002
        yield Part(self, 0, 0, 1, self.stamp.size)

    def read(self, part: Part, max_bytes: int) -> Iterator[Block]:  # noqa: ARG002
        raise Unreadable(self.reason)
        yield []


def find_inputs(paths: Iterable[Path], column: str | None) -> list[Input]:
    """Return the inputs, each once. Raises `InputError` for one that is missing or of an unknown kind."""
    return [_find(path, column) for path in dict.fromkeys(path.resolve() for path in paths)]


def _find(path: Path, column: str | None) -> Input:
    try:
        if path.is_dir():
            return folder(path)
        if not path.is_file():
            raise InputError(
                f"{path} {'is not a file' if path.exists() else 'does not exist'}; expected {_KINDS}"
            )
        return _file(path, column)
    except Unreadable as error:
        return Broken(path, file_stamp(path), str(error))
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None


def _file(path: Path, column: str | None) -> Input:
    name = path.name.lower()
    if name.endswith(_COMPRESSED_TAR):
        raise InputError(f"{path} is compressed; decompress it first: pictures in it are compressed already")
    if name.endswith(".tar"):
        return tar_file(path)
    if name.endswith((".parquet", ".pq")):
        return parquet_file(path, column)
    if name.endswith(".npy"):
        return npy_file(path)
    if name.endswith((".gz", ".idx", "-ubyte")):
        return idx_file(path)
    if is_picture_name(name):
        raise InputError(f"{path} is a picture; name the folder that it is in")
    raise InputError(f"{path} is of an unknown kind; expected {_KINDS}")

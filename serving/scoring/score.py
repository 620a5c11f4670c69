"""Score one part: the items that the service would accept become predictions, the others are set aside.

Items are decoded by the codec of `POST /predict`, and run by the session of the service, `BATCH` images at a time: a
request to the service with the same images has the same results, bit by bit. What a model computes for an image may
depend on the number of images in a run, in the last bits, as it may in the service.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.codecs.base import BodyLimits, Head
from serving.codecs.bodies.body import RAW, decode
from serving.codecs.errors import RequestError
from serving.model.graph_check import GraphError
from serving.model.repository import ModelEntry, RepositoryError
from serving.model.session import GraphOutputs, OutputArrays, Session
from serving.model.tensors import CLASSES, SIDE, Images
from serving.scoring.inputs.base import BATCH, Block, Part, Rejected, Unreadable

PREDICTIONS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("item", pa.string()),
        pa.field("digit", pa.uint8(), nullable=False),
        pa.field(
            "probabilities",
            pa.list_(pa.field("element", pa.float32(), nullable=False), CLASSES),
            nullable=False,
        ),
        pa.field("confidence", pa.float64()),
        pa.field("accepted", pa.bool_()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
    ]
)
REJECTED = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("item", pa.string()),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)
UNREADABLE = "unreadable_input"
"""Code of the row that stands for the rest of a part."""

_HEAD = Head(media_type=RAW)
"""Of an item: a picture whatever its name says, pixels, or JSON."""


class Scored(NamedTuple):
    """The results of one part."""

    predictions: Any
    """A table with the schema `PREDICTIONS`."""
    rejected: Any
    """A table with the schema `REJECTED`."""
    unreadable: str | None
    """Why the rest of the part could not be read."""


Report = Callable[[int, int], object]
"""Called with the numbers of images scored and of items set aside since the last call."""


def _ignore(scored: int, rejected: int) -> None:
    """Report nothing."""


class _Decoded(NamedTuple):
    """Valid images and their places in the input."""

    indices: NDArray[np.int64]
    names: Sequence[str | None]
    images: Images

    def split(self, at: int) -> tuple["_Decoded", "_Decoded"]:
        """Return the images before and after a position."""
        return (
            _Decoded(self.indices[:at], self.names[:at], self.images[:at]),
            _Decoded(self.indices[at:], self.names[at:], self.images[at:]),
        )

    @classmethod
    def join(cls, parts: "Sequence[_Decoded]") -> "_Decoded":
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.indices for part in parts]),
            [name for part in parts for name in part.names],
            np.concatenate([part.images for part in parts]),
        )


@dataclass
class Scorer:
    """Scores parts with one model; picklable before its first part."""

    entry: ModelEntry
    limits: BodyLimits

    @cached_property
    def session(self) -> Session:
        """The model. Raises `RepositoryError`."""
        try:
            return Session(self.entry.content)
        except GraphError as error:
            raise RepositoryError(
                f"model {self.entry.name}: {self.entry.path} cannot be run: {error}; export the model again"
            ) from None

    def score(self, part: Part, report: Report = _ignore) -> Scored:
        """Return the results of one part. Raises `InputError` if the input has changed."""
        reader = _Reader(part, self.limits)
        indices, names, runs = list[NDArray[np.int64]](), list[str | None](), list[GraphOutputs]()
        reported = 0
        for batch in _batches(reader):
            indices.append(batch.indices)
            names += batch.names
            runs.append(self.session.run_graph(batch.images))
            report(len(batch.images), len(reader.rejected) - reported)
            reported = len(reader.rejected)
        report(0, len(reader.rejected) - reported)
        source = _text(str(part.input.path))
        predictions = PREDICTIONS.empty_table()
        if runs:
            outputs = self.session.outputs_of(runs)
            predictions = _predictions(source, np.concatenate(indices), names, outputs, self.entry)
        return Scored(predictions, _rejections(source, reader.rejected), reader.unreadable)


class _Reader:
    """Reads and decodes a part; collects what is set aside."""

    def __init__(self, part: Part, limits: BodyLimits) -> None:
        self._part, self._limits = part, limits
        self._next = part.first
        self.rejected: list[tuple[int, str | None, Rejected]] = []
        self.unreadable: str | None = None

    def __iter__(self) -> Iterator[_Decoded]:
        try:
            for block in self._part.input.read(self._part, self._limits.max_body_bytes):
                yield self._decode(block)
        except Unreadable as error:
            self.unreadable = str(error)
            self.rejected.append((self._next, None, Rejected(UNREADABLE, str(error))))

    def _decode(self, block: Block) -> _Decoded:
        first = self._next
        self._next += len(block)
        if isinstance(block, np.ndarray):
            return _Decoded(np.arange(first, self._next), [], block)
        indices, names, images = list[int](), list[str | None](), list[Images]()
        for index, (name, content) in enumerate(block, first):
            image = _image(content, self._limits) if isinstance(content, bytes) else content
            if isinstance(image, Rejected):
                self.rejected.append((index, name, image))
            else:
                indices.append(index)
                names.append(name)
                images.append(image)
        stacked = np.stack(images) if images else np.empty((0, SIDE, SIDE), np.uint8)
        return _Decoded(np.asarray(indices, np.int64), names, stacked)


def _image(content: bytes, limits: BodyLimits) -> Images | Rejected:
    """Return the image that a request with this body would have, `uint8 [28, 28]`, or the reason against it."""
    try:
        image: Images = decode(_HEAD, content, limits)[0]
    except RequestError as error:
        return Rejected.by(error)
    return image


def _batches(blocks: Iterator[_Decoded] | _Reader) -> Iterator[_Decoded]:
    """Regroup into batches of `BATCH` images, and a last one of the rest."""
    waiting: list[_Decoded] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block.images)
        while count >= BATCH:
            batch, rest = _Decoded.join(waiting).split(BATCH)
            yield batch
            count = len(rest.images)
            waiting = [rest] if count else []
    if count:
        yield _Decoded.join(waiting)


def _predictions(
    source: str,
    indices: NDArray[np.int64],
    names: Sequence[str | None],
    outputs: OutputArrays,
    entry: ModelEntry,
) -> Any:
    count = len(indices)
    columns = [
        pa.repeat(source, count),
        pa.array(indices),
        pa.array([name and _text(name) for name in names], pa.string())
        if names
        else pa.nulls(count, pa.string()),
        pa.array(outputs.digits.astype(np.uint8)),
        pa.FixedSizeListArray.from_arrays(
            pa.array(outputs.probabilities.ravel()), type=PREDICTIONS.field("probabilities").type
        ),
        pa.nulls(count, pa.float64()) if outputs.confidence is None else pa.array(outputs.confidence),
        pa.nulls(count, pa.bool_()) if outputs.accepted is None else pa.array(outputs.accepted),
        pa.repeat(entry.name, count),
        pa.repeat(entry.manifest.version, count),
    ]
    return pa.table(columns, schema=PREDICTIONS)


def _text(name: str) -> str:
    """Return a name whose bytes may be no valid UTF-8 as Parquet can hold it."""
    return name.encode(errors="replace").decode()


def _rejections(source: str, rejected: Sequence[tuple[int, str | None, Rejected]]) -> Any:
    return pa.table(
        [
            pa.repeat(source, len(rejected)),
            pa.array([index for index, _, _ in rejected], pa.int64()),
            pa.array([name and _text(name) for _, name, _ in rejected], pa.string()),
            pa.array([reason.code for _, _, reason in rejected], pa.string()),
            pa.array([_text(reason.message) for _, _, reason in rejected], pa.string()),
        ],
        schema=REJECTED,
    )

"""The newest predictions of all processes, in memory that they share: the digits of each request, found by its id.

Each process writes to a row of its own, ten times a second and without a lock: a ring of requests, and one of digits. A
hash table in the row leads to the newest request of a bucket, and each request to the one before it in its bucket.
Instead of an id, a keyed hash of id and client is kept, so one client cannot find the requests of another one; images
are not kept.

A request is found until it is `seconds` old, or the rings of its process have been filled by newer ones: `requests` of
them, or four times as many images. Of several requests with the same id and client, the newest one is found.
"""

import fcntl
import mmap
import os
import struct
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from serving.engine.shared_memory import allocate
from serving.engine.telemetry.record import Served

IMAGES_PER_REQUEST = 4
_COUNTS = struct.Struct("<QQ")
"""Of a row: requests and images that were ever added."""
_HEAD = struct.Struct("<Q")
_ENTRY = np.dtype(
    [
        ("key", "<u8"),
        ("time", "<f8"),
        ("first", "<u8"),
        ("before", "<u8"),
        ("images", "<u4"),
        ("slot", "<u4"),
        ("version", "<u4"),
        ("logged", "<u4"),
    ]
)
"""Of a request: `first` is the number of its first image, `before` that of the request before it in its bucket."""
_HASH = (1 << 64) - 1
_MAX_PENDING = 5 * 256
_SLACK = 16
"""The oldest of so many parts of a ring is not read any more, because its process may be writing there."""


class Found(NamedTuple):
    """A request that is known."""

    time: float
    """Of its prediction (`time.monotonic`)."""
    images: int
    slot: int
    """Of the metrics of the version that responded."""
    version: int
    """What distinguishes it from another version that has the slot now: `version_tag`."""
    logged: bool
    """Whether an image of it is in the request log."""
    process: int
    first: int
    """The number of its first image in the process."""


class RecentPredictions:
    """The memory of a service, and in each API process its writer."""

    def __init__(
        self,
        processes: int,
        requests: int,
        seconds: float,
        *,
        descriptor: int | None = None,
        secret: bytes | None = None,
    ) -> None:
        """Allocate the memory, or map that of `descriptor`. Raises `SharedMemoryError`.

        Processes that are not forked from this one need a `secret`: Python's own hashes differ between them.
        """
        self.requests, self.seconds = requests, seconds
        self._processes = processes
        self._images = requests * IMAGES_PER_REQUEST
        self._entries_at = _COUNTS.size + requests * _HEAD.size
        self._digits_at = self._entries_at + requests * _ENTRY.itemsize
        self._row_size = self._digits_at + self._images
        size = processes * self._row_size
        self._secret = secret
        self._descriptor = allocate(bytes(size)) if descriptor is None else descriptor
        weakref.finalize(self, os.close, self._descriptor)
        self._memory = memoryview(mmap.mmap(self._descriptor, size))
        self._served: dict[str, tuple[Served, tuple[int, int]]] = {}
        self._pending: list[Any] = []
        self.open(0)

    def __reduce__(self) -> tuple[Any, ...]:
        descriptor = DupFd(self._descriptor)
        return _attached, (self._processes, self.requests, self.seconds, descriptor, self._secret)

    def open(self, process: int) -> None:
        """Write to the row of this process from now on; one that replaces another continues its row."""
        start = process * self._row_size
        self._row = self._memory[start : start + self._row_size]
        self._heads = self._row[_COUNTS.size : self._entries_at].cast("Q")
        self._entries = np.frombuffer(self._row[self._entries_at : self._digits_at], _ENTRY)
        self._digits = np.frombuffer(self._row[self._digits_at :], np.uint8)
        self._added, self._added_images = _COUNTS.unpack_from(self._row)

    def add(
        self, request_id: bytes, client: str | None, served: Served, digits: Sequence[int], logged: bool
    ) -> None:
        """Add a request, which other processes find after the next `publish`."""
        # Flat, because a tuple that is kept costs more; published together, because that takes a third of the time.
        found = digits[0] if len(digits) == 1 else bytes(digits)
        self._pending += (request_id, client, served, found, logged)
        if len(self._pending) >= _MAX_PENDING:
            self.publish()

    def publish(self) -> None:
        """Write what was added since the last call, called ten times a second."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        keys = np.array(list(map(self._hash, pending[0::5], pending[1::5])), np.uint64)
        slots, tags = np.array([*map(self._numbers, pending[2::5])], np.uint32).T
        found = pending[3::5]
        if bytes in set(map(type, found)):
            parts = [bytes((one,)) if isinstance(one, int) else one for one in found]
            images = np.array([*map(len, parts)], np.uint32)
            digits = np.frombuffer(b"".join(parts), np.uint8)[-self._images :]
        else:
            images, digits = np.ones(len(found), np.uint32), np.array(found, np.uint8)
        ends = self._added_images + np.cumsum(images, dtype=np.uint64)
        numbers = np.arange(self._added + 1, self._added + 1 + len(keys))
        self._added, self._added_images = int(numbers[-1]), int(ends[-1])
        _COUNTS.pack_into(
            self._row, 0, self._added, self._added_images
        )  # what is overwritten is not found any more
        newest: dict[int, int] = {}
        before = []
        for bucket, number in zip((keys % self.requests).tolist(), numbers.tolist(), strict=True):
            before.append(newest.get(bucket) or self._heads[bucket])
            newest[bucket] = number
        entries = np.empty(len(keys), _ENTRY)
        columns = (keys, time.monotonic(), ends - images, before, images, slots, tags, pending[4::5])
        for name, column in zip(entries.dtype.names or (), columns, strict=True):
            entries[name] = column
        self._entries[(numbers - 1) % self.requests] = entries
        self._digits[np.arange(self._added_images - len(digits), self._added_images) % self._images] = digits
        for bucket, number in newest.items():
            self._heads[bucket] = number

    def _numbers(self, served: Served) -> tuple[int, int]:
        """Return slot and tag of a version."""
        known = self._served.get(served.slot)
        if known is None or known[0] is not served:
            numbers = int(served.slot), version_tag(served.name, served.version)
            known = self._served[served.slot] = served, numbers
        return known[1]

    def find(self, request_id: bytes, client: str | None) -> Found | None:
        """Return the newest request with this id and client, of any process."""
        self.publish()
        key = self._hash(request_id, client)
        oldest = time.monotonic() - self.seconds
        found = [
            one
            for process in range(self._processes)
            if (one := self._find_in(process, key)) and one.time >= oldest
        ]
        return max(found, default=None)

    def _find_in(self, process: int, key: int) -> Found | None:
        memory, start = self._memory, process * self._row_size
        kept, kept_images = (size - size // _SLACK for size in (self.requests, self._images))
        (number,) = _HEAD.unpack_from(memory, start + _COUNTS.size + key % self.requests * _HEAD.size)
        newer = number + 1
        while 0 < number < newer:
            added, added_images = _COUNTS.unpack_from(memory, start)
            if added - number >= kept:
                return None
            entry_at = start + self._entries_at + (number - 1) % self.requests * _ENTRY.itemsize
            entry = np.frombuffer(memory, _ENTRY, 1, entry_at)[0].item()
            found, moment, first, before, images, slot, version, logged = entry
            if found == key:
                if added_images - first > kept_images:
                    return None
                return Found(moment, images, slot, version, bool(logged), process, first)
            newer, number = number, before
        return None

    def label(self, found: Found, index: int, label: int) -> tuple[int, int | None]:
        """Label an image; return the predicted digit, and the label that it had before, which remains."""
        with self._locked():
            place = found.process * self._row_size + self._digits_at + (found.first + index) % self._images
            digit, before = self._memory[place] & 15, self._memory[place] >> 4
            if before:
                return digit, before - 1
            self._memory[place] = (label + 1) << 4 | digit
        return digit, None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude other processes from labelling; the kernel releases the lock of one that dies."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _hash(self, request_id: bytes, client: str | None) -> int:
        if self._secret is None:  # SipHash with a key that forked processes have in common
            return (hash(request_id) if client is None else hash((request_id, client))) & _HASH
        content = request_id if client is None else b"%b %b" % (request_id, client.encode())
        key: int = _HEAD.unpack(blake2b(content, digest_size=_HEAD.size, key=self._secret).digest())[0]
        return key


def version_tag(name: str, version: str) -> int:
    """Return the number of a version by which a slot that has been taken over is noticed."""
    return crc32(f"{name}/{version}".encode())


def _attached(
    processes: int, requests: int, seconds: float, descriptor: Any, secret: bytes | None
) -> RecentPredictions:
    return RecentPredictions(processes, requests, seconds, descriptor=descriptor.detach(), secret=secret)

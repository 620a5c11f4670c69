"""API keys: who may do what, and how often.

Keys are those of the file `--api-keys`, which contains their SHA-256 hashes, and `--api-key`. A fast hash is right for
keys: those that `new_key` makes have 256 random bits, which nobody can guess one by one. (Passwords need a slow hash.)

    [[keys]]
    name = "alice"
    hash = "sha256:…"                # of `distillery-serve key alice`
    scopes = ["infer", "metrics"]    # default: infer
    rate = "600/minute"              # optional; of second, minute, hour, day

The file is read again when it changes: a key that is no longer in it stops working, also on open connections. A file
with an error changes nothing.
"""

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from distillery import DistilleryError, errors, read_toml
from serving.codecs.errors import Forbidden, Header, RateLimited, Unauthorized
from serving.engine.shared_memory import SharedRows
from serving.engine.watched_files import WatchedFiles

Scope = Literal["infer", "metrics", "admin"]
"""infer: predictions, models and documentation; metrics: `/metrics`; admin: changes of what is served."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

MAX_LIMITED = 1024
"""Keys with a rate."""
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(rf"([1-9][0-9]{{0,8}})/({'|'.join(_SECONDS)})")
_HASH = re.compile("sha256:([0-9a-f]{64})")
_PREFIX = "dk_"
"""Of new keys, so that scanners for secrets can recognise them."""


class AccessError(DistilleryError):
    """The file of API keys is invalid."""


class Key(NamedTuple):
    """An API key, known by its hash."""

    name: str
    digest: bytes
    scopes: Collection[Scope]
    rate: tuple[int, int] | None = None
    """Requests, and the seconds in which they are allowed."""
    slot: int = 0
    """Where its requests are counted."""


def new_key() -> str:
    """Return a random key."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Return the hash of a key as the file contains it."""
    return f"sha256:{_digest(key.encode()).hex()}"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class Quotas:
    """The requests of each key in its current window of time, of all processes of the service.

    Each process counts in a row of its own, which needs no lock: the sum is exact but for requests that arrive in
    several processes within microseconds.
    """

    def __init__(self, processes: int) -> None:
        self.process = 0
        self._rows = SharedRows(processes, MAX_LIMITED * 3)

    def spend(self, key: Key) -> Sequence[Header]:
        """Count a request; return the header fields of its response. Raises `RateLimited`."""
        assert key.rate  # noqa: S101 - checked by the caller, for every request
        limit, seconds = key.rate
        now = time.monotonic()  # the same clock in all processes
        window = now // seconds
        tag = int.from_bytes(key.digest[:6])  # slots move when the file changes
        counts = self._rows.array.reshape(-1, MAX_LIMITED, 3)[
            :, key.slot
        ]  # tag, window and number of each process
        own = counts[self.process]
        if own[0] != tag or own[1] != window:
            own[:] = tag, window, 0
        used = int(counts[(counts[:, 0] == tag) & (counts[:, 1] == window), 2].sum())
        reset = math.ceil((window + 1) * seconds - now)
        policy = (b"ratelimit-policy", b'"default";q=%d;w=%d' % key.rate)
        if used >= limit:
            state = (b"ratelimit", b'"default";r=0;t=%d' % reset)
            message = f"the key {key.name!r} allows {limit} requests in {seconds} s; retry in {reset} s"
            raise RateLimited(message, (policy, state, (b"retry-after", b"%d" % reset)))
        own[2] += 1
        return policy, (b"ratelimit", b'"default";r=%d;t=%d' % (limit - used - 1, reset))


class Access:
    """The keys of a service, in one process."""

    def __init__(
        self, key: str | None = None, file: Path | None = None, quotas: Quotas | None = None
    ) -> None:
        """`key` has all scopes; without it and without `file`, everything is allowed. Raises `AccessError`."""
        self.required = key is not None or file is not None
        self.quotas = quotas or Quotas(1)
        self._single = [Key("api_key", _digest(key.encode()), SCOPES)] if key is not None else []
        self.several = file is not None
        """Whether clients have keys of their own."""
        self._file = WatchedFiles(partial(_read, file), file) if file else None
        self._set(self._file.value if self._file else [])

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._keys)

    def check(self, key: bytes, scope: Scope | None = "infer") -> Sequence[Header]:
        """Check a key for a scope (None: for any) and count its request; return header fields of the response.

        Raises `Unauthorized`, `Forbidden`, `RateLimited`.
        """
        if not self.required:
            return ()
        found = self._accepted.get(key) or self._find(key)
        if scope is not None and scope not in found.scopes:
            raise Forbidden(
                f"the key {found.name!r} has not the scope {scope}, but {', '.join(found.scopes)}"
            )
        return self.quotas.spend(found) if found.rate else ()

    def check_admin(self, key: bytes) -> None:
        """Check a key for a change of what is served, which nobody may make without. Raises `RequestError`."""
        if not self.required:
            raise Forbidden(
                "what is served can be changed only with an API key of the scope admin, and this service has no "
                "keys; start it with --api-key or --api-keys"
            )
        self.check(key, "admin")

    def client(self, key: bytes) -> str | None:
        """Return the name of a valid key, if clients have keys of their own (`serving.engine.admission.fairness`)."""
        if not self.several:
            return None
        try:
            return (self._accepted.get(key) or self._find(key)).name
        except Unauthorized:
            return None

    def _find(self, key: bytes) -> Key:
        """Compare a key with all others, in a time that does not depend on them. Raises `Unauthorized`."""
        digest = _digest(key)
        found = [known for known in self._keys if hmac.compare_digest(known.digest, digest)]
        if not found:
            raise Unauthorized("the header X-API-Key is missing or wrong")
        self._accepted[key] = found[0]
        return found[0]

    def reload(self) -> None:
        """Read the file again if it has changed. Raises `DistilleryError`, and the keys before remain valid."""
        if self._file and self._file.reload():
            self._set(self._file.value)

    def _set(self, keys: Sequence[Key]) -> None:
        self._keys = [*self._single, *keys]
        # Accepted keys as clients send them: found at once. The dictionary compares keys only if their hashes, which
        # are random in every process, are equal, so its time reveals nothing about them.
        self._accepted: dict[bytes, Key] = {}


def _rate(text: str) -> str:
    if not _RATE.fullmatch(text):
        raise ValueError(f"{text!r} is not a rate such as 10/second or 600/minute")
    return text


def _hash(text: str) -> str:
    if not _HASH.fullmatch(text):
        raise ValueError("is not sha256: and 64 digits 0-9a-f, as `distillery-serve key NAME` prints it")
    return text


class Entry(BaseModel):
    """A key in the file."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[\w.@-]{1,64}$")
    hash: Annotated[str, AfterValidator(_hash)]
    scopes: list[Scope] = Field(["infer"], min_length=1)
    rate: Annotated[str, AfterValidator(_rate)] | None = None

    @classmethod
    def of(cls, table: Any) -> Self:
        """Check a table of the file. Raises `AccessError` without its hash."""
        if not isinstance(table, dict) or not all(
            isinstance(table.get(key), str) for key in ("name", "hash")
        ):
            raise AccessError("expected a table with name and hash")
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise AccessError("; ".join(errors(error, cls))) from None


def _read(file: Path) -> list[Key]:
    """Return the keys in a file. Raises `DistilleryError` without a key or a hash in its message."""
    setting = f"--api-keys {file}"
    content: dict[str, Any] = read_toml(file, setting)
    tables = content.get("keys")
    if list(content) != ["keys"] or not isinstance(tables, list) or not tables:
        raise AccessError(f"{setting}: expected tables [[keys]], as `distillery-serve key NAME` prints them")
    keys: list[Key] = []
    for number, table in enumerate(tables, 1):
        try:
            entry = Entry.of(table)
        except AccessError as error:
            raise AccessError(f"{setting}: key {number}: {error}") from None
        digest = bytes.fromhex(entry.hash.removeprefix("sha256:"))
        if any(entry.name == key.name or digest == key.digest for key in keys):
            raise AccessError(
                f"{setting}: key {number}: another one has the name {entry.name!r} or the same hash"
            )
        slot, rate = sum(key.rate is not None for key in keys), None
        if entry.rate:
            requests, _, unit = entry.rate.partition("/")
            rate = int(requests), _SECONDS[unit]
            if slot == MAX_LIMITED:
                raise AccessError(f"{setting}: more than {MAX_LIMITED:,} keys have a rate")
        keys.append(Key(entry.name, digest, tuple(entry.scopes), rate, slot))
    return keys

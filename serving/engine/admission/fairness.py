"""Fairness between clients, which are known by their API keys.

Where requests, work or memory in flight reach a limit, a client still gets as much as an equal share of it: one that
sends twenty times its share takes nothing from one that stays within. Queues are served client by client
(`FairQueue`), so that a client does not wait behind the queue of another either. Without a file of API keys, clients
cannot be told apart, and nothing here costs anything.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(slots=True)
class Holding:
    """What a client has in flight in this process."""

    requests: int = 0
    work: float = 0.0
    """Expected seconds."""
    bytes: int = 0
    """Of bodies that arrive in several pieces."""


class Shares:
    """What each client has in flight in this process."""

    def __init__(self) -> None:
        self._holdings: dict[str, Holding] = {}

    def __len__(self) -> int:
        """Return the number of clients with requests in flight."""
        return len(self._holdings)

    def __getitem__(self, client: str) -> Holding:
        """Return what a client with requests in flight holds."""
        return self._holdings[client]

    def enter(self, client: str) -> None:
        """Add a request."""
        self._holdings.setdefault(client, Holding()).requests += 1

    def leave(self, client: str, work: float, held_bytes: int) -> None:
        """Remove a request that has ended."""
        holding = self._holdings[client]
        holding.requests -= 1
        holding.work -= work
        holding.bytes -= held_bytes
        if not holding.requests:
            del self._holdings[client]  # and the rounding errors of its sums

    def allows(
        self, client: str | None, kind: Literal["requests", "work", "bytes"], amount: float, limit: float
    ) -> bool:
        """Return whether a client may have `amount` more, as part of an equal share of `limit`; without one, never."""
        if client is None:
            return False
        holding = self._holdings.get(client)
        clients = len(self._holdings) + (holding is None)
        return (getattr(holding, kind, 0) + amount) * clients <= limit


class FairQueue:
    """A queue of pairs whose second part has a `client`: the clients take turns, with one pair each."""

    def __init__(self) -> None:
        self._queues: dict[str | None, deque[tuple[Any, Any]]] = {}

    def __bool__(self) -> bool:
        """Return whether the queue has any pair."""
        return bool(self._queues)

    def __len__(self) -> int:
        """Return the number of pairs in the queue."""
        return sum(map(len, self._queues.values()))

    def __getitem__(self, index: Literal[0]) -> tuple[Any, Any]:
        """Return what `popleft` removes."""
        return next(iter(self._queues.values()))[index]

    def append(self, pair: tuple[Any, Any]) -> None:
        """Add a pair behind the others of its client."""
        self._queues.setdefault(pair[1].client, deque()).append(pair)

    def popleft(self) -> tuple[Any, Any]:
        """Remove and return the next pair."""
        client, queue = next(iter(self._queues.items()))
        del self._queues[client]
        pair = queue.popleft()
        if queue:
            self._queues[client] = queue
        return pair

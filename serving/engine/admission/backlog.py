"""The work in flight in a process, and whether more of it can be done in time.

Work is counted in expected seconds: `REQUEST_SECONDS` for a request, `BYTE_SECONDS` for each byte of its body, and the
measured run time of its images. How long a second of work takes in reality is measured continuously: the time from the
admission of a request to its reply, divided by the work that was in flight when it was admitted. This accounts for
everything the constants leave out: other processes on the cores, pictures, gRPC, clients that are rejected.
"""

from serving.codecs.errors import Overloaded
from serving.engine.admission.fairness import Shares

REQUEST_SECONDS = 1e-4
"""Of the processor, for a request with a small body: parsing, batching and encoding."""
BYTE_SECONDS = 1e-8
"""Of the processor, to receive and decode a byte of JSON."""
SHARE = 0.5
"""Of the time until a request's deadline that work admitted before it may take."""
_WEIGHT = 0.3  # of the newest measurement
_SLOWEST = 30.0  # a single request that waited for something else must not have others rejected


class Backlog:
    """The work in flight in this process, by model and client."""

    def __init__(self, shares: Shares | None = None) -> None:
        self._shares = Shares() if shares is None else shares
        self.seconds = 0.0
        """Work in flight, of all models."""
        self.slowdown = 1.0
        """Seconds that a second of work takes."""
        self._by_model: dict[str, float] = {}  # models with work in flight
        self._counts: dict[str, int] = {}
        self._waited = self._expected = 0.0  # since the last `measure`

    def check(self, model: str, work: float, timeout: float, client: str | None = None) -> None:
        """Check that `work` can be added for a reply within `timeout` seconds. Raises `Overloaded`.

        A model's first request always can; more only if all work in flight fits into `SHARE` of the timeout, and the
        model's own into an equal part of it, or if the client's own fits into an equal part.
        """
        own = self._by_model.get(model)
        if own is None:
            return
        budget = timeout * SHARE / self.slowdown
        full = self.seconds + work > budget or (own + work) * len(self._by_model) > budget
        if full and not self._shares.allows(client, "work", work, budget):
            wait = self.seconds * self.slowdown
            raise Overloaded(f"the requests in flight take {wait:.2g} s; retry in a second")

    def admit(self, model: str, work: float, timeout: float, client: str | None = None) -> float:
        """Add `work`; return the work until its end, itself included. Raises `Overloaded` as `check` does.

        That is all work in flight; where clients take turns, at most as much of every client as of this one.
        """
        self.check(model, work, timeout, client)
        self._by_model[model] = self._by_model.get(model, 0.0) + work
        self._counts[model] = self._counts.get(model, 0) + 1
        self.seconds += work
        if client is None:
            return self.seconds
        holding = self._shares[client]
        holding.work += work
        return min(self.seconds, holding.work * len(self._shares))

    def change(self, model: str, by: float) -> None:
        """Correct the work of a request in flight."""
        self._by_model[model] += by
        self.seconds += by

    def end(self, model: str, work: float) -> None:
        """Remove the work of a request that has ended."""
        self._counts[model] -= 1
        if self._counts[model]:
            self._by_model[model] -= work
            self.seconds -= work
        else:
            del self._counts[model]
            self.seconds -= self._by_model.pop(model)
            if not self._counts:
                self.seconds = 0.0  # without the rounding errors of the sums

    def observe(self, waited: float, expected: float) -> None:
        """Record that a request was answered `waited` seconds after `expected` seconds of work were in flight."""
        self._waited += waited
        self._expected += expected

    def measure(self) -> None:
        """Update `slowdown` from the requests observed since the last call."""
        if self._expected:
            newest = min(self._waited / self._expected, _SLOWEST)
            self.slowdown += _WEIGHT * (newest - self.slowdown)
            self._waited = self._expected = 0.0

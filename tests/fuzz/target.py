"""What a fuzz target is: seeds, a function that must accept any bytes, and how inputs are changed."""

import random
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Mutation = Callable[[bytes, int], bytes]
"""Changes bytes, up to a maximum size."""

_WARM_UP = 5000
_MAX_GROWTH_BYTES = 64 * 1024 * 1024
_MAX_GROWTH_BYTES_PER_INPUT = (
    8192  # of which atheris takes 1,000, or 6,000 for Pillow; without it, there is no growth
)


@dataclass(frozen=True)
class Target:
    """A decoder under test."""

    name: str
    seeds: Callable[[], Sequence[bytes]]
    """Valid inputs, and the regressions: inputs that once failed."""
    run: Callable[[bytes], None]
    """Decodes an input; any exception is a failure, as is a hang or growing memory."""
    words: Sequence[bytes] = ()
    """libFuzzer's dictionary."""
    mutate: Callable[[bytes, int, random.Random, Mutation], bytes] | None = None
    """Changes an input by a given mutation where it matters, such as before its compression."""
    max_bytes: int = 8192


class Watched:
    """A target whose memory may not grow after the first inputs; `failed` receives an input that fails."""

    def __init__(self, target: Target, failed: Path) -> None:
        self._target = target
        self._failed = failed
        self._inputs = 0
        self._start = 0

    def __call__(self, data: bytes) -> None:
        try:
            self._target.run(data)
        except BaseException:
            self._failed.write_bytes(
                data
            )  # libFuzzer may not come to it: its alarm can end the process first
            raise
        self._inputs += 1
        if self._inputs % _WARM_UP == 0:
            used = resident_bytes()
            self._start = self._start or used
            allowed = self._start + _MAX_GROWTH_BYTES + self._inputs * _MAX_GROWTH_BYTES_PER_INPUT
            assert used < allowed, f"{used:,} bytes after {self._inputs:,} inputs"


def resident_bytes() -> int:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

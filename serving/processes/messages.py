"""The messages between the parent process and the API processes about changes of what is served."""

from typing import Any, NamedTuple

from serving.engine.models import Deployment


class Serving(NamedTuple):
    """To the parent: which deployment an API process serves from now on."""

    generation: int


class Prepare(NamedTuple):
    """To an API process: open what a deployment needs, next to what is served."""

    deployment: Deployment


class Prepared(NamedTuple):
    """To the parent: that is done."""

    generation: int


class Failed(NamedTuple):
    """To the parent: it cannot be done."""

    generation: int
    reason: str


class Commit(NamedTuple):
    """To an API process: serve it."""

    generation: int


class Abort(NamedTuple):
    """To an API process: forget it."""

    generation: int


class Asked(NamedTuple):
    """To the parent: a client's request for a change."""

    number: int
    """Of the process's request."""
    action: str
    arguments: dict[str, Any]


class Refusal(NamedTuple):
    """Why a change was not made."""

    message: str
    unknown: bool = False
    """Whether it names what does not exist."""


class Result(NamedTuple):
    """To an API process: what became of its request."""

    number: int
    error: Refusal | None
    value: Any = None

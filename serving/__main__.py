"""`distillery-serve`: `python -m serving --models-dir models --port 8000`."""

# ruff: noqa: E402
import json
import os
import signal
import sys

# Before the other imports: the first process of a container ignores a signal without a handler. Nothing needs
# an orderly end yet, and an exception within the import of a C extension would become an ImportError.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

import distillery
from distillery import Metavar
from serving.config import ApiKey, ServiceSettings
from serving.health import check_ready, served_url
from serving.release.command import call_release, show


class Serve(ServiceSettings):
    """Serve predictions of every model in a repository over HTTP and gRPC.

    Models run inside the API processes, or in processes of their own with --executor workers.
    """

    examples = (
        "distillery-serve",
        "distillery-serve --models-dir models-notebook --port 8080 --grpc-port 8081",
        "distillery-serve --host 0.0.0.0 --api-servers 2 --default-model teacher",
    )

    def run(self) -> None:
        from serving.service import serve  # noqa: PLC0415 - `--help` needs no models, LitServe or onnxruntime

        serve(self)


class Health(distillery.Command):
    """Check that the service is ready; the exit status is 0 or 1.

    A container's health check runs this command: it needs neither host nor port.
    """

    # The variables and the file of the service may be those of its health check.
    model_config = SettingsConfigDict(extra="ignore")
    examples = ("distillery-serve health", "distillery-serve health --url http://127.0.0.1:8001")

    url: str | None = Field(
        None, description="address of the service; default: that of the one this user started last"
    )
    timeout: float = Field(5.0, gt=0, description="maximum time for the service to respond")
    api_key: ApiKey = Field(
        None, description="key of a service whose health needs one; set DISTILLERY_API_KEY rather than this"
    )

    def run(self) -> None:
        key = self.api_key.get_secret_value() if self.api_key else None
        check_ready(self.url or served_url(), timeout=self.timeout, api_key=key, verify=bool(self.url))


class Key(distillery.Command):
    """Make an API key for a client.

    The key is printed on standard error and stored nowhere: give it to the client. Its entry for the file of
    --api-keys is printed on standard output: append it to the file.
    """

    model_config = SettingsConfigDict(extra="ignore")
    examples = (
        "distillery-serve key alice",
        "distillery-serve key prometheus --scopes metrics",
        "distillery-serve key bob --rate 600/minute",
    )

    name: CliPositionalArg[str] = Field(
        description="name of the client, which the service's messages contain"
    )
    scopes: Annotated[list[str], Metavar("SCOPE,...")] = Field(
        ["infer"], description="of infer, metrics, admin"
    )
    rate: str | None = Field(
        None, description="maximum requests in a second, minute, hour or day, such as 10/second"
    )

    def run(self) -> None:
        from serving.engine.admission.api_keys import Entry, hash_of, new_key  # noqa: PLC0415 - `--help` needs no numpy

        key = new_key()
        entry = {"name": self.name, "hash": hash_of(key), "scopes": self.scopes}
        if self.rate:
            entry["rate"] = self.rate
        Entry.of(entry)
        print("[[keys]]")
        print(*(f"{name} = {json.dumps(value)}" for name, value in entry.items()), "", sep="\n", flush=True)
        print(key, file=sys.stderr)


class ReleaseCall(distillery.Command):
    """Show or change the release: the stable version and its candidate.

    `start` gives a candidate a share of the stable version's requests, `promote` makes it the stable version,
    `rollback` ends it; without a candidate, it returns to the stable version before the last promotion. Changes need
    an API key of the scope admin.
    """

    model_config = SettingsConfigDict(extra="ignore")
    examples = (
        "distillery-serve release show",
        "distillery-serve release start --candidate student/2 --share 0.1 --rule",
        "distillery-serve release promote",
        "distillery-serve release rollback",
    )

    action: CliPositionalArg[Literal["show", "start", "promote", "rollback"]] = Field(
        description="what to do: show, start, promote or rollback"
    )
    candidate: Annotated[str | None, Metavar("MODEL[/VERSION]")] = Field(
        None, description="with start: the candidate; without a version, the highest one"
    )
    share: float = Field(0.0, ge=0, le=1, description="with start: share of the requests for the candidate")
    shadow: float = Field(
        0.0, ge=0, le=1, description="with start: share of the requests that the candidate repeats unseen"
    )
    sticky: Literal["request", "key"] = Field(
        "request",
        description="with start: what decides who gets the candidate, the request id or the API key",
    )
    rule: bool = Field(False, description="with start: promote or roll back by rule, in its defaults")
    url: str | None = Field(
        None, description="address of the service; default: that of the one this user started last"
    )
    api_key: ApiKey = Field(
        None, description="key of the scope admin; set DISTILLERY_API_KEY rather than this"
    )

    def run(self) -> None:
        key = self.api_key.get_secret_value() if self.api_key else None
        send = partial(call_release, self.url or served_url(), api_key=key, verify=bool(self.url))
        if self.action == "show":
            state = send("GET")
        elif self.action == "start":
            if not self.candidate:
                raise distillery.DistilleryError("start needs --candidate, such as --candidate student/2")
            document = self.model_dump(include={"candidate", "share", "shadow", "sticky"})
            state = send("PUT", "", document | ({"rule": {}} if self.rule else {}))
        else:
            state = send("POST", f"/{self.action}")
        print(show(state))


class Erase(distillery.Command):
    """Erase requests by their ids from a request log, also of a running service.

    Images, predictions and labels of these ids are removed from all files, and rows that a service still holds in
    memory are not written. The exit status is 1 if no row was found.
    """

    model_config = SettingsConfigDict(extra="ignore")
    examples = (
        "distillery-serve erase 0f8c3b1e5a7d4c2b9e6f1a3d5c7b9e0f --request-log log",
        "distillery-serve erase alice-17 alice-18 --request-log log",
    )

    ids: CliPositionalArg[list[str]] = Field(min_length=1, description="X-Request-ID of each request")
    request_log: Annotated[Path, Metavar("DIR")] = Field(description="folder of the request log")

    def run(self) -> None:
        from distillery.request_log import RequestLogError  # noqa: PLC0415
        from distillery.request_log.files import erase  # noqa: PLC0415 - `--help` needs no pyarrow

        erased = erase(self.request_log, self.ids)
        images, labels = sum(erased.requests.values()), sum(erased.labels.values())
        missing = [one for one in self.ids if not erased.requests.get(one) and not erased.labels.get(one)]
        if missing:
            message = (
                f"{self.request_log} has no row of {', '.join(missing)[:200]}; rows that a service still holds in "
                "memory will not be written"
            )
            if len(missing) == len(self.ids):
                raise RequestLogError(message)
            print(message, file=sys.stderr)
        print(f"{images} images and {labels} labels erased from {self.request_log}")


COMMANDS: dict[str, type[distillery.Command]] = {
    "serve": Serve,
    "health": Health,
    "key": Key,
    "release": ReleaseCall,
    "erase": Erase,
}


def run() -> None:
    """Run the command named on the command line."""
    sys.exit(distillery.main("distillery-serve", COMMANDS, default="serve"))


if __name__ == "__main__":
    run()

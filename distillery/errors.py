"""Errors that the user can fix, and the messages they are reported with."""

import difflib
import json
import tomllib
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError


class DistilleryError(Exception):
    """An error the user can fix. The message names the value found and what is expected.

    DistilleryError
    ├── distillery.files.FileError                  a folder that cannot be written
    ├── distillery.request_log.RequestLogError      a request log that is missing, damaged or empty
    ├── training.data.mnist_files.DatasetError      MNIST files missing, or with the wrong checksum
    ├── training.model.checkpoint.CheckpointError   a truncated checkpoint, or one of another shape
    ├── training.runs.folder.RunError               an unusable run folder
    ├── training.runs.lock.LockedError              a folder that another command is using
    ├── export.ExportError                          an exported graph that differs from its network
    ├── serving.engine.admission.api_keys.AccessError  an invalid file of API keys
    ├── serving.engine.shared_memory.SharedMemoryError  no memory for the metrics
    ├── serving.engine.telemetry.sampling.TracingError  tracing is on, and cannot work
    ├── serving.calls.CallError                     a service that does not respond, or rejects a call of a command
    ├── serving.model.repository.RepositoryError    an invalid model repository
    ├── serving.release.changes.ChangeError         a change of what is served that is rejected
    ├── serving.release.first.UnknownDefaultError   a default model that the repository lacks
    ├── serving.model.signature.SignatureError      a model without a valid signature, or an unusable key
    ├── serving.model.session.DeviceError           a device that onnxruntime cannot use
    ├── serving.scoring.inputs.base.InputError      an input of bulk scoring that is missing or of an unknown kind
    ├── serving.scoring.output.OutputError          results of another run of bulk scoring
    ├── serving.scoring.run.ScoringError            inputs that could not be read to their end
    ├── serving.processes.tls.CertificateError      an invalid certificate or key
    ├── serving.processes.sockets.ServiceError      a service that cannot start or continue
    ├── serving.client.errors.ClientError           a request that returned no predictions
    └── benchmarks.errors.BenchmarkError            a measurement without a valid result
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name: the known ones and the nearest of them."""
    names = list(known)
    return f"there is no {kind} {name!r}; known: {', '.join(names) or 'none'}" + nearest(name, names)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" with the known name most like `name`, or nothing if none is like it."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def read_toml(path: Path, setting: str) -> dict[str, Any]:
    """Return the content of the TOML file that `setting` names. Raises `DistilleryError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DistilleryError(f"{setting}: there is no file {path}") from None
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # also of an integer of 5,000 digits, and of deep nesting
        raise DistilleryError(f"{setting}: {path} is not valid TOML: {error}") from None


def errors(error: ValidationError, settings: Any) -> list[str]:
    """Return one line per invalid value: its place in `settings` (a type), what is expected, what was found."""
    lines = []
    for found in error.errors():
        place = found["loc"]
        if found["type"] == "extra_forbidden":
            message = "unknown setting" + nearest(str(place[-1]), _names(settings, place[:-1]))
        elif found["type"] == "value_error":  # raised by our own validators, which name the value themselves
            message = str(found["ctx"]["error"])
        else:
            value = found["input"]
            message = f"{found['msg']} (found {repr(value) if isinstance(value, str) else plain(value)})"
        lines.append(": ".join([".".join(map(str, place)), message] if place else [message]))
    return lines


def _names(settings: Any, location: Sequence[int | str]) -> list[str]:
    """Return the names of the settings at `location` in a type."""
    for step in location:
        model = model_in(settings)
        field = model.model_fields.get(str(step)) if model else None
        settings = field.annotation if field else (get_args(settings) or (None,))[-1]  # of a dict: its values
    model = model_in(settings)
    return list(model.model_fields) if model else []


def plain(value: Any) -> str:
    """Write a value as an option takes it: `8000`, `0.003`, `true`, `1,16`, `[[16],[32,32]]`."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return repr(value).removesuffix(".0")
        case [list(), *_]:
            return json.dumps(value, separators=(",", ":"))
        case list() | tuple():
            return ",".join(map(plain, value))
        case dict():
            return json.dumps(value, default=str)
        case _:
            return str(value)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model class in an annotation such as `Distillation | None`."""
    kinds = (
        get_args(annotation)
        if get_origin(annotation) in (Annotated, Union, types.UnionType)
        else [annotation]
    )
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)

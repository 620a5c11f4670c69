"""What every command of Distillery shares: how it reads its settings and how it reports a mistake.

A command is a class derived from `Command`: its fields are its settings, its docstring is its help text,
its `run` method does the work. Settings come, in this order, from

1. flags                    `--student.epochs 20`
2. environment variables    `DISTILLERY_STUDENT__EPOCHS=20`
3. a TOML file              `[student]` / `epochs = 20`, the file named by `--config` (training: `--recipe`)
4. the defaults in the class
"""

import inspect
import os
import sys
import tomllib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

# onnxruntime (from 1.29 on) reports its use to its maker unless told otherwise before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class DistilleryError(Exception):
    """A mistake a person can mend. The message names the value found and what would be right.

    DistilleryError
    ├── training.data.mnist.DatasetError            the MNIST files are missing or not the real ones
    ├── training.model.checkpoint.CheckpointError   a checkpoint that is truncated or of another shape
    ├── training.runs.folder.RunError                a runs folder that cannot be used
    ├── export.ExportError                    a graph that does not compute what the network computes
    ├── serving.model.repository.RepositoryError    a model repository that cannot be trusted
    ├── serving.service.UnknownDefaultError   a default model that the repository does not have
    ├── serving.model.session.DeviceError           a device that onnxruntime cannot use here
    ├── serving.client.errors.ClientError     a client that got no predictions
    ├── serving.processes.supervisor.ServiceError       a service that cannot start, or cannot go on
    └── benchmarks.errors.BenchmarkError      a measurement that would say nothing
    """


class Command(BaseSettings):
    """A command and its settings."""

    model_config = SettingsConfigDict(
        env_prefix="DISTILLERY_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )
    file_setting: ClassVar[str] = "config"
    """The setting that names the TOML file."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.__doc__ = inspect.cleandoc(cls.__doc__ or "")  # --help prints it as it is

    @abstractmethod
    def run(self) -> None:
        """Do the work; raise `DistilleryError` for a mistake the person at the keyboard can mend."""

    @classmethod
    def find_file(cls, name: str) -> Path:
        """Turn the value of the file setting into a path."""
        return Path(name)

    @classmethod
    def for_arguments(cls, arguments: Sequence[str]) -> "type[Command]":  # noqa: ARG003 - for those derived
        """Return the command to run; one whose settings depend on its file makes itself anew."""
        return cls

    @classmethod
    def named_file(cls, arguments: Sequence[str]) -> str | None:
        """Return the file that flags, environment or the default name, before anything else is read."""
        flag = f"--{cls.file_setting}"
        default: str | None = cls.model_fields[cls.file_setting].default
        name = os.environ.get(f"DISTILLERY_{cls.file_setting.upper()}", default)
        for here, after in pairwise([*arguments, ""]):  # of several, the last counts
            if here.startswith(f"{flag}="):
                name = here.removeprefix(f"{flag}=")
            elif here == flag:
                name = after
        return name

    @classmethod
    def read_file(cls, name: str | None) -> dict[str, Any]:
        """Return the TOML content of the file with that name, nothing without one. Raises `DistilleryError`."""
        if not name:
            return {}
        return read_toml(cls.find_file(name), f"--{cls.file_setting} {name}")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _TomlFile(settings_cls)


class _TomlFile(PydanticBaseSettingsSource):
    """The lowest source: by the time it is asked, flags and environment have already named the file."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return None, field_name, False  # the file is read as a whole, in __call__

    def __call__(self) -> dict[str, Any]:
        command = cast("type[Command]", self.settings_cls)
        field = command.model_fields.get(command.file_setting)
        name = self.current_state.get(command.file_setting, field.default if field else None)
        return command.read_file(str(name) if name else None)


def main(
    program: str,
    commands: Mapping[str, type[Command]],
    *,
    default: str | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run one of `commands` with `arguments` (the process's own by default) and return its exit status.

    The first argument names the command; without one, `default` runs. Status 0: done; 1: a
    `DistilleryError`; 2: settings that do not fit; 130: interrupted.
    """
    rest = list(sys.argv[1:] if arguments is None else arguments)
    name = rest.pop(0) if rest and rest[0] in commands else default
    if name is None:
        print(_usage(program, commands))
        return 0 if rest[:1] in (["-h"], ["--help"]) else 2
    title = program if name == default else f"{program} {name}"
    others = [other for other in commands if other != name]
    try:
        command = commands[name].for_arguments(rest)
        command(_cli_parse_args=rest, _cli_prog_name=title).run()
    except ValidationError as error:
        for mistake in mistakes(error):
            print(f"{title}: {mistake}", file=sys.stderr)
        print(
            f"{title} --help lists every setting" + (f"; see also {others}" if others else ""),
            file=sys.stderr,
        )
        return 2
    except SettingsError as error:
        print(f"{title}: {error}", file=sys.stderr)
        return 2
    except DistilleryError as error:
        print(f"{title}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{title}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def read_toml(path: Path, setting: str) -> dict[str, Any]:
    """Return the content of the TOML file that `setting` names. Raises `DistilleryError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DistilleryError(f"{setting}: there is no file {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DistilleryError(f"{setting}: {path} is not valid TOML: {error}") from None


def mistakes(error: ValidationError) -> list[str]:
    """Return a line for each setting that does not fit: its place, what is wrong, what was found."""
    lines = []
    for mistake in error.errors():
        place = [".".join(map(str, mistake["loc"]))] if mistake["loc"] else []
        # A validator of ours names what it found, and it alone knows how much of the input that is.
        ours = mistake["type"] == "value_error"
        text = str(mistake["ctx"]["error"]) if ours else f"{mistake['msg']} (found {mistake['input']!r})"
        lines.append(": ".join([*place, text]))
    return lines


def _usage(program: str, commands: Mapping[str, type[Command]]) -> str:
    lines = [f"usage: {program} COMMAND [--help] [settings]", ""]
    for name, command in commands.items():
        lines.append(f"  {name:<12} {(command.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join(lines)

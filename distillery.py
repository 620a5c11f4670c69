"""Settings, `--help` and error reporting, shared by every command.

A command is a subclass of `Command`: its fields are the settings, its docstring and `examples` are the help text, its
`run` method does the work. Settings come from these sources, the first one that has a value wins:

1. options                  `--student.epochs 20`
2. environment variables    `DISTILLERY_STUDENT__EPOCHS=20`
3. a TOML file              `[student]` / `epochs = 20` in the file that `--config` names
4. the command's `preset`   the recipe, for commands that train
5. the defaults             of the class
"""

import difflib
import json
import os
import sys
import textwrap
import tomllib
import types
from abc import abstractmethod
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

# onnxruntime (from 1.29 on) sends usage data to its maker unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

WIDTH = 80
"""Columns of `--help`."""


class DistilleryError(Exception):
    """An error the user can fix. The message names the value found and what is expected.

    DistilleryError
    ├── training.data.mnist.DatasetError            MNIST files missing, or with the wrong checksum
    ├── training.model.checkpoint.CheckpointError   a truncated checkpoint, or one of another shape
    ├── training.runs.folder.RunError               an unusable run folder
    ├── export.errors.ExportError                   an exported graph that differs from its network
    ├── serving.model.repository.RepositoryError    an invalid model repository
    ├── serving.model.session.DeviceError           a device that onnxruntime cannot use
    ├── serving.service.UnknownDefaultError         a default model that the repository lacks
    ├── serving.processes.supervisor.ServiceError   a service that cannot start or continue
    ├── serving.client.errors.ClientError           a request that returned no predictions
    └── benchmarks.errors.BenchmarkError            a measurement without a valid result
    """


class Metavar(NamedTuple):
    """Placeholder of an option's value in `--help`: `out: Annotated[Path, Metavar("DIR")]`."""

    name: str


class Command(BaseSettings):
    """A command and its settings.

    Settings that several commands share are declared in an abstract subclass with a `group` of its own.
    """

    model_config = SettingsConfigDict(
        env_prefix="DISTILLERY_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
    )
    group: ClassVar[str] = "general"
    """Heading in `--help` of the options that the class declares; without one of its own: "options"."""
    examples: ClassVar[Sequence[str]] = ()
    """Lines at the end of `--help`."""
    preset: ClassVar[Mapping[str, Any]] = {}
    """Values of the lowest source, only above the defaults."""

    config: Path | None = Field(None, description="TOML file with values for any of these options")

    @abstractmethod
    def run(self) -> None:
        """Do the work; raise `DistilleryError` for an error the user can fix."""

    @classmethod
    def for_arguments(cls, arguments: Sequence[str]) -> "type[Command]":  # noqa: ARG003 - for subclasses
        """Return the class to run: a subclass of this one where the settings depend on the arguments."""
        return cls

    @classmethod
    def peek(cls, setting: str, arguments: Sequence[str]) -> Any:
        """Return the value of one setting, from all sources but `preset`, before the others are known."""
        field = cls.model_fields[setting]
        fields: dict[str, Any] = {setting: (field.annotation, field)}
        alone = create_model(cls.__name__, __base__=_OneSetting, **fields)
        return getattr(alone.parse(arguments, ignore_unknown=True), setting)

    @classmethod
    def parse(cls, arguments: Sequence[str], *, ignore_unknown: bool = False) -> "Command":
        """Return the command with its settings. Raises `SettingsError` and `ValidationError`."""
        source: CliSettingsSource[Any] = CliSettingsSource(
            cls,
            root_parser=_Parser(add_help=False, allow_abbrev=False),
            parse_args_method=_parse_known if ignore_unknown else _parse,
        )
        return cls(_cli_settings_source=source(args=list(arguments)))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        preset = InitSettingsSource(settings_cls, dict(cls.preset))
        return init_settings, env_settings, _ConfigFile(settings_cls), preset


class _OneSetting(Command):
    model_config = SettingsConfigDict(extra="ignore")

    def run(self) -> None:
        raise NotImplementedError


class _ConfigFile(PydanticBaseSettingsSource):
    """The file named by `config`. pydantic-settings' own TOML source ignores a missing file."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return None, field_name, False  # __call__ reads the file as a whole

    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config")
        return read_toml(Path(path), f"--config {path}") if path else {}


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def _parse(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    namespace, rest = parser.parse_known_args(arguments)
    for argument in rest:
        option = argument.partition("=")[0]
        if option.startswith("-"):
            known = parser._option_string_actions  # noqa: SLF001 - argparse has no other list of its options
            raise SettingsError(f"there is no option {option}" + _nearest(option, known))
        raise SettingsError(f"unexpected argument {argument!r}")
    return namespace


def _parse_known(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    return parser.parse_known_args(arguments)[0]


def main(
    program: str,
    commands: Mapping[str, type[Command]],
    *,
    default: str | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run one of `commands` with `arguments` (default: those of the process) and return the exit status.

    The first argument names the command; without one, `default` runs. Status 0: success; 1: a `DistilleryError`;
    2: invalid settings; 130: interrupted.

    Commands are dispatched here rather than with pydantic-settings' `CliSubCommand`, which nests the settings of a
    command under its name in files and environment variables, and builds the parsers of all commands at every start.
    """
    rest = list(sys.argv[1:] if arguments is None else arguments)
    title = program
    try:
        name = default
        if rest and not rest[0].startswith("-"):
            name = rest.pop(0)
            if name not in commands:
                raise SettingsError(unknown("command", name, commands))
            title = program if name == default else f"{program} {name}"
        help_wanted = "-h" in rest or "--help" in rest
        if name is None:
            print(program_help(program, commands))
            return 0 if help_wanted else 2
        command = commands[name]
        command = command.for_arguments(rest)
        if help_wanted:
            others = {other: commands[other] for other in commands if name == default and other != name}
            print(command_help(title, command, others))
            return 0
        command.parse(rest).run()
    except (SettingsError, ValidationError) as error:
        lines = errors(error, command) if isinstance(error, ValidationError) else [str(error)]
        print(*(f"{title}: {line}" for line in lines), sep="\n", file=sys.stderr)
        print(f"See {title} --help", file=sys.stderr)
        return 2
    except DistilleryError as error:
        print(f"{title}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{title}: interrupted; run the same command to continue", file=sys.stderr)
        return 130
    return 0


# Errors


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name: the known ones and the nearest of them."""
    names = list(known)
    return f"there is no {kind} {name!r}; known: {', '.join(names) or 'none'}" + _nearest(name, names)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def read_toml(path: Path, setting: str) -> dict[str, Any]:
    """Return the content of the TOML file that `setting` names. Raises `DistilleryError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DistilleryError(f"{setting}: there is no file {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DistilleryError(f"{setting}: {path} is not valid TOML: {error}") from None


def errors(error: ValidationError, settings: Any) -> list[str]:
    """Return one line per invalid value: its place in `settings` (a type), what is expected, what was found."""
    lines = []
    for found in error.errors():
        place = found["loc"]
        if found["type"] == "extra_forbidden":
            message = "unknown setting" + _nearest(str(place[-1]), _names(settings, place[:-1]))
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
        model = _model(settings)
        field = model.model_fields.get(str(step)) if model else None
        settings = field.annotation if field else (get_args(settings) or (None,))[-1]  # of a dict: its values
    model = _model(settings)
    return list(model.model_fields) if model else []


# Help


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


def program_help(program: str, commands: Mapping[str, type[Command]]) -> str:
    """Return the help of a program without a default command."""
    return "\n".join(
        [
            f"Usage: {program} COMMAND [OPTIONS]",
            "",
            *_command_list(commands),
            f"{program} COMMAND --help lists the options of a command.",
        ]
    )


def command_help(title: str, command: type[Command], others: Mapping[str, type[Command]]) -> str:
    """Return the help of a command; `others` are the further commands of a program whose default it is."""
    summary, _, text = (command.__doc__ or "").strip().partition("\n")
    lines = [*_paragraphs(summary), "", f"Usage: {title} [OPTIONS]"]
    if others:
        lines.append(f"       {title} COMMAND [OPTIONS]")
    lines += ["", *_paragraphs(text), ""] if text else [""]
    if others:
        lines += _command_list(others)
    for heading, rows in _groups(command).items():
        lines += [f"{heading}:", *rows, ""]
    if command.examples:
        lines += ["Examples:", *(f"  {line}" for line in command.examples), ""]
    name, field = next((name, field) for name, field in command.model_fields.items() if name != "config")
    value = "…" if field.default is None or field.is_required() else plain(field.default)
    lines += _paragraphs(
        f"Every option is also an environment variable (DISTILLERY_{name.upper()}={value}) and a key of the --config "
        "file. An option overrides the variable, the variable overrides the file."
    )
    return "\n".join(lines)


def _paragraphs(text: str) -> list[str]:
    """Wrap each paragraph of a docstring."""
    lines: list[str] = []
    for paragraph in textwrap.dedent(text).strip("\n ").split("\n\n"):
        verbatim = paragraph.startswith(" ")
        wrapped = (
            paragraph.splitlines() if verbatim else textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False)
        )
        lines += ["", *wrapped]
    return lines[1:]


def _command_list(commands: Mapping[str, type[Command]]) -> list[str]:
    width = max(map(len, commands)) + 4
    lines = ["Commands:"]
    for name, command in commands.items():
        summary = (command.__doc__ or "").strip().partition("\n")[0]
        lines += _row(name, summary, width)
    return [*lines, ""]


def _row(term: str, description: str, column: int = 28) -> list[str]:
    """Return two aligned columns; a term too long for the first one gets a line of its own."""
    lines = textwrap.wrap(description, WIDTH - column, break_on_hyphens=False) or [""]
    rest = [" " * column + line for line in lines[1:]]
    if len(term) > column - 4:
        return [f"  {term}", " " * column + lines[0], *rest]
    return [f"  {term}".ljust(column) + lines[0], *rest]


def _groups(command: type[Command]) -> dict[str, list[str]]:
    """Return the rows of the options under the headings of the classes that declare them, the command's own first."""
    groups: dict[str, list[str]] = {"Options": []}
    models: dict[type[BaseModel], dict[str, FieldInfo]] = {}
    order = [base for base in command.__mro__ if issubclass(base, Command)]
    for name, field in command.model_fields.items():
        if model := _model(field.annotation):
            models.setdefault(model, {})[name] = field
    for base in order:
        heading = f"{base.group.capitalize()} options" if "group" in vars(base) else "Options"
        rows = groups.setdefault(heading, [])
        for name, field in command.model_fields.items():
            first = next(owner for owner in reversed(order) if name in owner.model_fields)
            if first is base and not _model(field.annotation):
                rows += _row(*_option(name, field, field.default))
        if base is command:
            for model, fields in models.items():
                groups |= _model_groups(model, fields)
    general = groups.pop("General options")
    groups["General options"] = [*general, *_row("-h, --help", "print this help")]
    return {heading: rows for heading, rows in groups.items() if rows}


def _model_groups(model: type[BaseModel], fields: Mapping[str, FieldInfo]) -> dict[str, list[str]]:
    """Return the rows of nested settings: once per type, with the fields of this type as its examples."""
    if len(fields) == 1:
        [(name, field)] = fields.items()
        rows = [row for option in _options(model, f"{name}.", field.default) for row in _row(*option)]
        return {f"{name.capitalize()} options": rows}
    placeholder = model.__name__.upper()
    base = model.model_construct()
    rows = [row for option in _options(model, f"{placeholder}.", base) for row in _row(*option)]
    shared = dict(_values(base))
    values = []
    for name, field in fields.items():
        own = [f"{key}={plain(value)}" for key, value in _values(field.default) if shared.get(key) != value]
        values += textwrap.wrap(
            f"{name}: " + " ".join(own) if own else name,
            WIDTH - 2,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
    return {
        f"{placeholder.capitalize()} options, for {placeholder} in {', '.join(fields)}": rows,
        "Values that differ from these defaults": values,
    }


def _values(model: BaseModel | None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every setting in nested models."""
    for name, value in model or ():
        if isinstance(value, BaseModel):
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _options(model: type[BaseModel], prefix: str, default: BaseModel | None) -> Iterator[tuple[str, str]]:
    """Yield option and description of every setting in nested models."""
    for name, field in model.model_fields.items():
        value = getattr(default, name, field.default)
        nested = _model(field.annotation)
        if nested:
            yield from _options(nested, f"{prefix}{name}.", value or nested.model_construct())
        else:
            yield _option(prefix + name, field, value)


def _option(name: str, field: FieldInfo, default: Any) -> tuple[str, str]:
    """Return `--port PORT` and its description with the default."""
    flag = name.replace("_", "-")
    description = field.description or ""
    if field.is_required():
        description += " (required)"
    elif default is not False and default not in (None, "", []) and field.default_factory is None:
        description += f" (default: {plain(default)})"
    if field.annotation is bool:
        return f"--[no-]{flag}", description.strip()
    metavar = next((mark.name for mark in field.metadata if isinstance(mark, Metavar)), None)
    return f"--{flag} {metavar or _metavar(name.rpartition('.')[2], field.annotation)}", description.strip()


WORDS = {
    "bytes": "BYTES",
    "dir": "DIR",
    "ms": "MS",
    "port": "PORT",
    "seconds": "SECONDS",
    "timeout": "SECONDS",
}
"""Metavar by the last word of a setting's name."""


def _metavar(name: str, annotation: Any) -> str:
    """Derive the placeholder of a value from its type and from the last word of the setting's name."""
    origin = get_origin(annotation)
    arguments = [argument for argument in get_args(annotation) if argument is not types.NoneType]
    if origin is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if origin is list:
        item = _metavar(name.removesuffix("s"), arguments[0])
        return f"[[{item}],...]" if item.endswith("...") else f"{item},..."
    if origin is not None:  # Annotated or a union with None
        marks = [argument.name for argument in arguments if isinstance(argument, Metavar)]
        return marks[0] if marks else _metavar(name, arguments[0])
    word = name.rpartition("_")[2]
    by_type = {Path: "FILE", int: "N", float: "N"}
    return WORDS.get(word) or by_type.get(annotation) or word.upper()


def _model(annotation: Any) -> type[BaseModel] | None:
    """Return the model class in an annotation such as `Distillation | None`."""
    kinds = (
        get_args(annotation)
        if get_origin(annotation) in (Annotated, Union, types.UnionType)
        else [annotation]
    )
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)

"""A command: its settings and the sources they come from; and the commands of a program."""

import ast
import os
import signal
import types
from abc import abstractmethod
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn, Self, Union, get_args, get_origin

from pydantic import Field, create_model, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from distillery.errors import nearest, read_toml
from distillery.service_links import without_service_links

DEFAULTS_VARIABLE = "DISTILLERY_DEFAULTS"
"""Environment variable that names a TOML file with defaults."""


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
    """Values below those of options, environment and file."""

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
    def parse(cls, arguments: Sequence[str], *, ignore_unknown: bool = False) -> Self:
        """Return the command with its settings. Raises `SettingsError` and `ValidationError`."""
        source: CliSettingsSource[Any] = CliSettingsSource(
            cls,
            root_parser=_Parser(add_help=False, allow_abbrev=False),
            parse_args_method=_parse_known if ignore_unknown else _parse,
        )
        return cls(_cli_settings_source=source(args=list(arguments)))

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, Any]) -> dict[str, Any]:
        lists = {name for name, field in cls.model_fields.items() if _is_list(field.annotation)}
        return {name: _split(value) if name in lists else value for name, value in values.items()}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - `_Environment` replaces it
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        preset = InitSettingsSource(settings_cls, dict(cls.preset))
        return (
            init_settings,
            _Environment(settings_cls),
            _ConfigFile(settings_cls),
            preset,
            _DefaultsFile(settings_cls),
        )


class CommandModules(Mapping[str, type[Command]]):
    """Commands that are imported when they are used: `perf-analyzer` is `PerfAnalyzer` of PACKAGE/perf_analyzer.py."""

    def __init__(self, package: str, names: Sequence[str]) -> None:
        self._package, self._names = package, names

    def __getitem__(self, name: str) -> type[Command]:
        if name not in self._names:
            raise KeyError(name)
        # Ctrl-C waits for the import: numpy and torch turn an interrupted one into errors of their own.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            command: type[Command] = getattr(import_module(self._module(name)), self._class(name))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def summary(self, name: str) -> str:
        """Return the first line of the command's docstring without importing it: torch takes seconds."""
        spec = find_spec(self._module(name))
        source = Path(str(spec and spec.origin)).read_text(encoding="utf-8")
        classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
        return next(first_line(ast.get_docstring(node)) for node in classes if node.name == self._class(name))

    def _module(self, name: str) -> str:
        return f"{self._package}.{name.replace('-', '_')}"

    def _class(self, name: str) -> str:
        return name.title().replace("-", "")


def first_line(docstring: str | None) -> str:
    """Return the summary of a command."""
    return (docstring or "").strip().partition("\n")[0]


class _OneSetting(Command):
    model_config = SettingsConfigDict(extra="ignore")

    def run(self) -> None:
        raise NotImplementedError


class _Environment(EnvSettingsSource):
    """Environment variables, with lists as options have them: `a,b`, besides JSON."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self.env_vars = without_service_links(self.env_vars)

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        if _is_list(field.annotation) and not value.lstrip().startswith("["):
            return _split(value)
        return super().decode_complex_value(field_name, field, value)


def _split(value: Any) -> Any:
    """Return a list that an option, a variable or a file has as `a,b`, without empty items; other values unchanged."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list):
        return value
    items = [item.strip() if isinstance(item, str) else item for item in value]
    return [item for item in items if item != ""]


def _is_list(annotation: Any) -> bool:
    """Return whether a type is a list or a tuple, or may be one."""
    origin = get_origin(annotation)
    return origin in (list, tuple) or (
        origin in (Union, types.UnionType) and any(map(_is_list, get_args(annotation)))
    )


class _ConfigFile(PydanticBaseSettingsSource):
    """The file named by `config`. pydantic-settings' own TOML source ignores a missing file."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return None, field_name, False  # __call__ reads the file as a whole

    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config")
        return read_toml(Path(path), f"--config {path}") if path else {}


class _DefaultsFile(_ConfigFile):
    """The file named by `DISTILLERY_DEFAULTS`, such as a container image's: other defaults than those of the class."""

    def __call__(self) -> dict[str, Any]:
        path = os.environ.get(DEFAULTS_VARIABLE)
        return read_toml(Path(path), DEFAULTS_VARIABLE) if path else {}


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def _parse(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    namespace, rest = parser.parse_known_args(arguments)
    for argument in rest:
        option = argument.partition("=")[0]
        if option.startswith("-"):
            known = parser._option_string_actions  # noqa: SLF001 - argparse has no other list of its options
            raise SettingsError(f"there is no option {option}" + nearest(option, known))
        raise SettingsError(f"unexpected argument {argument!r}")
    return namespace


def _parse_known(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    return parser.parse_known_args(arguments)[0]

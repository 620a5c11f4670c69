"""`--help` of programs and commands, written from the settings: their names, types, descriptions and defaults."""

import textwrap
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import CliPositionalArg

from distillery.command import Command, CommandModules, Metavar, first_line
from distillery.errors import model_in, plain

WIDTH = 80
"""Columns."""
LONG = 40
"""Characters from which a list may be broken into lines."""
_POSITIONAL = get_args(CliPositionalArg[str])[1]
WORDS = {
    "bytes": "BYTES",
    "ms": "MS",
    "port": "PORT",
    "seconds": "SECONDS",
    "timeout": "SECONDS",
}
"""Metavar by the last word of a setting's name."""


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
    fields = command.model_fields.items()
    places = [name.upper() for name, field in fields if _POSITIONAL in field.metadata]
    lines = [*_paragraphs(summary), "", " ".join(["Usage:", title, *places, "[OPTIONS]"])]
    if others:
        lines.append(f"       {title} COMMAND [OPTIONS]")
    lines += ["", *_paragraphs(text), ""] if text else [""]
    if others:
        lines += _command_list(others)
    for heading, rows in _groups(command).items():
        lines += [f"{heading}:", *rows, ""]
    if command.examples:
        lines += ["Examples:", *(f"  {line}" for line in command.examples), ""]
    name = next(name for name in command.model_fields if name != "config")
    lines += _paragraphs(
        f"Every option is also an environment variable (--{name.replace('_', '-')}: DISTILLERY_{name.upper()}) and a "
        f"key of the --config file ({name}). Options override variables, variables override the file."
    )
    return "\n".join(lines)


def _paragraphs(text: str) -> list[str]:
    """Wrap each paragraph of a docstring."""
    lines: list[str] = []
    for paragraph in textwrap.dedent(text).strip().split("\n\n"):
        lines += ["", *textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False)]
    return lines[1:]


def _command_list(commands: Mapping[str, type[Command]]) -> list[str]:
    width = max(map(len, commands)) + 4
    lines = ["Commands:"]
    for name in commands:
        lines += _row(name, _summary(commands, name), width)
    return [*lines, ""]


def _summary(commands: Mapping[str, type[Command]], name: str) -> str:
    if isinstance(commands, CommandModules):
        return commands.summary(name)
    return first_line(commands[name].__doc__)


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
    bases = [base for base in command.__mro__ if issubclass(base, Command)]
    for base in bases:
        heading = f"{base.group.capitalize()} options" if "group" in vars(base) else "Options"
        rows = groups.setdefault(heading, [])
        for name, field in command.model_fields.items():
            if base is not next(owner for owner in reversed(bases) if name in owner.model_fields):
                continue  # declared further up
            if model := model_in(field.annotation):
                models.setdefault(model, {})[name] = field
            else:
                rows += _row(*_option(name, field, field.default))
    general = groups.pop("General options")
    for model, fields in models.items():
        groups |= _model_groups(model, fields)
    groups["General options"] = [*general, *_row("-h, --help", "print this help")]
    return {heading: rows for heading, rows in groups.items() if rows}


def _model_groups(model: type[BaseModel], fields: Mapping[str, FieldInfo]) -> dict[str, list[str]]:
    """Return the rows of nested settings: once per type, then the values of each field that has this type."""
    if len(fields) == 1:
        [(name, field)] = fields.items()
        options = _options(model, f"{name}.", field.default)
        return {f"{name.capitalize()} options": [row for option in options for row in _row(*option)]}
    kind, base = model.__name__.upper(), model.model_construct()
    shared = dict(_values(base))
    values = []
    for name, field in fields.items():
        own = [f"{key}={plain(value)}" for key, value in _values(field.default) if shared.get(key) != value]
        line = " ".join([f"{name}:", *own]) if own else name
        values += textwrap.wrap(
            line, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
        )
    return {
        f"{model.__name__} options, for {kind} in {', '.join(fields)}": [
            row for option in _options(model, f"{kind}.", base) for row in _row(*option)
        ],
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
        nested = model_in(field.annotation)
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
        value = plain(default)
        description += f" (default: {value if len(value) < LONG else value.replace(',', ', ')})"
    if field.annotation is bool:
        return f"--[no-]{flag}", description.strip()
    metavar = next((mark.name for mark in field.metadata if isinstance(mark, Metavar)), None)
    if _POSITIONAL in field.metadata:
        return metavar or flag.upper(), description
    return f"--{flag} {metavar or _metavar(name.rpartition('.')[2], field.annotation)}", description.strip()


def _metavar(name: str, annotation: Any) -> str:
    """Derive the placeholder of a value from its type and from the last word of the setting's name."""
    origin = get_origin(annotation)
    arguments = [argument for argument in get_args(annotation) if argument is not types.NoneType]
    if origin is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if origin is list:
        item = _metavar(name.removesuffix("s"), arguments[0])
        return f"[[{item}],...]" if item.endswith("...") else f"{item},..."
    if origin is tuple:
        return ",".join(_metavar(name, argument) for argument in arguments)
    if origin is not None:  # Annotated or a union with None
        marks = [argument.name for argument in arguments if isinstance(argument, Metavar)]
        return marks[0] if marks else _metavar(name, arguments[0])
    word = name.rpartition("_")[2]
    if annotation is Path:
        return "DIR" if word in {"dir", "out"} else "FILE"
    return WORDS.get(word) or ("N" if annotation in {int, float} else word.upper())

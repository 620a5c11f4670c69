"""Settings, `--help` and error reporting, shared by every command.

A command is a subclass of `Command`: its fields are the settings, its docstring and `examples` are the help text, its
`run` method does the work. Settings come from these sources, the first one that has a value wins:

1. options                  `--student.epochs 20`
2. environment variables    `DISTILLERY_STUDENT__EPOCHS=20`
3. a TOML file              `[student]` / `epochs = 20` in the file that `--config` names
4. the command's `preset`   the recipe, for commands that train
5. the defaults             in the file that `DISTILLERY_DEFAULTS` names (the container image has one), or of the class
"""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pydantic import ValidationError
from pydantic_settings import SettingsError

from distillery.command import Command, CommandModules, Metavar
from distillery.errors import DistilleryError, errors, plain, read_toml, unknown
from distillery.help import command_help, program_help
from distillery.machine import usable_cores
from distillery.output import notify
from distillery.service_links import ignored_service_links

__all__ = [
    "Command",
    "CommandModules",
    "DistilleryError",
    "Metavar",
    "errors",
    "main",
    "notify",
    "plain",
    "read_toml",
    "unknown",
]

# onnxruntime (from 1.29 on) sends usage data to its maker unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# torch's threads spin while they wait for each other, which multiplies the time of training where another process needs
# a core: 4 to 8 times on two busy cores. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# numpy's linear algebra has a thread per core of the machine, whatever the CPU quota. Read when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", str(usable_cores()))


def main(
    program: str,
    commands: Mapping[str, type[Command]],
    *,
    default: str | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run one of `commands` with `arguments` (default: those of the process) and return the exit status.

    The first argument names the command, unless `default` is the only one; without a name, `default` runs. Status
    0: success; 1: a `DistilleryError`, or output that cannot be written; 2: invalid settings; 130: interrupted;
    141: the reader of the output has closed it, as `head` does.

    Commands are dispatched here rather than with pydantic-settings' `CliSubCommand`, which nests the settings of a
    command under its name in files and environment variables, and builds the parsers of all commands at every start.
    """
    _open_standard_streams()
    try:
        status = _run(program, commands, default, list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except OSError:
        try:
            print(flush=True)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
            if isinstance(error, BrokenPipeError):
                return 141
            _print_error(f"{program}: the output cannot be written: {error.strerror}; redirect it elsewhere")
            return 1
        raise  # of another file or pipe
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich has closed the output
            return 141
        raise
    return status


def _print_error(*lines: str) -> None:
    with suppress(OSError):
        print(*lines, sep="\n", file=sys.stderr, flush=True)


def _open_standard_streams() -> None:
    """Open what is closed of stdin, stdout and stderr; otherwise the next file or socket gets its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _run(program: str, commands: Mapping[str, type[Command]], default: str | None, rest: list[str]) -> int:
    title = program
    try:
        name = default
        if rest and not rest[0].startswith("-") and list(commands) != [default]:
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
        if notice := ignored_service_links(command.model_fields):
            _print_error(f"{title}: {notice}")
        command.parse(rest).run()
    except (SettingsError, ValidationError) as error:
        lines = errors(error, command) if isinstance(error, ValidationError) else [str(error)]
        _print_error(*(f"{title}: {line}" for line in lines), f"See {title} --help")
        return 2
    except DistilleryError as error:
        _print_error(f"{title}: {error}")
        return 1
    except KeyboardInterrupt:
        _print_error(f"\n{title}: interrupted; run the same command to continue")
        return 130
    return 0

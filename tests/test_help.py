"""`--help` of every command of every program: width, placeholders, descriptions, and examples that can be run."""

import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import distillery
from distillery import Command, DistilleryError
from distillery.help import command_help

ROOT = Path(__file__).parent.parent
DEFAULTS = {"training": "train", "export": "export", "serving": "serve", "serving.scoring": "score"}
PROGRAMS = {
    "training": "distillery-train",
    "export": "distillery-export",
    "serving": "distillery-serve",
    "serving.scoring": "distillery-score",
    "benchmarks": "distillery-bench",
}
COMMANDS: dict[str, type[Command]] = {
    PROGRAMS[package] if name == DEFAULTS.get(package) else f"{PROGRAMS[package]} {name}": command
    for package in PROGRAMS
    for name, command in importlib.import_module(f"{package}.__main__").COMMANDS.items()
}
every_command = pytest.mark.parametrize(("title", "command"), COMMANDS.items(), ids=COMMANDS)


@every_command
def test_help_fits_80_columns_and_shows_no_python_syntax(title: str, command: type[Command]) -> None:
    text = command_help(title, command.for_arguments([]), {})
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    summary, after = lines[:2]
    assert (summary[-1], after) == (".", "")  # one sentence that fits one line
    [usage] = [line for line in lines if line.startswith("Usage: ")]
    assert re.fullmatch(rf"Usage: {title} ([A-Z]+ )?\[OPTIONS\]", usage)
    options = [line for line in lines if re.match(r"  (-h, )?--", line)]
    assert len(options) >= 3
    assert [line for line in options if re.search(r"--\S+ (int|float|str|bool|Path|JSON)\b", line)] == []
    for unwanted in ("default factory", "['", "[]", "PosixPath", " at 0x"):
        assert unwanted not in text
    assert "\nExamples:\n" in text


@every_command
def test_every_option_has_a_description(title: str, command: type[Command]) -> None:
    text = command_help(title, command.for_arguments([]), {})
    for option, description in re.findall(r"^  (--\S+(?: \S+)?)\s+(.*)$", text, flags=re.MULTILINE):
        assert re.match(r"\w", description), option


@every_command
def test_examples_are_valid_commands(
    title: str, command: type[Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.toml").write_text((ROOT / "training/recipe/quick.toml").read_text())
    monkeypatch.chdir(tmp_path)
    assert any(f"{title} " in f"{line} " for line in command.examples)
    for line in [part.strip() for example in command.examples for part in example.split("&&")]:
        program, *arguments = shlex.split(line, comments=True) or ["#"]
        if program not in PROGRAMS.values():
            assert program in {"#", "torchrun"}, line
            continue
        called = f"{program} {arguments[0]}" if arguments and arguments[0][0] != "-" else program
        called = called if called in COMMANDS else program  # the argument of a program of one command
        options = arguments[called.count(" ") :]
        if {"-h", "--help"}.isdisjoint(options):
            COMMANDS[called].for_arguments(options).parse(options)


@pytest.mark.parametrize("package", PROGRAMS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_of_a_program_lists_its_commands(
    package: str, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"{package}.__main__")
    monkeypatch.setattr("sys.argv", ["program", flag])
    with pytest.raises(SystemExit, match="0"):
        module.run()
    text = capsys.readouterr().out
    assert f"Usage: {PROGRAMS[package]} " in text
    for name in module.COMMANDS:
        assert name == DEFAULTS.get(package) or f"\n  {name} " in text
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_the_list_of_the_benchmarks_needs_no_torch_and_ends_quietly_where_its_reader_has_left() -> None:
    code = "import sys, benchmarks.__main__ as b; sys.argv[1:] = ['--help']; sys.modules['torch'] = None; b.run()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()  # as `head` does after its last line
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("package", [package for package in PROGRAMS if package != "serving.scoring"])
def test_an_unknown_command_is_rejected_with_the_nearest(
    package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"{package}.__main__")
    name = list(module.COMMANDS)[-1]
    monkeypatch.setattr("sys.argv", ["program", f"{name}x"])
    with pytest.raises(SystemExit, match="2"):
        module.run()
    known = ", ".join(module.COMMANDS)
    message = f"{PROGRAMS[package]}: there is no command '{name}x'; known: {known}; did you mean {name}?"
    assert capsys.readouterr().err.splitlines()[0] == message


def test_an_unknown_option_of_a_model_is_rejected_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = {"train": COMMANDS["distillery-train"]}
    assert (
        distillery.main("distillery-train", train, default="train", arguments=["--student.epoch", "3"]) == 2
    )
    message = "there is no option --student.epoch; did you mean --student.epochs?"
    assert message in capsys.readouterr().err


def test_the_docstring_of_the_base_error_lists_every_error() -> None:
    listed = re.findall(r"── ([\w.]+)", DistilleryError.__doc__ or "")
    packages = ("distillery.", "training", "export", "serving", "benchmarks")
    assert all(issubclass(pkgutil.resolve_name(name), DistilleryError) for name in listed)
    defined = [
        f"{error.__module__}.{error.__name__}"
        for error in DistilleryError.__subclasses__()
        if error.__module__.startswith(packages)
    ]
    assert sorted(listed) == sorted(defined)

"""Links, paths, commands, options, variables, metrics and make targets that the documents mention exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from distillery import Command
from distillery.help import command_help
from tests.docs.test_blocks import PROGRAMS
from tests.support.documents.markdown import DOCUMENTS, blocks, inline_code, prose, words
from tests.support.service import ROOT

MODULES = {
    "training": "distillery-train",
    "export": "distillery-export",
    "serving": "distillery-serve",
    "benchmarks": "distillery-bench",
}
OTHER_OPTIONS = {"--build", "--build-arg", "--profile", "--check", "--nproc-per-node", "--master-addr"}
"""Of docker, docker compose, ruff and torchrun."""
VARIABLES = {
    "DISTILLERY_DEFAULTS",
    "DISTILLERY_NO_SKIPS",
    "DISTILLERY_TEST_KILLS",
    "DISTILLERY_TEST_THREADS",
    "DISTILLERY_DATA_DIR",
}
"""Read outside of commands."""
OUTPUTS = ("runs/", "models/", "docs/", ".cache/")
"""Made by commands, or relative to docs/."""
OWN = [path for path in DOCUMENTS if "peers" not in path.parts]
"""Documents whose options are not those of other systems."""
PER_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings as Git hosts make them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@PER_DOCUMENT
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if target.startswith(("http://", "https://")):
            continue
        place, _, anchor = target.partition("#")
        path = document.parent / place if place else document
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), target


@PER_DOCUMENT
def test_mentioned_paths_exist(document: Path) -> None:
    folders = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir())
    for code in inline_code(document):
        if "NAME" in code or code.startswith(OUTPUTS):
            continue
        if re.fullmatch(r"[\w./-]+", code) and code.startswith(folders):
            assert (ROOT / code).exists(), code


def programs(document: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each of our programs that the document runs, with its arguments."""
    commands = [line for block in blocks(document) if block.language == "sh" for line in block.commands]
    for command in [*commands, *inline_code(document)]:
        line = command.removeprefix(".venv/bin/")
        line = re.sub(r"^python -m (\w+)", lambda found: MODULES.get(found[1], found[0]), line)
        if line.split()[0] in PROGRAMS:
            program, *arguments = words(line)
            yield program, arguments


def options_of(command: type[Command]) -> set[str]:
    """Return the options in a command's help, in both forms of a switch."""
    found = set(re.findall(r"--(?:\[no-\])?[\w.-]+", command_help("", command, {})))
    return {option.replace("[no-]", "") for option in found} | {o.replace("[no-]", "no-") for o in found}


def known(option: str, options: set[str]) -> bool:
    """Return whether an option exists; `--student.hidden` is one of `--MODEL.hidden`."""
    return option in options or re.sub(r"^--[a-z0-9]+\.", "--MODEL.", option) in options


@PER_DOCUMENT
def test_commands_and_their_options_exist(document: Path) -> None:
    for program, arguments in programs(document):
        commands, default = PROGRAMS[program]
        named = arguments and not arguments[0].startswith("-") and list(commands) != [default]
        name = arguments.pop(0) if named else default
        if (not name and not arguments) or name.isupper():
            continue  # the program alone, or with a placeholder
        assert name in commands, f"{program} {name}"
        options = options_of(commands[name].for_arguments([]))
        for argument in arguments:
            if argument.startswith("--") and argument != "--help":
                assert known(argument.partition("=")[0], options), f"{program} {name} {argument}"


@pytest.mark.parametrize("document", OWN, ids=lambda path: path.name)
def test_options_variables_metrics_and_targets_in_the_text_exist(document: Path) -> None:
    commands = [command.for_arguments([]) for table, _ in PROGRAMS.values() for command in table.values()]
    options = set.union(*map(options_of, commands)) | OTHER_OPTIONS
    fields = {f"DISTILLERY_{name.upper()}" for command in commands for name in command.model_fields}
    sources = [*ROOT.glob("serving/**/*.py"), *ROOT.glob("docker/prometheus/*.yml")]
    metrics = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for code in inline_code(document):
        if code.startswith("--"):
            assert known(re.split(r"[ =]", code)[0], options), code
        for variable in re.findall(
            r"DISTILLERY_[A-Z]+(?:_[A-Z]+)*", code
        ):  # a section's own fields follow __
            assert variable in fields | VARIABLES, code
        for metric in re.findall(r"\bdistillery_\w+", code):
            assert re.sub(r"_(bucket|count|sum)$", "", metric) in metrics, code
        if code.startswith("make "):
            assert code.split()[1] in targets, code
    for block in blocks(document):
        for command in block.commands if block.language == "sh" else []:
            if command.startswith("make "):
                assert command.split()[1] in targets, command

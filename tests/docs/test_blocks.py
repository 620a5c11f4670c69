"""Every command block of README.md and docs/quickstart.md is executed, and prints what the document shows."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from benchmarks.__main__ import COMMANDS as BENCH
from distillery import Command, main
from export.__main__ import COMMANDS as EXPORT
from serving.__main__ import COMMANDS as SERVE
from serving.scoring.__main__ import COMMANDS as SCORE
from tests.support.documents.markdown import Block, blocks, matches, words
from tests.support.service import ROOT, Service, running_service
from tests.support.training.samples import samples_as_mnist
from training.__main__ import COMMANDS as TRAIN

EXECUTED = (ROOT / "README.md", ROOT / "docs" / "quickstart.md")
ADDRESS = "http://127.0.0.1:8000"
"""Where the documents say that the service is; here it is on a free port."""
PROGRAMS: dict[str, tuple[Mapping[str, type[Command]], str]] = {
    "distillery-train": (TRAIN, "train"),
    "distillery-export": (EXPORT, "export"),
    "distillery-serve": (SERVE, "serve"),
    "distillery-score": (SCORE, "score"),
    "distillery-bench": (BENCH, ""),
}
BLOCKS = [block for document in EXECUTED for block in blocks(document) if block.language in {"sh", "python"}]


@pytest.fixture(scope="module")
def service(demo_repository: Path) -> Iterator[Service]:
    """A service of the models that `make demo` publishes."""
    with running_service(demo_repository, "--api-servers", "1", forked=False) as service:
        yield service


def name(block: Block) -> str:
    return f"{block.document.name}: {block.text.splitlines()[0]}"


def run(command: str | list[str], **options: object) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        shell=isinstance(command, str),
        executable="/bin/bash" if isinstance(command, str) else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("block", BLOCKS, ids=name)
def test_a_block_runs_and_prints_what_is_shown(block: Block, service: Service) -> None:
    if block.language == "python":
        printed = run([sys.executable, "-c", block.text.replace(ADDRESS, service.url)])
    else:
        printed = "".join(execute(command, service.url) for command in block.commands)
    if block.output is not None:
        assert matches(block.output, printed), printed


def execute(command: str, url: str) -> str:
    """Run one command of a block, or check it where it would install, train or serve; return what it prints."""
    first, *rest = words(command)
    program = first.removeprefix(".venv/bin/")
    if first == "git":
        assert command == "git clone URL distillery && cd distillery"
        return ""
    if first == "make":
        run(["make", "--dry-run", *rest])
        return ""
    if program in PROGRAMS:
        commands, default = PROGRAMS[program]
        subcommand = rest.pop(0) if rest and rest[0] in commands else default
        commands[subcommand].for_arguments(rest).parse(rest)
        return ""
    if program == "python":
        script = (ROOT / rest[0]).read_text(encoding="utf-8").replace(ADDRESS, url)
        return run([sys.executable, "-c", script, *rest[1:]])
    assert first == "curl", f"{command!r} is not executed by this test"
    return run(command.replace(ADDRESS, url))


@pytest.mark.slow
def test_the_recipe_of_the_quick_start_is_trained_exported_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the sample digits, which are too few for a good model; every command is executed as written."""
    (block,) = [block for block in BLOCKS if "examples/recipe.toml" in block.text]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    *commands, serve = block.commands
    with samples_as_mnist(tmp_path / "digits"):
        for command in commands:
            program, *arguments = words(command.removeprefix(".venv/bin/"))
            table, default = PROGRAMS[program]
            assert main(program, table, default=default, arguments=arguments) == 0
    assert serve == ".venv/bin/distillery-serve --models-dir models-recipe"
    with running_service(tmp_path / "models-recipe", forked=False) as service:
        models = httpx.get(f"{service.url}/models").json()["models"]
    assert [(model["name"], model["architecture"]) for model in models] == [
        ("student", "784-256-128-10"),
        ("student-alone", "784-256-128-10"),
        ("student-int8", "784-256-128-10"),
        ("teacher", "784-800-800-10"),
    ]


def test_an_ellipsis_matches_anything_and_nothing_else_does() -> None:
    assert matches('{"digit":7,"probability":0.9…}', '{"digit":7,"probability":0.997}\n')
    assert not matches('{"digit":7,"probability":0.9…}', '{"digit":1,"probability":0.997}')
    assert not matches("a", "ab")


def test_every_block_that_shows_output_is_executed() -> None:
    shown = [block for document in EXECUTED for block in blocks(document) if block.output is not None]
    assert len(shown) >= 8
    assert all(block in BLOCKS for block in shown)

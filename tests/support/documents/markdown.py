"""The Markdown documents of the project: their code blocks, links and inline code."""

import re
import shlex
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from tests.support.service import ROOT

DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/peers/*/README.md"))
    if path.name != "CHANGELOG.md"  # describes versions as they were
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block and, for commands, the block below it if that shows their output."""

    document: Path
    language: str
    text: str
    output: str | None

    @property
    def commands(self) -> list[str]:
        """The commands, one per line, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [command for line in lines if (command := re.sub(r"(^|\s)#.*", "", line).strip())]


def blocks(document: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a document."""
    text = document.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    for block, after in zip_longest(found, found[1:]):
        language, content = block.groups()
        output = None
        if after and after[1] in {"json", "text"} and not text[block.end() : after.start()].strip():
            output = after[2].strip()
        yield Block(document, language, content, output)


def prose(document: Path) -> str:
    """Return a document without its fenced blocks."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def inline_code(document: Path) -> list[str]:
    """Return the inline code of a document."""
    return re.findall(r"`([^`\n]+)`", prose(document))


def matches(shown: str, printed: str) -> bool:
    """Return whether `printed` is what a document shows; an … stands for anything."""
    pattern = ".*".join(re.escape(part) for part in shown.strip().split("…"))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def words(command: str) -> list[str]:
    """Split a command as the shell does, without its redirections and pipes."""
    return shlex.split(command.split(" | ", maxsplit=1)[0])

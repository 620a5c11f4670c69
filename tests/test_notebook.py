"""The notebook of examples/: its cells run, and the outputs stored in it are those of the same cells."""

import json
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.service import ROOT
from training.data.mnist import find_mnist

NOTEBOOK = ROOT / "examples/distillation.ipynb"
ERRORS = re.compile(r"student-alone: (\d+) errors, student: (\d+) errors")


def outputs(notebook: Any) -> list[list[str]]:
    """Return the kinds of outputs of each cell of code; a stream may arrive in several pieces."""
    return [
        sorted({output.get("name") or ", ".join(sorted(output["data"])) for output in cell.outputs})
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def printed(notebook: Any) -> str:
    found = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(output.get("text", "") for output in found)


def test_the_outputs_stored_are_complete_and_small_and_name_no_machine() -> None:
    text = NOTEBOOK.read_text()
    notebook = nbformat.reads(text, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in kind for kinds in outputs(notebook) for kind in kinds) >= 6
    assert not re.search(r"/(home|root|tmp|work|Users)/", printed(notebook))
    assert "stderr" not in json.dumps(outputs(notebook))
    assert len(text) < 1_000_000
    assert ERRORS.search(printed(notebook))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs_and_the_student_with_a_teacher_makes_fewer_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a third, here as in the outputs stored: a margin for any CPU."""
    folder = os.environ.get("DISTILLERY_DATA_DIR")
    monkeypatch.setenv("DISTILLERY_DATA_DIR", str(find_mnist(Path(folder) if folder else None)))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = outputs(notebook)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "examples")}}).execute()
    assert outputs(notebook) == stored
    found = ERRORS.search(printed(notebook))
    assert found
    alone, student = map(int, found.groups())
    assert student < alone

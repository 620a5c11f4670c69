"""The command: progress, the missing extra, and what it prints."""

import io
import sys
import tarfile
from pathlib import Path

import pytest
from rich.console import Console

from serving.scoring.progress import ScoringProgress
from tests.support.scoring import Score


def test_without_the_extra_the_error_names_it(
    score: Score, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run", "inputs.find", "inputs.parquet"):  # which import it
        monkeypatch.delitem(sys.modules, f"serving.scoring.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert score("digits.npy", "--out", "out") == 1
    message = "distillery-score: scoring needs the package pyarrow: pip install 'distillery[scoring]'\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_in_a_terminal_and_lines_elsewhere(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.scoring.progress.LINE_INTERVAL_S", 0)
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=90)
    with ScoringProgress(1000, console) as progress:
        progress.advance(256, 0)
        progress.advance(200, 3)
        progress.finished(1000)
    assert "456 images · 3 set aside" in output.getvalue()
    assert ("━" in output.getvalue()) == terminal
    assert terminal or len(output.getvalue().splitlines()) == 2


def test_an_input_without_items_is_no_error(
    score: Score, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    assert score(tmp_path / "empty.tar", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith(
        f"0 images in {tmp_path / 'out/predictions'}: student/1, 0 images"
    )

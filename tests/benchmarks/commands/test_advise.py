"""`distillery-bench advise`: a real search over real services, and settings that are impossible."""

import json
import tomllib
from pathlib import Path

import httpx
import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.results.files import latest, read_result
from distillery import main
from tests.support.service import running_service

SHORT = ("--rate=500", "--minutes=0.15", "--api-servers=1", "--threads=1", "--max-batch=64")


def advise(*arguments: str) -> int:
    return main("distillery-bench", COMMANDS, arguments=["advise", *arguments])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_settings_that_meet_the_target_are_written_and_can_be_served(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = (f"--models-dir={model_repository}", f"--results-dir={tmp_path}", f"--out={tmp_path / 'advice'}")
    assert advise("--p99=5000", *SHORT, *place) == 0
    settings = tomllib.loads((tmp_path / "advice" / "serve.toml").read_text())
    path = latest("advise", folder=tmp_path)
    assert path
    data = read_result(path)["data"]
    assert settings == {
        "models_dir": str(model_repository),
        "default_model": data["advice"]["model"],
        **data["advice"]["settings"],
    }
    verified = [row for row in data["verified"] if row["model"] == settings["default_model"]]
    assert all(row["meets_target"] and row["requests"] > 400 for row in verified)
    assert data["advice"]["cost_per_million"] == pytest.approx(
        data["advice"]["cpu_us"] / 3600 * 0.04, rel=1e-3
    )
    assert settings["default_model"] in (tmp_path / "advice" / "report.md").read_text()
    capsys.readouterr()
    assert advise("--p99=5000", *SHORT, *place) == 0  # continued: nothing is left to measure
    again = latest("advise", folder=tmp_path)
    assert again
    assert read_result(again)["data"]["verified"] == data["verified"]

    with running_service(None, f"--config={tmp_path / 'advice' / 'serve.toml'}") as service:
        models = httpx.get(f"{service.url}/models").json()
    assert models["default"] == settings["default_model"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_target_that_nothing_meets_is_an_error_that_says_what_limits(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = (f"--models-dir={model_repository}", f"--results-dir={tmp_path}", f"--out={tmp_path / 'advice'}")
    assert advise("--p99=0.001", *SHORT, *place) == 1
    error = capsys.readouterr().err
    assert "nothing meets p99 ≤ 0.001 ms at 500 requests/s; the closest is" in error
    assert "limit" in error
    assert "use --" in error
    assert not (tmp_path / "advice" / "serve.toml").exists()
    assert "Nothing was written" in (tmp_path / "advice" / "report.md").read_text()
    path = latest("advise", folder=tmp_path)
    assert path
    assert json.loads(path.read_text())["data"]["advice"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--p99=0", "--rate=10"], "p99: Input should be greater than 0"),
        (["--p99=5", "--rate=0"], "rate: Input should be greater than 0"),
        (["--p99=nan", "--rate=10"], "p99"),
        (["--p99=5", "--rate=inf"], "rate"),
        (["--p99=5"], "--rate is missing"),
        (["--rate=5"], "p99: Field required"),
        (["--p99=5", "--rate=10", "--threads="], "--threads is empty"),
        (["--p99=5", "--rate=10", "--min-accuracy=2"], "min_accuracy"),
    ],
)
def test_impossible_values_are_rejected(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert advise(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models=nobody"], "there is no model 'nobody'"),
        (["--rate=1"], "--minutes 5: 1 requests/s are 40 requests in the verification, and 473 are needed"),
        (["--max-errors=0"], "--max-errors 0: no model is as accurate"),
        (["--api-servers=4096"], "--api-servers 4096 × --threads 1: more threads than the"),
    ],
)
def test_impossible_requests_are_rejected_before_anything_is_measured(
    arguments: list[str],
    message: str,
    model_repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = (f"--models-dir={model_repository}", f"--results-dir={tmp_path}", f"--out={tmp_path / 'advice'}")
    assert advise("--p99=5", "--rate=100", *place, *arguments) == 1
    assert message in capsys.readouterr().err

"""Sweeps on the sample digits: results, resuming, and several processes on one study.

Interrupted and killed sweeps: tests/faults.
"""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from optuna import create_study
from PIL import Image
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from tests.support.training.samples import sample_training
from tests.support.training.trainings import CPU
from tests.training.conftest import call
from training.data.mnist import SHA256
from training.loop.trainer import Job, Observer
from training.model.checkpoint import load_checkpoint
from training.recipe.files import read_recipe
from training.recipe.schema import Architecture, Distillation, Model
from training.runs.pipeline import DataSet, train_recipe
from training.sweep.search import CLAIM, Result, pareto_front
from training.sweep.space import Space, multiply_adds
from training.sweep.storage import SharedStudy, open_study, without_password

RECIPE = """
[teacher]
hidden = [32]
epochs = 2
batch_size = 50
learning_rate = 0.01
augmentation = { shift = 2 }

[student]
hidden = [16, 8]
epochs = 2
batch_size = 50
learning_rate = 0.009
augmentation = { shift = 2 }

[student.distillation]
temperature = 4
"""
SCRIPT = Path(__file__).parents[2] / "support" / "training" / "train_on_samples.py"


@pytest.fixture(autouse=True)
def small(mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """The recipe small.toml next to the sample digits, as the default recipe."""
    (tmp_path / "small.toml").write_text(RECIPE)
    monkeypatch.setenv("DISTILLERY_RECIPE", str(tmp_path / "small.toml"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def sweep(*arguments: str | Path) -> int:
    return call("sweep", *arguments)


def start(mnist: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a sweep in a process of its own."""
    command = [sys.executable, "-u", str(SCRIPT), str(mnist), "sweep", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(out: Path) -> list[dict[str, Any]]:
    with (out / "small" / "sweep" / "student" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_resumes_its_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--trials=2") == 0
    output = capsys.readouterr().out
    summary = json.loads(output.splitlines()[-1])
    root = tmp_path / "runs" / "small"
    folder = root / "sweep" / "student"
    assert json.loads((folder / "sweep.json").read_bytes()) == summary
    assert summary["importances"].keys() == Space.model_fields.keys()
    assert sum(summary["importances"].values()) == pytest.approx(1, abs=1e-3)
    assert "importance for errors, 2 trials" in output
    first, second = rows(tmp_path / "runs")
    assert [first[name] for name in ("temperature", "alpha", "loss", "hidden", "learning_rate")] == [
        "4.0", "0.7", "kl", "16-8", "0.009"
    ]  # what the recipe has  # fmt: skip
    assert int(first["multiply_adds"]) == 784 * 16 + 16 * 8 + 8 * 10
    trained = [load_checkpoint(path / "model.safetensors").metadata for path in root.glob("student-*")]
    assert sorted(model["validation_errors"] for model in trained) == sorted(
        int(row["validation_errors"]) for row in (first, second)
    )
    assert not list(root.glob("student-*/state.safetensors"))
    (targets,) = (root / "teacher").glob("soft-targets-*")
    asked = {view: view.stat().st_mtime_ns for view in targets.iterdir()}
    assert len(asked) == 2
    darkest, lightest = Image.open(folder / "heat_map.png").convert("L").getextrema()
    assert darkest < 64
    assert lightest > 192

    assert sweep("--trials=2") == 0  # nothing is left to do
    assert rows(tmp_path / "runs") == [first, second]
    assert sweep("--trials=3") == 0
    assert rows(tmp_path / "runs")[:2] == [first, second]
    assert {view: view.stat().st_mtime_ns for view in targets.iterdir()} == asked  # once, for all trials
    assert sweep("--trials=3", f"--out={tmp_path / 'uninterrupted'}") == 0
    assert rows(tmp_path / "uninterrupted") == rows(tmp_path / "runs")
    capsys.readouterr()
    command = next(line for line in output.splitlines() if line.startswith("fewest errors: "))
    flags = command.partition("distillery-train ")[2].split()
    assert call(*flags) == 0
    assert "student: trained before, " in capsys.readouterr().out


def test_the_settings_of_the_recipe_are_tried_though_their_first_trial_was_killed_at_its_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--trials=1") == 0
    name = json.loads(capsys.readouterr().out.splitlines()[-1])["study"]
    shared = open_study(f"sqlite:///{tmp_path / 'runs' / 'killed.db'}", name, heartbeat=30)
    shared.study.enqueue_trial(
        {"temperature": 4, "alpha": 0.7, "loss": "kl", "hidden": "16-8", "learning_rate": 0.009}
    )
    shared.ask({})  # the process ends before it draws any setting
    expected = rows(tmp_path / "runs")
    assert sweep("--trials=1", f"--storage=sqlite:///{tmp_path / 'runs' / 'killed.db'}") == 0
    assert rows(tmp_path / "runs") == [expected[0] | {"trial": "1"}]


def test_teacher_and_trials_are_reused_by_the_recipe(tmp_path: Path) -> None:
    class Reused(Observer):
        names: ClassVar[list[str]] = []

        def reused(self, job: Job, metadata: dict[str, Any]) -> None:  # noqa: ARG002
            self.names.append(job.name)

    assert sweep("--trials=1", "--seed=1", "--teacher-seed=5") == 0
    recipe = read_recipe(str(tmp_path / "small.toml")).model_copy(update={"seed": 1, "teacher_seed": 5})
    digits = DataSet(*sample_training(), SHA256)
    train_recipe(recipe, digits, device=CPU, root=tmp_path / "runs" / "small", observer=Reused())
    assert Reused.names == ["teacher", "student"]


@pytest.mark.slow
def test_two_processes_share_a_study(mnist: Path, tmp_path: Path) -> None:
    both = [start(mnist, "--trials=4") for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [row["trial"] for row in rows(tmp_path / "runs")] == [str(number) for number in range(4)]
    told = [set(re.findall(r"^trial +(\d+)", output, re.MULTILINE)) for output, _ in outputs]
    assert set.union(*told) == {str(number) for number in range(4)}
    assert sum("teacher: trained before" in output for output, _ in outputs) == 1


def test_a_trial_of_another_machine_is_repeated_when_its_heartbeats_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    assert sweep("--trials=1", f"--storage={url}") == 0
    name = json.loads(capsys.readouterr().out.splitlines()[-1])["study"]
    elsewhere = open_study(url, name, heartbeat=30)
    begun = elsewhere.ask(Space().of(Model(hidden=[16, 8])).distributions())
    elsewhere.beat(begun.number)
    begun.set_user_attr(CLAIM, [begun.number, "elsewhere:/runs", 1])
    assert sweep("--trials=2", f"--storage={url}", "--timeout=0.1") == 0
    assert "waiting for other processes: trial 1" in capsys.readouterr().err
    with elsewhere.storage.engine.begin() as connection:
        connection.execute(text("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'"))
    assert sweep("--trials=2", f"--storage={url}") == 0
    first, second = rows(tmp_path / "runs")
    assert (first["trial"], second["trial"]) == ("0", "2")
    assert float(second["temperature"]) == pytest.approx(begun.params["temperature"], rel=0.05)
    assert [trial.state.name for trial in elsewhere.study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    late = elsewhere.study.tell(begun.number, (0, 0), skip_if_finished=True)
    assert late.state.name == "FAIL"  # the machine may only have been disconnected


def test_an_outage_of_the_database_is_waited_for_and_then_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def study(url: str) -> SharedStudy:
        return SharedStudy(create_study(), SimpleNamespace(engine=create_engine(url)))  # type: ignore[arg-type]

    def fail() -> int:
        attempts.append(1)
        if len(attempts) == succeeds_at:
            return 7
        raise OperationalError("SELECT 'secret'", {}, OSError("the server closed the connection"))

    attempts: list[int] = []
    monkeypatch.setattr("training.sweep.storage.time.sleep", lambda _: None)
    monkeypatch.setattr("training.sweep.storage.OUTAGE_S", 5)
    remote, succeeds_at = study("postgresql+psycopg://me@here/x"), 3
    assert remote.retry(fail) == 7
    error = capsys.readouterr().err
    assert error == "--storage: the server closed the connection; trying again for 5 seconds\n"
    monkeypatch.setattr("training.sweep.storage.OUTAGE_S", 0)
    attempts.clear()
    with pytest.raises(OperationalError):
        remote.retry(fail)
    with pytest.raises(OperationalError):  # a file does not come back by itself
        study(f"sqlite:///{tmp_path / 'sweep.db'}").retry(fail)
    assert len(attempts) == 2


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:secret@here/x", "postgresql+psycopg://me:***@here/x"),
        ("postgresql://me:sec@ret@here/x", "postgresql://me:***@here/x"),
        ("postgresql://me@here/x?password=secret&sslmode=require", "postgresql://me@here/x?sslmode=require"),
        ("postgresql//me:secret@here/x", "…@here/x"),
        ("postgresql://me:secret@here:port/x", "…@here:port/x"),
        ("sqlite:///runs/sweep.db", "sqlite:///runs/sweep.db"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (
            ["--model=studnt"],
            1,
            "--model: there is no student 'studnt'; known: student; did you mean student?",
        ),
        (["--model=teacher"], 1, "--model teacher: must be a model with a distillation: student"),
        (["--storage=sweep"], 1, "--storage sweep: Could not parse SQLAlchemy URL"),
        (["--storage=sqlite:////nowhere/sweep.db"], 1, "unable to open database file; give the URL"),
        (
            ["--storage=postgresql://me:secret@127.0.0.1:1/x"],
            1,
            "--storage postgresql://me:***@127.0.0.1:1/x: connection failed: connection to server at",
        ),
        (
            ["--storage=postgresql://me:sec@ret@127.0.0.1/x"],
            1,
            "--storage postgresql://me:***@127.0.0.1/x: an @ in the password must be written as %40",
        ),
        (
            ["--storage=mysql+pymysql://me:secret@127.0.0.1/x"],
            1,
            "--storage mysql+pymysql://me:***@127.0.0.1/x: No module named 'pymysql'; install",
        ),
        ([f"--storage=sqlite:///{__file__}"], 1, "file is not a database"),
        (["--space.temperature=8,4"], 2, "space.temperature: the lower bound must come first, not 8,4"),
        (["--space.alpha=0.5,2"], 2, "space.alpha.1: Input should be less than or equal to 1 (found 2)"),
        (["--space.hidden=64x32"], 2, "space.hidden.0: String should match pattern"),
        (["--space.loss=kd"], 2, "space.loss.0: Input should be 'kl'"),
        (["--heartbeat=0"], 2, "heartbeat: Input should be greater than 0"),
        (["--trials=0"], 2, "trials: Input should be greater than or equal to 1"),
    ],
)
def test_invalid_settings_are_reported_in_one_line(
    flags: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*flags) == status
    error = capsys.readouterr().err
    assert message in error
    assert "secret" not in error


def test_without_optuna_the_error_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert sweep() == 1
    assert "distillery-train sweep requires optuna: pip install '.[sweep]'" in capsys.readouterr().err


def test_the_default_hidden_layers_are_fractions_of_the_models() -> None:
    assert Space().of(Model(hidden=[800, 6])).hidden == ["800-6", "400-3", "200-1", "100-1"]
    assert Space().of(Model(stages=[[8]])).hidden == [""]
    assert Space(hidden=["48-32"]).of(Model(hidden=[800])).hidden == ["48-32"]


def test_the_recipes_own_settings_are_a_trial_only_inside_the_space() -> None:
    model, soft = Model(hidden=[64]), Distillation(temperature=4, alpha=0.7)
    own = Space().of(model).settings(model, soft)
    assert own is not None
    assert own["hidden"] == "64"
    assert Space(temperature=(5, 20)).of(model).settings(model, soft) is None
    assert Space(loss=["mse"]).of(model).settings(model, soft) is None


def test_multiply_adds_are_those_of_the_forward_pass() -> None:
    # 3x3 convolutions: 28·28 places of 1 to 4 channels, 14·14 of 4 to 6; then 7·7·6 to 20 to 10
    network = Architecture(stages=[[4], [6]], hidden=[20])
    once = 28 * 28 * 9 * 4 + 14 * 14 * 9 * 4 * 6 + 7 * 7 * 6 * 20 + 20 * 10
    assert multiply_adds(network) == once
    assert multiply_adds(network.model_copy(update={"members": 3})) == 3 * once


def test_the_pareto_front() -> None:
    found = [(5, 100), (3, 300), (4, 200), (4, 250), (3, 300), (9, 100), (6, 90)]
    results = [Result(number, {}, errors, cost) for number, (errors, cost) in enumerate(found)]
    assert [result.number for result in pareto_front(results)] == [1, 2, 0, 6]

"""`distillery-bench pareto`, on small networks that are trained, evaluated and exported here."""

import csv
from pathlib import Path

import pytest

from benchmarks.commands.pareto import distilled_against_control, pareto_rows
from benchmarks.commands.seeds import SeedRun
from export.pipeline import Source, export_checkpoint
from export.splits import Splits
from serving.model.repository import load_repository
from tests.support.documents.generated import document, keep, render
from tests.support.training.samples import sample_test, sample_training
from tests.support.training.trainings import CPU
from training.evaluation.evaluate import Evaluator, evaluate_run
from training.loop.trainer import Observer
from training.recipe.files import read_recipe
from training.runs.pipeline import DataSet, jobs, train_recipe

pytestmark = pytest.mark.slow

RECIPE = """
[teacher]
hidden = [32]
epochs = 4
batch_size = 50

[student]
hidden = [12]
epochs = 3
batch_size = 50
distillation = { temperature = 3, alpha = 1 }
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "pareto.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def runs(recipe: str, splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> list[SeedRun]:
    """Two seeds whose students share the first seed's teacher."""
    root, found = tmp_path_factory.mktemp("runs"), []
    data = DataSet(*sample_training(), {})
    for seed in (0, 1):
        settled = read_recipe(recipe).model_copy(update={"seed": seed, "teacher_seed": 0})
        trained = train_recipe(settled, data, device=CPU, root=root, observer=Observer())
        evaluator = Evaluator(sample_test, lambda: data, device=CPU)
        evaluation = evaluate_run(root, [job.name for job in jobs(settled)], evaluator)
        models_dir = tmp_path_factory.mktemp("models")
        for name, run in trained.items():
            export_checkpoint(Source(name, run.checkpoint), splits, models_dir=models_dir, int8=True)
        manifests = {name: entry.manifest for name, entry in load_repository(models_dir).items()}
        found.append(SeedRun(seed, models_dir, evaluation, manifests))
    return found


def test_a_row_has_errors_file_size_and_latency(runs: list[SeedRun]) -> None:
    listed, floor = pareto_rows(runs, seconds=0.5)
    rows = {row["model"]: row for row in listed}
    # Half a second among other tests does not decide which model is faster; only that the floor was timed.
    assert 0 < floor["p50_us_batch1"] < floor["p50_us_batch64"]
    assert floor["speedup_batch64"]["rounds"] == len(floor["rounds_p50_us_batch64"])
    assert rows.keys() == {
        f"{name}{end}" for name in ("teacher", "student", "student-alone") for end in ("", "-int8")
    }
    assert rows["student"]["errors"] == [run.manifests["student"].test_errors for run in runs]
    assert len(rows["teacher"]["errors"]) == 1  # shared by both seeds, so it counts once
    assert rows["teacher"]["interval_95"] is None
    assert rows["student-int8"]["size_bytes"] < rows["student"]["size_bytes"] < rows["teacher"]["size_bytes"]
    assert rows["teacher"]["speedup_batch1"] is None
    for end in ("", "-int8"):  # one network with two sets of weights has one speed
        assert rows[f"student{end}"]["p50_us_batch1"] == rows[f"student-alone{end}"]["p50_us_batch1"]
    assert [rows[name]["distilled"] for name in ("teacher", "student", "student-alone")] == [
        False,
        True,
        False,
    ]


def test_a_student_is_compared_with_its_control_digit_by_digit(recipe: str, runs: list[SeedRun]) -> None:
    pair = distilled_against_control(recipe, runs)["student"]
    for run, saved, seed in zip(runs, pair["saved"], pair["seeds"], strict=True):
        alone, taught = run.wrong("student-alone"), run.wrong("student")
        assert int(alone.sum()) == run.evaluation["student-alone"]["errors"]
        assert saved == int(alone.sum()) - int(taught.sum())
        assert (seed["only_a"], seed["only_b"]) == (
            int((alone & ~taught).sum()),
            int((taught & ~alone).sum()),
        )


def test_document_figure_and_csv_show_the_result(recipe: str, runs: list[SeedRun], tmp_path: Path) -> None:
    rows, floor = pareto_rows(runs, seconds=0.5)
    data = {
        "recipe": "pareto",
        "seeds": [0, 1],
        "rows": rows,
        "floor": floor,
        "pairs": distilled_against_control(recipe, runs),
    }
    page = document(tmp_path, "pareto")
    keep(page, "pareto", data)
    assert render(page) == 0
    text = page.read_text(encoding="utf-8")
    for row in rows:
        assert f"| `{row['model']}` {row['architecture']} | {row['mean']:.1f}" in text
    assert (
        f"| + distillation | `student` | {next(r for r in rows if r['model'] == 'student')['mean']:.1f}"
        in text
    )
    table = list(csv.DictReader((tmp_path / "docs/pareto.csv").read_text(encoding="utf-8").splitlines()))
    assert [line["model"] for line in table] == [row["model"] for row in rows]
    assert (tmp_path / "docs/pareto.png").stat().st_size > 10_000
    assert render(page, "--check") == 0

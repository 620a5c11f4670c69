"""The report of a run: every number recomputed from the checkpoints by other means."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from benchmarks.commands.record import evidence_of
from tests.support.documents.generated import document, keep, render
from tests.support.training.samples import sample_test, sample_training
from tests.support.training.trainings import CPU
from tests.training.conftest import SmallRun, call, inside
from training.data.mnist import SHA256
from training.evaluation.corruptions import corrupt
from training.evaluation.significance import mean_interval
from training.loop.trainer import Observer
from training.model.checkpoint import load_checkpoint
from training.recipe.files import read_recipe
from training.recipe.schema import Recipe
from training.report.model_card import model_card
from training.runs.folder import ModelRun, RunError
from training.runs.pipeline import DataSet, train_recipe
from training.runs.trained import current_model, over_seeds

NAMES = ("teacher", "student-alone", "student")


@pytest.fixture(scope="session")
def reported_run(trained_run: SmallRun) -> SmallRun:
    """The small run with its report."""
    with inside(trained_run.folder):
        assert call("report", "--recipe=small.toml") == 0
    return trained_run


@pytest.fixture
def run(reported_run: SmallRun) -> Iterator[Path]:
    """The folder of the reported run, with its settings in the environment; leave it as it was."""
    with inside(reported_run.folder):
        yield reported_run.root


def train(recipe: Recipe, root: Path) -> dict[str, ModelRun]:
    """Train as the command does, without figures."""
    data = DataSet(*sample_training(), SHA256)
    return train_recipe(recipe, data, device=CPU, root=root, observer=Observer())


def read_report(run: Path, name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / name / "report.json").read_bytes())
    return report


def logits_of(folder: Path, images: Tensor) -> Tensor:
    network = load_checkpoint(folder / "model.safetensors").network
    return network.double()((images.flatten(1).double() / 255 - 0.1307) / 0.3081)


def folder_of(run: Path, name: str, seed: int) -> Path:
    for path in run.glob(f"{name}-*/recipe.json"):
        inputs = json.loads(path.read_bytes())
        if (inputs["name"], inputs["seed"]) == (name, seed):
            return path.parent
    raise AssertionError(f"no {name} of seed {seed}")


def errors_of(run: Path, name: str, seed: int) -> int:
    test = sample_test()
    return int((logits_of(folder_of(run, name, seed), test.images).argmax(1) != test.labels).sum())


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_counted_for_every_seed(run: Path, name: str) -> None:
    report, errors = read_report(run, name), [errors_of(run, name, seed) for seed in (0, 1)]
    centre, half = mean_interval(errors)
    expected = {"seeds": [0, 1], "values": errors, "mean": centre, "interval_95": half}
    assert report["models"][name]["errors_over_seeds"] == expected
    assert report["headline"]["test_errors"] == report["metrics"]["errors"] == errors[0]
    assert report["headline"]["test_errors_mean"] == sum(errors) / 2
    assert f"| **{name}** |" in (run / name / "MODEL_CARD.md").read_text()


def test_a_student_is_compared_with_its_control_and_its_teacher(run: Path) -> None:
    report, test = read_report(run, "student"), sample_test()
    assert list(report["models"]) == list(NAMES)
    saved = report["saved_by_distillation"]
    assert saved["of_seeds"] == [0, 1]
    assert saved["saved"] == [
        errors_of(run, "student-alone", seed) - errors_of(run, "student", seed) for seed in (0, 1)
    ]
    teacher, student = (logits_of(run / name, test.images).log_softmax(1) for name in ("teacher", "student"))
    fidelity = report["metrics"]["fidelity"]
    agreement = (teacher.argmax(1) == student.argmax(1)).double().mean().item()
    assert fidelity["agreement"] == report["headline"]["agreement_with_teacher"] == agreement
    kl = (teacher.exp() * (teacher - student)).sum(1).mean().item()
    assert fidelity["kl"] == pytest.approx(kl, rel=1e-4)
    for name in ("teacher", "student-alone"):
        other = read_report(run, name)
        assert other["saved_by_distillation"] is other["metrics"]["fidelity"] is None


def test_the_headline_contains_only_numbers(run: Path) -> None:
    for name in NAMES:
        headline = read_report(run, name)["headline"]
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in headline.values())
        assert ("saved_by_distillation" in headline) == (name == "student")
        assert 0 < headline["corrupted_accuracy"] < headline["test_accuracy"] < 1


def test_the_model_card_contains_the_numbers_of_the_report(run: Path) -> None:
    card, report = (run / "student" / "MODEL_CARD.md").read_text(), read_report(run, "student")
    _, head, text = card.split("---\n", 2)
    metadata = yaml.safe_load(head)
    [result] = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": report["headline"]["test_accuracy"]}]
    assert metadata["tags"] == ["mnist", "knowledge-distillation"]
    metrics = report["metrics"]
    assert f"Of 200 test digits it misclassifies **{metrics['errors']}** (" in text
    assert "500 digits for training, without augmentation; 100 for choosing the epoch" in text
    assert f"agrees with teacher, right or wrong, on {metrics['fidelity']['agreement']:.2%} of" in text
    calibration = metrics["calibration"]
    assert f"Temperature {calibration['temperature']:.3f} minimises the negative log-likelihood" in text
    eces = " | ".join(f"{calibration[state]['ece']:.4f}" for state in ("before", "after"))
    assert f"| expected calibration error | {eces} |" in text
    for label, row in enumerate(metrics["confusion"]):
        cells = re.search(rf"^\| {label} \| (.*) \|$", text, re.MULTILINE)
        assert cells
        counts = [int(cell.strip("*").replace("·", "0")) for cell in cells[1].split(" | ")[:-1]]
        assert counts == [*row, sum(row) - row[label]]
    for name, counts in metrics["robustness"].items():
        shares = " | ".join(f"{count / 200:.1%}" for count in counts)
        assert re.search(rf"^\| {name} \(.*\) \| {re.escape(shares)} \|", text, re.MULTILINE)
    assert "mean of student-alone" in text
    assert re.search(r"\S\n##+ ", text) is None  # a blank line before every heading
    widths = [
        {line.count("|") for line in block.splitlines()}
        for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    ]
    assert [len(counts) for counts in widths] == [1] * 4  # every table has as many cells in each line


def test_the_recipe_in_a_model_card_trains_the_same_network(run: Path, tmp_path: Path) -> None:
    for name in ("student", "student-alone"):
        card = (run / name / "MODEL_CARD.md").read_text()
        [recipe] = re.findall(r"```toml\n(.*?)```", card, re.DOTALL)
        assert "--recipe recipe.toml --seed 0 --device cpu --precision float32 --threads 1\n" in card
        (tmp_path / "recipe.toml").write_text(recipe)
        again = train(read_recipe(str(tmp_path / "recipe.toml")), tmp_path / name)
        images, trained = sample_test().images, again[name.removesuffix("-alone")].folder
        assert torch.equal(logits_of(trained, images), logits_of(run / name, images))


def test_figures_are_drawn(run: Path) -> None:
    for name in ("errors", "confusion", "reliability", "robustness"):
        darkest, lightest = Image.open(run / "figures" / f"{name}.png").convert("L").getextrema()
        assert darkest < 64
        assert lightest > 192


def test_the_test_digits_are_not_read_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = made()
    with monkeypatch.context() as patch:
        patch.delattr("training.commands.report.load_test")  # reading them again fails
        patch.delattr("training.commands.report.DataSet")
        assert call("report", "--recipe=small.toml") == 0
    assert made() == before


@pytest.mark.slow
def test_robustness_digits_are_spread_over_the_test_set(run: Path) -> None:
    assert call("report", "--recipe=small.toml", "--robustness-digits=20") == 0
    report, test = read_report(run, "teacher"), sample_test()
    answers = logits_of(run / "teacher", corrupt(test.images[::10], "rotation", 3, 0)).argmax(1)
    assert report["metrics"]["robustness"]["rotation"][2] == int((answers != test.labels[::10]).sum())
    card = (run / "teacher" / "MODEL_CARD.md").read_text()
    assert "Errors on 20 corrupted test digits (evenly spread over the set)" in card
    assert call("report", "--recipe=small.toml") == 0


def test_trainings_of_other_settings_are_not_counted_as_seeds(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "small"
    shutil.copytree(run, copy, symlinks=True)
    student = current_model(copy, "student")
    assert list(over_seeds(student)) == [0, 1]
    assert list(over_seeds(student, [0])) == [0]
    with pytest.raises(RunError, match="trained with the seeds 0, 1, not with 7"):
        over_seeds(student, [0, 7])
    recipe = read_recipe("small.toml")
    short = recipe.models["teacher"].model_copy(update={"epochs": 1})
    train(recipe.model_copy(update={"seed": 2, "models": recipe.models | {"teacher": short}}), copy)
    assert list(over_seeds(student)) == [0, 1]  # with another teacher it is another student
    assert list(over_seeds(current_model(copy, "student-alone"))) == [0, 1, 2]  # a control has no teacher


def test_a_training_of_a_version_with_other_settings_counts_as_the_same(run: Path) -> None:
    path = folder_of(run, "teacher", 1) / "recipe.json"
    content = path.read_bytes()
    inputs = json.loads(content)
    del inputs["model"]["leave_out"]
    inputs["model"]["quantised_from"] = None  # removed since
    try:
        path.write_text(json.dumps(inputs))
        assert list(over_seeds(current_model(run, "student"))) == [0, 1]
        path.write_text("[]")
        assert list(over_seeds(current_model(run, "student"))) == [0]
    finally:
        path.write_bytes(content)


def test_the_model_card_explains_one_seed_and_missing_classes(run: Path) -> None:
    report = read_report(run, "student")
    report["settings"]["leave_out"] = [3]
    report["settings"]["distillation"]["alpha"] = 1.0
    report["saved_by_distillation"] |= {"interval_95": None, "mean": 3.0}
    card = model_card(report)
    assert "Excluded from training: 3." in card
    assert ", and from no labels." in card
    assert "mean 3. " in card
    assert "One seed does not tell what other seeds would give." in card


def test_reporting_an_untrained_run_names_the_command_that_trains(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("report", "--recipe=small.toml", f"--out={run / 'nothing'}") == 1
    assert "has no finished teacher; train it with distillery-train" in capsys.readouterr().err


def test_the_evidence_benchmark_keeps_and_renders_the_report(run: Path, tmp_path: Path) -> None:
    page = document(tmp_path, "evidence")
    keep(page, "evidence", evidence_of(run, NAMES))
    assert render(page) == 0
    text, report = page.read_text(encoding="utf-8"), read_report(run, "student")
    fidelity, calibration = report["metrics"]["fidelity"], report["metrics"]["calibration"]
    assert (
        f"| {calibration['temperature']:.2f} | {fidelity['agreement']:.2%} | {fidelity['kl']:.4f} |" in text
    )
    assert f"| `student` | {' | '.join(map(str, report['metrics']['errors_by_class']))} |" in text
    blurred = sum(report["metrics"]["robustness"]["blur"]) / 5 / report["metrics"]["robustness_digits"]
    assert re.search(
        rf"\| `student` \|.* {1 - blurred:.1%} \|.* {report['headline']['corrupted_accuracy']:.1%} \|", text
    )
    with Image.open(tmp_path / "docs/robustness.png") as picture:
        assert picture.width > 1_000

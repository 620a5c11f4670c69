"""The paper's experiments on the sample digits, and bias correction against its closed form."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import distillery
from tests.support.training.samples import sample_test, sample_training
from tests.training.conftest import call
from training.commands.progress import TrainingProgress
from training.data.mnist import Digits
from training.loop.device import Device
from training.paper.class_bias import fewest_errors, match_prior
from training.paper.reproduce import plan, reproduce
from training.paper.transfer_sets import TRANSFER_SETS, find_offsets
from training.recipe.files import read_recipe
from training.recipe.schema import Distillation, Model, Recipe
from training.runs.pipeline import DataSet

SHORT = {"norm": False, "epochs": 8, "batch_size": 50, "learning_rate": 0.01}
RECIPE = Recipe(
    name="small",
    models={
        "teacher": Model(hidden=[32, 32], **SHORT),
        # Long and cold enough that a class left out is never predicted, whatever the CPU rounds.
        "student": Model(
            hidden=[16, 16],
            distillation=Distillation(temperature=2, alpha=0.5),
            **SHORT | {"epochs": 12},
        ),
    },
)
PRIOR = torch.tensor([0.2, 0.5, 0.3])
EACH = [[0], [1], [2]]


def test_offsets_match_the_closed_form_for_identical_logits() -> None:
    z = torch.tensor([3.0, -1.0, 0.5])
    offsets = match_prior(z.expand(7, 3), PRIOR, tied=EACH)
    expected = PRIOR.double().log() - z
    assert torch.allclose(offsets, expected - expected.mean(), atol=1e-6)
    # One class alone: odds of 0.2 to 0.8 instead of e³ to e⁻¹ + √e.
    others = torch.tensor([-1.0, 0.5]).exp().sum()
    offsets = match_prior(z.expand(7, 3), PRIOR, tied=[[0]])
    assert offsets.tolist() == pytest.approx([float((others / 4).log()) - 3, 0, 0], abs=1e-6)


def test_matching_the_prior_undoes_known_offsets() -> None:
    z = 5 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = torch.softmax(z, dim=1).mean(dim=0)
    shifted = z + torch.tensor([-9.0, 2.0, 1.0])
    assert match_prior(shifted, prior, tied=EACH).tolist() == pytest.approx([7, -4, -3], abs=1e-5)
    shifted = z - torch.tensor([0.0, 30.0, 30.0])
    assert match_prior(shifted, prior, tied=[[1, 2]]).tolist() == pytest.approx([0, 30, 30], abs=1e-6)


def test_the_offset_with_the_fewest_errors_is_the_middle_of_the_best_gap() -> None:
    # Class 0 overtakes the best other class at 1, 3, 4 and 9; the digits of 0 are the first two, and 2 and 7 between.
    logits = torch.tensor([[0.0, 1, 0], [0, 0, 3], [0, 4, 2], [0, 5, 9]])
    assert fewest_errors(logits, torch.tensor([0, 0, 1, 2]), [0]) == pytest.approx(3.5)
    assert fewest_errors(logits, torch.tensor([0, 0, 0, 2]), [0]) == pytest.approx(6.5)
    # A third digit that is misclassified on both sides leaves the gap of 3 to 9.
    assert fewest_errors(logits, torch.tensor([0, 0, 2, 2]), [0]) == pytest.approx(6.5)


def test_no_other_offset_has_fewer_errors() -> None:
    draw = torch.Generator().manual_seed(1)
    logits, labels = 4 * torch.randn(60, 5, generator=draw), torch.randint(5, (60,), generator=draw)

    def errors(offset: float) -> int:
        moved = logits.double() + offset * torch.tensor([0.0, 1, 0, 1, 0])
        return int((moved.argmax(dim=1) != labels).sum())

    best = fewest_errors(logits, labels, [1, 3])
    assert errors(best) == min(errors(offset / 50) for offset in range(-1000, 1001))


def test_planned_models_differ_from_the_recipe_in_one_setting() -> None:
    paper = read_recipe("paper")
    models = plan(paper, 3, units=[30], temperatures=[2.5, 20]).models
    student = paper.models["student"].model_copy(update={"control": False})
    assert list(models) == ["teacher", "student", "units30", "units30t2p5", "units30t20", *TRANSFER_SETS]
    assert models["units30"] == paper.models["narrow"].model_copy(update={"control": False})
    wider = plan(paper, 3, units=[300], temperatures=[]).models["units300"]
    assert wider == models["units30"].model_copy(update={"hidden": [300, 300]})
    cooler = models["units30t2p5"].distillation
    assert cooler is not None
    assert student.distillation is not None
    assert cooler.model_dump() == student.distillation.model_dump() | {"temperature": 2.5}
    assert models["threeless"] == student.model_copy(update={"leave_out": [3]})
    assert sorted([*models["seveneight"].leave_out, 7, 8]) == list(range(10))


def test_the_recipe_has_the_papers_settings() -> None:
    models = read_recipe("paper").models
    teacher, student = models["teacher"], models["student"]
    assert (teacher.hidden, student.hidden) == ([1200, 1200], [800, 800])
    assert teacher.dropout > 0
    assert teacher.max_norm > 0
    assert teacher.augmentation.model_dump(exclude_defaults=True) == {"shift": 2}
    assert (student.dropout, student.max_norm, student.weight_decay) == (0, 0, 0)
    assert not student.augmentation.enabled
    assert models["narrow"].hidden == [30, 30]
    assert student.control
    assert student.distillation is not None
    assert (student.distillation.loss, student.distillation.temperature) == ("kl", 20)


Reproduced = dict[str, Any]
Run = Callable[[Callable[[], Digits]], Reproduced]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduction")


@pytest.fixture(scope="module")
def again(folder: Path) -> Run:
    """Return a function that reproduces the small recipe with given test digits; only its first call trains."""

    def run(read_test: Callable[[], Digits]) -> Reproduced:
        torch.set_num_threads(1)
        with TrainingProgress() as progress:
            return reproduce(
                RECIPE,
                DataSet(*sample_training(), {"sample": "1"}),
                read_test,
                seeds=[0, 1],
                units=[8],
                temperatures=[4],
                device=Device("cpu", bfloat16=False),
                root=folder,
                observer=progress,
            )

    return run


@pytest.fixture(scope="module")
def first(again: Run) -> Reproduced:
    return again(sample_test)


def test_results_are_reported_over_all_seeds(first: Reproduced, folder: Path) -> None:
    assert json.loads((folder / "reproduction.json").read_bytes()) == first
    assert (first["seeds"], first["test_digits"], first["digits_of_class"]) == ([0, 1], 200, [20] * 10)
    assert set(first["models"]) == {"teacher", "student-alone", "student"}
    assert [(row["units"], row["temperature"]) for row in first["temperatures"]] == [(8, None), (8, 4)]
    for row in (*first["models"].values(), *first["temperatures"]):
        assert row["mean"] == sum(row["values"]) / 2
        assert 0 < row["mean"] < 150
        assert row["interval_95"] is not None


def test_corrections_recover_the_missing_classes(first: Reproduced) -> None:
    for transfer in first["transfer_sets"].values():
        ways = transfer["corrections"]
        assert list(ways) == ["none", "prior", "prior of all", "validation", "test"]
        for before, prior, _, validated, bound in zip(
            *(ways[way]["errors"]["values"] for way in ways), strict=True
        ):
            assert all(bound <= errors for errors in (before, prior, validated))  # one offset each
    threes = first["transfer_sets"]["threeless"]["corrections"]
    assert threes["prior"]["on_moved"]["mean"] < threes["none"]["on_moved"]["mean"] <= 20
    assert all(offset > 0 for offset in threes["prior"]["offset"]["values"])
    sevens = first["transfer_sets"]["seveneight"]["corrections"]
    assert sevens["prior of all"]["errors"]["mean"] < sevens["none"]["errors"]["mean"]
    assert all(offset < 0 for offset in sevens["prior"]["offset"]["values"])


def test_the_test_digits_are_read_once(first: Reproduced, again: Run) -> None:
    def refuse() -> Digits:
        pytest.fail("the test digits are read again")

    assert again(refuse) == first


def test_only_the_correction_test_depends_on_the_test_digits(
    first: Reproduced, again: Run, folder: Path
) -> None:
    kept = folder / "reproduction.json"
    before = kept.read_bytes()
    test = sample_test()

    def other_labels() -> Digits:
        return Digits(test.images, (test.labels + 1) % 10)

    kept.unlink()
    other = again(other_labels)
    kept.write_bytes(before)
    assert other["models"] != first["models"]
    for name, transfer in first["transfer_sets"].items():
        changed = other["transfer_sets"][name]["corrections"]
        same = [
            way for way, row in transfer["corrections"].items() if changed[way]["offset"] == row["offset"]
        ]
        assert same == ["none", "prior", "prior of all", "validation"]


def test_offsets_by_the_prior_do_not_depend_on_labels() -> None:
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(50, 10, generator=draw)
    prior = torch.full((10,), 0.1)

    def found(labels: Tensor) -> dict[str, list[float]]:
        return {way: b.tolist() for way, b in find_offsets(logits, labels, prior, [3]).items()}

    one, other = found(torch.full((50,), 3)), found(torch.full((50,), 4))
    assert [way for way in one if one[way] == other[way]] == ["none", "prior", "prior of all"]


@pytest.mark.usefixtures("mnist")
def test_the_command_trains_evaluates_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        "[teacher]\nhidden = [8]\nepochs = 1\n[student]\nhidden = [4]\nepochs = 1\n[student.distillation]\n"
    )
    assert call("reproduce", f"--recipe={recipe}", "--seeds=0", "--units=4,8", "--temperatures=1,2.5") == 0
    output = capsys.readouterr().out
    assert "2 x 8, T = 2.5" in output
    assert "threeless, bias: prior of all" in output
    with Image.open(tmp_path / "runs" / "mine" / "figures" / "temperatures.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 50


def test_a_recipe_without_a_student_is_rejected() -> None:
    alone = RECIPE.model_copy(update={"models": {"teacher": RECIPE.models["teacher"]}})
    with pytest.raises(distillery.DistilleryError, match="small needs a model `student` with a distillation"):
        plan(alone, 0, units=[], temperatures=[])

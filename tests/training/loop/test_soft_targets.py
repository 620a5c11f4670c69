"""A teacher's logits are computed once per view and cached for all students."""

from pathlib import Path

import pytest
import torch

from tests.support.training.trainings import CPU, DIGITS, ENSEMBLE, RECURRING, SMALL, new, same, taught, train
from training.commands.progress import TrainingProgress
from training.loop.soft_targets import SoftTargets
from training.loop.trainer import Job, Training, predict
from training.model.checkpoint import save_tensors
from training.model.network import Classifier, Network, build
from training.recipe.schema import Augmentation, Distillation, Model, Photometric, Recipe
from training.runs.pipeline import DataSet, train_recipe

IMAGES = DIGITS[0].images


class Counted:
    """Counts the digits a network is evaluated on."""

    def __init__(self, network: Network) -> None:
        self.digits = 0
        network.register_forward_hook(self._count)

    def _count(self, _: object, __: object, answers: torch.Tensor) -> None:
        self.digits += len(answers)


def test_soft_targets_are_the_teachers_logits_in_evaluation_mode() -> None:
    for model in (SMALL, ENSEMBLE):
        teacher = build(model, dropout=0.5).train()
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        found = SoftTargets(teacher, CPU).logits(1, IMAGES)
        assert (found.dtype, found.shape) == (torch.float32, (500, 10))
        torch.testing.assert_close(found, predict(teacher, IMAGES))
        assert same(before, teacher.state_dict())
        assert not teacher.training


@pytest.mark.parametrize(("model", "views"), [(SMALL, 1), (RECURRING, 2)])
def test_a_training_computes_each_view_once(model: Model, views: int, tmp_path: Path) -> None:
    teacher = build(SMALL)
    counted = Counted(teacher)
    job = Job("student", taught(model), 0)
    kept = train(Training(job, *DIGITS, device=CPU, teacher=SoftTargets(teacher, CPU, tmp_path)))
    assert counted.digits == 500 * views
    assert len(list(tmp_path.iterdir())) == views
    computed_again = train(new(job.model, teacher=teacher))
    assert same(kept.network.state_dict(), computed_again.network.state_dict())


def test_cached_views_are_not_computed_again(tmp_path: Path) -> None:
    first, second = Classifier([8]), Classifier([8])
    cached = {view: SoftTargets(first, CPU, tmp_path).logits(view, IMAGES) for view in (0, 1)}
    counted = Counted(second)
    for view, logits in cached.items():
        assert torch.equal(SoftTargets(second, CPU, tmp_path).logits(view, IMAGES), logits)
    assert counted.digits == 0
    SoftTargets(second, CPU, tmp_path).logits(2, IMAGES)
    assert counted.digits == 500


@pytest.mark.parametrize(
    "damage", ["cut short", "empty", "no tensors", "another tensor", "fewer digits", "nan"]
)
def test_a_broken_file_is_computed_again(damage: str, tmp_path: Path) -> None:
    teacher = Classifier([8])
    expected = SoftTargets(teacher, CPU, tmp_path).logits(1, IMAGES)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    match damage:
        case "cut short":
            file.write_bytes(whole[: len(whole) // 2])
        case "empty":
            file.write_bytes(b"")
        case "no tensors":
            file.write_bytes(b"logits" * 100)
        case "another tensor":
            save_tensors(file, {"bias": expected}, {})
        case "fewer digits":
            save_tensors(file, {"logits": expected[:-1]}, {})
        case "nan":
            save_tensors(file, {"logits": expected * torch.nan}, {})
    assert torch.equal(SoftTargets(teacher, CPU, tmp_path).logits(1, IMAGES), expected)
    assert file.read_bytes() == whole


def test_students_share_the_cached_views_of_their_teacher(tmp_path: Path) -> None:
    moved = Augmentation(shift=1)
    learning = Model(
        hidden=[8], epochs=3, views=2, augmentation=moved, control=False, distillation=Distillation()
    )
    other_loss = learning.model_copy(update={"distillation": Distillation(loss="mse", alpha=1)})
    recipe = Recipe(
        name="shared",
        models={
            "teacher": Model(hidden=[8], epochs=1),
            "first": learning,
            "second": other_loss,
            "plain": learning.model_copy(update={"augmentation": Augmentation()}),
            "noisy": learning.model_copy(
                update={"augmentation": Augmentation(shift=1, photometric=Photometric(probability=0.5))}
            ),
            "fewer": learning.model_copy(update={"leave_out": [0, 1]}),
        },
    )

    def kept() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "teacher").glob("soft-targets-*/*")}

    found = []
    for count in range(2, 7):
        some = recipe.model_copy(update={"models": dict(list(recipe.models.items())[:count])})
        with TrainingProgress() as progress:
            train_recipe(some, DataSet(*DIGITS, {}), device=CPU, root=tmp_path, observer=progress)
        found.append(kept())
    first, second, plain, noisy, fewer = found
    assert [path.name for path in sorted(first)] == ["view-0001.safetensors", "view-0002.safetensors"]
    assert second == first  # another loss, the same views: nothing written
    assert [path.name for path in plain.keys() - second.keys()] == ["view-0000.safetensors"]
    assert len(noisy.keys() - plain.keys()) == 2  # of other views
    assert len(fewer.keys() - noisy.keys()) == 2  # of other digits
    assert len({path.parent for path in fewer}) == 4

"""A training killed at any time and started again ends with the weights of an uninterrupted one.

A process is killed with SIGKILL and started again; and every single write of a recipe is interrupted half-way.
"""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from distillery.files import FileError
from tests.support.training.trainings import CPU, FEW
from training.commands.progress import TrainingProgress
from training.model import checkpoint
from training.model.checkpoint import load_checkpoint
from training.recipe.schema import Augmentation, Distillation, Model, Recipe
from training.runs import folder as runs
from training.runs.folder import RunError, current_folder, current_models, read_history
from training.runs.lock import LOCK, LockedError, locked
from training.runs.pipeline import DataSet, jobs, train_recipe
from training.runs.trained import current_model

KEPT = {"history.csv", "history.jsonl", "model.safetensors", "recipe.json"}
MOVED = Augmentation(shift=2)
TEACHER = Model(
    stages=[[3], [4]], members=2, epochs=3, batch_size=100, dropout=0.1, max_norm=2, augmentation=MOVED
)
STUDENT = Model(
    hidden=[16],
    epochs=3,
    batch_size=100,
    schedule="plateau",
    patience=0,
    augmentation=MOVED,
    views=2,
    distillation=Distillation(temperature=4),
)
RECIPE = Recipe(name="small", models={"teacher": TEACHER, "student": STUDENT})
QUICKER = Recipe(name="small", models={"teacher": Model(hidden=[24], epochs=3), "student": STUDENT})
VIEWS = ["view-0001.safetensors", "view-0002.safetensors"]
MODELS = [job.name for job in jobs(RECIPE)]


def main(root: Path, recipe: Recipe = RECIPE) -> None:
    """Train a small recipe: the program of the process under test."""
    torch.set_num_threads(1)
    data = DataSet(*FEW, {"sample": "1"})
    with TrainingProgress(line_interval=0) as progress:
        train_recipe(recipe, data, device=CPU, root=root, observer=progress)


def changed(recipe: Recipe, **models: Model) -> Recipe:
    """The recipe with some models replaced."""
    return recipe.model_copy(update={"models": recipe.models | models})


def weights(root: Path) -> dict[str, bytes]:
    """The bytes of every model's weights."""
    found = {}
    for name in MODELS:
        network = load_checkpoint(root / name / "model.safetensors").network
        values = sorted(network.state_dict().items())
        found[name] = b"".join(value.numpy().tobytes() for _, value in values)
    return found


def files_kept(root: Path) -> set[str]:
    """The names of all files in the models' folders."""
    folders = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    files = {path.name for folder in folders for path in folder.iterdir() if path.is_file()}
    return files - {LOCK}


def soft_targets_kept(root: Path) -> list[str]:
    """The file names of the cached views of the teacher, without temporary files."""
    return sorted(path.name for path in (root / "teacher").glob("soft-targets-*/[!.]*"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    main(root)
    return root


class Crash(BaseException):
    """Simulates the end of the process."""


def test_a_crash_between_the_last_write_and_the_link_does_no_harm(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(run: runs.ModelRun) -> None:
        raise Crash(run.name)

    with monkeypatch.context() as patch:
        patch.setattr(runs.ModelRun, "make_current", crash)
        with pytest.raises(Crash):
            main(tmp_path)
    main(tmp_path)
    assert weights(tmp_path) == weights(uninterrupted)
    assert files_kept(tmp_path) == KEPT


def test_unchanged_models_are_reused_and_changed_ones_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataSet(*FEW, {"sample": "1"})

    def train(recipe: Recipe, data: DataSet = data) -> dict[str, Path]:
        with TrainingProgress() as progress:
            trained = train_recipe(recipe, data, device=CPU, root=tmp_path, observer=progress)
        assert {path.name for path in tmp_path.iterdir() if path.is_symlink()} == set(MODELS)
        return {name: run.checkpoint for name, run in trained.items()}

    first = train(QUICKER)
    capsys.readouterr()
    assert train(QUICKER) == first
    assert capsys.readouterr().out.count("trained before") == 3
    warmer = train(
        changed(QUICKER, student=STUDENT.model_copy(update={"distillation": Distillation(temperature=8)}))
    )
    assert [first[name] == warmer[name] for name in MODELS] == [True, True, False]
    assert (tmp_path / "student").resolve() == warmer["student"].parent
    # Another teacher makes another student of the same settings; the control has no teacher.
    taught = train(changed(QUICKER, teacher=QUICKER.models["teacher"].model_copy(update={"epochs": 2})))
    assert [first[name] == taught[name] for name in MODELS] == [False, True, False]
    seeded = train(QUICKER.model_copy(update={"seed": 1}))
    other_digits = train(QUICKER, DataSet(data.training, data.validation, {"sample": "2"}))
    for name in MODELS:
        assert first[name].exists()
        assert len({first[name], seeded[name], other_digits[name]}) == 3


def test_a_student_is_the_same_with_and_without_a_control(uninterrupted: Path, tmp_path: Path) -> None:
    main(tmp_path, changed(RECIPE, student=STUDENT.model_copy(update={"control": False})))
    assert {path.name for path in tmp_path.iterdir() if path.is_symlink()} == {"teacher", "student"}
    for name in ("teacher", "student"):
        assert (tmp_path / name).readlink() == (uninterrupted / name).readlink()


def test_links_to_models_with_other_settings_are_deleted_first(tmp_path: Path) -> None:
    main(tmp_path)
    data = DataSet(*FEW, {"sample": "1"})

    class Stop(TrainingProgress):
        def started(self, *_: object, **__: object) -> None:
            raise Crash

    with pytest.raises(Crash), Stop() as progress:
        train_recipe(
            RECIPE.model_copy(update={"seed": 1}), data, device=CPU, root=tmp_path, observer=progress
        )
    assert not any((tmp_path / name).exists() for name in MODELS)


def test_metadata_and_history_describe_the_training(uninterrupted: Path) -> None:
    metadata = load_checkpoint(uninterrupted / "student" / "model.safetensors").metadata
    teacher = load_checkpoint(uninterrupted / "teacher" / "model.safetensors").metadata
    assert metadata["recipe"]["model"]["distillation"]["temperature"] == 4
    assert metadata["recipe"]["teacher"] == teacher["cache_key"]
    assert Model(**metadata["recipe"]["model"]) == STUDENT
    assert Model(**teacher["recipe"]["model"]) == TEACHER
    assert metadata["architecture"] == {"stages": [], "hidden": [16], "norm": True, "members": 1}
    assert metadata["parameters"] == 784 * 16 + 16 + 2 * 16 + 16 * 10 + 10
    history = read_history(uninterrupted / "student")
    assert min(record["validation_errors"] for record in history) == metadata["validation_errors"]
    assert history[metadata["epoch"] - 1]["validation_errors"] == metadata["validation_errors"]
    table = (uninterrupted / "student" / "history.csv").read_text().splitlines()
    assert table[0].split(",") == list(history[0])
    assert len(table) == 1 + len(history) == 1 + 3
    inputs = json.loads((uninterrupted / "student" / "recipe.json").read_text())
    assert inputs == metadata["recipe"]


def test_a_second_training_in_the_same_folder_is_rejected(tmp_path: Path) -> None:
    holder = f"process {os.getpid()} on "
    with (
        locked(tmp_path),
        pytest.raises(LockedError, match=f"another command is using .*: {holder}.*; wait for it"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_in_the_way_of_a_link_is_found_before_the_first_epoch(kind: str, tmp_path: Path) -> None:
    in_the_way = tmp_path / "student"
    in_the_way.mkdir() if kind == "folder" else in_the_way.write_text("student-notes")
    with pytest.raises(RunError, match="student is not a link to a trained model; move it away"):
        main(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"student", LOCK}


def test_a_file_system_without_links_gets_files_with_the_names_of_folders(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exFAT and some shares; a run can be moved there and back."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    folders = {name: (uninterrupted / name).readlink() for name in MODELS}
    for folder in folders.values():
        shutil.copytree(uninterrupted / folder, tmp_path / folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", refuse)
        main(tmp_path)
        assert not any(path.is_symlink() for path in tmp_path.iterdir())
        assert {name: (tmp_path / name).read_text() for name in MODELS} == {
            name: f"{folder}\n" for name, folder in folders.items()
        }
        assert current_models(tmp_path) == sorted(MODELS)
        assert current_folder(tmp_path, "student") == tmp_path / folders["student"]
        assert current_model(tmp_path, "student").name == "student"
        date = (tmp_path / "teacher").stat().st_mtime_ns
        (tmp_path / "student").write_text("student-01234567")  # with other settings
        main(tmp_path)
        assert current_folder(tmp_path, "student") == tmp_path / folders["student"]
        assert (tmp_path / "teacher").stat().st_mtime_ns == date
    (tmp_path / "student").write_text("student-01234567")
    main(tmp_path)
    assert (tmp_path / "student").readlink() == folders["student"]


def test_a_folder_that_cannot_be_locked_is_named_before_the_first_epoch(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"/file is a file, expected a folder; choose another one"):
        main(tmp_path / "file" / "runs")


def test_a_broken_state_is_named(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / (uninterrupted / "teacher").readlink()
    folder.mkdir()
    (folder / "state.safetensors").write_bytes(os.urandom(100))
    with pytest.raises(checkpoint.CheckpointError, match=r"state\.safetensors is truncated"):
        main(tmp_path)


def test_a_state_of_another_version_is_named(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / (uninterrupted / "teacher").readlink()
    checkpoint.save_tensors(folder / "state.safetensors", {"best.x": torch.zeros(1)}, {"history": []})
    with pytest.raises(
        RunError, match=r"state\.safetensors was written by another version .*'best'; delete it"
    ):
        main(tmp_path)


@pytest.mark.parametrize("content", [b"", b"checkpoint" * 30])
def test_a_broken_teacher_is_named_and_its_students_remain(
    uninterrupted: Path, tmp_path: Path, content: bytes
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run", symlinks=True)
    before = weights(tmp_path / "run")
    teacher = tmp_path / "run" / "teacher" / "model.safetensors"
    teacher.write_bytes(content)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"model\.safetensors is truncated .*; delete it and train"
    ):
        main(tmp_path / "run")
    teacher.unlink()
    main(tmp_path / "run")  # trains an equal teacher again; its students stay
    assert weights(tmp_path / "run") == before


if __name__ == "__main__":
    main(Path(sys.argv[1]))

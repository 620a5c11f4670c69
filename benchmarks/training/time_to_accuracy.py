"""Time to accuracy: from reading the digits to a student with the notebook's accuracy, its teacher included."""

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.errors import BenchmarkError
from benchmarks.training.notebook_loop import NotebookLoop, notebook_digits
from training.data.mnist import held_out_places, load_test, load_training
from training.evaluation.evaluate import evaluate
from training.loop.device import Device
from training.loop.soft_targets import SoftTargets
from training.loop.trainer import Job, Observer, Training, validate
from training.model.network import Network
from training.recipe.files import read_recipe
from training.recipe.schema import Recipe
from training.runs.pipeline import jobs

NOTEBOOK_ACCURACY = 0.9818
"""The notebook's distilled student: its teacher's 96.3 % and the 1.88 points it reports on top."""
NOTEBOOK = read_recipe("notebook")
MAX_EPOCHS = 40
"""The corrected loop fails when it has not reached the notebook's accuracy by then."""


def compare_times(
    recipe: Recipe,
    folder: Path,
    notebook_folder: Path,
    *,
    device: Device,
    corrected_loop: bool,
    epochs: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Time the training of a student with the notebook's accuracy on the validation digits, by `recipe` and by theirs.

    The recipe is trained before and after the corrected loop. The notebook's full schedule is not trained: its 30 and
    100 epochs are extrapolated from the seconds per epoch that `compare_epochs` measured.
    """
    runs = [time_recipe(recipe, folder, device)]
    other = time_corrected_loop(folder, notebook_folder) if corrected_loop else None
    runs.append(time_recipe(recipe, folder, device))
    seconds = median(run["seconds"] for run in runs)
    schedule = sum(
        NOTEBOOK.models[role].epochs * epochs[role]["notebook_s"] for role in ("teacher", "student")
    )
    test = load_test(folder)
    for run in [*runs, *([other] if other else [])]:
        run["test_accuracy"] = evaluate(run.pop("network"), test)["accuracy"]
    return {
        "validation_accuracy": NOTEBOOK_ACCURACY,
        "recipe": recipe.model_dump(),
        "ours": runs,
        "ours_s": round(seconds, 2),
        "notebook_schedule_s": round(schedule, 1),
        "notebook_schedule_is": "extrapolated from the measured seconds of an epoch",
        "ratio_to_schedule": round(schedule / seconds, 1),
        "corrected_loop": other,
        "ratio_to_corrected_loop": round(other["seconds"] / seconds, 1) if other else None,
    }


def time_recipe(recipe: Recipe, folder: Path, device: Device) -> dict[str, Any]:
    """Read the digits, train the recipe's teacher, and distil its student until it reaches the accuracy."""
    print("time to accuracy: teacher and student by recipe", file=sys.stderr)
    start = time.perf_counter()
    training, validation = load_training(folder)
    teacher_job, student_job = teacher_and_student(recipe)
    teacher = Training(teacher_job, training, validation, device=device)
    while not teacher.done:
        teacher.train_epoch(Observer())
    targets = SoftTargets(teacher.network, device)
    student = Training(student_job, training, validation, device=device, teacher=targets)
    while not student.history or student.history[-1]["validation_accuracy"] < NOTEBOOK_ACCURACY:
        if student.done:
            raise BenchmarkError(
                f"the student has {student.selected_record['validation_errors']} errors on 5,000 validation digits "
                f"after {len(student.history)} epochs, more than {1 - NOTEBOOK_ACCURACY:.2%}"
            )
        student.train_epoch(Observer())
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "teacher_epochs": len(teacher.history),
        "student_epochs": len(student.history),
        "validation_accuracy": student.history[-1]["validation_accuracy"],
        "network": student.network.to("cpu"),
    }


def time_corrected_loop(folder: Path, notebook_folder: Path) -> dict[str, Any]:
    """Train both networks by the notebook's corrected loop, each until it reaches the accuracy."""
    start = time.perf_counter()
    digits = notebook_digits(notebook_folder)
    _, validation = load_training(folder)
    labels = torch.tensor([int(label) for label in digits.targets])
    indices = torch.nonzero(~held_out_places(labels, len(validation))).flatten().tolist()
    epochs = []
    teacher: Network | None = None
    for job in teacher_and_student(NOTEBOOK):
        loop = NotebookLoop(job, digits, teacher=teacher)
        epoch, accuracy = 0, 0.0
        while accuracy < NOTEBOOK_ACCURACY:
            if epoch == MAX_EPOCHS:
                raise BenchmarkError(
                    f"the corrected loop's {job.name} has an accuracy of {accuracy:.2%} after {epoch} epochs, "
                    f"less than {NOTEBOOK_ACCURACY:.2%}"
                )
            loop.train(indices)
            epoch += 1
            accuracy = validate(loop.network, validation)["validation_accuracy"]
            print(
                f"the notebook's corrected loop: {job.name}, epoch {epoch}, {accuracy:.2%}", file=sys.stderr
            )
        epochs.append(epoch)
        teacher = loop.network
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "teacher_epochs": epochs[0],
        "student_epochs": epochs[1],
        "validation_accuracy": accuracy,
        "network": loop.network,
    }


def teacher_and_student(recipe: Recipe) -> tuple[Job, Job]:
    """Return the jobs of the teacher and the distilled student, without the control."""
    by_name = {job.name: job for job in jobs(recipe)}
    return by_name["teacher"], by_name["student"]

"""`distillery-bench training`: our training loop against the notebook's, in turns, in one run.

distillery-bench training                      both questions, about six minutes on 2 cores
distillery-bench training --no-to-target       the time of an epoch alone
"""

import json
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import Field, PositiveInt
from pydantic_settings import SettingsConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.results.files import RESULTS, warn_if_busy, write_result
from benchmarks.training.notebook_loop import NotebookLoop, notebook_digits
from benchmarks.training.time_to_accuracy import (
    NOTEBOOK,
    NOTEBOOK_ACCURACY,
    compare_ways,
    say,
    teacher_and_student,
)
from distillery import Command
from training.data.mnist import (
    SHA256,
    Digits,
    find_mnist,
    load_training,
    read_verified,
)
from training.data.views import PLAIN
from training.loop.device import Device, DeviceName, choose_device
from training.loop.soft_targets import SoftTargets
from training.loop.trainer import Observer, Training
from training.model.network import build
from training.recipe.schema import Distillation, Model, Recipe

EPOCH = 55_000


class TrainingBench(Command):
    """Measure training against the notebook's own loop: an epoch's time, and the time to a good student.

    An epoch is one pass over the 55,000 training digits at the notebook's batch size, validation excluded, here
    measured on a part of them. To a good student: digits read from their files, a teacher trained, a student
    distilled until it has the notebook's accuracy, 98.18 %, on the validation digits. These have chosen the
    settings below too; the test digits are read at the end.
    """

    model_config = SettingsConfigDict(nested_model_default_partial_update=True)  # one flag, one change

    digits: PositiveInt = Field(11_000, le=EPOCH, description="digits in a turn of the epochs' comparison")
    rounds: PositiveInt = Field(3, description="turns of each side, after one that does not count")
    target: bool = Field(True, description="measure the time to a good student too")
    mended: bool = Field(True, description="run the notebook's mended loop to it as well (minutes)")
    teacher: Model = Field(Model(hidden=[1200, 1200], epochs=6), description="our way to the good student")
    student: Model = Field(
        Model(hidden=[800, 800], epochs=6, distillation=Distillation(temperature=4, alpha=0.5)),
        description="our way to the good student",
    )
    data_dir: Path | None = Field(
        None, description="folder with the MNIST files, if not to be found or fetched"
    )
    device: DeviceName = Field("cpu", description="for our side; the notebook's loop stays on the CPU")
    threads: PositiveInt | None = Field(
        None, description="CPU threads of both sides; all usable cores by default"
    )
    results_dir: Path = Field(RESULTS, description="where the result is kept")

    def run(self) -> None:
        warn_if_busy()
        device = choose_device(self.device, "auto", threads=self.threads)
        folder = find_mnist(self.data_dir)
        ours = Recipe(name="target", models={"teacher": self.teacher, "student": self.student})
        with tempfile.TemporaryDirectory(prefix="notebook-") as theirs:
            unpack_as_torchvision(folder, Path(theirs))
            epochs = compare_epochs(
                folder, Path(theirs), device=device, count=self.digits, rounds=self.rounds
            )
            data: dict[str, Any] = {
                "notebook_recipe": NOTEBOOK.model_dump(),
                "threads": torch.get_num_threads(),
                "bfloat16": device.bfloat16,
                "device": device.type,
                "epochs": epochs,
            }
            if self.target:
                data["target"] = compare_ways(
                    ours, folder, Path(theirs), device=device, mended=self.mended, epochs=epochs
                )
        path = write_result("training", data, folder=self.results_dir)
        print_tables(data)
        print(json.dumps({"result": str(path), **summary(data)}))


def unpack_as_torchvision(folder: Path, target: Path) -> None:
    """Put the training files where torchvision's MNIST looks for them."""
    raw = target / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in SHA256:
        (raw / name).write_bytes(read_verified(folder, name))


def compare_epochs(
    folder: Path, theirs: Path, *, device: Device, count: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Time both loops in turns, for the teacher and for the distilled student.

    Returns for each the rounds' seconds per 55,000 digits on both sides, their medians, and the median ratio.
    `targets_s` is what ours spends once in a whole training, not in every epoch, to ask the teacher.
    """
    training, validation = load_training(folder)
    part = Digits(training.images[:count], training.labels[:count])
    digits = notebook_digits(theirs)
    teacher = build(NOTEBOOK.models["teacher"]).eval()
    results = {}
    for job in teacher_and_student(NOTEBOOK):
        asked = SoftTargets(deepcopy(teacher), device) if job.distillation else None
        ours = Training(job, part, validation, device=device, teacher=asked)
        targets_s = 0.0
        if asked:
            start = time.perf_counter()
            asked.logits(PLAIN, ours.digits.images)
            targets_s = (time.perf_counter() - start) * EPOCH / count
        notebook = NotebookLoop(job, digits, teacher=teacher if job.distillation else None)
        sides: dict[str, list[float]] = {"ours_s": [], "notebook_s": []}
        for turn in range(1 + rounds):
            say(f"{job.name}: turn {turn} of {rounds}, {count:,} digits each")
            places = torch.randperm(len(digits))[:count].tolist()
            ours.train_epoch(Observer())
            seconds = {"ours_s": ours.history[-1]["seconds"], "notebook_s": notebook.train(places)}
            for side in sides if turn else ():  # the first turn warms up
                sides[side].append(seconds[side] * EPOCH / count)
        results[job.role] = {
            **{side: round(median(values), 3) for side, values in sides.items()},
            "ratio": round(
                median(b / a for a, b in zip(sides["ours_s"], sides["notebook_s"], strict=True)), 2
            ),
            "targets_s": round(targets_s, 3),
            "rounds": {side: [round(value, 3) for value in values] for side, values in sides.items()},
        }
    return results


def summary(data: dict[str, Any]) -> dict[str, Any]:
    """Return the figures people ask for."""
    figures = {f"{role}_epoch_ratio": row["ratio"] for role, row in data["epochs"].items()}
    if target := data.get("target"):
        figures |= {key: target[key] for key in ("ours_s", "ratio_to_schedule", "ratio_to_mended_loop")}
    return figures


def print_tables(data: dict[str, Any]) -> None:
    """Print what was measured."""
    table = Table(title="seconds per 55,000 digits, batch 64", box=SIMPLE_HEAD, title_justify="left")
    for heading in ("network", "notebook's loop", "notebook recipe", "times faster"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for role, row in data["epochs"].items():
        table.add_row(role, f"{row['notebook_s']:.1f}", f"{row['ours_s']:.1f}", f"{row['ratio']:.1f}")
    console = Console()
    console.print(table)
    if target := data.get("target"):
        lines = [
            f"from nothing to a student of {NOTEBOOK_ACCURACY:.2%}, its teacher included: {target['ours_s']:.0f} s"
        ]
        lines.append(
            f"the notebook's 30 and 100 epochs (extrapolated): {target['notebook_schedule_s']:,.0f} s, "
            f"{target['ratio_to_schedule']:.0f} times"
        )
        if other := target["mended_loop"]:
            lines.append(
                f"its mended loop stopped at that accuracy ({other['teacher_epochs']} and {other['student_epochs']} "
                f"epochs): {other['seconds']:,.0f} s, {target['ratio_to_mended_loop']:.1f} times"
            )
        console.print("\n".join(lines), soft_wrap=True)

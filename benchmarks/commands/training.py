"""`distillery-bench training`: the training loop against the notebook's own, interleaved."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt
from pydantic_settings import SettingsConfigDict

from benchmarks.commands.bench import Bench
from benchmarks.training.epochs import EPOCH, compare_epochs
from benchmarks.training.notebook_loop import unpack_for_torchvision
from benchmarks.training.time_to_accuracy import NOTEBOOK, compare_times
from training.commands.settings import DataSettings
from training.data.mnist import find_mnist
from training.loop.device import DeviceName, choose_device
from training.recipe.schema import Distillation, Model, Recipe


class Training(Bench, DataSettings):
    """Compare training with the notebook's loop: epoch time, time to accuracy.

    An epoch is one pass over the 55,000 training digits at the notebook's batch size without validation, measured on a
    part of them. Time to accuracy: the digits are read, a teacher is trained, and a student is distilled until it has
    the notebook's accuracy, 98.18 %, on the validation digits. The settings below were chosen by these, too; the test
    digits are read at the end. Takes about six minutes on 2 cores.
    """

    model_config = SettingsConfigDict(
        nested_model_default_partial_update=True
    )  # an option changes one setting
    examples = (
        "distillery-bench training",
        "distillery-bench training --no-target",
    )

    digits: PositiveInt = Field(11_000, le=EPOCH, description="digits per loop and round")
    rounds: PositiveInt = Field(5, description="rounds of both loops, after one that is not counted")
    target: bool = Field(True, description="measure the time to accuracy, too")
    corrected: bool = Field(True, description="also of the notebook's corrected loop (minutes)")
    teacher: Model = Field(
        Model(hidden=[1200, 1200], epochs=6), description="teacher for the time to accuracy"
    )
    student: Model = Field(
        Model(hidden=[800, 800], epochs=6, distillation=Distillation(temperature=4, alpha=0.5)),
        description="student for the time to accuracy",
    )
    device: DeviceName = Field("cpu", description="device of our loop; the notebook's runs on the CPU")
    threads: PositiveInt | None = Field(
        None, description="CPU threads of both loops; all usable cores by default"
    )

    def measure(self) -> dict[str, Any]:
        device = choose_device(self.device, "auto", threads=self.threads)
        folder = find_mnist(self.data_dir)
        recipe = Recipe(name="target", models={"teacher": self.teacher, "student": self.student})
        with tempfile.TemporaryDirectory(prefix="notebook-") as scratch:
            notebook_folder = Path(scratch)
            unpack_for_torchvision(folder, notebook_folder)
            epochs = compare_epochs(
                folder, notebook_folder, device=device, count=self.digits, rounds=self.rounds
            )
            data: dict[str, Any] = {
                "notebook_recipe": NOTEBOOK.model_dump(),
                "threads": torch.get_num_threads(),
                "bfloat16": device.bfloat16,
                "device": device.type,
                "epochs": epochs,
            }
            if self.target:
                data["target"] = compare_times(
                    recipe,
                    folder,
                    notebook_folder,
                    device=device,
                    corrected_loop=self.corrected,
                    epochs=epochs,
                )
        return data

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        figures = {f"{role}_epoch_ratio": row["ratio"] for role, row in data["epochs"].items()}
        if target := data.get("target"):
            figures |= {
                key: target[key] for key in ("ours_s", "ratio_to_schedule", "ratio_to_corrected_loop")
            }
        return figures

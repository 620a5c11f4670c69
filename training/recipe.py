"""What decides a training: the sections of a recipe, each field with its meaning and its bounds.

A recipe is a TOML file (`training/recipes/quick.toml`, or one of yours) with the sections `[teacher]`,
`[student]` and `[distillation]`. The student is trained twice with the same section, initial weights and order
of digits: once alone, once distilled. The distillation is the only difference between the two.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Units = Annotated[int, Field(gt=0, le=65_536)]
RECIPES = Path(__file__).parent / "recipes"


class Section(BaseModel):
    """A group of settings: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Augmentation(Section):
    """A random affine transform for every digit of every batch; zeros leave the digits as they are."""

    rotation: float = Field(0, ge=0, le=180, description="degrees, up to this much either way")
    shift: float = Field(0, ge=0, le=14, description="pixels, up to this much in x and y")
    scale: float = Field(0, ge=0, lt=1, description="0.1: from 0.9 to 1.1 times the size")
    shear: float = Field(0, ge=0, lt=90, description="degrees, up to this much either way")

    @property
    def enabled(self) -> bool:
        """Whether anything is moved at all."""
        return any((self.rotation, self.shift, self.scale, self.shear))


class Network(Section):
    """One network and how it is trained."""

    hidden: list[Units] = Field(min_length=1, max_length=16, description="units of each hidden layer")
    dropout: float = Field(0, ge=0, lt=1, description="probability of dropping a hidden unit")
    epochs: int = Field(20, gt=0, description="passes over the training digits")
    batch_size: int = Field(256, gt=1, description="digits per optimizer step")
    learning_rate: float = Field(3e-3, gt=0, description="the highest rate of the schedule")
    weight_decay: float = Field(0, ge=0, description="AdamW's decoupled decay; with 0 it is Adam")
    schedule: Literal["one-cycle", "plateau"] = Field(
        "one-cycle", description="rise and fall once, or a tenth whenever validation stops improving"
    )
    patience: int = Field(10, ge=0, description="plateau: epochs without improvement before the rate drops")
    augmentation: Augmentation = Augmentation()


class Teacher(Network):
    """The big network (paper: 784-1200-1200-10)."""

    hidden: list[Units] = Field(
        [1200, 1200], min_length=1, max_length=16, description="units per hidden layer"
    )


class Student(Network):
    """The small network (paper: 784-800-800-10)."""

    hidden: list[Units] = Field([800, 800], min_length=1, max_length=16, description="units per hidden layer")


class Distillation(Section):
    """How the student learns from the teacher."""

    temperature: float = Field(20, gt=0, description="softens both softmaxes")
    alpha: float = Field(0.7, ge=0, le=1, description="weight of the soft targets; the labels have the rest")


def find_recipe(name: str) -> Path:
    """Turn `quick`, `notebook` or the path of a TOML file into a path."""
    return Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"

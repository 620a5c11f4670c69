"""What decides a training: a recipe is a list of models, each with its architecture, its training, its teacher.

A recipe is a TOML file (`training/recipe/quick.toml`, or one of yours). Every section is a model, trained in the
order of the file; one with a `distillation` learns from a model above it. Such a student is trained twice, with the
same initial weights, views and order of digits: once distilled, and as its own control, NAME-alone, from the labels.
"""

import re
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

LossName = Literal["kl", "mse", "dkd", "lskd", "dist"]
"""Losses on soft targets: training/loop/losses.py."""
Units = Annotated[int, Field(gt=0, le=65_536)]
ALONE = "-alone"
NAME = re.compile("[a-z][a-z0-9]*")
"""Names of sections: they become flags, and the names of served models."""


class Section(BaseModel):
    """A group of settings: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Augmentation(Section):
    """What happens to every digit at random; zeros leave the digits as they are."""

    rotation: float = Field(0, ge=0, le=180, description="degrees, up to this much either way")
    shift: float = Field(0, ge=0, le=14, description="pixels, up to this much in x and y")
    scale: float = Field(0, ge=0, lt=1, description="0.1: from 0.9 to 1.1 times the size")
    shear: float = Field(0, ge=0, lt=90, description="degrees, up to this much either way")
    elastic: float = Field(0, ge=0, le=14, description="pixels, standard deviation of local displacements")
    mixup: float = Field(0, ge=0, le=1, description="share of another digit, up to this much of the ink")

    @property
    def enabled(self) -> bool:
        """Whether anything is moved at all."""
        return any(self.model_dump().values())


class Distillation(Section):
    """From whom a student learns, and how."""

    teacher: str = Field("teacher", description="the model that gives the soft targets")
    loss: LossName = Field("kl", description="of the soft targets: see training/loop/losses.py")
    temperature: float = Field(20, gt=0, description="softens both softmaxes")
    alpha: float = Field(0.7, ge=0, le=1, description="weight of the soft targets; the labels have the rest")
    beta: float = Field(1, ge=0, description="dkd, dist: weight of the loss's second term")


class Architecture(Section):
    """Convolutional stages, then fully connected layers, then ten logits; several of them make an ensemble."""

    stages: list[Annotated[list[Units], Field(min_length=1, max_length=8)]] = Field(
        [], max_length=4, description="channels of the 3x3 convolutions before each 2x2 max-pooling"
    )
    hidden: list[Units] = Field([], max_length=16, description="units of each fully connected layer")
    norm: bool = Field(True, description="BatchNorm before each ReLU")
    members: int = Field(1, ge=1, le=32, description="networks whose answers are averaged")

    @property
    def architecture(self) -> "Architecture":
        """Only what decides the shape."""
        return Architecture(**{name: getattr(self, name) for name in Architecture.model_fields})

    def __str__(self) -> str:
        stages = [f"conv{'+'.join(map(str, channels))}" for channels in self.stages]
        shape = "-".join(map(str, [784, *stages, *self.hidden, 10]))
        return shape if self.members == 1 else f"{self.members} × {shape}"


class Model(Architecture):
    """One model and how it is trained."""

    dropout: float = Field(
        0, ge=0, lt=1, description="probability of dropping a unit that the next layer reads"
    )
    max_norm: float = Field(0, ge=0, description="longest weight vector into a hidden unit; 0: no limit")
    epochs: int = Field(20, gt=0, description="passes over the training digits")
    batch_size: int = Field(256, gt=1, description="digits per optimizer step")
    learning_rate: float = Field(3e-3, gt=0, description="the highest rate of the schedule")
    weight_decay: float = Field(0, ge=0, description="AdamW's decoupled decay; with 0 it is Adam")
    schedule: Literal["one-cycle", "plateau"] = Field(
        "one-cycle", description="rise and fall once, or a tenth whenever validation stops improving"
    )
    patience: int = Field(10, ge=0, description="plateau: epochs without improvement before the rate drops")
    keep: Literal["best", "last"] = Field(
        "best", description="the weights of the epoch with the fewest validation errors, or of the last one"
    )
    augmentation: Augmentation = Augmentation()
    views: PositiveInt | None = Field(
        None, description="views of a digit before the first comes again; new ones every epoch if not given"
    )
    leave_out: list[Annotated[int, Field(ge=0, le=9)]] = Field(
        [], max_length=9, description="digits that are never shown"
    )
    distillation: Distillation | None = Field(None, description="learn from another model, too")
    control: bool = Field(
        True, description="train a student a second time without its teacher, as NAME-alone"
    )

    @model_validator(mode="after")
    def _a_plateau_goes_back_to_its_best(self) -> "Model":
        if (self.schedule, self.keep) == ("plateau", "last"):
            raise ValueError(
                'schedule plateau goes on from the best epoch so far: keep = "last" wants one-cycle'
            )
        return self

    @property
    def without_teacher(self) -> "Model":
        """The same in everything but the distillation."""
        return self.model_copy(update={"distillation": None})


class Recipe(Section):
    """A recipe with everything settled."""

    name: str
    seed: int = Field(0, ge=0)
    teacher_seed: int | None = Field(None, ge=0)
    """The seed of the first teachers, and of all views: students of several seeds then share the soft targets."""
    models: dict[str, Model] = Field(min_length=1)

    @field_validator("models")
    @classmethod
    def _plain_names(cls, models: dict[str, Model]) -> dict[str, Model]:
        for name in models:
            if not NAME.fullmatch(name):
                raise ValueError(f"a model's name is lower-case letters and digits, not {name!r}")
        return models

    @model_validator(mode="after")
    def _mixtures_have_no_label(self) -> "Recipe":
        for name, model in self.models.items():
            unlabelled = model.distillation and model.distillation.alpha == 1 and not model.control
            if model.augmentation.mixup and not unlabelled:
                raise ValueError(
                    f"{name}: with augmentation.mixup {model.augmentation.mixup} a digit has no label any more, "
                    "so it needs distillation.alpha 1 and control = false"
                )
        return self

    @model_validator(mode="after")
    def _teachers_come_first(self) -> "Recipe":
        above: list[str] = []
        for name, model in self.models.items():
            if model.distillation and model.distillation.teacher not in above:
                raise ValueError(
                    f"{name} learns from {model.distillation.teacher!r}, "
                    f"which is none of the models above it: {', '.join(above) or 'there are none'}"
                )
            above.append(name)
        return self

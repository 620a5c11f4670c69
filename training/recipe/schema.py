"""Schema of a recipe: the models to train, each with its architecture, training settings and teacher.

A recipe is a TOML file: one of `training/recipe/*.toml`, or the user's own. Every section is a model; models are
trained in the order of the file, and one with a `distillation` learns from a model above it. Such a student is trained
twice, from the same initial weights and on the same batches: distilled, and as its control NAME-alone, on the labels
only. `training/recipe/inheritance.py`: recipes that extend another one.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from distillery import DistilleryError, unknown

LossName = Literal["kl", "mse", "dkd", "lskd", "dist"]
"""Losses on soft targets: training/loop/losses.py."""
Units = Annotated[int, Field(gt=0, le=65_536)]
ALONE = "-alone"
"""Suffix of a student's control."""
FIGURES, SWEEP = "figures", "sweep"
"""Folders in runs/<recipe>, next to the models: no model may have these names."""
NAME = re.compile("[a-z][a-z0-9]*")
"""Model names; they are also names of options and of served models."""


class Section(BaseModel):
    """Base class of settings: unknown names are rejected, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Photometric(Section):
    """Random changes of ink and paper. The probability enables them, a range of 0 disables one of them."""

    probability: float = Field(0, ge=0, le=1, description="share of the digits that each change applies to")
    stroke: float = Field(0.5, ge=0, le=1, description="maximum change of stroke width, pixels on each side")
    cutout: float = Field(12, ge=0, le=28, description="maximum side of a square without ink, pixels")
    blur: float = Field(1.8, ge=0, le=14, description="maximum standard deviation of a blur, pixels")
    contrast: float = Field(
        0.7, ge=0, lt=1, description="maximum loss of contrast; 0.7: at least 0.3 remains"
    )
    background: float = Field(0.3, ge=0, lt=1, description="maximum brightness of the background; ink is 1")
    gradient: float = Field(0.3, ge=0, lt=1, description="maximum rise of the background across the image")
    noise: float = Field(0.3, ge=0, le=1, description="maximum standard deviation of noise; ink is 1")

    @property
    def enabled(self) -> bool:
        """True if digits are changed at all."""
        return self.probability > 0 and any(self.model_dump(exclude={"probability"}).values())


class Augmentation(Section):
    """Random changes to every training digit; 0 disables each."""

    rotation: float = Field(0, ge=0, le=180, description="maximum rotation either way, degrees")
    shift: float = Field(0, ge=0, le=14, description="maximum shift in x and in y, pixels")
    scale: float = Field(0, ge=0, lt=1, description="maximum change of size; 0.1: 0.9 to 1.1 times")
    shear: float = Field(0, ge=0, lt=90, description="maximum shear either way, degrees")
    elastic: float = Field(0, ge=0, le=14, description="standard deviation of local displacements, pixels")
    mixup: float = Field(0, ge=0, le=1, description="maximum share of ink taken from another digit")
    neighbour: float = Field(
        0, ge=0, le=1, description="share of the digits with the remains of a touching digit beside them"
    )
    photometric: Photometric = Photometric()

    @property
    def enabled(self) -> bool:
        """True if digits are changed at all."""
        return self.photometric.enabled or any(self.model_dump(exclude={"photometric"}).values())


class Distillation(Section):
    """Teacher and loss of a student."""

    teacher: str = Field("teacher", description="model that provides the soft targets")
    loss: LossName = Field("kl", description="loss on the soft targets, defined in training/loop/losses.py")
    temperature: float = Field(20, gt=0, description="divides the logits of teacher and student")
    alpha: float = Field(0.7, ge=0, le=1, description="weight of the soft targets; the labels' is 1 - alpha")
    beta: float = Field(1, ge=0, description="weight of the second term of dkd and dist")
    log_share: float = Field(
        0.2,
        gt=0,
        le=0.5,
        description="with --request-log: share of an epoch's images that are of the log, at most",
    )
    log_trust: float = Field(
        0.95,
        ge=0,
        le=1,
        description="with --request-log: use unlabelled images if the teacher is right on at least this share of the "
        "labelled ones",
    )
    log_repeats: PositiveInt = Field(
        20, description="with --request-log: times that an epoch shows an image of it, at most"
    )

    @property
    def needs_labels(self) -> bool:
        """True if an image without a label cannot be learned from."""
        return self.alpha == 0 or self.loss == "dkd"


class Architecture(Section):
    """Convolutional stages, fully connected layers and ten logits; several such networks form an ensemble."""

    stages: list[Annotated[list[Units], Field(min_length=1, max_length=8)]] = Field(
        [], max_length=4, description="channels of the 3x3 convolutions before each 2x2 max-pooling"
    )
    hidden: list[Units] = Field([], max_length=16, description="units of each fully connected layer")
    norm: bool = Field(True, description="BatchNorm before each ReLU")
    members: int = Field(
        1, ge=1, le=32, description="networks of the ensemble; their predictions are averaged"
    )

    @property
    def architecture(self) -> "Architecture":
        """The fields that determine the shapes, without those of subclasses."""
        return Architecture(**{name: getattr(self, name) for name in Architecture.model_fields})

    def __str__(self) -> str:
        stages = [f"conv{'+'.join(map(str, channels))}" for channels in self.stages]
        shape = "-".join(map(str, [784, *stages, *self.hidden, 10]))
        return shape if self.members == 1 else f"{self.members} × {shape}"


class Model(Architecture):
    """A model and its training."""

    dropout: float = Field(0, ge=0, lt=1, description="dropout probability of every layer's input units")
    max_norm: float = Field(
        0, ge=0, description="maximum norm of the weights into a hidden unit; 0: unlimited"
    )
    epochs: int = Field(20, gt=0, description="passes over the training digits")
    batch_size: int = Field(256, gt=1, description="digits per optimizer step")
    learning_rate: float = Field(3e-3, gt=0, description="maximum learning rate of the schedule")
    weight_decay: float = Field(0, ge=0, description="decoupled weight decay of AdamW; 0: Adam")
    schedule: Literal["one-cycle", "plateau"] = Field(
        "one-cycle",
        description="one-cycle: rise and fall once; plateau: divide the rate by 10 when validation stalls",
    )
    patience: int = Field(10, ge=0, description="epochs without improvement before a plateau")
    keep: Literal["best", "last"] = Field(
        "best", description="weights to keep: of the epoch with the fewest validation errors, or of the last"
    )
    augmentation: Augmentation = Augmentation()
    views: PositiveInt | None = Field(
        None, description="augmented views per digit, repeated in order; default: new views every epoch"
    )
    leave_out: list[Annotated[int, Field(ge=0, le=9)]] = Field(
        [], max_length=9, description="classes excluded from the training digits"
    )
    distillation: Distillation | None = Field(None, description="learn from another model")
    control: bool = Field(
        True, description="of a student: also train NAME-alone, the same model without its teacher"
    )

    @model_validator(mode="after")
    def _plateau_returns_to_the_best_epoch(self) -> "Model":
        if (self.schedule, self.keep) == ("plateau", "last"):
            raise ValueError(
                'schedule plateau resumes from the best epoch so far: keep = "last" requires one-cycle'
            )
        return self

    @property
    def without_teacher(self) -> "Model":
        """The control: identical but for the distillation."""
        return self.model_copy(update={"distillation": None})


class Recipe(Section):
    """A recipe after all settings are resolved."""

    name: str
    seed: int = Field(0, ge=0)
    teacher_seed: int | None = Field(None, ge=0)
    """Seed of the first teachers and of all views; students of several seeds then share soft targets."""
    models: dict[str, Model] = Field(min_length=1)

    def only(self, names: Sequence[str]) -> "Recipe":
        """Return the recipe of the models `names` and of their teachers; of all for none. Raises `DistilleryError`."""
        needed = set(names or self.models)
        for name in names:
            if name not in self.models:
                raise DistilleryError(f"--models: {unknown('model', name, self.models)}")
        for name, model in reversed(self.models.items()):
            if name in needed and model.distillation:
                needed.add(model.distillation.teacher)
        chosen = {name: model for name, model in self.models.items() if name in needed}
        return self.model_copy(update={"models": chosen})

    @field_validator("models")
    @classmethod
    def _names_are_plain(cls, models: dict[str, Model]) -> dict[str, Model]:
        for name in models:
            if not NAME.fullmatch(name):
                raise ValueError(f"a model's name must be lower-case letters and digits, not {name!r}")
            if name in (FIGURES, SWEEP):
                raise ValueError(f"[{name}] is reserved; rename the model")
        return models

    @model_validator(mode="after")
    def _mixup_needs_soft_targets(self) -> "Recipe":
        for name, model in self.models.items():
            unlabelled = model.distillation and model.distillation.alpha == 1 and not model.control
            if model.augmentation.mixup and not unlabelled:
                raise ValueError(
                    f"{name}: digits have no label with augmentation.mixup {model.augmentation.mixup}; "
                    "it requires distillation.alpha 1 and control = false"
                )
        return self

    @model_validator(mode="after")
    def _teachers_come_first(self) -> "Recipe":
        above: list[str] = []
        for name, model in self.models.items():
            if model.distillation and model.distillation.teacher not in above:
                raise ValueError(
                    f"{name} learns from {model.distillation.teacher!r}, "
                    f"which must be a model above it: {', '.join(above) or 'there is none'}"
                )
            above.append(name)
        return self

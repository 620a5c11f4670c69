"""Search space of a sweep: temperature, alpha and loss of the distillation, learning rate, hidden layers."""

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from training.model.network import CLASSES, SIDE
from training.recipe.schema import Architecture, Distillation, LossName, Model, Section

if TYPE_CHECKING:  # an extra: at run time it is imported where it is used
    from optuna.distributions import BaseDistribution


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound must come first, not {bounds[0]:g},{bounds[1]:g}")
    return bounds


Rates = Annotated[
    tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_ordered)
]
Share = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_ordered)]
Widths = Annotated[str, Field(pattern=r"^[1-9]\d*(-[1-9]\d*)*$")]


class Space(Section):
    """Ranges to search, bounds included."""

    temperature: Rates = Field((1, 20), description="MIN,MAX of a log-uniform distribution")
    alpha: Shares = Field((0.1, 1), description="MIN,MAX")
    learning_rate: Rates = Field((1e-3, 1e-2), description="MIN,MAX of a log-uniform distribution")
    loss: list[LossName] = Field(
        ["kl", "mse", "dkd", "lskd", "dist"], min_length=1, description="losses to choose from"
    )
    hidden: list[Widths] = Field(
        [],
        description="hidden layers, such as 256-128,48-32; default: the model's, their halves, quarters and eighths",
    )

    def of(self, model: Model) -> "Space":
        """Return the space with the hidden layers resolved for `model`."""
        parts = [_joined([max(1, units // part) for units in model.hidden]) for part in (1, 2, 4, 8)]
        return self.model_copy(update={"hidden": list(dict.fromkeys(self.hidden or parts))})

    def distributions(self) -> "dict[str, BaseDistribution]":
        """Return the space as Optuna distributions."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution  # noqa: PLC0415

        return {
            "temperature": FloatDistribution(*self.temperature, log=True),
            "alpha": FloatDistribution(*self.alpha),
            "loss": CategoricalDistribution(self.loss),
            "hidden": CategoricalDistribution(self.hidden),
            "learning_rate": FloatDistribution(*self.learning_rate, log=True),
        }

    def settings(self, model: Model, distillation: Distillation) -> dict[str, Any] | None:
        """Return the student's own settings, None if one of them lies outside the space."""
        own: dict[str, Any] = {
            "temperature": distillation.temperature,
            "alpha": distillation.alpha,
            "loss": distillation.loss,
            "hidden": _joined(model.hidden),
            "learning_rate": model.learning_rate,
        }
        ranges = {"temperature": self.temperature, "alpha": self.alpha, "learning_rate": self.learning_rate}
        inside = all(low <= own[name] <= high for name, (low, high) in ranges.items())
        return own if inside and own["loss"] in self.loss and own["hidden"] in self.hidden else None


def rounded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return Optuna's suggestion with numbers rounded to two digits."""
    return {
        "temperature": float(f"{settings['temperature']:.2g}"),
        "alpha": round(settings["alpha"], 2),
        "learning_rate": float(f"{settings['learning_rate']:.2g}"),
        "loss": settings["loss"],
        "hidden": settings["hidden"],
    }


def with_settings(model: Model, distillation: Distillation, settings: Mapping[str, Any]) -> Model:
    """Return `model` with the settings of a trial; `distillation` provides those that are not searched."""
    searched = {name: settings[name] for name in ("temperature", "alpha", "loss")}
    changes = {
        "hidden": [int(units) for units in settings["hidden"].split("-") if units],
        "learning_rate": settings["learning_rate"],
        "distillation": distillation.model_copy(update=searched),
    }
    return model.model_copy(update=changes)


def multiply_adds(architecture: Architecture) -> int:
    """Return the number of multiply-adds of a forward pass with one digit, which determines the latency.

    It replaces a measured time, because torch's overhead at one digit exceeds the differences of small networks, and
    because the machines that share a study differ. Below about 100,000 a served model gets no faster: the overhead of
    a call dominates.
    """
    side, inputs, count = SIDE, 1, 0
    for stage in architecture.stages:
        for channels in stage:
            count += side**2 * 9 * inputs * channels
            inputs = channels
        side //= 2
    widths = (side**2 * inputs, *architecture.hidden, CLASSES)
    return architecture.members * (count + sum(before * after for before, after in pairwise(widths)))


def _joined(hidden: list[int]) -> str:
    return "-".join(map(str, hidden))

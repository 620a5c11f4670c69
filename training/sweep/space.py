"""What a sweep tries of a student: temperature, alpha and loss of its distillation, learning rate, hidden layers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch.utils.flop_counter import FlopCounterMode

from training.model.network import PIXELS, build
from training.recipe.schema import Architecture, Distillation, LossName, Model, Section

if TYPE_CHECKING:  # an extra: at run time it is imported where it is used
    from optuna.distributions import BaseDistribution


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"the lower end comes first, not {ends[0]:g},{ends[1]:g}")
    return ends


Rates = Annotated[
    tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_rising)
]
Share = Annotated[float, Field(ge=0, le=1)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_rising)]
Widths = Annotated[str, Field(pattern=r"^[1-9]\d*(-[1-9]\d*)*$")]


class Space(Section):
    """What is searched; both ends of a range belong to it."""

    temperature: Rates = Field(
        (1, 20), description="from,to; equal steps of its logarithm are equally likely"
    )
    alpha: Shares = Field((0.1, 1), description="from,to")
    learning_rate: Rates = Field((1e-3, 1e-2), description="from,to; by its logarithm, too")
    loss: list[LossName] = Field(
        ["kl", "mse", "dkd", "lskd", "dist"], min_length=1, description="any of these"
    )
    hidden: list[Widths] = Field(
        [],
        description="hidden layers, as 256-128,48-32; the model's own, a half, quarter and eighth if not given",
    )

    def of(self, model: Model) -> "Space":
        """The same with hidden layers to choose from; a network without any has no choice."""
        parts = [_joined([max(1, units // part) for units in model.hidden]) for part in (1, 2, 4, 8)]
        return self.model_copy(update={"hidden": list(dict.fromkeys(self.hidden or parts))})

    def distributions(self) -> "dict[str, BaseDistribution]":
        """The same for Optuna."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution  # noqa: PLC0415

        return {
            "temperature": FloatDistribution(*self.temperature, log=True),
            "alpha": FloatDistribution(*self.alpha),
            "loss": CategoricalDistribution(self.loss),
            "hidden": CategoricalDistribution(self.hidden),
            "learning_rate": FloatDistribution(*self.learning_rate, log=True),
        }

    def settings(self, model: Model, soft: Distillation) -> dict[str, Any] | None:
        """Return the settings that a student has now, None where one of them is outside."""
        own: dict[str, Any] = {
            "temperature": soft.temperature,
            "alpha": soft.alpha,
            "loss": soft.loss,
            "hidden": _joined(model.hidden),
            "learning_rate": model.learning_rate,
        }
        ranges = {"temperature": self.temperature, "alpha": self.alpha, "learning_rate": self.learning_rate}
        inside = all(low <= own[name] <= high for name, (low, high) in ranges.items())
        return own if inside and own["loss"] in self.loss and own["hidden"] in self.hidden else None


def rounded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Optuna suggests as people write it: numbers to two digits."""
    return {
        "temperature": float(f"{settings['temperature']:.2g}"),
        "alpha": round(settings["alpha"], 2),
        "learning_rate": float(f"{settings['learning_rate']:.2g}"),
        "loss": settings["loss"],
        "hidden": settings["hidden"],
    }


def tried(model: Model, soft: Distillation, settings: Mapping[str, Any]) -> Model:
    """Return `model`, taught as `soft` has it, with these settings."""
    teaching = {name: settings[name] for name in ("temperature", "alpha", "loss")}
    found = {
        "hidden": [int(units) for units in settings["hidden"].split("-") if units],
        "learning_rate": settings["learning_rate"],
        "distillation": soft.model_copy(update=teaching),
    }
    return model.model_copy(update=found)


def multiply_adds(architecture: Architecture) -> int:
    """Count the multiplications on one digit's way through the network: what its latency is made of.

    Not a time: torch's own overhead at one digit is larger than what small networks save, and the machines that share
    a study differ. Below some 100,000 a served model gets no faster: calling it costs more than it does.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build(architecture).eval()(torch.empty(1, PIXELS))
    return int(counter.get_total_flops()) // 2  # each with an addition


def _joined(hidden: list[int]) -> str:
    return "-".join(map(str, hidden))

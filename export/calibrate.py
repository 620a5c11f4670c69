"""Choose the parameters of the int8 graph: calibrated on training digits, chosen on validation digits.

The test set takes no part; the test errors of the chosen graph are only reported.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from export.fold import Layer
from export.graph import Graph
from export.quantise import hidden_activations, largest_sum, quantise
from export.splits import Splits

CALIBRATION_DIGITS = 1000
PERCENTILES = (100.0, 99.99, 99.9)
"""Share of a layer's activations that stays below its ceiling; the others saturate."""


@dataclass(frozen=True)
class Quantisation:
    """An int8 graph, its parameters, and its results on the validation digits."""

    graph: Graph
    percentile: float
    validation_errors: int
    validation_agreement: float

    def describe(self) -> dict[str, float]:
        """Return the `quantisation` entry of the manifest.

        `largest_16_bit_sum` of at most 32,767: predictions are the same on processors with and without VNNI.
        """
        return {
            "largest_16_bit_sum": largest_sum(self.graph),
            "validation_errors": self.validation_errors,
            "validation_agreement": round(self.validation_agreement, 5),
            "percentile": self.percentile,
            "calibration_digits": CALIBRATION_DIGITS,
        }


def choose_quantisation(layers: Sequence[Layer], fp32: Graph, splits: Splits) -> Quantisation:
    """Quantise the layers of `fp32` with each of `PERCENTILES` and return the graph with the fewest validation errors.

    Of equal ones, the one that agrees most often with the fp32 graph.
    """
    candidates = _candidates(layers, fp32, splits)
    return min(candidates, key=lambda each: (each.validation_errors, -each.validation_agreement))


def _candidates(layers: Sequence[Layer], fp32: Graph, splits: Splits) -> Iterator[Quantisation]:
    activations = hidden_activations(fp32, splits.training.images[:CALIBRATION_DIGITS].numpy())
    images, labels = splits.validation.images.numpy(), splits.validation.labels.numpy()
    reference = fp32.logits(images).argmax(1)
    for percentile in PERCENTILES:
        ceilings = [float(np.percentile(activation, percentile)) for activation in activations]
        graph = quantise(layers, ceilings)
        digits = graph.logits(images).argmax(1)
        yield Quantisation(
            graph=graph,
            percentile=percentile,
            validation_errors=int((digits != labels).sum()),
            validation_agreement=float((digits == reference).mean()),
        )

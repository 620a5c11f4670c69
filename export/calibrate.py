"""Choose how the int8 graph is quantised: calibrated on training digits, chosen on validation digits.

The test set has no say here; what a choice costs on it is only reported.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from export.parity import Images, answer, open_session
from export.quantise import hidden_activations, quantise, read_layers

CALIBRATION_DIGITS = 1000


@dataclass(frozen=True)
class Quantisation:
    """One way to quantise, and what it did on the validation digits."""

    percentile: float
    weight_bits: int
    validation_errors: int
    validation_agreement: float
    model: onnx.ModelProto

    def describe(self) -> dict[str, float]:
        return {
            "weight_bits": self.weight_bits,
            "validation_errors": self.validation_errors,
            "validation_agreement": round(self.validation_agreement, 5),
            "percentile": self.percentile,
            "calibration_digits": CALIBRATION_DIGITS,
        }


def choose_quantisation(
    fp32: onnx.ModelProto,
    calibration: Images,
    validation: Images,
    validation_labels: npt.NDArray[np.int64],
) -> Quantisation:
    """Quantise `fp32` in several ways and return the one with the fewest validation errors.

    Ties go to the higher agreement with the fp32 graph. The ways differ in the percentile of each layer's
    activations that saturates, and in the bits of a weight: 7 are there for x86 processors without VNNI,
    where 8 overflow.
    """
    layers = read_layers(fp32)
    reference = answer(open_session(fp32.SerializeToString()), validation).argmax(1)

    def ways() -> Iterator[tuple[float, int, list[float]]]:
        activations = hidden_activations(fp32, calibration[:CALIBRATION_DIGITS])
        for weight_bits in (8, 7):
            for percentile in (100.0, 99.99, 99.9):
                ceilings = [float(np.percentile(activation, percentile)) for activation in activations]
                yield percentile, weight_bits, ceilings

    def candidates() -> Iterator[Quantisation]:
        for percentile, weight_bits, ceilings in ways():
            model = quantise(layers, ceilings, weight_bits=weight_bits)
            digits = answer(open_session(model.SerializeToString()), validation).argmax(1)
            yield Quantisation(
                percentile=percentile,
                weight_bits=weight_bits,
                validation_errors=int((digits != validation_labels).sum()),
                validation_agreement=float((digits == reference).mean()),
                model=model,
            )

    return min(candidates(), key=lambda way: (way.validation_errors, -way.validation_agreement))

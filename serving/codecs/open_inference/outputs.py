"""The outputs requested by an Open Inference Protocol request: which, and in which form.

Unknown parameters, `priority` and `timeout` are ignored, as Triton does for such models: they do not change the
response. A sequence would need state between requests, so it is rejected.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.codecs.base import Prediction, RequestedOutput
from serving.codecs.bodies.pixels import describe
from serving.codecs.errors import InvalidInput, InvalidType
from serving.codecs.open_inference.fields import Object, as_object, flag, parameters_of
from serving.model.repository import ACCEPTANCE_OUTPUTS, ESCALATED, OUTPUTS

SPECS = {spec.name: spec for spec in (*OUTPUTS, *ACCEPTANCE_OUTPUTS, ESCALATED)}
_NAMES = tuple(SPECS)
_SCORES = tuple(spec.name for spec in OUTPUTS)
_DTYPES = {"FP32": np.dtype(np.float32), "BOOL": np.dtype(np.bool_)}

ALL_OUTPUTS = {binary: tuple(RequestedOutput(name, binary) for name in _NAMES) for binary in (False, True)}


def available(requested: Sequence[RequestedOutput], prediction: Prediction) -> Sequence[RequestedOutput]:
    """Return the outputs to send: those requested, or all that the model has.

    Raises `InvalidInput` for a requested one that the model lacks, as those exported by earlier versions do.
    """
    if prediction.escalated is not None:
        return requested
    known = len(OUTPUTS) if prediction.accepted is None else -1
    if requested in ALL_OUTPUTS.values():
        return requested[:known]
    for output in requested:
        if output.name not in _NAMES[:known]:
            reason = (
                "only cascades have it, omit it"
                if output.name == ESCALATED.name
                else "export it again, or omit it"
            )
            raise InvalidInput(f"this model has no output {output.name!r}: {reason}")
    return requested


def tensor_of(prediction: Prediction, name: str) -> NDArray[Any]:
    """Return an output as the protocol sends it, `[N, 10]` or `[N]`."""
    return np.asarray(getattr(prediction, name), _DTYPES[SPECS[name].datatype])


def accepted_images(prediction: Prediction) -> int | None:
    """Return the output parameter `accepted`, the number of images whose prediction is accepted."""
    return None if prediction.accepted is None else prediction.accepted.count(True)


def request_id(document: Object) -> str | None:
    """Return the id that the response repeats. Raises `InvalidType`."""
    found = document.get("id")
    if found is not None and type(found) is not str:
        raise InvalidType(f"id is {describe(found)}; expected a string")
    return found


def requested_outputs(document: Object) -> Sequence[RequestedOutput]:
    """Return the outputs in the order requested, all by default. Raises `RequestError` for an invalid field."""
    parameters = parameters_of(document, "")
    for name in ("sequence_id", "sequence_start", "sequence_end"):
        if parameters.get(name):
            raise InvalidInput(
                f"parameters.{name} is {describe(parameters[name])}; these models keep no state "
                "between requests: omit it"
            )
    binary = flag(parameters, "binary_data_output", "parameters", default=False)
    requested = document.get("outputs")
    if requested is None or requested == []:
        return ALL_OUTPUTS[binary]
    if type(requested) is not list:
        raise InvalidType(f"outputs is {describe(requested)}; expected a list")
    outputs: list[RequestedOutput] = []
    for index, one in enumerate(requested):
        if len(outputs) == len(_NAMES):
            raise InvalidInput(f"outputs has {len(requested)} entries; expected at most {len(_NAMES)}")
        output = _output(as_object(one, f"outputs[{index}]"), f"outputs[{index}]", binary=binary)
        if any(output.name == other.name for other in outputs):
            raise InvalidInput(f"outputs has {output.name!r} twice")
        outputs.append(output)
    return outputs


def _output(one: Object, where: str, *, binary: bool) -> RequestedOutput:
    name = one.get("name")
    if name not in _NAMES:
        raise InvalidInput(f"{where}.name is {describe(name)}; expected {' or '.join(_NAMES)}")
    parameters = parameters_of(one, f"{where}.")
    classes = parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise InvalidType(
            f"{where}.parameters.classification is {describe(classes)}; expected a number of digits"
        )
    if classes and name not in _SCORES:
        raise InvalidInput(
            f"{where}.parameters.classification: {name} has no classes; expected {' or '.join(_SCORES)}"
        )
    binary = flag(parameters, "binary_data", f"{where}.parameters", default=binary)
    return RequestedOutput(name, binary, classes)

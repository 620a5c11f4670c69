"""What an Open Inference Protocol request wants of its answer: its id, which outputs, and in which form.

As Triton does for such models, unknown parameters, `priority` and `timeout` are ignored: they do not change an
answer. A sequence would need state between requests, so it is refused.
"""

from collections.abc import Sequence
from typing import NamedTuple

from serving.codecs.errors import InvalidInput, InvalidType
from serving.codecs.open_inference.fields import Object, as_object, flag, parameters_of
from serving.codecs.pixels import describe
from serving.model.repository import OUTPUTS

_OUTPUTS = tuple(spec.name for spec in OUTPUTS)


class Output(NamedTuple):
    """One output asked for."""

    name: str
    binary: bool
    classes: int = 0
    """0 asks for the tensor itself, more for so many of the likeliest digits as strings."""


class Wishes(NamedTuple):
    """What a request wants of its answer."""

    id: str | None
    outputs: Sequence[Output]


ALL_OUTPUTS = {binary: tuple(Output(name, binary) for name in _OUTPUTS) for binary in (False, True)}


def read_wishes(document: Object) -> Wishes:
    """Raises a `RequestError` for a field that is not what it should be."""
    request_id = document.get("id")
    if request_id is not None and type(request_id) is not str:
        raise InvalidType(f"id is {describe(request_id)}; expected a string")
    parameters = parameters_of(document, "")
    for name in ("sequence_id", "sequence_start", "sequence_end"):
        if parameters.get(name):
            raise InvalidInput(
                f"parameters.{name} is {describe(parameters[name])}; these models keep no state "
                "between requests: leave it out"
            )
    binary = flag(parameters, "binary_data_output", "parameters", default=False)
    asked = document.get("outputs")
    if asked is None or asked == []:
        return Wishes(request_id, ALL_OUTPUTS[binary])
    if type(asked) is not list:
        raise InvalidType(f"outputs is {describe(asked)}; expected a list")
    outputs: list[Output] = []
    for index, one in enumerate(asked):
        if len(outputs) == len(_OUTPUTS):
            raise InvalidInput(
                f"outputs holds {len(asked)}; there are {len(_OUTPUTS)}, each to be asked once"
            )
        output = _output(as_object(one, f"outputs[{index}]"), f"outputs[{index}]", binary=binary)
        if any(output.name == other.name for other in outputs):
            raise InvalidInput(f"outputs asks for {output.name!r} twice")
        outputs.append(output)
    return Wishes(request_id, outputs)


def _output(one: Object, where: str, *, binary: bool) -> Output:
    name = one.get("name")
    if name not in _OUTPUTS:
        raise InvalidInput(f"{where}.name is {describe(name)}; this model gives {' and '.join(_OUTPUTS)}")
    parameters = parameters_of(one, f"{where}.")
    classes = parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise InvalidType(
            f"{where}.parameters.classification is {describe(classes)}; expected how many digits to name"
        )
    return Output(name, flag(parameters, "binary_data", f"{where}.parameters", default=binary), classes)

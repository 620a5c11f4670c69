"""What the parts of an Open Inference Protocol request have in common: objects, and parameters."""

from typing import Any

from serving.codecs.errors import InvalidInput, InvalidType
from serving.codecs.pixels import describe

Object = dict[str, Any]


def as_object(value: Any, where: str) -> Object:
    """The value, which must be a JSON object; `where` names it in the error."""
    if not isinstance(value, dict):
        raise InvalidType(f"{where} is {describe(value)}; expected an object")
    return value


def parameters_of(owner: Object, where: str) -> Object:
    """The parameters of a request, an input or an output, among them none that point outside the body."""
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    found = as_object(parameters, f"{where}parameters")
    if "shared_memory_region" in found:
        raise InvalidInput(
            f"{where}parameters.shared_memory_region: this service has no shared memory; send data in the body"
        )
    return found


def flag(parameters: Object, name: str, where: str, *, default: bool) -> bool:
    """A parameter that is true or false."""
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise InvalidType(f"{where}.{name} is {describe(value)}; expected true or false")
    return value

"""Objects and parameters, common to all parts of an Open Inference Protocol request."""

from typing import Any

from serving.codecs.bodies.pixels import describe
from serving.codecs.errors import InvalidInput, InvalidType

Object = dict[str, Any]


def as_object(value: Any, where: str) -> Object:
    """Return the value, which must be a JSON object; `where` names it in the error."""
    if not isinstance(value, dict):
        raise InvalidType(f"{where} is {describe(value)}; expected an object")
    return value


def parameters_of(owner: Object, where: str) -> Object:
    """Return the parameters of a request, input or output. Raises `InvalidInput` for shared memory."""
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    found = as_object(parameters, f"{where}parameters")
    if "shared_memory_region" in found:
        raise InvalidInput(
            f"{where}parameters.shared_memory_region: shared memory is not supported; send the data in the body"
        )
    return found


def flag(parameters: Object, name: str, where: str, *, default: bool) -> bool:
    """Return a boolean parameter."""
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise InvalidType(f"{where}.{name} is {describe(value)}; expected true or false")
    return value

"""The parameters of Triton's model repository extension, over REST and gRPC.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from collections.abc import Mapping
from typing import Literal

from serving.codecs.bodies.pixels import describe
from serving.codecs.errors import InvalidInput

RepositoryAction = Literal["load", "unload"]


def check_parameters(action: RepositoryAction, parameters: Mapping[str, object]) -> None:
    """Accept `unload_dependents` = false, which Triton's clients send with `unload`. Raises `InvalidInput` for others.

    Triton loads a configuration (`config`) and files (`file:…`) from the request; here they are those of the
    repository.
    """
    for name, value in parameters.items():
        if action == "unload" and name == "unload_dependents":
            if value is False:
                continue
            fix = "send false, or nothing; models are unloaded one by one"
        else:
            fix = "send none: models and their configuration are those of the repository"
        found = f"{len(value):,} bytes" if isinstance(value, bytes) else describe(value)
        raise InvalidInput(f"the parameter {name[:80]!r} is not supported (found {found}); {fix}")

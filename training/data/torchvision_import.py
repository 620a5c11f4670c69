"""Import torchvision, also next to a build of torch that its compiled operators do not match.

With a CPU build of torch and a CUDA build of torchvision, `import torchvision` fails with "operator torchvision::nms
does not exist": its Python code registers shapes for operators that its library, which cannot be loaded, should have
declared. Declaring the two schemas makes the import succeed; only its data sets are used, never these operators.
"""

import importlib
import sys
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # the schemas live as long as the library object


def import_torchvision(submodule: str) -> ModuleType:
    """Return `torchvision.<submodule>`; declare the missing operators if the import fails for lack of them."""
    name = f"torchvision.{submodule}"
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)
    for half_imported in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
        del sys.modules[half_imported]
    return importlib.import_module(name)

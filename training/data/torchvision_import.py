"""Import torchvision, also where its compiled operators do not fit the torch beside it.

A CPU build of torch with the registry's CUDA-linked torchvision refuses `import torchvision` with "operator
torchvision::nms does not exist": its Python code registers shapes for operators that its library, not loaded,
never declared. Declaring the two schemas ourselves lets the import through; we use its data sets, never them.
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
    """Return `torchvision.<submodule>`, declaring the missing operators if that is why it cannot be imported."""
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

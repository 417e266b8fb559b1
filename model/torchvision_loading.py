"""Imports torchvision even where its compiled operators cannot be loaded.

torchvision's published wheels are linked against CUDA. With a CPU build of torch its operators fail to load, and the import then fails at the
shape functions of two detection operators that were never declared. Capstream uses torchvision's networks and weights, but none of its
operators, so it is enough to declare the schemas of these two.
"""

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@functools.cache
def torchvision_models() -> ModuleType:
    """``torchvision.models``.

    Raises:
        ImportError: torchvision is not installed, or does not work with this torch.
    """
    if torch.version.cuda is None and torch.version.hip is None:
        _declare_missing_operators()
    return importlib.import_module("torchvision.models")


def _declare_missing_operators() -> None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return
    for library in Path(spec.submodule_search_locations[0]).glob("_C.*"):
        if library.suffix in (".so", ".pyd", ".dylib"):
            try:
                torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            except OSError:
                continue
            return
    # "FRAGMENT" adds to a namespace that may already be open; the library object must outlive the declarations.
    fragment = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            fragment.define(name + schema)  # type: ignore[no-untyped-call]
    _kept.append(fragment)


_kept: list[torch.library.Library] = []

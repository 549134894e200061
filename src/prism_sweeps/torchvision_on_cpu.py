"""Lets torchvision import beside a CPU-only torch.

The torchvision wheels on PyPI are linked against CUDA. Beside a CPU build of torch their compiled operators do not
load, and `import torchvision` stops with "operator torchvision::nms does not exist", since it registers fake kernels
for two operators that nothing has declared. timm, open_clip and most classes of transformers import torchvision, so
they stop with it. Declaring the two schemas before torchvision runs is all that is needed: transforms then work, and
only the compiled operators (nms, roi_align, ...) stay away.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []  # a torch Library takes its definitions back when it is collected


class TorchvisionFinder(MetaPathFinder):
    """Finds torchvision as usual, and has the missing operators declared right before it runs."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None or spec.origin is None:
            return spec
        folder, run = Path(spec.origin).parent, spec.loader.exec_module

        def declare_and_run(module: ModuleType) -> None:
            declare_missing_operators(folder)
            run(module)

        spec.loader.exec_module = declare_and_run  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Put the finder first on `sys.meta_path`, once. Imports nothing."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())


def declare_missing_operators(folder: Path) -> None:
    """Declare what torchvision in `folder` cannot load itself; nothing where torch has a GPU or its library loads."""
    import torch

    if _declared or torch.version.cuda or torch.version.hip:
        return
    try:
        torch.ops.load_library(str(next(folder.glob("_C*.so"))))
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            library.define(schema)
        _declared.append(library)

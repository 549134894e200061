"""Controlled grids over vision-language-model design choices: plan, run, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prism_sweeps.torchvision_on_cpu import install

if TYPE_CHECKING:
    from prism_sweeps.interop.model import Model

install()


def load(folder: Path | str, device: str = "auto", precision: str | None = None) -> Model:
    """The model in a folder that `prism export --format prism` or `prism import` wrote; it needs no store and no hub.

    `model.ask(image, question)` answers, `model.vlm` is the torch module. `device` is torch's name of one, or auto: the
    GPU where there is one. `precision` (fp32, bf16) is by default the one it was scored in. Raises ConfigError or
    StoreError for a folder that is none, or not whole.
    """
    from prism_sweeps.interop import prism  # torch takes seconds to import

    return prism.load(folder, device, precision)

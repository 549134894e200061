"""Where a model is computed."""

from __future__ import annotations

import os

import torch

from prism_sweeps.config.schema import Engine


def device_of(engine: Engine) -> torch.device:
    """The device that the engine names; `auto` is the GPU where there is one."""
    if engine.device == "cpu" or (engine.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    # Batches of changing lengths would leave memory in pieces that fit nothing. Read when a GPU is first used.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    return torch.device("cuda" if engine.device == "auto" else engine.device)

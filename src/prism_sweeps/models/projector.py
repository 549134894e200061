"""From patch features to the language model's width, each patch by itself (prismatic facts §1.4)."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import PROJECTORS, Projector


def build_projector(projector: Projector, vision_width: int, llm_width: int) -> nn.Module:
    """features_BPV -> embeddings_BPD, with torch's default initialisation from the current generator.

    linear: Linear(V,D). mlp: Linear(V,D) GELU Linear(D,D). fused-mlp: Linear(V,4V) GELU Linear(4V,D) GELU Linear(D,D).
    """
    if projector.kind not in PROJECTORS:
        raise ConfigError(f"projector: unknown kind '{projector.kind}'; {nearest(projector.kind, PROJECTORS)}")
    inner = {"linear": [], "mlp": [llm_width], "fused-mlp": [4 * vision_width, llm_width]}[projector.kind]
    widths = [vision_width, *inner, llm_width]
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for width_in, width_out in pairwise(widths[1:]):
        layers += [nn.GELU(), nn.Linear(width_in, width_out)]
    return nn.Sequential(*layers)

"""From patch features to the language model's width, each patch by itself (prismatic-vlms, util/nn_utils.py)."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from prism_sweeps.config.schema import Projector
from prism_sweeps.config.shapes import projector_widths


def build_projector(projector: Projector, vision_width: int, llm_width: int) -> nn.Module:
    """features_BPV -> embeddings_BPD, with torch's default initialisation from the current generator.

    linear: Linear(V,D). mlp: Linear(V,h) GELU Linear(h,D). fused-mlp: Linear(V,h) GELU Linear(h,D) GELU Linear(D,D).
    Raises ConfigError for widths that do not fit the kind.
    """
    widths = projector_widths(projector, vision_width, llm_width)
    layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for width_in, width_out in pairwise(widths[1:]):
        layers += [nn.GELU(), nn.Linear(width_in, width_out)]
    return nn.Sequential(*layers)


def projector_seed(projector: Projector, vision_width: int, seed: int) -> int:
    """Where its first weights are drawn from: `seed`, or the towers' width.

    The latter is the reference's way: it seeds torch with the width before it builds the projector, so its runs all
    begin with the same one, whatever their seed.
    """
    return vision_width if projector.drawn_from == "vision-width" else seed

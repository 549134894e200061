"""Shapes that follow from the config alone, for whoever builds the layers and whoever only counts them."""

from __future__ import annotations

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import PROJECTORS, LanguageModel, Projector

KNOWN = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "olmo2", "smollm3", "phi", "phi3")
"""Architectures whose linear layers are known here; all but the phis have Llama's, under Llama's names."""

Layers = dict[str, tuple[int, int]]
"""Name of a linear layer -> its width in and its width out."""


def projector_widths(projector: Projector, vision: int, llm: int) -> list[int]:
    """Channels from the vision features to the language model's, those between the layers included.

    linear: V D. mlp: V h D. fused-mlp: V h D D. h is `hidden`, or as published (prismatic-vlms, util/nn_utils.py): D
    for mlp, 4V for fused-mlp. Raises ConfigError for an unknown kind, and for a linear projector with a hidden width.
    """
    if projector.kind not in PROJECTORS:
        raise ConfigError(
            f"projector={projector.name}: unknown kind '{projector.kind}'; {nearest(projector.kind, PROJECTORS)}"
        )
    if projector.kind == "linear":
        if projector.hidden is not None:
            raise ConfigError(
                f"projector={projector.name}: hidden is {projector.hidden}, but a linear one has no hidden layer; "
                "leave it null, or take kind mlp or fused-mlp"
            )
        return [vision, llm]
    published = {"mlp": llm, "fused-mlp": 4 * vision}[projector.kind]
    hidden = published if projector.hidden is None else projector.hidden
    return [vision, hidden, llm] if projector.kind == "mlp" else [vision, hidden, llm, llm]


def head_width(llm: LanguageModel) -> int:
    """Channels of one attention head; some models state more than their width divided among the heads."""
    return int(llm.config.get("head_dim") or llm.width // llm.heads)


def linear_layers(llm: LanguageModel) -> Layers:
    """The linear layers of one block of the language model; an architecture that is not KNOWN is taken for a Llama."""
    head, queries = head_width(llm), llm.heads * head_width(llm)
    keys = llm.kv_heads * head
    out, up, down = (queries, llm.width), (llm.width, llm.mlp_width), (llm.mlp_width, llm.width)
    if llm.architecture == "phi3":
        twice = (llm.width, 2 * llm.mlp_width)
        return {"qkv_proj": (llm.width, queries + 2 * keys), "o_proj": out, "gate_up_proj": twice, "down_proj": down}
    attention = {"q_proj": (llm.width, queries), "k_proj": (llm.width, keys), "v_proj": (llm.width, keys)}
    if llm.architecture == "phi":
        return {**attention, "dense": out, "fc1": up, "fc2": down}
    return {**attention, "o_proj": out, "gate_proj": up, "up_proj": up, "down_proj": down}

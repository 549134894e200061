"""Attention within each document of a packed row, for any transformers model whose attention can be exchanged.

transformers makes masks only for implementations that it knows a mask of. Ours have none, so it neither builds a dense
mask nor looks, waiting for the device, whether positions restart: what a kernel needs to know of a batch is worked out
once, where the base model is entered, and handed down to its layers in place of `documents`.

Shapes: H heads, J <= H heads of keys and values, S positions of the row, K channels of a head, D documents,
L positions of one, N blocks of positions.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import ATTENTIONS
from prism_sweeps.models.batch import Documents

ROWS = "prism-rows"
"""What our attention on padded rows is called in transformers."""
BLOCK = 128
"""Positions that FlexAttention computes or skips together (its default)."""
WIDEST_HEAD = 256
"""Channels of a head, as far as FlashAttention 2 goes; they come in eights."""
AMPERE = (8, 0)
"""The first GPUs that FlashAttention 2 runs on."""
LAYER_TYPES = ("full_attention", "sliding_attention")
"""What transformers calls the layers that see other positions through attention as it is computed here."""
UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")
"""Arguments of transformers' attention that change scores in ways no kernel here does; s_aux are attention sinks."""


def use_packed_attention(
    llm: PreTrainedModel, kernel: str, device: torch.device, dtype: torch.dtype | None = None
) -> str:
    """Let `llm` take packed rows: `llm.base_model(inputs_embeds=, position_ids=, use_cache=False, documents=)`.

    The batch is one row (1, S, channels), `documents` a `Documents` whose lengths sum up to S, and no attention mask is
    given. `kernel` is one of `schema.ATTENTIONS`, `dtype` what is computed in (None: the model's own). Returns the
    kernel that auto has become. `llm.set_attn_implementation("sdpa")` takes it back, e.g. to generate.

    Raises ConfigError for a kernel that cannot run on `device`, and for a model whose attention these kernels would
    compute otherwise than it does: dropout, capped scores, no causal order, layers that carry a state along.
    """
    if kernel not in ATTENTIONS:
        raise ConfigError(f"there is no attention '{kernel}'; {nearest(kernel, ATTENTIONS)}")
    if reason := _unfit(llm):
        raise ConfigError(f"{type(llm).__name__} cannot be trained on packed rows: {reason}; choose another batching")
    chosen = _choose(kernel, device, dtype or llm.dtype, _head_width(llm))
    AttentionInterface.register(KERNELS[chosen].registered, KERNELS[chosen].attention)
    llm.set_attn_implementation(KERNELS[chosen].registered)
    if _hand_down not in llm.base_model._forward_pre_hooks.values():
        llm.base_model.register_forward_pre_hook(_hand_down, with_kwargs=True)
    return chosen


def use_padded_rows(llm: PreTrainedModel) -> None:
    """Let `llm` take rows padded on the right without a look at them: causal attention never sees the padding.

    It is torch's own as before, but transformers no longer asks the device in every pass whether positions restart. A
    model with a window keeps its masks, and asks.
    """
    config = llm.config.get_text_config()
    if llm._supports_attention_backend and not getattr(config, "sliding_window", None):
        AttentionInterface.register(ROWS, sdpa_attention_forward)
        llm.set_attn_implementation(ROWS)


def _unfit(llm: PreTrainedModel) -> str | None:
    """Why a model's attention would not be what it is meant to be."""
    config = llm.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - set(LAYER_TYPES)
    if llm._is_stateful or others:
        return f"it has layers other than attention over all or a window ({', '.join(sorted(others)) or 'a state'})"
    if not (llm._supports_attention_backend and llm._supports_flash_attn and llm._can_set_attn_implementation()):
        return "transformers does not let its attention be exchanged or hands it no keyword arguments"
    if getattr(config, "attn_logit_softcapping", None):
        return f"it caps the scores of its attention (attn_logit_softcapping={config.attn_logit_softcapping})"
    if getattr(config, "attention_dropout", 0.0):
        return f"it drops out attention (attention_dropout={config.attention_dropout}); 0 would be right"
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        return "it looks ahead, and attention here is causal"
    # A few models put their window into the mask alone, where it would be lost.
    if getattr(config, "sliding_window", None) and "sliding_window=" not in inspect.getsource(
        sys.modules[type(llm.base_model).__module__]
    ):
        return f"its attention is not told of its window (sliding_window={config.sliding_window})"
    return None


def _head_width(llm: PreTrainedModel) -> int:
    config = llm.config.get_text_config()
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _choose(kernel: str, device: torch.device, dtype: torch.dtype, head_width: int) -> str:
    if kernel == "auto":
        names = ("varlen", "flex") if device.type == "cuda" else ()
        return next((name for name in names if not _obstacle(name, device, dtype, head_width)), "by-document")
    if reason := _obstacle(kernel, device, dtype, head_width):
        raise ConfigError(
            f"attention '{kernel}' {reason}; 'auto' takes what is fastest, 'by-document' runs on any device"
        )
    return kernel


def _obstacle(kernel: str, device: torch.device, dtype: torch.dtype, head_width: int) -> str | None:
    """Why a kernel cannot run there."""
    if kernel == "by-document":
        return None
    if device.type != "cuda":
        return f"needs a GPU, and this is '{device}'"
    if kernel == "flex":
        return None
    if kernel == "flash" and not importlib.util.find_spec("flash_attn"):
        return "needs the package flash-attn, which is not installed"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"computes in 16 bits, and precision is {str(dtype).removeprefix('torch.')}; bf16 would be right"
    if head_width > WIDEST_HEAD or head_width % 8:
        return f"takes heads of 8, 16, ... {WIDEST_HEAD} channels, and the model's have {head_width}"
    if (found := torch.cuda.get_device_capability(device)) < AMPERE:
        return f"needs a GPU of compute capability {AMPERE[0]}.{AMPERE[1]}, and this has {found[0]}.{found[1]}"
    return None


def _hand_down(base: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, Any] | None:
    """Before the base model runs: `documents` in the form its kernel takes, once a batch instead of in each layer."""
    kernel = next((one for one in KERNELS.values() if one.registered == base.config._attn_implementation), None)
    if kernel is None:
        return None
    documents, embeds_1SC = keywords.get("documents"), keywords.get("inputs_embeds")
    if not isinstance(documents, Documents):
        raise ValueError(
            "a model set to packed rows is called without `documents`; set_attn_implementation('sdpa') makes it take "
            "rows with a mask again"
        )
    if embeds_1SC is not None and embeds_1SC.shape[:2] != (1, sum(documents.lengths)):
        raise ValueError(
            f"documents of {sum(documents.lengths)} positions in sum go with one row of as many, not with "
            f"{' x '.join(map(str, embeds_1SC.shape[:2]))}"
        )
    return arguments, {**keywords, "documents": kernel.layout(documents, base.config)}


Attend = Callable[[Tensor, Tensor, Tensor, Any, float | None, int | None], Tensor]
"""query_1HSK, key_1JSK, value_1JSK, layout, scale, window -> out_1SHK."""


@dataclass(frozen=True)
class Kernel:
    registered: str
    """Its name in transformers, which takes names with 'flash' or 'flex_attention' for its own."""
    layout: Callable[[Documents, Any], Any]
    """Documents, config -> what `attend` is told of the batch."""
    attend: Attend

    def attention(
        self,
        module: nn.Module,
        query_1HSK: Tensor,
        key_1JSK: Tensor,
        value_1JSK: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        documents: Any = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """As transformers calls it."""
        if documents is None:
            raise ConfigError(f"{type(module).__name__} is not told of documents: the model keeps keyword arguments")
        if attention_mask is not None or dropout or not others.get("is_causal", True):
            raise ConfigError(f"{type(module).__name__}: packed rows know no mask of their own, dropout or look ahead")
        if unknown := [name for name in UNKNOWN_TERMS if others.get(name) is not None]:
            raise ConfigError(f"{type(module).__name__}: packed rows are computed without {', '.join(unknown)}")
        # Under autocast rotation leaves queries and keys in fp32, and no kernel mixes types.
        query_1HSK, key_1JSK = query_1HSK.to(value_1JSK.dtype), key_1JSK.to(value_1JSK.dtype)
        return self.attend(query_1HSK, key_1JSK, value_1JSK, documents, scaling, sliding_window), None


# A graph that is compiled with the lengths in it would be compiled anew for each batch.
@torch.compiler.disable
def _by_document(
    query_1HSK: Tensor,
    key_1JSK: Tensor,
    value_1JSK: Tensor,
    documents: Documents,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """One call a document. Splitting keeps backward from writing a row of zeros for each, as slicing does."""
    parts = zip(*(each.split(documents.lengths, dim=2) for each in (query_1HSK, key_1JSK, value_1JSK)), strict=True)
    outs = [_causal(*part, scale, window).transpose(1, 2) for part in parts]
    return torch.cat(outs, dim=1)


def _causal(
    query_1HLK: Tensor, key_1JLK: Tensor, value_1JLK: Tensor, scale: float | None, window: int | None
) -> Tensor:
    """Over one document. Where it is longer than the window: a window of queries at a time, and the keys they see."""
    length = query_1HLK.shape[2]
    attend = functools.partial(F.scaled_dot_product_attention, scale=scale, enable_gqa=True)
    if window is None or length <= window:
        return attend(query_1HLK, key_1JLK, value_1JLK, is_causal=True)
    outs = [attend(*(each[:, :, :window] for each in (query_1HLK, key_1JLK, value_1JLK)), is_causal=True)]
    for start in range(window, length, window):
        stop, first = min(start + window, length), start - window + 1
        band = _band(window, query_1HLK.device)[: stop - start, : stop - first]
        keys, values = key_1JLK[:, :, first:stop], value_1JLK[:, :, first:stop]
        outs.append(attend(query_1HLK[:, :, start:stop], keys, values, attn_mask=band))
    return torch.cat(outs, dim=2)


@functools.lru_cache(maxsize=4)
def _band(window: int, device: torch.device) -> Tensor:
    """Which keys a window of queries sees, of the window - 1 before the first of them and their own."""
    return torch.ones(window, 2 * window - 1, dtype=torch.bool, device=device).triu().tril(window - 1)


def _flex(
    query_1HSK: Tensor,
    key_1JSK: Tensor,
    value_1JSK: Tensor,
    masks: dict[int | None, BlockMask],
    scale: float | None,
    window: int | None,
) -> Tensor:
    attend = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    # Rows shorter than a block would go to a kernel that takes only groups of 2, 4, 8, ... heads.
    options = {"FORCE_USE_FLEX_ATTENTION": True}
    out_1HSK = attend(
        query_1HSK, key_1JSK, value_1JSK, block_mask=masks[window], scale=scale, enable_gqa=True, kernel_options=options
    )
    return out_1HSK.transpose(1, 2)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


def _block_masks(documents: Documents, config: Any) -> dict[int | None, BlockMask]:
    return {window: block_mask(documents.index_S, window) for window in (None, getattr(config, "sliding_window", None))}


def block_mask(index_S: Tensor, window: int | None) -> BlockMask:
    """FlexAttention's mask of documents numbered by `index_S` (int, never falling), over `window` positions each.

    torch's create_block_mask looks at all S x S pairs; here the ends of the blocks say it, without waiting for them.
    """
    length = len(index_S)
    first_N = torch.arange(0, length, BLOCK, device=index_S.device)
    last_N = (first_N + BLOCK - 1).clamp(max=length - 1)
    begin_N, end_N = index_S[first_N], index_S[last_N]
    seen_NN = (first_N[:, None] >= first_N) & (begin_N[:, None] <= end_N)
    # Queries beyond the row must stay masked, so a block that it ends in is never looked at whole.
    whole_NN = (first_N[:, None] > first_N) & (end_N[:, None] == begin_N) & (first_N[:, None] + BLOCK <= length)
    if window is not None:
        seen_NN &= first_N[:, None] - last_N < window
        whole_NN &= last_N[:, None] - first_N < window

    def inside(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (query >= key) & (index_S[query] == index_S[key])
        return near if window is None else near & (query - key < window)

    return BlockMask.from_kv_blocks(
        *_listed(seen_NN & ~whole_NN),
        *_listed(whole_NN),
        BLOCK_SIZE=BLOCK,
        mask_mod=inside,
        seq_lengths=(length, length),
    )


def _listed(blocks_NN: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries looks at, and which, these first."""
    order_NN = blocks_NN.int().argsort(dim=-1, descending=True, stable=True)
    return blocks_NN.sum(dim=-1).int()[None, None], order_NN.int()[None, None]


def _varlen(
    query_1HSK: Tensor, key_1JSK: Tensor, value_1JSK: Tensor, starts_D: Tensor, scale: float | None, window: int | None
) -> Tensor:
    """torch's FlashAttention 2."""
    attend = functools.partial(varlen_attn, scale=scale, enable_gqa=True)
    return _between_starts(attend, (query_1HSK, key_1JSK, value_1JSK), starts_D, window)


def _flash(
    query_1HSK: Tensor, key_1JSK: Tensor, value_1JSK: Tensor, starts_D: Tensor, scale: float | None, window: int | None
) -> Tensor:
    """The package's, which takes grouped heads as they are."""
    from flash_attn import flash_attn_varlen_func

    attend = functools.partial(flash_attn_varlen_func, softmax_scale=scale, causal=True)
    return _between_starts(attend, (query_1HSK, key_1JSK, value_1JSK), starts_D, window)


def _between_starts(
    attend: Callable[..., Tensor], heads: tuple[Tensor, ...], starts_D: Tensor, window: int | None
) -> Tensor:
    """Lengths are bounded by S: the longest would be a number to compile anew for."""
    row, longest = (each[0].transpose(0, 1) for each in heads), heads[0].shape[2]
    # These kernels count the positions before a query, transformers counts the query too.
    sides = (-1 if window is None else window - 1, 0)
    return attend(*row, starts_D, starts_D, longest, longest, window_size=sides)[None]


def _as_it_is(documents: Documents, config: Any) -> Documents:
    return documents


def _starts(documents: Documents, config: Any) -> Tensor:
    return documents.starts_D


KERNELS = {
    "by-document": Kernel("packed-by-document", _as_it_is, _by_document),
    "flex": Kernel("packed-in-blocks", _block_masks, _flex),
    "varlen": Kernel("packed-varlen", _starts, _varlen),
    "flash": Kernel("packed-dao", _starts, _flash),
}

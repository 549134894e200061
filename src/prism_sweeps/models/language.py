"""Causal language models and their tokenizers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import LanguageModel
from prism_sweeps.models.weights import HUB_ID, OFFLINE, check_shape, locate, private_seed

SHAPE = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "tied_embeddings": "tie_word_embeddings",
}
SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def load_language_model(llm: LanguageModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The causal LM in `dtype`, on the CPU, with SDPA attention where it has that.

    `random:SEED` is a Llama of the stated shape with random weights. Raises ConfigError for weights that are missing
    and for a stated shape that is not the model's.
    """
    place = _place(llm)
    if isinstance(place, int):
        with private_seed(place):
            return LlamaForCausalLM(_llama_config(llm)).to(dtype)
    bars = logging.is_progress_bar_enabled()
    if llm.weights.startswith("zoo:"):
        logging.disable_progress_bar()  # loaded before one could be read
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(_cannot_load(llm, "weights", error)) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    _check(llm, model)
    return model


def load_tokenizer(llm: LanguageModel) -> PreTrainedTokenizerFast:
    """The model's tokenizer, which has to be a fast one (offsets into the text are needed).

    `random:SEED` has a tokenizer of single bytes, with <s>, </s> and a chat template.
    """
    place = _place(llm)
    if isinstance(place, int):
        return byte_tokenizer()
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(_cannot_load(llm, "tokenizer", error)) from error
    if not tokenizer.is_fast:
        raise ConfigError(f"language model '{llm.name}': its tokenizer has no fast version (tokenizer.json)")
    if len(tokenizer) > llm.vocabulary:
        raise ConfigError(
            f"language model '{llm.name}': the tokenizer has {len(tokenizer)} tokens, the model {llm.vocabulary}"
        )
    return tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, after <s> (0) and </s> (1)."""
    specials = ["<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHAT
    return fast


def _place(llm: LanguageModel) -> int | Path | str:
    place = locate(llm.weights, f"language model '{llm.name}'")
    if isinstance(place, Path) and not (place / "config.json").is_file():
        raise ConfigError(f"language model '{llm.name}': '{place}' should be a folder with config.json")
    if place is None and not HUB_ID.fullmatch(llm.weights):
        raise ConfigError(
            f"language model '{llm.name}': weights '{llm.weights}' do not exist; "
            "give zoo:FOLDER, a local folder or a hub id (ORGANISATION/NAME)"
        )
    return llm.weights if place is None else place


def _cannot_load(llm: LanguageModel, what: str, error: Exception) -> str:
    text = f"language model '{llm.name}': the {what} of '{llm.weights}' cannot be loaded: {error}"
    if "gated" in str(error).lower() or "401" in str(error):
        return f"{text}\nAccept its licence on the hub, then `hf auth login` with that account"
    return text if Path(llm.weights).exists() or llm.weights.startswith("zoo:") else f"{text}\n{OFFLINE}"


def _check(llm: LanguageModel, model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    stated = {field: getattr(llm, field) for field in SHAPE}
    check_shape(f"language model '{llm.name}'", stated, {f: getattr(config, name, None) for f, name in SHAPE.items()})
    for name in SCALED_LOGITS:
        if getattr(config, name, None) not in (None, 1.0):
            raise ConfigError(
                f"language model '{llm.name}' changes its logits after the head ({name}={getattr(config, name)}), "
                "which the loss on supervised positions does not do"
            )


def _llama_config(llm: LanguageModel) -> LlamaConfig:
    shape = {name: getattr(llm, field) for field, name in SHAPE.items()}
    return LlamaConfig(**shape, bos_token_id=0, eos_token_id=1)

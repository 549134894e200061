"""Causal language models and their tokenizers."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from prism_sweeps.config.errors import ConfigError, nearest
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
ROTARY = "partial_rotary_factor"
TEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
SAFETENSORS = "model*.safetensors"
PICKLED = "pytorch_model*.bin"
"""How older repositories keep weights (Vicuna has no others); read without running what they may hold."""
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def load_language_model(llm: LanguageModel, dtype: torch.dtype | None = torch.float32) -> PreTrainedModel:
    """The causal LM in `dtype` (None: that of its files), on the CPU, with SDPA attention where it has that.

    The model is built without memory and its tensors are mapped from the files: in the dtype of the files nothing is
    copied, in another one tensor at a time is converted (benchmarks/loading.py measures it). `random:SEED` has random
    weights. Raises ConfigError for weights that are missing, broken or another model's, and for a stated shape that is
    not the model's.
    """
    place = _place(llm)
    if isinstance(place, int):
        with private_seed(place):
            model = AutoModelForCausalLM.from_config(language_config(llm), dtype=torch.float32)
            return model.to(dtype or torch.float32)
    folder = place if isinstance(place, Path) else _snapshot(llm)
    _check_config(llm, folder)
    model, report = _read(llm, folder, dtype)
    _check_report(llm, report)
    _check_ties(llm, model)
    return model


def language_config(llm: LanguageModel) -> PretrainedConfig:
    """The config that transformers would read beside the weights, from the stated shape alone.

    What does not shape the model (rotary base, initialisation) is that architecture's default. Raises ConfigError for
    an architecture that is no causal LM and for fields that its config has not.
    """
    owner = f"language model '{llm.name}'"
    if llm.architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hint = nearest(llm.architecture, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise ConfigError(f"{owner}: architecture '{llm.architecture}' is no causal LM of transformers; {hint}")
    shape = {name: getattr(llm, field) for field, name in SHAPE.items()}
    known = AutoConfig.for_model(llm.architecture)
    unknown = [name for name in llm.config if not hasattr(known, name) and name != ROTARY]
    if unknown:
        raise ConfigError(
            f"{owner}: a {llm.architecture} config has no '{unknown[0]}'; {nearest(unknown[0], known.to_dict())}"
        )
    # of the tokens only the ends are known, and a padding token outside a small vocabulary would not embed
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    return AutoConfig.for_model(llm.architecture, **{**tokens, **shape, **llm.config})


def empty_language_model(llm: LanguageModel) -> PreTrainedModel:
    """The model on the meta device: every shape, no memory. Raises ConfigError like `language_config`."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(language_config(llm))


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
    # Gemma 3's has a special token, for images, beyond the rows of its text model; data never hold special tokens
    specials = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    needed = [i for i in tokenizer.get_vocab().values() if i not in specials]
    needed += [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None]
    if max(needed) >= llm.vocabulary:
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


def _snapshot(llm: LanguageModel) -> Path:
    """The folder of a hub id; what is not there yet is downloaded, one kind of weights only."""
    try:
        folder = Path(snapshot_download(llm.weights, allow_patterns=[*TEXT_FILES, SAFETENSORS]))
        if not any(folder.glob(SAFETENSORS)):
            snapshot_download(llm.weights, allow_patterns=[PICKLED])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(_cannot_load(llm, "weights", error)) from error
    if not (folder / "config.json").is_file():
        raise ConfigError(_cannot_load(llm, "weights", FileNotFoundError(f"'{folder}' has no config.json")))
    return folder


def _read(llm: LanguageModel, folder: Path, dtype: torch.dtype | None) -> tuple[PreTrainedModel, dict[str, Any]]:
    bars = logging.is_progress_bar_enabled()
    if llm.weights.startswith("zoo:"):
        logging.disable_progress_bar()  # loaded before one could be read
    pickled = not any(folder.glob(SAFETENSORS)) and any(folder.glob(PICKLED))
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of the keys would only repeat the error raised here
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            use_safetensors=not pickled,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ConfigError(_cannot_load(llm, "weights", _torn(folder) or error)) from error
    finally:
        logging.set_verbosity(said)
        if bars:
            logging.enable_progress_bar()


def _torn(folder: Path) -> Exception | None:
    """The error of the first safetensors file that is not whole, with its name, which the library leaves out."""
    for file in sorted(folder.glob(SAFETENSORS)):
        try:
            with safe_open(file, "pt"):
                continue
        except SafetensorError as error:
            return SafetensorError(f"'{file}' is not a whole safetensors file ({error}); fetch or write it again")
    return None


def _cannot_load(llm: LanguageModel, what: str, error: Exception) -> str:
    text = f"language model '{llm.name}': the {what} of '{llm.weights}' cannot be loaded: {error}"
    if "gated" in str(error).lower() or "401" in str(error):
        return f"{text}\nAccept its licence on the hub, then `hf auth login` with that account"
    on_hub = HUB_ID.fullmatch(llm.weights) and not Path(llm.weights).exists()
    return f"{text}\n{OFFLINE}" if on_hub else text


def _check_config(llm: LanguageModel, folder: Path) -> None:
    """Compare what is stated with config.json, before any weights are read."""
    owner = f"language model '{llm.name}'"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(_cannot_load(llm, "config", error)) from error
    stated = {"architecture": llm.architecture, **{field: getattr(llm, field) for field in SHAPE}, **llm.config}
    names = {"architecture": "model_type", **SHAPE}
    check_shape(owner, stated, {field: _field(config, names.get(field, field)) for field in stated})
    for name in SCALED_LOGITS:
        if getattr(config, name, None) not in (None, 1.0):
            raise ConfigError(
                f"{owner} changes its logits after the head ({name}={getattr(config, name)}), "
                "which the loss on supervised positions does not do"
            )


def _field(config: PretrainedConfig, name: str) -> Any:
    if name == ROTARY:  # transformers 5 moves it in with the other rotary parameters
        return (getattr(config, "rope_parameters", None) or {}).get(name, getattr(config, name, None))
    return getattr(config, name, None)


def _check_report(llm: LanguageModel, report: dict[str, Any]) -> None:
    """Raise ConfigError unless the files held exactly the model's tensors."""
    said = [
        f"{len(report[kind])} tensors {what}, e.g. {sorted(map(str, report[kind]))[0]}"
        for kind, what in (
            ("missing_keys", "are missing"),
            ("unexpected_keys", "are not the model's"),
            ("mismatched_keys", "have another shape than config.json says"),
        )
        if report[kind]
    ]
    if said or report["error_msgs"]:
        raise ConfigError(
            f"language model '{llm.name}': '{llm.weights}' does not hold the model that its config.json describes: "
            f"{'; '.join(said or list(report['error_msgs'])[:1])}; fetch the folder again, or write its weights and "
            "config.json together"
        )


def _check_ties(llm: LanguageModel, model: PreTrainedModel) -> None:
    """A head of its own beside an embedding that config.json says it shares: transformers would keep both."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tied != llm.tied_embeddings:
        raise ConfigError(
            f"language model '{llm.name}': tied_embeddings is {llm.tied_embeddings}, but in '{llm.weights}' the head "
            f"{'is' if tied else 'is not'} the embedding; the weights and tie_word_embeddings of config.json must agree"
        )

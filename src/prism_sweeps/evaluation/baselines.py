"""Finished models of others, loaded to be asked: by transformers (`hf:`) or by vLLM (`vllm:`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prism_sweeps.config.baselines import content_of, split
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import BaselineSpec
from prism_sweeps.evaluation.loading import DTYPES
from prism_sweeps.evaluation.requests import Answerer
from prism_sweeps.models.device import device_of

_last: dict[tuple[str, str, str, str, int], Answerer] = {}
"""The model loaded last: all benchmarks of one model follow each other."""


def answerer_of(spec: BaselineSpec, engine: Engine) -> Answerer:
    """The model that `spec` names, ready to be asked; the one loaded last in this process is kept.

    Raises ConfigError for files that are not those planned, and for what is no model for images and text.
    """
    key = (spec.model, spec.content, spec.precision, str(device_of(engine)), engine.eval_batch)
    if key not in _last:
        _last.clear()
        found = content_of(spec.model)
        if found != spec.content:
            raise ConfigError(
                f"{spec.model}: its files are not those that were planned ({spec.content[:20]}, now {found[:20]}); to "
                "score what is there now, give prism evaluate the same model once more"
            )
        _last[key] = load(spec, engine)
    return _last[key]


def load(spec: BaselineSpec, engine: Engine) -> Answerer:
    """The model, loaded. Raises ConfigError."""
    scheme, name = split(spec.model)
    source = Source(name, None if spec.content.startswith("sha256:") else spec.content)
    if scheme == "vllm":
        from prism_sweeps.evaluation.vllm_model import load_vllm

        return load_vllm(source.name, source.revision, load_processor(source), spec.precision, engine)
    from prism_sweeps.evaluation.hf_model import HFModel

    model = load_model(source, DTYPES[spec.precision], device_of(engine))
    return HFModel(model, load_processor(source), engine.eval_batch)


@dataclass(frozen=True)
class Source:
    """A folder, or a name on the hub with the commit that is meant."""

    name: str
    revision: str | None

    @property
    def arguments(self) -> dict[str, Any]:
        """What every `from_pretrained` gets. Code that comes with a model is never run."""
        return {"trust_remote_code": False} | ({} if self.revision is None else {"revision": self.revision})


def load_model(source: Source, dtype: torch.dtype, device: torch.device) -> Any:
    """The model on its device. Raises ConfigError for what transformers cannot load whole, from safetensors alone."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(source.name, **source.arguments)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{source.name}: {one_line(error)}; only model types of transformers itself are run"
        ) from error
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ConfigError(
            f"{source.name} is of type '{config.model_type}', which takes no images with text; a model for "
            "AutoModelForImageTextToText is meant (llava, qwen2_vl, instructblip, smolvlm, paligemma, ...)"
        )
    try:
        model, told = AutoModelForImageTextToText.from_pretrained(
            source.name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **source.arguments
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"{source.name}: its weights cannot be loaded: {one_line(error)}. They must be whole and in safetensors "
            "files; of others load them yourself once and call save_pretrained(FOLDER)"
        ) from error
    if told["missing_keys"]:
        missing = sorted(told["missing_keys"])
        raise ConfigError(f"{source.name}: its weights lack {len(missing)} tensors, {missing[0]} among them")
    return model.to(device)


def load_processor(source: Source) -> Any:
    """The model's processor. Raises ConfigError where there is none for images and text."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(source.name, **source.arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{source.name}: its processor cannot be loaded: {one_line(error)}; {WANTED}") from error
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
        raise ConfigError(
            f"{source.name} has a {type(processor).__name__} but no processor for images and text; {WANTED}"
        )
    return processor


WANTED = (
    "save the processor beside the weights: AutoProcessor.from_pretrained(ORIGINAL).save_pretrained(FOLDER), which "
    "writes processor_config.json and the tokenizer's files"
)


def one_line(error: Exception) -> str:
    """The first line of what a library says."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)

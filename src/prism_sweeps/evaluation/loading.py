"""A trained model with all that is needed to ask it something."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from prism_sweeps.config.errors import StoreError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.evaluation.steps import Compiled
from prism_sweeps.models.device import device_of
from prism_sweeps.models.language import load_tokenizer
from prism_sweeps.models.prompts import PromptFormat, prompt_format
from prism_sweeps.models.resize import ImageTransform, image_transform
from prism_sweeps.models.trained import load_trained, trained_modules
from prism_sweeps.models.vlm import VLM, build_vlm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-true": torch.bfloat16}
# The projector's seed: it is overwritten, since every stage saves the projector.
ANY_SEED = 0

_last: dict[tuple[Path, str, torch.device], LoadedModel] = {}
"""The model loaded last: a worker's jobs are sorted so that all benchmarks of one model follow each other."""


@dataclass(frozen=True)
class LoadedModel:
    vlm: VLM
    """In evaluation mode, on its device, in the precision asked for."""
    prompts: PromptFormat
    transform: ImageTransform
    text_positions: int
    """Positions the language model has besides those of an image."""

    @property
    def device(self) -> torch.device:
        return next(self.vlm.parameters()).device

    @functools.cached_property
    def compiled(self) -> Compiled:
        """Kept with the model, since compiling takes longer than many a benchmark."""
        return Compiled()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vlm.parameters()).dtype


def load_model(spec: ModelSpec, weights: Path, precision: str, engine: Engine) -> LoadedModel:
    """The model with the trained `weights` of a stage; the one loaded last in this process is kept.

    Raises StoreError for weights that are missing, incomplete or of another model, ConfigError for pretrained parts
    that cannot be had.
    """
    key = (weights, precision, device_of(engine))
    if key not in _last:
        _last.clear()
        _last[key] = load(spec, weights, precision, device_of(engine))
    return _last[key]


def forget() -> None:
    """Lets go of the model loaded last: what comes next needs its memory."""
    _last.clear()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def load(spec: ModelSpec, weights: Path, precision: str, device: torch.device) -> LoadedModel:
    if "projector" not in trained_modules(weights):
        raise StoreError(f"trained weights are missing: {weights} has no projector.safetensors; train that stage first")
    vlm = build_vlm(spec, ANY_SEED, DTYPES[precision])
    load_trained(vlm, weights)
    vlm.to(device).eval()
    return LoadedModel(
        vlm=vlm,
        prompts=prompt_format(spec.llm, load_tokenizer(spec.llm)),
        transform=image_transform(spec.backbone, spec.resolution, spec.resize),
        text_positions=spec.llm.context - vlm.vision.patches,
    )

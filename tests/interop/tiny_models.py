"""Small models with random weights, whole: spec, VLM, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from prism_sweeps.config.schema import Backbone, LanguageModel, Projector, Resize, Resolution, Tower
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.evaluation.loading import LoadedModel
from prism_sweeps.interop.model import Model
from prism_sweeps.models.language import load_tokenizer
from prism_sweeps.models.prompts import prompt_format
from prism_sweeps.models.resize import image_transform
from prism_sweeps.models.vlm import build_vlm

PIXELS = 32
TINY = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
TOWERS: dict[str, dict[str, Any]] = {
    "clip": {"model": "vit_large_patch14_clip_quickgelu_224.openai", "kwargs": TINY, "prefix_tokens": 1},
    "siglip": {"model": "vit_base_patch16_siglip_224", "kwargs": TINY},
    "so400m": {"model": "vit_so400m_patch14_siglip_224", "kwargs": {**TINY, "mlp_ratio": 2}, "mlp_ratio": 2.0},
    "nano": {
        "model": "vit_tiny_patch16_224",
        "kwargs": {**TINY, "mlp_ratio": 2, "class_token": False, "global_pool": "avg"},
        "mlp_ratio": 2.0,
    },
    "dinov2": {"model": "vit_large_patch14_reg4_dinov2", "kwargs": TINY, "prefix_tokens": 5},
    "in1k": {"model": "vit_tiny_patch16_224", "kwargs": TINY, "prefix_tokens": 1},
    "conv": {
        "kind": "conv",
        "model": "convnext_atto",
        "kwargs": {"dims": [8, 8, 16, 32], "depths": [1, 1, 1, 1]},
        "heads": 0,
        "patch": 32,
    },
    "open_clip": {
        "source": "open_clip",
        "model": "ViT-B-32",
        "kwargs": {
            "embed_dim": 16,
            "vision_cfg": {"layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
            "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
        },
        "prefix_tokens": 1,
    },
}


def tower(kind: str, seed: int = 1) -> Tower:
    shape = {"width": 32, "depth": 4, "heads": 2, "patch": 8}
    return Tower(name=kind, weights={PIXELS: f"random:{seed}"}, **{**shape, **TOWERS[kind]})


def language_model(**changes: Any) -> LanguageModel:
    shape = {"width": 48, "depth": 2, "heads": 4, "kv_heads": 2, "mlp_width": 96, "vocabulary": 300, "context": 128}
    return LanguageModel(**{"name": "tiny", "weights": "random:9", "prompt": "in-out", **shape, **changes})


def spec_of(*kinds: str, resize: str = "naive", projector: str = "mlp", llm: LanguageModel | None = None) -> ModelSpec:
    return ModelSpec(
        Backbone("tiny", {kind: tower(kind, seed) for seed, kind in enumerate(kinds, start=1)}),
        Resolution(str(PIXELS), PIXELS),
        Resize(resize, resize),
        Projector(projector, projector),
        llm or language_model(),
    )


def model_of(spec: ModelSpec, about: dict[str, Any] | None = None) -> Model:
    vlm = build_vlm(spec, 3).eval()
    with torch.no_grad():  # weights as drawn let the language model say one thing to everything
        for parameter in vlm.llm.parameters():
            parameter.mul_(4.0)
    loaded = LoadedModel(
        vlm=vlm,
        prompts=prompt_format(spec.llm, load_tokenizer(spec.llm)),
        transform=image_transform(spec.backbone, spec.resolution, spec.resize),
        text_positions=spec.llm.context - vlm.vision.patches,
    )
    return Model(spec, loaded, "fp32", about or {})


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    drawn = np.random.default_rng(seed).integers(0, 255, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(drawn).resize((width, height))


def saved_picture(folder: Path, width: int, height: int, seed: int = 0) -> Path:
    file = folder / f"{width}x{height}-{seed}.png"
    picture(width, height, seed).save(file)
    return file

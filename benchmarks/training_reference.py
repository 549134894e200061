"""The reference's way through benchmarks/train.py: the model and the collator of a checkout of TRI-ML/prismatic-vlms.

Its training strategies want GPUs, so its step is made here as its loop makes it: forward, backward, clipping, AdamW as
torch has it by default. It ships with the language model's layers recomputed in backward. In fp32, as all here.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

from prism_sweeps.config.schema import Stage
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.data.batching import Example
from prism_sweeps.data.steps import StepMaker
from prism_sweeps.models.resize import load_image
from prism_sweeps.models.vlm import VLM
from prism_sweeps.training.optimiser import schedule

IGNORED, PADDING = -100, 258
"""Padding is a token that no conversation has: the collator finds it by its number."""


def why_not(checkout: Path | None) -> str | None:
    """Why the reference cannot take part."""
    if checkout is None:
        return "no --reference"
    if not (checkout / "prismatic").is_dir():
        return f"{checkout} holds no folder 'prismatic'"
    sys.path.insert(0, str(checkout))
    try:
        importlib.import_module("prismatic.models.vlms.prismatic")
    except ImportError as error:
        return f"{checkout} cannot be imported ({error}); it needs draccus, jsonlines, wandb, rich and einops"
    return None


def reference_step(
    vlm: VLM, spec: ModelSpec, maker: StepMaker, stage: Stage, recomputed: bool
) -> Callable[[int], float]:
    """Steps of the reference's model with the weights of `vlm`, which it takes over, on the batches of `maker`."""
    model = reference_model(vlm, spec)
    if recomputed:
        kind = type(vlm.llm.base_model.layers[0])
        wrap = partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT)
        apply_activation_checkpointing(model, checkpoint_wrapper_fn=wrap, check_fn=lambda part: isinstance(part, kind))
    optimiser = optimiser_of(model, stage)
    shape = (3, spec.resolution.pixels, spec.resolution.pixels)
    collate = module("util.data_utils").PaddedCollatorForLanguageModeling(spec.llm.context, PADDING, shape)

    def step(number: int) -> float:
        for group in optimiser.param_groups:
            group["lr"] = stage.learning_rate * schedule(number, len(maker.batches), stage.warmup_ratio)
        batch = collate([row(maker.examples[index], maker) for index in maker.batches[number]])
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_([each for each in model.parameters() if each.requires_grad], stage.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
        return float(loss.detach())

    return step


def row(example: Example, maker: StepMaker) -> dict[str, Tensor | None]:
    image = example.conversation.image
    ids_T = torch.from_numpy(example.ids_T).long()
    return {
        "input_ids": ids_T,
        "labels": torch.where(torch.from_numpy(example.supervised_T), ids_T, IGNORED),
        "pixel_values": None if image is None else next(iter(maker.layout.transform(load_image(image)).values())),
    }


def optimiser_of(model: nn.Module, stage: Stage) -> torch.optim.AdamW:
    """Its two groups, as they are before sharding."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    plain = {name for name, each in trained.items() if each.ndim <= 1 or name.endswith(".bias")}
    groups = [
        {"params": [each for name, each in trained.items() if (name in plain) is kind], "weight_decay": decay}
        for kind, decay in ((False, stage.weight_decay), (True, 0.0))
    ]
    return torch.optim.AdamW(groups, lr=stage.learning_rate)


# ---- its model


def module(name: str) -> Any:
    return importlib.import_module(f"prismatic.{name}")


def reference_model(vlm: VLM, spec: ModelSpec) -> nn.Module:
    """Its PrismaticVLM around a tower, a projector and a language model of these weights, in its finetune stage."""
    tower = tower_of(vlm, spec)
    model = module("models.vlms.prismatic").PrismaticVLM("made", tower, language_model_of(vlm), False, "gelu-mlp")
    model.projector.projector.load_state_dict(vlm.projector.state_dict())
    model.freeze_backbones("finetune")
    return model.train()


def tower_of(vlm: VLM, spec: ModelSpec) -> nn.Module:
    """Its timm tower, which computes the last block too; that one keeps the weights it was drawn with."""
    base, (tower,) = module("models.backbones.vision.base_vision"), spec.backbone.towers.values()

    class MadeTower(base.TimmViTBackbone):
        def __init__(self) -> None:
            base.VisionBackbone.__init__(self, "made", "resize-naive", spec.resolution.pixels)
            self.dtype = torch.float32
            self.featurizer = timm.create_model(
                tower.model, num_classes=0, img_size=spec.resolution.pixels, **tower.kwargs
            )
            (own,) = vlm.vision.towers.values()
            assert not self.featurizer.load_state_dict(own.trunk.state_dict(), strict=False).unexpected_keys
            # as its own, which expects a tuple where timm has returned a list since
            features, layers = self.featurizer.get_intermediate_layers, {len(self.featurizer.blocks) - 2}
            self.featurizer.forward = lambda pixels_BCHW: features(pixels_BCHW, n=layers)[0]

    return MadeTower()


def language_model_of(vlm: VLM) -> nn.Module:
    base = module("models.backbones.llm.base_llm")

    class MadeLanguageModel(base.HFCausalLLMBackbone):
        prompt_builder_fn = transformer_layer_cls = half_precision_dtype = None

        def __init__(self) -> None:
            base.LLMBackbone.__init__(self, "made")
            self.llm = vlm.llm
            self.llm.config.use_cache = False
            self.llm.enable_input_require_grads()
            # asked for the tokens of True, False, Yes, No and the letters, which training never needs
            self.tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: [0], pad_token_id=PADDING)

    return MadeLanguageModel()

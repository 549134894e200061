"""Checkpoints of the reference (TRI-ML/prismatic-vlms) into the prism format.

A run of it is config.json, whose `model` says what was built, and checkpoints/latest-checkpoint.pt with
{"model": {module: {name: tensor}}} for the modules that were trained (prismatic/training/strategies/fsdp.py):

    projector         projector.{weight,bias} (linear), projector.{0,2,4}.{weight,bias} (MLPs)
    llm_backbone      llm. and transformers' names; embeddings as long as the reference made them: a multiple of 64 that
                      holds the tokenizer and one padding token (Llama 2: 32,064; Phi-2: 50,304, fewer than it had)
    vision_backbone   featurizer., or dino_featurizer. and clip_ or siglip_featurizer., and timm's names; after
                      full-finetune only. The reference's `from_pretrained` leaves these out; here they are read.

Embeddings keep the checkpoint's length: the logits then are the reference's, padding rows and all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.errors import ConfigError, StoreError, nearest
from prism_sweeps.config.schema import LanguageModel
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.interop import prism
from prism_sweeps.interop.card import choices_of
from prism_sweeps.interop.folders import check_free, new_folder
from prism_sweeps.models.language import language_config, load_tokenizer
from prism_sweeps.models.projector import build_projector
from prism_sweeps.models.towers import PatchTower
from prism_sweeps.models.vision import build_vision
from prism_sweeps.models.weights import OFFLINE, locate
from prism_sweeps.tracking.files import read_json

VISION = {
    "clip-vit-b": ("clip-vit-b16", "224"),
    "clip-vit-l": ("clip-vit-l", "224"),
    "clip-vit-l-336px": ("clip-vit-l", "336"),
    "siglip-vit-b16-224px": ("siglip-b16", "224"),
    "siglip-vit-b16-256px": ("siglip-b16", "256"),
    "siglip-vit-b16-384px": ("siglip-b16", "384"),
    "siglip-vit-so400m": ("siglip-so400m", "224"),
    "siglip-vit-so400m-384px": ("siglip-so400m", "384"),
    "dinov2-vit-l": ("dinov2-vit-l", "224"),
    "in1k-vit-l": ("in1k-vit-l", "224"),
    "dinoclip-vit-l-336px": ("dinoclip-vit-l-paper", "336"),  # its CLIP has plain GELU there
    "dinosiglip-vit-so-224px": ("dinosiglip-so400m", "224"),
    "dinosiglip-vit-so-384px": ("dinosiglip-so400m", "384"),
}
"""The reference's vision_backbone_id -> our backbone and resolution."""
LANGUAGE = {
    "llama2-7b-pure": "llama2-7b",
    "llama2-13b-pure": "llama2-13b",
    "llama2-7b-chat": "llama2-7b-chat",
    "llama2-13b-chat": "llama2-13b-chat",
    "vicuna-v15-7b": "vicuna-v15-7b",
    "vicuna-v15-13b": "vicuna-v15-13b",
    "mistral-v0.1-7b-pure": "mistral-v01-7b",
    "mistral-v0.1-7b-instruct": "mistral-v01-7b-instruct",
    "phi-2-3b": "phi-2",
}
"""The reference's llm_backbone_id -> our llm."""
PROJECTION = {"linear": "linear", "gelu-mlp": "mlp", "fused-gelu-mlp": "fused-mlp"}
"""The reference's arch_specifier, without `no-align+` -> our projector."""
RESIZE = {"letterbox": "letterbox", "resize-naive": "naive", "resize-crop": "crop"}
MODULES = ("projector", "llm_backbone", "vision_backbone")
FUSED = ("dino", "siglip", "clip")
"""How the towers of fused backbones are called there."""
HEADS = ("norm.", "fc_norm.", "attn_pool.", "head.")
"""What comes after a ViT's last block, in timm's names."""

Tensors = dict[str, Tensor]


def bring_in(folder: Path, to: Path, config_dir: Path | None = None) -> dict[str, str]:
    """Write the run `folder` of the reference as `to` in the prism format, whole or not at all.

    Returns model (its id) and towers (checkpoint or stock). Raises ConfigError for ids that are not known, a checkpoint
    that does not fit them, and `to` being taken; StoreError for files that cannot be read or written.
    """
    check_free(to)
    config = read_config(folder)
    spec = spec_of(config["model"], config_dir)
    file = folder / "checkpoints" / "latest-checkpoint.pt"
    modules = read_checkpoint(file)
    tokenizer = load_tokenizer(spec.llm)
    llm = language_model(spec, modules["llm_backbone"], len(tokenizer), f"{file}: llm_backbone")
    rows, width = llm.get_input_embeddings().weight.shape
    projector = projector_of(spec, modules["projector"], width, f"{file}: projector")
    towers = towers_of(spec, modules.get("vision_backbone"), f"{file}: vision_backbone")
    told = {"model": config["model"]["model_id"], "towers": "checkpoint" if "vision_backbone" in modules else "stock"}
    spec = replace(spec, llm=replace(spec.llm, vocabulary=rows))
    with new_folder(to) as new:
        for name, tower in towers.items():
            prism.write_tower(new, name, prism.tensors_of(tower.trunk))
        prism.write_projector(new, prism.tensors_of(projector))
        prism.write_language_model(new, llm, tokenizer)
        precision = "bf16" if llm.dtype == torch.bfloat16 else "fp32"
        prism.describe(new, spec, precision, about(config, spec, told["towers"]))
    return told


def read_config(folder: Path) -> dict[str, Any]:
    """The run's config.json, whose `model` has the ids."""
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(
            f"'{folder}' should be a run of prismatic-vlms: it has no config.json beside checkpoints/; name the folder "
            "of one model, e.g. released/prism-clip+7b"
        )
    config = read_json(file, "fetch it again")
    model = config.get("model")
    keys = ("model_id", "vision_backbone_id", "llm_backbone_id", "arch_specifier", "image_resize_strategy")
    missing = [key for key in keys if not isinstance(model, dict) or not isinstance(model.get(key), str)]
    if missing:
        raise ConfigError(f"{file}: 'model' should have {', '.join(keys)} as texts; missing: {', '.join(missing)}")
    return config


def spec_of(named: Mapping[str, Any], config_dir: Path | None = None) -> ModelSpec:
    """Our choices for the reference's ids. Raises ConfigError, which lists the known ones, for another."""
    backbone, resolution = known(VISION, named, "vision_backbone_id")
    arch = str(named["arch_specifier"])
    overrides = {
        "backbone": backbone,
        "resolution": resolution,
        "resize": known(RESIZE, named, "image_resize_strategy"),
        "projector": known(PROJECTION, {"arch_specifier": arch.removeprefix("no-align+")}, "arch_specifier"),
        "llm": known(LANGUAGE, named, "llm_backbone_id"),
    }
    cell, _ = compose_cell([f"{axis}='{choice}'" for axis, choice in overrides.items()], config_dir)
    return ModelSpec(cell.backbone, cell.resolution, cell.resize, cell.projector, cell.llm)


def known(table: Mapping[str, Any], named: Mapping[str, Any], key: str) -> Any:
    if named[key] not in table:
        raise ConfigError(f"config.json: {key} '{named[key]}' is not known; {nearest(str(named[key]), table)}")
    return table[named[key]]


def read_checkpoint(file: Path) -> dict[str, Tensors]:
    """Module -> its tensors, mapped from the file, not copied; nothing that the file may hold beside data is run."""
    if not file.is_file():
        raise ConfigError(f"{file} is missing; a released model has its weights there")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise StoreError(
            f"{file} is refused: it holds more than tensors, and loading that would run code ({first_line(error)})"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise StoreError(f"{file} is not a whole checkpoint ({first_line(error)}); fetch it again") from error
    modules = content.get("model") if isinstance(content, dict) else None
    found = list(modules) if isinstance(modules, dict) else []
    if not {"projector", "llm_backbone"} <= set(found) <= set(MODULES):
        raise ConfigError(
            f"{file}: should hold 'model' with projector, llm_backbone and perhaps vision_backbone, has {found}"
            + ("; it is of the align stage, which keeps its projector alone" if found == ["projector"] else "")
        )
    for name, tensors in modules.items():
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise ConfigError(f"{file}: '{name}' should be tensors by name")
    return {name: dict(tensors) for name, tensors in modules.items()}


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def stripped(tensors: Tensors, prefix: str, owner: str) -> Tensors:
    """Names without `prefix`, which all have to have."""
    foreign = [name for name in tensors if not name.startswith(prefix)]
    if foreign:
        raise ConfigError(f"{owner}: names should begin with '{prefix}', not {foreign[:3]} ({len(foreign)} in all)")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def fill(module: nn.Module, tensors: Tensors, owner: str) -> None:
    """Give `module` these very tensors, which have to be all of its own and no others."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [
        f"{name} is {list(tensors[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    said = [f"{len(missing)} tensors missing {missing[:3]}"] if missing else []
    said += [f"{len(extra)} not known {extra[:3]}"] if extra else []
    said += [f"{len(wrong)} of another shape: {'; '.join(wrong[:3])}"] if wrong else []
    if said:
        raise ConfigError(f"{owner} is not of the model that config.json names: {', '.join(said)}")
    module.load_state_dict(tensors, assign=True)


def language_model(spec: ModelSpec, tensors: Tensors, tokens: int, owner: str) -> PreTrainedModel:
    """The causal LM with the checkpoint's weights; its shape is its own config's, its vocabulary the checkpoint's.

    `tokens` is the length of the tokenizer, which the vocabulary has to hold.
    """
    tensors = stripped(tensors, "llm.", owner)
    # older versions of transformers kept these; they are computed
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    config = own_config(spec.llm)
    embeddings = [tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight")]
    config.vocab_size = len(embeddings[0]) if embeddings else config.vocab_size
    if config.vocab_size < tokens:
        raise ConfigError(
            f"{owner}: its vocabulary of {config.vocab_size} does not hold the {tokens} tokens of {spec.llm.name}"
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    fill(model, tensors, owner)
    model.tie_weights()
    return model


def own_config(llm: LanguageModel) -> PretrainedConfig:
    """The language model's config from where its weights would come from; those are not fetched."""
    place = locate(llm.weights, f"language model '{llm.name}'")
    if isinstance(place, int):
        return language_config(llm)
    try:
        return AutoConfig.from_pretrained(place or llm.weights)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"language model '{llm.name}': the config of '{llm.weights}' cannot be loaded: {error}\n{OFFLINE}"
        ) from error


def towers_of(spec: ModelSpec, tensors: Tensors | None, owner: str) -> dict[str, PatchTower]:
    """The towers with the checkpoint's weights, or the stock ones where it has none."""
    if tensors is None:
        return dict(build_vision(spec.backbone, spec.resolution).towers.items())
    weights = {spec.resolution.pixels: "random:0"}  # written over
    named = {name: replace(tower, weights=weights) for name, tower in spec.backbone.towers.items()}
    towers = dict(build_vision(replace(spec.backbone, towers=named), spec.resolution).towers.items())
    prefixes = {name: prefix_of(name, len(towers)) for name in towers}
    foreign = [name for name in tensors if not name.startswith(tuple(prefixes.values()))]
    if foreign:
        raise ConfigError(
            f"{owner}: names should begin with {' or '.join(prefixes.values())}, not {foreign[:3]} "
            f"({len(foreign)} in all)"
        )
    for name, tower in towers.items():
        prefix = prefixes[name]
        of_tower = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        never_computed = (*HEADS, f"blocks.{tower.shape['depth'] - 1}.")
        kept = {key: tensor for key, tensor in of_tower.items() if not key.startswith(never_computed)}
        fill(tower.trunk, kept, f"{owner} ({prefix})")
    return towers


def prefix_of(tower: str, count: int) -> str:
    """What the reference puts before a tower's names: dino_ for dinov2, clip_, siglip_; nothing for a single one."""
    if count == 1:
        return "featurizer."
    return f"{next((part for part in FUSED if tower.startswith(part)), tower)}_featurizer."


def projector_of(spec: ModelSpec, tensors: Tensors, llm_width: int, owner: str) -> nn.Module:
    """The reference's linear projector is one layer, ours a sequence of one."""
    tensors = stripped(tensors, "projector.", owner)
    if spec.projector.kind == "linear":
        tensors = {f"0.{name}": tensor for name, tensor in tensors.items()}
    vision_width = sum(tower.width for tower in spec.backbone.towers.values())
    projector = build_projector(spec.projector, vision_width, llm_width)
    fill(projector, tensors, owner)
    return projector


def about(config: Mapping[str, Any], spec: ModelSpec, towers: str) -> dict[str, Any]:
    """What the card tells: the run's own account of itself."""
    model, dataset = config["model"], config.get("dataset")
    source = dataset.get("dataset_id") if isinstance(dataset, dict) else None
    return {
        "origin": f"`{model['model_id']}` of prismatic-vlms (TRI-ML, MIT; arXiv 2402.07865), read by prism-sweeps. "
        f"Its towers are {'those of the checkpoint' if towers == 'checkpoint' else 'the stock ones, as published'}.",
        "choices": {**choices_of(spec), "stages": model["arch_specifier"]},
        "seed": config.get("seed"),
        "data": {str(config.get("stage", "finetune")): [str(source)]} if source else {},
    }

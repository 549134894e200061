"""The prism format: one model in one folder, read without a hub or a store.

config.json            {"prism": 1, "model": the spec, "precision": fp32 | bf16, "about": what the card tells}
towers/NAME.safetensors    one per vision tower, in the names of its library, without what is never computed
projector.safetensors
llm/                   language model and tokenizer, which transformers loads by themselves
README.md              the card
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.plain import from_plain, plain
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.evaluation.loading import DTYPES, LoadedModel
from prism_sweeps.interop.card import card
from prism_sweeps.interop.folders import new_folder
from prism_sweeps.interop.model import Model
from prism_sweeps.models.device import device_of
from prism_sweeps.models.language import load_tokenizer
from prism_sweeps.models.prompts import prompt_format
from prism_sweeps.models.resize import image_transform
from prism_sweeps.models.vlm import build_vlm
from prism_sweeps.models.weights import put_tensors, read_tensors, write_tensors
from prism_sweeps.tracking.files import read_json

TOWER_NAME = re.compile(r"[A-Za-z0-9_-]+")
VERSION = 1
REMEDY = "export or import the model again"


def save(model: Model, to: Path) -> None:
    """Write `model` as the folder `to`, which appears whole or not at all.

    Raises ConfigError when `to` is taken and StoreError when the disk refuses.
    """
    with new_folder(to) as folder:
        for name, tower in model.vlm.vision.towers.items():
            write_tower(folder, name, tensors_of(tower.trunk))
        write_projector(folder, tensors_of(model.vlm.projector))
        write_language_model(folder, model.vlm.llm, model.tokenizer)
        describe(folder, model.spec, model.precision, model.about)


def load(folder: Path | str, device: str = "auto", precision: str | None = None) -> Model:
    """The model that `save` wrote into `folder`, in evaluation mode.

    `device` is torch's name of one, or auto: the GPU where there is one. `precision` (fp32, bf16) is by default the
    one it was scored in. Raises ConfigError or StoreError for a folder that is none, or not whole.
    """
    folder = Path(folder).expanduser().absolute()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"'{folder}' should be a folder that `prism export` or `prism import` wrote: no config.json")
    config = read_json(folder / "config.json", REMEDY)
    if config.get("prism") != VERSION:
        raise ConfigError(
            f"'{folder}' is not in the prism format {VERSION}: its config.json says prism: {config.get('prism')!r}"
        )
    precision = precision or config.get("precision", "fp32")
    if precision not in DTYPES:
        raise ConfigError(f"precision '{precision}'; {nearest(precision, DTYPES)}")
    spec = from_plain(ModelSpec, config.get("model"), f"{folder / 'config.json'}: model")
    return Model(spec, _assembled(here(spec, folder), folder, device, precision), precision, config.get("about", {}))


def here(spec: ModelSpec, folder: Path) -> ModelSpec:
    """`spec` with its towers' and language model's weights in `folder`."""
    pixels = spec.resolution.pixels
    towers = {
        name: replace(tower, weights={pixels: str(_tower_file(folder, name))})
        for name, tower in spec.backbone.towers.items()
    }
    backbone = replace(spec.backbone, towers=towers)
    return replace(spec, backbone=backbone, llm=replace(spec.llm, weights=str(folder / "llm")))


def _assembled(spec: ModelSpec, folder: Path, device: str, precision: str) -> LoadedModel:
    vlm = build_vlm(spec, seed=0, dtype=DTYPES[precision])  # its fresh projector is written over
    file = folder / "projector.safetensors"
    put_tensors(vlm.projector, read_tensors(file, "projector"), "projector", file)
    vlm.to(device_of(Engine(device=device))).eval()
    return LoadedModel(
        vlm=vlm,
        prompts=prompt_format(spec.llm, load_tokenizer(spec.llm)),
        transform=image_transform(spec.backbone, spec.resolution, spec.resize),
        text_positions=spec.llm.context - vlm.vision.patches,
    )


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def write_tower(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    file = _tower_file(folder, name)
    file.parent.mkdir(exist_ok=True)
    write_tensors(file, tensors)


def write_projector(folder: Path, tensors: dict[str, Tensor]) -> None:
    write_tensors(folder / "projector.safetensors", tensors)


def write_language_model(folder: Path, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    # Some hubs ship sampling settings that transformers refuses to write; answers here are greedy.
    llm.generation_config = GenerationConfig.from_model_config(llm.config)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        llm.save_pretrained(folder / "llm")
    finally:
        if bars:
            logging.enable_progress_bar()
    tokenizer.save_pretrained(folder / "llm")


def describe(folder: Path, spec: ModelSpec, precision: str, about: dict[str, Any]) -> None:
    """config.json and the card."""
    config = {"prism": VERSION, "model": plain(spec), "precision": precision, "about": about}
    (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(spec, about), encoding="utf-8")


def _tower_file(folder: Path, name: str) -> Path:
    """Raises ConfigError for a name that is no plain word: it comes from a file that anyone may have written."""
    if not TOWER_NAME.fullmatch(name):
        raise ConfigError(f"'{name}' cannot be the name of a tower: use letters, digits, _ and -")
    return folder / "towers" / f"{name}.safetensors"

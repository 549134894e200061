"""A model as the LLaVA of transformers: `LlavaForConditionalGeneration` and `LlavaProcessor` load the folder.

LLaVA is one CLIP or SigLIP tower, read at its second-to-last block, an MLP of two layers, and a causal LM. What is not
that is refused with the reason, and nothing is written.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedModel,
)
from transformers.utils import logging

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Tower
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.interop.card import card
from prism_sweeps.interop.folders import check_free, new_folder
from prism_sweeps.interop.llava_prompt import set_template, tokenizer_with_image
from prism_sweeps.interop.llava_vision import vision_model
from prism_sweeps.interop.model import Model

ROWS = 64
"""Vocabularies that have to grow, grow to a multiple of this, as LLaVA's do."""
USE = """\
```python
from transformers import LlavaForConditionalGeneration, LlavaProcessor

model = LlavaForConditionalGeneration.from_pretrained("THIS_FOLDER")
processor = LlavaProcessor.from_pretrained("THIS_FOLDER", backend="pil")
```

`backend="pil"` resizes images with PIL, as in training; the default (torchvision) rounds some pixels one or two of 255
levels apart. One image per conversation; the chat template puts it right after BOS."""
RESIZE = {
    "naive": "Images are resized to a square whatever their aspect: pixel for pixel as in training.",
    "crop": "The middle of an image is cut out as in training, save that where the longer edge has 4n + 3 pixels too "
    "many the cut is one pixel off. Strips longer than 32 times their width are not cut to their middle first.",
    "letterbox": "Images are padded to a square as in training, save that an odd difference of their edges is padded "
    "to a full square here, where training cut one row or column.",
}
"""What the image processor does, and where it parts from training."""
ALIKE = 0.05
"""Mean difference of normalised pixels that is rounding, or a cut one pixel off."""


def save(model: Model, to: Path) -> None:
    """Write `model` as a LLaVA folder, which appears whole or not at all.

    Raises ConfigError for a model that LLaVA cannot express, and for `to` being taken; StoreError for a full disk.
    """
    check_free(to)
    check_kind(model)
    name, tower = next(iter(model.spec.backbone.towers.items()))
    pixels = model.spec.resolution.pixels
    vision = vision_model(model.vlm.vision.towers[name], pixels, f"tower '{name}' ({tower.source} {tower.model})")
    processor = llava_processor(model, tower, vision)
    check_pixels(model, processor, name)
    llava = llava_model(model, vision, processor)
    with new_folder(to) as folder:
        write(llava, processor, folder)
        use = f"{USE}\n\n{RESIZE[model.spec.resize.strategy]}"
        (folder / "README.md").write_text(card(model.spec, model.about, use), encoding="utf-8")


def check_kind(model: Model) -> None:
    """Raises ConfigError for what no LLaVA has, before anything large is built."""
    spec, owner = model.spec, "this model cannot be a LLaVA"
    if len(spec.backbone.towers) != 1:
        names = ", ".join(spec.backbone.towers)
        raise ConfigError(
            f"{owner}: it has {len(spec.backbone.towers)} towers ({names}), LLaVA one; --format prism can"
        )
    if spec.projector.kind != "mlp" or spec.projector.hidden not in (None, spec.llm.width):
        raise ConfigError(
            f"{owner}: its projector is {spec.projector.name} ({spec.projector.kind}), LLaVA's is mlp, two layers with "
            "the language model's width between them; --format prism can"
        )
    if spec.resize.strategy not in RESIZE:
        raise ConfigError(f"{owner}: no image processor of transformers resizes as {spec.resize.strategy} does")
    head = model.vlm.llm.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ConfigError(f"{owner}: the head of its language model ({spec.llm.name}) has a bias, LLaVA's has none")


def llava_processor(model: Model, tower: Tower, vision: PreTrainedModel) -> LlavaProcessor:
    has_class_token = vision.config.model_type == "clip_vision_model"
    processor = LlavaProcessor(
        image_processor=image_processor(model.spec, tower),
        tokenizer=tokenizer_with_image(model.tokenizer),
        patch_size=tower.patch,
        vision_feature_select_strategy="default" if has_class_token else "full",
        num_additional_image_tokens=1 if has_class_token else 0,
    )
    set_template(processor, model.loaded.prompts, model.vlm.vision.patches, f"language model '{model.spec.llm.name}'")
    return processor


def image_processor(spec: ModelSpec, tower: Tower) -> CLIPImageProcessor | LlavaImageProcessor:
    """CLIP's, which every transformers knows; for letterboxing LLaVA's own, which alone can pad."""
    side = spec.resolution.pixels
    square = {"height": side, "width": side}
    settings: dict[str, Any] = {"image_mean": list(tower.mean), "image_std": list(tower.std), "crop_size": square}
    if spec.resize.strategy == "naive":
        return CLIPImageProcessor(**settings, size=square, do_center_crop=False)
    settings |= {"size": {"shortest_edge": side}, "do_center_crop": True}
    if spec.resize.strategy == "crop":
        return CLIPImageProcessor(**settings)
    return LlavaImageProcessor(**settings, do_pad=True)


def check_pixels(model: Model, processor: LlavaProcessor, tower: str) -> None:
    """Raises ConfigError where the image processor makes other pixels of gradients than training did."""
    down = Image.linear_gradient("L")
    across = down.transpose(Image.Transpose.ROTATE_90)
    image = Image.merge("RGB", (down, across, across)).resize((96, 64))
    ours_CHW = model.loaded.transform(image)[tower]
    theirs_CHW = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
    if ours_CHW.shape != theirs_CHW.shape or float((ours_CHW - theirs_CHW).abs().mean()) > ALIKE:
        raise ConfigError(
            f"this model cannot be a LLaVA: {type(processor.image_processor).__name__} of transformers makes other "
            f"pixels than resize={model.spec.resize.name} did in training"
        )


def llava_model(model: Model, vision: PreTrainedModel, processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The model, sharing its tensors with ours where they are the same."""
    llm = model.vlm.llm
    rows = len(llm.get_input_embeddings().weight)
    needed = max(rows, -(-(processor.image_token_id + 1) // ROWS) * ROWS if processor.image_token_id >= rows else 0)
    config = llava_config(model, vision, processor, needed)
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    if type(llava.model.language_model) is not type(llm.base_model):
        raise ConfigError(
            f"this model cannot be a LLaVA: {type(llm).__name__} has no transformers model without a head"
        )
    projector = {
        f"linear_{layer}.{kind}": model.vlm.projector.state_dict()[f"{place}.{kind}"]
        for layer, place in ((1, 0), (2, 2))
        for kind in ("weight", "bias")
    }
    text = {name: grown(tensor, name, needed) for name, tensor in llm.base_model.state_dict().items()}
    llava.model.vision_tower.load_state_dict(vision.state_dict(), assign=True)
    llava.model.multi_modal_projector.load_state_dict(projector, assign=True)
    llava.model.language_model.load_state_dict(text, assign=True)
    head = llm.get_output_embeddings().weight.detach()
    llava.lm_head.weight = nn.Parameter(grown(head, "embed_tokens.weight", needed), requires_grad=False)
    llava.tie_weights()
    llava.generation_config = generation_config(model, processor, rows, needed)
    return llava.eval()


def llava_config(model: Model, vision: PreTrainedModel, processor: LlavaProcessor, rows: int) -> LlavaConfig:
    text = copy.deepcopy(model.vlm.llm.config)
    text.vocab_size = rows
    return LlavaConfig(
        vision_config=vision.config,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=model.vlm.vision.patches,
        vision_feature_layer=-2,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(text.tie_word_embeddings),
        dtype=model.loaded.dtype,
    )


def grown(tensor: Tensor, name: str, rows: int) -> Tensor:
    """An embedding with zeros for the new tokens; anything else as it is."""
    if name != "embed_tokens.weight" or len(tensor) == rows:
        return tensor.detach().contiguous()
    return torch.cat([tensor.detach(), tensor.new_zeros(rows - len(tensor), tensor.shape[1])])


def generation_config(model: Model, processor: LlavaProcessor, rows: int, grown_to: int) -> GenerationConfig:
    """Greedy, ending where ours ends. The rows of new tokens are zeros, whose logit 0 could win: they are shut out."""
    return GenerationConfig(
        do_sample=False,
        bos_token_id=model.loaded.prompts.bos_id,
        eos_token_id=model.loaded.prompts.end_ids,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=sorted({processor.image_token_id, *range(rows, grown_to)}),
    )


def write(llava: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        llava.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    processor.save_pretrained(folder)
    # transformers before 5 looks for the image processor's settings here
    processor.image_processor.save_pretrained(folder)

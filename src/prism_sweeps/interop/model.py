"""A trained model that stands by itself: no store, no hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import PreTrainedTokenizerFast

from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.evaluation.asking import ask
from prism_sweeps.evaluation.loading import LoadedModel
from prism_sweeps.models.vlm import VLM


@dataclass(frozen=True)
class Model:
    """A VLM with its tokenizer, prompt format and image transform."""

    spec: ModelSpec
    loaded: LoadedModel
    precision: str
    """fp32 or bf16: what it was scored in."""
    about: dict[str, Any]
    """What its card tells (see `card.card`); JSON-able, every entry optional."""

    @property
    def vlm(self) -> VLM:
        return self.loaded.vlm

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.loaded.prompts.tokenizer

    def ask(self, image: Path | str | Image.Image, question: str, max_new_tokens: int = 128) -> str:
        """The greedy answer to one question about one image, a file or a PIL image.

        Raises DataError for an image that cannot be read or a question too long for the language model.
        """
        shown = image if isinstance(image, Image.Image) else Path(image)
        return ask(self.loaded, shown, question, max_new_tokens)

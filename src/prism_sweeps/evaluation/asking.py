"""One question to one model."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from prism_sweeps.evaluation.answers import greedy
from prism_sweeps.evaluation.images import Picture
from prism_sweeps.evaluation.loading import LoadedModel
from prism_sweeps.evaluation.prefix import SPARE, Read, read_prefix, read_suffixes
from prism_sweeps.evaluation.prism_model import image_tokens
from prism_sweeps.evaluation.questions import room_left
from prism_sweeps.models.resize import load_image


def ask(model: LoadedModel, image: Path | Image.Image, question: str, max_new_tokens: int = 128) -> str:
    """The model's greedy answer to one question about one image, a file or one that is open.

    Raises DataError for an image that cannot be read or a question too long for the language model.
    """
    ids = model.prompts.question(question)
    limit = min(max_new_tokens, room_left(ids, model.text_positions, 1, "the question"))
    shown = image.convert("RGB") if isinstance(image, Image.Image) else load_image(image)
    read = read_one(model, shown, ids, min(limit, SPARE))
    return model.prompts.decode(greedy(model.vlm, read, model.prompts.end_ids, [limit])[0])


def read_one(model: LoadedModel, image: Image.Image, ids: list[int], spare: int = 1) -> Read:
    """An RGB image and a question of these tokens as the model has read them, with room for so many of an answer."""
    tokens_1PD = image_tokens(model, [Picture(model.transform(image), image.size)])
    room = model.vlm.vision.patches + len(ids) + spare
    return read_suffixes(model.vlm, read_prefix(model.vlm, tokens_1PD, ids[:1], room), [0], [ids[1:]], room)

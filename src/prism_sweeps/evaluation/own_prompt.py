"""How somebody else's model wants to be asked: its own words around a question, and the tokens of what may be answered.

The processor's chat template says it. A processor without one gets what its authors write, from a small table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from PIL import Image

from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.evaluation.requests import Answer, Answered, Request, Unanswered
from prism_sweeps.models.resize import GREY, load_image

GREY_PIXELS = 384
"""Side of the grey image: about what most models make of a photograph. Those that take images at any size would spend
many or few tokens on it by this."""
PROBE = "yes"


@dataclass(frozen=True)
class Written:
    """What stands around a question where no chat template says it."""

    prompt: str
    """With {question} in it, and `<image>` where the processor looks for one."""
    gap: str = " "
    """Between that and the answer."""
    tail: str = ""
    """What the processor itself puts behind."""


WRITTEN = {
    "llava": Written("USER: <image>\n{question} ASSISTANT:"),
    "vipllava": Written("###Human: <image>\n{question}###Assistant:"),
    "instructblip": Written("{question}"),
    "blip-2": Written("Question: {question} Answer:"),
    "paligemma": Written("<image>answer en {question}", gap="", tail="\n"),
}
"""By model_type, as their model cards and documentation in transformers have it (llava-1.5 and vip-llava: `usage tips`;
BLIP-2: `Question: ... Answer:`; PaliGemma: big_vision's prefix of VQA in English, behind which its processor puts a
line break). InstructBLIP was tuned on many phrasings and gets the benchmark's own, which its processor also gives to
the Q-Former; vlm-evaluation rephrases questions for it, benchmark by benchmark."""


@dataclass(frozen=True)
class OwnPrompt:
    """One model's."""

    processor: Any
    written: Written | None
    """None where the chat template counts."""
    gap: str
    tail: str = ""

    @classmethod
    def of(cls, processor: Any, model_type: str) -> OwnPrompt:
        """Raises ConfigError for a model that nobody says how to ask."""
        if getattr(processor, "chat_template", None):
            return cls(processor, None, gap_of(processor))
        if model_type not in WRITTEN:
            raise ConfigError(
                f"nothing says how a model of type '{model_type}' is asked: its folder has no chat template, and "
                f"without one only {', '.join(sorted(WRITTEN))} are known; put its chat_template.jinja into the folder"
            )
        written = WRITTEN[model_type]
        return cls(processor, written, written.gap, written.tail)

    def around(self, question: str) -> str:
        """The whole text that the processor gets."""
        if self.written is None:
            return rendered(self.processor, question)
        return self.written.prompt.replace("{question}", question)

    @property
    def image_token(self) -> str | None:
        """What stands for an image in such a text, where anything does."""
        token = getattr(self.processor, "image_token", None)
        return None if token is None else str(token)

    def ids(self, text: str) -> list[int]:
        """Tokens of `around`, the image as what stands for it; BOS in front as the tokenizer puts it."""
        special = not starts_with_bos(self.processor.tokenizer, text)
        return list(self.processor.tokenizer(text, add_special_tokens=special).input_ids)

    def option_ids(self, text: str, option: str) -> list[int]:
        """Tokens of an option as they follow `text`, of which `around` is the whole."""
        encode = self.processor.tokenizer
        before = encode(text + self.tail, add_special_tokens=False).input_ids
        both = encode(text + self.tail + self.gap + option, add_special_tokens=False).input_ids
        if both[: len(before)] == before and len(both) > len(before):
            return list(both[len(before) :])
        # The tokenizer joins the end of the question with the beginning of the answer, which no model gets to see so.
        return list(encode(option, add_special_tokens=False).input_ids)


def rendered(processor: Any, question: str, answer: str | None = None) -> str:
    """The chat template's text of one question about one image, up to its answer or with it. Raises ConfigError."""
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    said = [] if answer is None else [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    try:
        text = processor.apply_chat_template([asked, *said], add_generation_prompt=answer is None, tokenize=False)
    except (TemplateError, TypeError) as error:
        raise ConfigError(f"the model's chat template takes no question with an image: {error}") from error
    token = getattr(processor, "image_token", None)
    if question not in text or (token is not None and str(token) not in text):
        raise ConfigError(
            "the model's chat template leaves out the image or the question (it may be that of the language model "
            "alone); put the template of the whole model into its folder as chat_template.jinja"
        )
    return str(text)


def gap_of(processor: Any) -> str:
    """What the chat template puts between the end of a question and its answer."""
    question = "What is this?"
    before, whole = rendered(processor, question), rendered(processor, question, PROBE)
    if whole.startswith(before) and PROBE in whole[len(before) :]:
        return whole[len(before) :].partition(PROBE)[0]
    return "" if before[-1:].isspace() else " "


def starts_with_bos(tokenizer: Any, text: str) -> bool:
    """Whether a chat template has written BOS already, which the tokenizer must then not put in front once more."""
    return bool(tokenizer.bos_token and text.startswith(tokenizer.bos_token))


# ---- questions ready to be asked


@dataclass(frozen=True)
class Row:
    """One question with its image read and its prompt written."""

    request: Request
    image: Image.Image
    text: str

    @property
    def size(self) -> tuple[int, int] | None:
        """Of the image; None of the grey one."""
        return None if self.request.image is None else self.image.size

    def likeliest(self, scores: Sequence[float]) -> Answer:
        """The option with the highest score, the first of equals."""
        best = max(range(len(scores)), key=scores.__getitem__)
        return Answer(self.request.options[best], tuple(scores), self.size)


def rows_of(requests: Sequence[Request], prompt: OwnPrompt) -> tuple[list[Row], list[Answered]]:
    """The requests, each image read once; and those whose image or text is at fault, with what is wrong."""
    images: dict[str | None, Image.Image | Unanswered] = {}
    rows: list[Row] = []
    refused: list[Answered] = []
    for request in requests:
        if request.shown not in images:
            images[request.shown] = shown_image(request)
        image, token = images[request.shown], prompt.image_token
        if isinstance(image, Unanswered):
            refused.append((request, Unanswered(f"example '{request.id}': {image.reason}")))
        elif token and token in request.text:
            reason = f"example '{request.id}': its text has {token} in it, the model's mark of an image"
            refused.append((request, Unanswered(reason)))
        else:
            rows.append(Row(request, image, prompt.around(request.text)))
    return rows, refused


def shown_image(request: Request) -> Image.Image | Unanswered:
    if request.image is None:
        return Image.new("RGB", (GREY_PIXELS, GREY_PIXELS), GREY)
    try:
        return load_image(request.image)
    except DataError as error:
        return Unanswered(str(error))


def too_long(request: Request, length: int, needed: int, room: str) -> Unanswered:
    return Unanswered(
        f"example '{request.id}': {length} tokens of text and image and {needed} of an answer do not fit into the "
        f"{room}"
    )


# ---- options


@dataclass(frozen=True)
class Options:
    """What may be answered to one row, as tokens; and by which of them it is chosen."""

    ids: list[list[int]]

    @classmethod
    def of(cls, row: Row, prompt: OwnPrompt) -> Options:
        """Raises ConfigError for options without tokens, or whose first ones are equal where these decide."""
        request = row.request
        ids = [prompt.option_ids(row.text, option) for option in request.options]
        if not all(ids):
            raise ConfigError(
                f"example '{request.id}': an option has no token: {', '.join(map(repr, request.options))}"
            )
        if request.likelihood == "full-string":
            return cls(ids)
        first = [each[0] for each in ids]
        if len(set(first)) < len(first):
            raise ConfigError(
                f"options {', '.join(request.options)} begin with the same token in this model's vocabulary, so their "
                "first tokens cannot decide; set the benchmark's likelihood to full-string"
            )
        return cls([each[:1] for each in ids])

    @property
    def first_ids(self) -> list[int]:
        """Tokens that options begin with."""
        return sorted({ids[0] for ids in self.ids})

"""A prompt format as a chat template of LLaVA, whose image stands right after BOS.

The template is not written by hand for each format: it is read off what the format writes around probes, and taken
only if the processor then gives the very tokens that the model was trained on.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from PIL import Image
from transformers import AddedToken, LlavaProcessor, PreTrainedTokenizerFast

from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.models.prompts import PromptFormat, Turns

IMAGE_TOKEN = "<image>"
ASKED, ANSWERED, NEXT = "what is on the left ?", "a red dog", "how many dogs are there ?"
ONE: Turns = [("human", ASKED)]
TWO: Turns = [("human", ASKED), ("gpt", ANSWERED), ("human", NEXT)]

TEMPLATE = """\
{%- macro said(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}{%- for part in content if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set image = namespace(shown=false) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- if '<image>' in message['content'] -%}{%- set image.shown = true -%}{%- endif -%}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{%- set image.shown = true -%}{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{{- BOS -}}
{%- if image.shown -%}{{- '<image>' -}}{%- endif -%}
{%- for message in messages -%}
{%- set text = said(message['content']) | replace('<image>\\n', '') | replace('\\n<image>', '') -%}
{%- set text = text | replace('<image>', '') | trim -%}
{%- if message['role'] == 'user' -%}
{{- (OPENING if loop.first else BETWEEN) + text + (ASKING if loop.last else ANSWER) -}}
{%- elif message['role'] == 'assistant' -%}
{{- text + (CLOSING if loop.last else '') -}}
{%- else -%}
{{- raise_exception('roles are user and assistant; this model was trained with no other') -}}
{%- endif -%}
{%- endfor -%}
"""


@dataclass(frozen=True)
class Around:
    """What a format writes around questions and answers."""

    opening: str
    """Between BOS and the first question."""
    asking: str
    """After the last question, where the answer starts."""
    answer: str
    """Between a question and its answer."""
    between: str
    """Between an answer and the next question."""
    closing: str
    """After the last answer."""

    def template(self, bos: str) -> str:
        """Jinja. `bos` is "" where the tokenizer adds it."""
        fields = {"BOS": bos, **{name.upper(): text for name, text in vars(self).items()}}
        text = TEMPLATE
        for name, value in fields.items():
            text = text.replace(f"{name} ", f"{json.dumps(value)} ").replace(f"{name})", f"{json.dumps(value)})")
        return text


def tokenizer_with_image(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy that knows `<image>` and pads on the left, as generation needs."""
    own = copy.deepcopy(tokenizer)
    own.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    own.chat_template = None  # the processor's is the one to use
    own.padding_side = "left"
    if own.pad_token is None:
        own.pad_token = own.eos_token
    return own


def set_template(processor: LlavaProcessor, prompts: PromptFormat, patches: int, owner: str) -> None:
    """Give `processor` the chat template that makes the tokens of `prompts`, `<image>` times `patches` after BOS.

    Raises ConfigError when no template does, e.g. where turns are tokenised one by one.
    """
    bos = "" if adds_bos(processor.tokenizer, prompts.bos_id) else bos_text(processor, prompts)
    around = read_off(prompts, owner)
    for candidate in variants(around, prompts):
        processor.chat_template = candidate.template(bos)
        if all(tokens_of(processor, turns) == expected(prompts, turns, processor, patches) for turns in (ONE, TWO)):
            return
    raise ConfigError(
        f"{owner}: its prompts cannot be written as LLaVA's: with <image> after BOS the tokenizer writes "
        f"{tokens_of(processor, ONE)[patches + 1 :]} where the model was trained on {prompts.question(ASKED)[1:]}"
    )


def adds_bos(tokenizer: PreTrainedTokenizerFast, bos_id: int) -> bool:
    return tokenizer(ASKED)["input_ids"][:1] == [bos_id]


def bos_text(processor: LlavaProcessor, prompts: PromptFormat) -> str:
    return str(processor.tokenizer.convert_ids_to_tokens(prompts.bos_id))


def read_off(prompts: PromptFormat, owner: str) -> Around:
    """What stands around the probes in the format's own tokens, as text."""
    try:
        asked = text_of(prompts, ONE)
        answered = text_of(prompts, TWO[:2])
        again = text_of(prompts, TWO)
        opening, asking = asked.split(ASKED)
        answer, closing = answered.removeprefix(opening + ASKED).split(ANSWERED)
        between = again.removeprefix(opening + ASKED + answer + ANSWERED).split(NEXT)[0]
    except (DataError, ValueError) as error:
        raise ConfigError(
            f"{owner}: its prompt format is not a fixed text around questions and answers: {error}"
        ) from error
    return Around(opening, asking, answer, between, closing)


def text_of(prompts: PromptFormat, turns: Turns) -> str:
    ids = prompts.encode(turns).ids[1:]
    return str(prompts.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def variants(around: Around, prompts: PromptFormat) -> Iterator[Around]:
    """Tokenizers of the SentencePiece kind add or take away a blank beside control tokens: with and without it."""
    ends = [prompts.tokenizer.convert_ids_to_tokens(index) for index in prompts.end_ids]
    between = around.between
    for end in ends:
        between = between.replace(f"{end} ", end)
    for opening, after in product((around.opening, f" {around.opening}"), {around.between, between}):
        yield replace(around, opening=opening, between=after)


def messages_of(turns: Turns) -> list[dict[str, object]]:
    """As a user of LLaVA gives them: the image with the first question."""
    roles = {"human": "user", "gpt": "assistant"}
    messages: list[dict[str, object]] = [
        {"role": roles[role], "content": [{"type": "text", "text": said}]} for role, said in turns
    ]
    messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": turns[0][1]}]
    return messages


def tokens_of(processor: LlavaProcessor, turns: Turns) -> list[int]:
    """What the processor makes of a conversation about one image."""
    text = processor.apply_chat_template(messages_of(turns), tokenize=False, add_generation_prompt=True)
    # a template with BOS in it is tokenised without adding another, as `apply_chat_template` itself does
    has_bos = processor.tokenizer.bos_token is not None and text.startswith(processor.tokenizer.bos_token)
    blank = Image.new("RGB", (64, 64))
    found = processor(images=blank, text=text, return_tensors="pt", add_special_tokens=not has_bos)
    return [int(token) for token in found["input_ids"][0]]


def expected(prompts: PromptFormat, turns: Turns, processor: LlavaProcessor, patches: int) -> list[int]:
    ids = prompts.encode(turns).ids
    return [ids[0], *[processor.image_token_id] * patches, *ids[1:]]

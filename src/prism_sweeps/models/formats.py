"""How conversations are written out: the formats of the reference implementation, and chat templates.

The texts of the former are those of prismatic-vlms (`models/backbones/llm/prompting/`), where an answer is preceded by
one blank. Here that blank belongs to the answer, as tokenizers have it.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from prism_sweeps.config.errors import DataError, nearest

Turns = Sequence[tuple[str, str]]
"""(role, text); roles are human and gpt."""
Span = tuple[int, int]
"""Characters [first, last) of a rendered text."""
Piece = tuple[str, bool]
"""A turn as it is written, and whether it is an answer."""

ROLES = {"human": "user", "gpt": "assistant"}
DATE = datetime.date(2024, 7, 26)
"""For templates that state the date: the default of Llama 3's, so that prompts do not change from day to day."""
TODAY = (
    "{%- macro strftime_now(form) -%}{{- "
    + str({form: DATE.strftime(form) for form in ("%d %B %Y", "%d %b %Y", "%B %d, %Y")})
    + f".get(form, '{DATE}') -}}}}{{%- endmacro -%}}"
)
"""Stands before templates that ask for the time, which transformers would tell them."""

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Of Vicuna v1.1 and later (FastChat)."""
VISION_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
"""What the reference tells Llama 2 Chat."""


@dataclass(frozen=True)
class Format:
    """What stands around a turn; `{}` is where its text goes."""

    human: str
    first: str | None = None
    """The first human turn, where it is another."""
    closing: str = ""
    """Between an answer and the end token."""
    keeps_blank: bool = False
    """Turn by turn, the reference leaves a blank at the end of a human turn (Phi-2) or strips it (all others)."""


def _llama2_chat(opening: str) -> Format:
    return Format("[INST] {} [/INST] ", f"[INST] {opening}\n{VISION_SYSTEM}\n<</SYS>>\n\n{{}} [/INST] ")


FORMATS = {
    "in-out": Format("In: {}\nOut: "),
    "vicuna": Format("USER: {} ASSISTANT: ", VICUNA_SYSTEM + " USER: {} ASSISTANT: "),
    "llama2-chat": _llama2_chat("<<SYS>>"),
    # The reference's opening tag lacks a bracket, which Llama 2 was not trained on.
    "llama2-chat-typo": _llama2_chat("<<SYS>"),
    "mistral-instruct": Format("[INST] {} [/INST] "),
    "phi": Format("Input: {}\nOutput: ", closing="\n", keeps_blank=True),
}
"""`LanguageModel.prompt` -> the format. All begin with BOS (Phi-2's is its end token)."""


@dataclass(frozen=True)
class Published:
    """One of FORMATS, with a tokenizer's end token."""

    format: Format
    end: str

    def __call__(self, turns: Turns) -> tuple[str, list[Span]]:
        """The text of a conversation and the spans of its answers, end token included.

        An open question (last turn human) ends where its answer starts; a lone answer is a caption. Raises DataError.
        """
        text, spans = "", []
        for piece, is_answer in self._pieces(turns):
            start = len(text.rstrip(" "))
            text += piece
            if is_answer:
                spans.append((start, len(text)))
        return (text if is_answer else text.rstrip(" ")), spans

    def pieces(self, turns: Turns) -> list[Piece]:
        """The turns as the reference hands them to its tokenizer, one by one: nothing said is one blank. DataError."""
        said = [(role, text if text or role == "human" else " ") for role, text in turns]
        pieces = self._pieces(said)
        last = len(pieces) - 1
        kept = [self.format.keeps_blank and index < last for index in range(len(pieces))]
        return [(text if keep else text.rstrip(" "), answer) for (text, answer), keep in zip(pieces, kept, strict=True)]

    def _pieces(self, turns: Turns) -> list[Piece]:
        if [role for role, _ in turns] == ["gpt"]:
            return [(turns[0][1] + self.end, True)]
        first = self.format.human if self.format.first is None else self.format.first
        pieces = []
        for index, (role, said) in enumerate(turns):
            if known(role) == "gpt":
                pieces.append((said + self.format.closing + self.end, True))
            else:
                pieces.append(((self.format.human if index else first).format(said), False))
        return pieces


@dataclass(frozen=True)
class Chat:
    """The tokenizer's chat template.

    Templates seldom mark the assistant's words, so where they start follows from rendering the conversation up to
    there, and where they end from the end token, which no text of the data holds.
    """

    tokenizer: PreTrainedTokenizerFast
    end: str
    """The control token after an assistant turn."""

    def __call__(self, turns: Turns) -> tuple[str, list[Span]]:
        """As `Published`. Raises DataError for turns that the template refuses or rewrites."""
        if [role for role, _ in turns] == ["gpt"]:
            text = turns[0][1] + self.end
            return text, [(0, len(text))]
        messages = [{"role": ROLES[known(role)], "content": said} for role, said in turns]
        is_open = messages[-1]["role"] == "user"
        text = rendered(self.tokenizer, messages, is_open)
        spans = [self._span(text, messages, i) for i, said in enumerate(messages) if said["role"] == "assistant"]
        return (text.rstrip(" ") if is_open else text), spans

    def _span(self, text: str, messages: list[dict[str, str]], index: int) -> Span:
        before = rendered(self.tokenizer, messages[:index], True)
        # Qwen 3's writes an empty thought before the last answer only.
        start = _shared(before, text)
        stop = text.find(self.end, start)
        if text[start:stop].strip() != messages[index]["content"] or stop < 0:
            raise DataError(
                f"the chat template writes turn {index} differently once more turns follow, so the answer's place is "
                f"not known; it wrote {text[start : start + 80]!r} after {before[-80:]!r}"
            )
        # blanks that end the prompt are tokenised with the answer's first word
        return len(text[:start].rstrip(" ")), stop + len(self.end)


def rendered(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], is_open: bool) -> str:
    """The messages as the chat template writes them; `is_open` adds the start of an answer, without thinking first."""
    template = tokenizer.get_chat_template()
    try:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=TODAY + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=is_open,
            date_string=DATE.strftime("%d %b %Y"),
            enable_thinking=False,
        )
    except (TemplateError, ValueError) as error:
        roles = [message["role"] for message in messages]
        raise DataError(f"the chat template refuses turns {roles}: {error}") from error


def _shared(one: str, other: str) -> int:
    """Characters that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def known(role: str) -> str:
    """`role` itself. Raises DataError for one that is none."""
    if role not in ROLES:
        raise DataError(f"unknown role '{role}' in a conversation; {nearest(role, ROLES)}")
    return role

"""Conversations as token ids, with the positions the loss is taken on.

A conversation is rendered to one text and tokenised once; what is supervised is found by character offsets. So the ids
are those the language model was trained to see, whatever its tokenizer does at the borders between turns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from prism_sweeps.config.errors import ConfigError, DataError, nearest
from prism_sweeps.config.schema import PROMPTS, LanguageModel

Turns = Sequence[tuple[str, str]]
"""(role, text); roles are human and gpt."""
Span = tuple[int, int]
"""Characters [first, last) of a rendered text."""
Render = Callable[[Turns], tuple[str, list[Span]]]
"""Turns -> text and the supervised spans. An open question (last turn human) ends where the answer starts."""

ROLES = {"human": "user", "gpt": "assistant"}
IMAGE = re.compile(r"<image>\n?|\n<image>")
PROBE = "q"
DATE = "26 Jul 2024"
"""For templates that state the date (Llama 3): their own default, so that prompts do not change from day to day."""


@dataclass(frozen=True)
class Encoded:
    """One conversation. `supervised[t]` says that `ids[t]` is to be predicted."""

    ids: list[int]
    supervised: list[bool]


class PromptFormat:
    """How conversations with one language model are written.

    `end_ids` are the tokens that end an answer; training teaches the first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, render: Render, end: str, bos_id: int) -> None:
        self.tokenizer = tokenizer
        self.bos_id = bos_id
        taught = tokenizer.convert_tokens_to_ids(end)
        self.end_ids: list[int] = list(dict.fromkeys([taught, tokenizer.eos_token_id]))
        self._render = render
        specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._control = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)")

    def encode(self, turns: Turns) -> Encoded:
        """BOS, then the conversation; assistant text and its end token are supervised.

        `<image>` is removed (the image stands after BOS), and so are the tokenizer's control tokens where data spell
        them out. A conversation of a single gpt turn is a caption: BOS, text, end token, as in the reference's align
        stage. Raises DataError for an unknown role or turns the format cannot render.
        """
        text, spans = self._render([(role, self._clean(said)) for role, said in turns])
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        supervised = _covered(tokens["offset_mapping"], spans)
        if tokens["input_ids"][:1] == [self.bos_id]:
            return Encoded(tokens["input_ids"], [False, *supervised[1:]])
        return Encoded([self.bos_id, *tokens["input_ids"]], [False, *supervised])

    def question(self, prompt: str) -> list[int]:
        """BOS and all up to where the answer starts: the first tokens of every `encode` that begins with `prompt`."""
        return self.encode([("human", prompt)]).ids

    def answer(self, text: str) -> list[int]:
        """The tokens that follow `question(...)` when the answer is `text`, without the end token."""
        encoded = self.encode([("human", PROBE), ("gpt", text)])
        ids = [token for token, wanted in zip(encoded.ids, encoded.supervised, strict=True) if wanted]
        return ids[:-1]

    def decode(self, ids: Sequence[int]) -> str:
        """Generated tokens as text, without control tokens and surrounding blanks."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def _clean(self, text: str) -> str:
        text = IMAGE.sub("", text)
        while self._control.search(text):  # what remains may spell another one
            text = self._control.sub("", text)
        # a blank at the border to the answer would merge with the format's own
        return text.strip()


def prompt_format(llm: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> PromptFormat:
    """The format `llm.prompt` with this tokenizer.

    in-out: `In: {question}\\nOut: {answer}</s>` per pair of turns (prismatic-vlms' format for base models).
    chat-template: the tokenizer's own template. BOS is the tokenizer's; where it has none, the control token the
    template begins with, else the end-of-text token. Raises ConfigError where the tokenizer has no end token or
    template, or does not keep a border between question and answer.
    """
    if llm.prompt not in PROMPTS:
        raise ConfigError(f"language model '{llm.name}': unknown prompt '{llm.prompt}'; {nearest(llm.prompt, PROMPTS)}")
    if tokenizer.eos_token is None:
        raise ConfigError(f"language model '{llm.name}': its tokenizer has no end-of-text token")
    if llm.prompt == "in-out":
        bos_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        prompt = PromptFormat(tokenizer, InOut(tokenizer.eos_token), tokenizer.eos_token, bos_id)
    else:
        prompt = _chat_format(llm, tokenizer)
    _check_borders(llm, prompt)
    return prompt


@dataclass(frozen=True)
class InOut:
    """`In: ..\\nOut: ..` and the end token, over and over. The blank before an answer belongs to the answer."""

    end: str

    def __call__(self, turns: Turns) -> tuple[str, list[Span]]:
        text, spans = "", []
        for index, (role, said) in enumerate(turns):
            _known(role)
            if role == "human":
                text += f"In: {said}\nOut:"
                continue
            start = len(text)
            text += f" {said}{self.end}" if index else f"{said}{self.end}"
            spans.append((start, len(text)))
        return text, spans


@dataclass(frozen=True)
class Chat:
    """The tokenizer's chat template.

    Templates seldom mark the assistant's words, so their place follows from rendering the conversation up to a turn.
    """

    tokenizer: PreTrainedTokenizerFast
    end: str
    """The control token after an assistant turn."""
    rest: str
    """What the template writes after it."""

    def __call__(self, turns: Turns) -> tuple[str, list[Span]]:
        if [role for role, _ in turns] == ["gpt"]:
            text = turns[0][1] + self.end
            return text, [(0, len(text))]
        messages = [{"role": ROLES[_known(role)], "content": said} for role, said in turns]
        is_open = messages[-1]["role"] == "user"
        text = rendered(self.tokenizer, messages, is_open)
        spans = [self._span(text, messages, i) for i, said in enumerate(messages) if said["role"] == "assistant"]
        return (text.rstrip(" ") if is_open else text), spans

    def _span(self, text: str, messages: list[dict[str, str]], index: int) -> Span:
        before = rendered(self.tokenizer, messages[:index], True)
        upto = text if index == len(messages) - 1 else rendered(self.tokenizer, messages[: index + 1], False)
        if not (upto.startswith(before) and text.startswith(upto) and upto.endswith(self.end + self.rest)):
            raise DataError(
                f"the chat template writes turn {index} differently once more turns follow, so the answer's place is "
                f"not known; it wrote {upto[-80:]!r} after {before[-80:]!r}"
            )
        # blanks that end the prompt are tokenised with the answer's first word
        return len(before.rstrip(" ")), len(upto) - len(self.rest)


def rendered(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], is_open: bool) -> str:
    """The messages as the chat template writes them; `is_open` adds the start of an answer."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_open, date_string=DATE)
    except (TemplateError, ValueError) as error:
        roles = [message["role"] for message in messages]
        raise DataError(f"the chat template refuses turns {roles}: {error}") from error


def _chat_format(llm: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> PromptFormat:
    if not tokenizer.chat_template:
        raise ConfigError(f"language model '{llm.name}' has no chat template; a base model takes prompt: in-out")
    answer = "zyx"
    messages = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": answer}]
    text = rendered(tokenizer, messages, False)
    _, found, tail = text.rpartition(answer)
    added = sorted(tokenizer.added_tokens_decoder.items())
    control = {token.content: index for index, token in added if token.special}
    ends = sorted((tail.index(token), token) for token in control if token in tail)
    if not found or not ends:
        raise ConfigError(
            f"language model '{llm.name}': its chat template ends an answer with {tail!r}, which holds no control token"
        )
    place, end = ends[0]
    first = [token for token in control if text.startswith(token)]
    bos_id = tokenizer.bos_token_id
    if bos_id is None:
        bos_id = control[max(first, key=len)] if first else tokenizer.eos_token_id
    return PromptFormat(tokenizer, Chat(tokenizer, end, tail[place + len(end) :]), end, bos_id)


def _check_borders(llm: LanguageModel, prompt: PromptFormat) -> None:
    whole = prompt.encode([("human", PROBE), ("gpt", "a dog")])
    parts = [*prompt.question(PROBE), *prompt.answer("a dog"), prompt.end_ids[0]]
    if whole.ids[: len(parts)] != parts:
        raise ConfigError(
            f"language model '{llm.name}': its tokenizer merges the end of the question with the answer, so an answer "
            f"would be scored on other tokens than it was trained on ({whole.ids} against {parts})"
        )


def _known(role: str) -> str:
    if role not in ROLES:
        raise DataError(f"unknown role '{role}' in a conversation; {nearest(role, ROLES)}")
    return role


def _covered(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token ends inside a span. Its end decides: tokenizers differ in giving it the blank before."""
    covered, index = [], 0
    for _, end in offsets:
        while index < len(spans) and end > spans[index][1]:
            index += 1
        covered.append(index < len(spans) and end > spans[index][0])
    return covered

"""Conversations as token ids, with the positions the loss is taken on.

As a rule a conversation is rendered to one text and tokenised once; what is supervised is found by character offsets.
So the ids are those the language model was trained to see, whatever its tokenizer does at the borders between turns.
The reference tokenises turn by turn, which gives other ids at those borders; `tokenisation: per-turn` repeats that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import PROMPTS, TOKENISATIONS, LanguageModel
from prism_sweeps.models.formats import FORMATS, Chat, Published, Span, Turns, rendered

IMAGE = re.compile(r"<image>\n?|\n<image>")
PROBE = "q"


@dataclass(frozen=True)
class Encoded:
    """One conversation. `supervised[t]` says that `ids[t]` is to be predicted."""

    ids: list[int]
    supervised: list[bool]


class PromptFormat:
    """How conversations with one language model are written.

    `end_ids` are the tokens that end an answer; training teaches the first. `closing` counts the supervised tokens
    that follow an answer's text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        tokenise: Callable[[Turns], Encoded],
        bos_id: int,
        end: str,
        closing: int = 1,
    ) -> None:
        self.tokenizer = tokenizer
        self.bos_id = bos_id
        taught = tokenizer.convert_tokens_to_ids(end)
        self.end_ids: list[int] = list(dict.fromkeys([taught, tokenizer.eos_token_id]))
        self._closing = closing
        self._tokenise = tokenise
        specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._control = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)")

    def encode(self, turns: Turns) -> Encoded:
        """BOS, then the conversation; assistant text and its end token are supervised.

        `<image>` is removed (the image stands after BOS), and so are the tokenizer's control tokens where data spell
        them out. A conversation of a single gpt turn is a caption: BOS, text, end token, as in the reference's align
        stage. Raises DataError for an unknown role or turns the format cannot render.
        """
        text = self._tokenise([(role, self._clean(said)) for role, said in turns])
        if text.ids[:1] == [self.bos_id]:
            return Encoded(text.ids, [False, *text.supervised[1:]])
        return Encoded([self.bos_id, *text.ids], [False, *text.supervised])

    def question(self, prompt: str) -> list[int]:
        """BOS and all up to where the answer starts: the first tokens of every `encode` that begins with `prompt`.

        Not so where a format is repeated with its flaw (phi, per turn), and where a template writes an answer
        differently once more turns follow (Qwen 3's).
        """
        return self.encode([("human", prompt)]).ids

    def answer(self, text: str) -> list[int]:
        """The tokens that follow `question(...)` when the answer is `text`, without those that end it."""
        encoded = self.encode([("human", PROBE), ("gpt", text)])
        ids = [token for token, wanted in zip(encoded.ids, encoded.supervised, strict=True) if wanted]
        return ids[: -self._closing]

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
    """The format `llm.prompt` with this tokenizer: one of `formats.FORMATS`, or its own chat template.

    BOS is the tokenizer's; where it has none, the control token the template begins with, else the end-of-text token.
    Raises ConfigError where the tokenizer has no end token or template, or does not keep a border between question and
    answer, and for a chat template turn by turn.
    """
    owner = f"language model '{llm.name}'"
    for what, value, valid in (
        ("prompt", llm.prompt, PROMPTS),
        ("tokenisation", llm.tokenisation, TOKENISATIONS),
    ):
        if value not in valid:
            raise ConfigError(f"{owner}: unknown {what} '{value}'; {nearest(value, valid)}")
    if tokenizer.eos_token is None:
        raise ConfigError(f"{owner}: its tokenizer has no end-of-text token")
    prompt = _published(llm, tokenizer) if llm.prompt in FORMATS else _chat(llm, tokenizer)
    if llm.tokenisation == "whole" or not FORMATS[llm.prompt].keeps_blank:
        _check_borders(llm, prompt)
    return prompt


@dataclass(frozen=True)
class Whole:
    """One text, tokenised once."""

    tokenizer: PreTrainedTokenizerFast
    render: Callable[[Turns], tuple[str, list[Span]]]

    def __call__(self, turns: Turns) -> Encoded:
        text, spans = self.render(turns)
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Encoded(tokens["input_ids"], _covered(tokens["offset_mapping"], spans))


@dataclass(frozen=True)
class PerTurn:
    """Every turn tokenised as if it stood alone."""

    tokenizer: PreTrainedTokenizerFast
    published: Published

    def __call__(self, turns: Turns) -> Encoded:
        pieces = [(_ids(self.tokenizer, text), answer) for text, answer in self.published.pieces(turns)]
        return Encoded([token for ids, _ in pieces for token in ids], [answer for ids, answer in pieces for _ in ids])


def _published(llm: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> PromptFormat:
    chosen, end = FORMATS[llm.prompt], tokenizer.eos_token
    published = Published(chosen, end)
    tokenise = Whole(tokenizer, published) if llm.tokenisation == "whole" else PerTurn(tokenizer, published)
    bos_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return PromptFormat(tokenizer, tokenise, bos_id, end, _closing_tokens(tokenise) if chosen.closing else 1)


def _closing_tokens(tokenise: Callable[[Turns], Encoded]) -> int:
    """How many tokens two answers that have nothing in common end with."""
    taught = []
    for said in ("a", "2"):
        encoded = tokenise([("human", PROBE), ("gpt", said)])
        taught.append([token for token, wanted in zip(encoded.ids, encoded.supervised, strict=True) if wanted])
    pairs = enumerate(zip(*map(reversed, taught), strict=False))
    return next((index for index, (one, other) in pairs if one != other), 1)


def _chat(llm: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> PromptFormat:
    if llm.tokenisation != "whole":
        raise ConfigError(
            f"language model '{llm.name}': a chat template writes whole conversations, so tokenisation is whole with "
            f"it; per-turn goes with {', '.join(FORMATS)}"
        )
    if not tokenizer.chat_template:
        raise ConfigError(f"language model '{llm.name}' has no chat template; a base model takes prompt: in-out")
    answer = "zyx"
    messages = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": answer}]
    text = rendered(tokenizer, messages, False)
    _, found, tail = text.rpartition(answer)
    control = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = sorted((tail.index(token), token) for token in control if token in tail)
    if not found or not ends:
        raise ConfigError(
            f"language model '{llm.name}': its chat template ends an answer with {tail!r}, which holds no control token"
        )
    end = ends[0][1]
    first = [token for token in control if text.startswith(token)]
    bos_id = tokenizer.bos_token_id
    if bos_id is None:
        bos_id = control[max(first, key=len)] if first else tokenizer.eos_token_id
    return PromptFormat(tokenizer, Whole(tokenizer, Chat(tokenizer, end)), bos_id, end)


def _check_borders(llm: LanguageModel, prompt: PromptFormat) -> None:
    whole = prompt.encode([("human", PROBE), ("gpt", "a dog")])
    parts = [*prompt.question(PROBE), *prompt.answer("a dog")]
    taught = [token for token, wanted in zip(whole.ids, whole.supervised, strict=True) if wanted]
    if whole.ids[: len(parts)] != parts or taught[-1] != prompt.end_ids[0]:
        raise ConfigError(
            f"language model '{llm.name}': its tokenizer merges the end of the question with the answer, so an answer "
            f"would be scored on other tokens than it was trained on ({whole.ids} against {parts})"
        )


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _covered(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token ends inside a span. Its end decides: tokenizers differ in giving it the blank before."""
    covered, index = [], 0
    for _, end in offsets:
        while index < len(spans) and end > spans[index][1]:
            index += 1
        covered.append(index < len(spans) and end > spans[index][0])
    return covered

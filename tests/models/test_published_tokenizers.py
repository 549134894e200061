"""The published formats with the tokenizers of real models."""

import pytest
from published_tokenizers import llama2, mistral, phi2, smollm2

from prism_sweeps.config.schema import LanguageModel
from prism_sweeps.models.formats import FORMATS
from prism_sweeps.models.prompts import PromptFormat, prompt_format

pytestmark = pytest.mark.slow

LLAMA_FORMATS = [name for name in FORMATS if name != "phi"]
SAID = ["a dog", "Yes", "", "3", "naïve, 日本語 🙂", "two\nlines", "(0.5, 0.25)", "A", "</s> and <image>", "  blanks  "]
CLEAN = [text.replace("</s>", "").replace("<image>", "").replace("<|im_end|>", "").strip() for text in SAID]
TURNS = [turn for answer in SAID for turn in (("human", f"What of {answer}?"), ("gpt", answer))]


def form(tokenizer, prompt: str, tokenisation: str = "whole") -> PromptFormat:
    return prompt_format(LanguageModel("real", "x", prompt, tokenisation=tokenisation), tokenizer)


def answers(form: PromptFormat, turns) -> list[str]:
    """The supervised runs as text."""
    encoded, texts, last = form.encode(turns), [], False
    for token, wanted in zip(encoded.ids, encoded.supervised, strict=True):
        if wanted:
            texts = texts if last else [*texts, []]
            texts[-1].append(token)
        last = wanted
    return [form.decode(ids) for ids in texts]


@pytest.fixture(params=["llama2", "mistral"])
def family(request, tmp_path_factory):
    """legacy -> a tokenizer of the Llama family."""
    cache = request.config.cache
    if request.param == "llama2":
        return lambda legacy: llama2(cache, legacy)
    return lambda legacy: mistral(cache, legacy, tmp_path_factory.mktemp("mistral"))


def test_llama_2s_ids(request):
    """Known from its own sentencepiece: Hello world is [15043, 3186]."""
    new, old = (llama2(request.config.cache, legacy) for legacy in (False, True))
    for tokenizer in (new, old):
        assert tokenizer.encode("Hello world", add_special_tokens=False) == [15043, 3186]
        assert tokenizer.encode("ASSISTANT:", add_special_tokens=False) == [319, 1799, 9047, 13566, 29901]
    assert new.encode("A </s>USER: hi", add_special_tokens=False) == [319, 29871, 2, 11889, 29901, 7251]
    assert old.encode("A </s>USER: hi", add_special_tokens=False) == [319, 29871, 2, 3148, 1001, 29901, 7251]


def test_vicunas_conversation_in_llama_2s_ids(request):
    vicuna = form(llama2(request.config.cache, False), "vicuna")
    encoded = vicuna.encode([("human", "hi"), ("gpt", "Hello world"), ("human", "hi"), ("gpt", "Yes")])
    hello, user, assistant = [15043, 3186, 2], [11889, 29901, 7251], [319, 1799, 9047, 13566, 29901]
    taught = [token for token, wanted in zip(encoded.ids, encoded.supervised, strict=True) if wanted]
    assert (encoded.ids[0], taught) == (1, [*hello, 3869, 2])
    assert encoded.ids[-len(user + assistant) - 2 :] == [*user, *assistant, 3869, 2]
    assert vicuna.question("hi")[-len(assistant) :] == assistant
    assert vicuna.answer("Hello world") == hello[:-1]
    caption = vicuna.encode([("gpt", "Hello world")])
    assert (caption.ids, caption.supervised) == ([1, *hello], [False, True, True, True])


@pytest.mark.parametrize("tokenisation", ["whole", "per-turn"])
@pytest.mark.parametrize("prompt", LLAMA_FORMATS)
def test_what_is_supervised_are_the_answers(family, prompt, tokenisation):
    for legacy in (False, True):
        real = form(family(legacy), prompt, tokenisation)
        assert answers(real, TURNS) == CLEAN
        for question, answer in zip(TURNS[::2], TURNS[1::2], strict=True):
            asked, said = real.question(question[1]), real.answer(answer[1])
            assert real.encode([question, answer]).ids == [*asked, *said, 2]


@pytest.mark.parametrize("prompt", LLAMA_FORMATS)
def test_turn_by_turn_differs_only_where_a_later_turn_begins(family, prompt):
    """Alone, a turn gets the blank that sentencepiece puts first; after an end token, newer tokenizers put none."""
    old_whole, old_turns, whole, turns = (
        form(family(legacy), prompt, tokenisation).encode(TURNS)
        for legacy in (True, False)
        for tokenisation in ("whole", "per-turn")
    )
    assert old_turns == turns
    assert old_whole == turns
    begun = [[ids[index + 1] for index, token in enumerate(ids[:-1]) if token == 2] for ids in (whole.ids, turns.ids)]
    assert all(one != other for one, other in zip(*begun, strict=True))
    end = whole.ids.index(2) + 1
    assert whole.ids[:end] == turns.ids[:end]
    taught = [[t for t, w in zip(each.ids, each.supervised, strict=True) if w] for each in (whole, turns)]
    assert taught[0] == taught[1]


def test_phi_2_as_it_should_be_and_as_the_reference_has_it(request):
    tokenizer = phi2(request.config.cache)
    end, newline, blank = 50256, 198, 220
    a, dog = tokenizer.encode(" a dog")
    whole, turns = (form(tokenizer, "phi", tokenisation) for tokenisation in ("whole", "per-turn"))
    asked = whole.question("What?")
    assert asked == [end, *tokenizer.encode("Input: What?\nOutput:")] == turns.question("What?")
    turn = [("human", "What?"), ("gpt", "a dog")]
    assert whole.encode(turn).ids == [*asked, a, dog, newline, end]
    assert turns.encode(turn).ids == [*asked, blank, *tokenizer.encode("a dog"), newline, end]
    assert (whole.answer("a dog"), turns.answer("a dog")) == ([a, dog], tokenizer.encode("a dog"))
    assert whole.end_ids == turns.end_ids == [end]
    for real in (whole, turns):
        said = [text.replace("<image>", "").strip() for text in SAID]
        assert answers(real, TURNS) == said
        assert real.encode([("gpt", "a dog")]).ids == [end, *tokenizer.encode("a dog"), end]


@pytest.mark.parametrize("prompt", ["chat-template", "in-out"])
def test_smollm2(request, prompt):
    tokenizer = smollm2(request.config.cache)
    real = form(tokenizer, prompt)
    assert answers(real, TURNS) == [text.replace("<image>", "").strip() for text in SAID]
    ids = real.encode(TURNS[:2]).ids
    assert ids[: len(real.question(TURNS[0][1]))] == real.question(TURNS[0][1])
    if prompt == "chat-template":
        start, stop = "<|im_start|>", "<|im_end|>"
        assert tokenizer.decode(ids).endswith(f"{start}user\nWhat of a dog?{stop}\n{start}assistant\na dog{stop}\n")
        assert real.end_ids == [tokenizer.convert_tokens_to_ids(stop)]

"""The published formats to the letter, and chat templates that close a conversation in ways of their own."""

import hashlib

import pytest

from prism_sweeps.config.checks import check_cell
from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.config.schema import PROMPTS, LanguageModel
from prism_sweeps.data.batching import encode
from prism_sweeps.data.conversations import Conversation
from prism_sweeps.models.formats import FORMATS, VICUNA_SYSTEM, VISION_SYSTEM, Published
from prism_sweeps.models.language import byte_tokenizer
from prism_sweeps.models.prompts import PromptFormat, prompt_format

TURNS = [("human", "<image>\nWhat?"), ("gpt", "a dog"), ("human", "Sure?"), ("gpt", "")]
VICUNA = f"{VICUNA_SYSTEM} USER: What? ASSISTANT:"
LLAMA = f"[INST] {{}}\n{VISION_SYSTEM}\n<</SYS>>\n\nWhat? [/INST]"
TEXTS = {
    "in-out": ["In: What?\nOut:", " a dog</s>", "In: Sure?\nOut:", " </s>"],
    "vicuna": [VICUNA, " a dog</s>", "USER: Sure? ASSISTANT:", " </s>"],
    "llama2-chat": [LLAMA.format("<<SYS>>"), " a dog</s>", "[INST] Sure? [/INST]", " </s>"],
    "llama2-chat-typo": [LLAMA.format("<<SYS>"), " a dog</s>", "[INST] Sure? [/INST]", " </s>"],
    "mistral-instruct": ["[INST] What? [/INST]", " a dog</s>", "[INST] Sure? [/INST]", " </s>"],
    "phi": ["Input: What?\nOutput:", " a dog\n</s>", "Input: Sure?\nOutput:", " \n</s>"],
}


def form(prompt: str, tokenisation: str = "whole", template: str | None = None) -> PromptFormat:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    if template:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|end|>"]})
    return prompt_format(LanguageModel("bytes", "random:1", prompt, tokenisation=tokenisation), tokenizer)


def runs(form: PromptFormat, turns) -> list[str]:
    """The text after BOS, cut where supervision begins and ends."""
    encoded = form.encode(turns)
    texts, last = [], None
    for token, wanted in zip(encoded.ids[1:], encoded.supervised[1:], strict=True):
        if wanted != last:
            texts.append([])
        texts[-1].append(token)
        last = wanted
    return [form.tokenizer.decode(ids) for ids in texts]


def test_system_prompts_are_the_published_ones():
    digests = {len(text): hashlib.sha256(text.encode()).hexdigest()[:8] for text in (VICUNA_SYSTEM, VISION_SYSTEM)}
    assert digests == {154: "1fa69e23", 186: "790f4cfc"}


@pytest.mark.parametrize("prompt", FORMATS)
def test_a_format_is_the_published_text_and_answers_are_supervised(prompt):
    whole = form(prompt)
    assert runs(whole, TURNS) == TEXTS[prompt]
    assert whole.tokenizer.decode(whole.question("What?")) == "<s>" + TEXTS[prompt][0]
    assert whole.decode(whole.answer("a dog")) == "a dog"
    assert runs(whole, [("gpt", "a dog")]) == ["a dog</s>"]


@pytest.mark.parametrize("prompt", FORMATS)
def test_turn_by_turn_the_blank_before_an_answer_is_gone(prompt):
    """Bytes show what each turn was given to the tokenizer as: the Llama tokenizers put the blank back."""
    kept = " " if prompt == "phi" else ""
    first, dog, second, nothing = TEXTS[prompt]
    turned = form(prompt, "per-turn")
    assert runs(turned, TURNS) == [first + kept, dog.removeprefix(" "), second + kept, nothing]
    assert turned.tokenizer.decode(turned.question("What?")) == "<s>" + first
    assert turned.decode(turned.answer("a dog")) == "a dog"
    assert runs(turned, [("gpt", "a dog")]) == ["a dog</s>"]


def test_every_prompt_but_the_template_is_published():
    assert set(PROMPTS) == {*FORMATS, "chat-template"}


def test_braces_and_format_marks_in_data_stay_as_they_are():
    assert runs(form("vicuna"), [("human", "{0} {} {{x}}"), ("gpt", "{}")]) == [
        VICUNA.replace("What?", "{0} {} {{x}}"),
        " {}</s>",
    ]


def test_unknown_roles_and_settings_are_told():
    with pytest.raises(DataError, match="did you mean 'human'"):
        Published(FORMATS["phi"], "</s>")([("humans", "a"), ("gpt", "b")])
    with pytest.raises(ConfigError, match="did you mean 'per-turn'"):
        form("phi", "per-turns")
    with pytest.raises(ConfigError, match="per-turn goes with in-out"):
        form("chat-template", "per-turn")
    cell, choices = compose_cell(["llm.prompt=chat-template", "llm.tokenisation=per-turn"])
    with pytest.raises(ConfigError, match="with it tokenisation must be whole"):
        check_cell(cell, choices)


def test_text_is_cut_at_its_own_limit_or_where_the_context_ends():
    whole = form("phi")
    full = whole.encode(TURNS)
    for image, context, limit, left in (
        (None, 200, None, 99),
        ("x", 30, None, 20),
        ("x", 30, 12, 12),
        ("x", 30, 25, 20),
    ):
        example = encode(Conversation("c", "s", image, TURNS), whole, 10, context, limit)
        left = min(left, len(full.ids))
        assert example.ids_T.tolist() == full.ids[:left]
        assert example.supervised_T.tolist() == full.supervised[:left]
        assert example.length == left + (0 if image is None else 10)


THINKS_LAST = (  # as Qwen 3's does: an empty thought before the last answer, and where one is to begin
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
CLOSES = (  # as Phi-4-mini's does: an end-of-text token after a conversation that is over
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% else %}{{ eos_token }}{% endif %}"
)
DATED = (  # as SmolLM3's does
    "{{ '[system]' + strftime_now('%d %B %Y') }}{% for m in messages %}{{ '[' + m.role + ']' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
TRIMS = (  # as Gemma 3's does
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [THINKS_LAST, CLOSES, DATED, TRIMS], ids=["thinks", "closes", "dated", "trims"])
def test_answers_are_found_in_templates_that_end_differently(template):
    chat = form("chat-template", template=template)
    end = "<|end|>" if template == CLOSES else "</s>" if template == DATED else "<|im_end|>"
    assert runs(chat, TURNS)[1::2] == [f"a dog{end}", end]
    assert runs(chat, TURNS[:2])[:2] == [chat.tokenizer.decode(chat.question("What?")[1:]), f"a dog{end}"]
    assert chat.decode(chat.answer("a dog")) == "a dog"
    assert chat.tokenizer.decode(chat.end_ids[:1]) == end


def test_a_thought_stands_before_the_last_answer_only_and_never_in_it():
    said = runs(form("chat-template", template=THINKS_LAST), TURNS)
    assert ["<think>" in text for text in said[:4]] == [False, False, True, False]


def test_the_date_does_not_change_from_day_to_day():
    assert "[system]26 July 2024" in runs(form("chat-template", template=DATED), TURNS)[0]

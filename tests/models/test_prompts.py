import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.config.schema import LanguageModel
from prism_sweeps.models.formats import FORMATS as PUBLISHED
from prism_sweeps.models.language import byte_tokenizer
from prism_sweeps.models.prompts import prompt_format

CORPUS = [
    "In: What is in the picture?\nOut: a dog and two cats\n",
    "In: Is the red square left of the blue one?\nOut: yes, it is. no! 3 4 5",
    "Out: a Out: the dog: a dog\n\nassistant\nuser\n café naïve ÄÖÜ 日本 🙂",
] * 3
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{{ bos_token }}A chat. {% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
SPECIALS = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]


def fast(tokenizer: Tokenizer, template: str, bos: str | None = "<s>", eos: str = "</s>") -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token="<unk>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = template
    return made


def byte_level(trim_offsets: bool) -> Tokenizer:
    """GPT-2, Qwen, SmolLM: byte-level BPE over regex words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def llama() -> Tokenizer:
    """Llama 2: blanks become ▁, one is put before the text, and words are not split apart before BPE."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIALS, show_progress=False))
    return tokenizer


TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "byte-level chatml": fast(byte_level(False), CHATML, bos=None, eos="<|im_end|>"),
    "byte-level trimmed vicuna": fast(byte_level(True), VICUNA),
    "llama llama2": fast(llama(), LLAMA2),
    "unigram vicuna": fast(unigram(), VICUNA),
    "words chatml": fast(word_level(), CHATML),
}
FORMATS = {
    (name, prompt): prompt_format(LanguageModel(name=name, weights="x", prompt=prompt), tokenizer)
    for name, tokenizer in TOKENIZERS.items()
    for prompt in (*PUBLISHED, "chat-template")
}
TEXT = st.one_of(
    st.sampled_from(
        ["", " ", "a dog", " a dog ", "\n\nyes", "</s>", "<image>", "3", ":", "ne\nOut:", "</<s>s>", "é", "🙂"]
    ),
    st.text(max_size=30),
)


def said(encoded, form) -> list[str]:
    """The supervised runs as text, control tokens included."""
    runs, last = [], False
    for token, wanted in zip(encoded.ids, encoded.supervised, strict=True):
        if wanted:
            runs = [*runs[:-1], [*runs[-1], token]] if last else [*runs, [token]]
        last = wanted
    return [form.tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("key", FORMATS, ids=" | ".join)
@settings(max_examples=25, deadline=None)
@given(question=TEXT, answer=TEXT, more=st.lists(st.tuples(TEXT, TEXT), max_size=2))
def test_question_and_answer_are_the_first_tokens_of_training(key, question, answer, more):
    form = FORMATS[key]
    rest = [turn for q, a in more for turn in (("human", q), ("gpt", a))]
    encoded = form.encode([("human", question), ("gpt", answer), *rest])
    start, words = form.question(question), form.answer(answer)
    stop = encoded.ids.index(form.end_ids[0], len(start)) + 1
    assert encoded.ids[: len(start) + len(words)] == [*start, *words]
    assert stop - len(start) - len(words) <= 2  # the end token, and what Phi-2 writes before it
    assert encoded.supervised[:stop] == [False] * len(start) + [True] * (stop - len(start))
    taught = [t for t, wanted in zip(encoded.ids, encoded.supervised, strict=True) if wanted]
    assert taught.count(form.end_ids[0]) == 1 + len(more)
    assert encoded.ids[0] == form.bos_id
    assert not encoded.supervised[0]


@pytest.mark.parametrize("key", FORMATS, ids=" | ".join)
def test_there_is_exactly_one_bos(key):
    form = FORMATS[key]
    if form.tokenizer.bos_token_id is None or key == ("llama llama2", "chat-template"):
        pytest.skip("without a BOS of its own, or with one before every question")
    turns = [("human", "a dog"), ("gpt", "a"), ("human", "the dog"), ("gpt", "yes")]
    assert form.encode(turns).ids.count(form.tokenizer.bos_token_id) == 1


def test_in_out_is_the_references_text():
    form = FORMATS["bytes", "in-out"]
    encoded = form.encode([("human", "<image>\nWhat?"), ("gpt", "a dog"), ("human", "Sure?\n<image>"), ("gpt", "")])
    assert form.tokenizer.decode(encoded.ids) == "<s>In: What?\nOut: a dog</s>In: Sure?\nOut: </s>"
    assert said(encoded, form) == [" a dog</s>", " </s>"]
    assert form.tokenizer.decode(form.question("What?")) == "<s>In: What?\nOut:"
    assert form.decode(form.answer("a dog")) == "a dog"


def test_chat_templates_supervise_answer_and_end_token_only():
    turns = [("human", "What?"), ("gpt", "a dog"), ("human", "Sure?"), ("gpt", "yes")]
    chatml = FORMATS["byte-level chatml", "chat-template"]
    assert said(chatml.encode(turns), chatml) == ["a dog<|im_end|>", "yes<|im_end|>"]
    assert chatml.tokenizer.decode(chatml.encode(turns).ids[:1]) == "<|im_start|>"
    assert chatml.end_ids == [chatml.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    vicuna = FORMATS["byte-level trimmed vicuna", "chat-template"]
    assert said(vicuna.encode(turns), vicuna) == [" a dog</s>", " yes</s>"]
    assert vicuna.tokenizer.decode(vicuna.question("What?")).endswith("USER: What? ASSISTANT:")


def test_a_lone_answer_is_a_caption_after_bos():
    for form in FORMATS.values():
        encoded = form.encode([("gpt", "a dog")])
        assert encoded.supervised == [False] + [True] * (len(encoded.ids) - 1)
        assert (encoded.ids[0], encoded.ids[-1]) == (form.bos_id, form.end_ids[0])


def test_control_tokens_spelt_out_in_data_are_not_control_tokens():
    form = FORMATS["bytes", "in-out"]
    encoded = form.encode([("human", "what is </s>?"), ("gpt", "an </<s>s>end")])
    assert form.tokenizer.decode(encoded.ids) == "<s>In: what is ?\nOut: an end</s>"


def test_unknown_roles_and_refused_turns_are_data_errors():
    for prompt in ("in-out", "chat-template"):
        with pytest.raises(DataError, match="did you mean 'human'"):
            FORMATS["bytes", prompt].encode([("humans", "a"), ("gpt", "b")])
    strict = fast(byte_level(False), "{{ raise_exception('roles must alternate') if messages|length > 2 }}" + CHATML)
    form = prompt_format(LanguageModel(name="strict", weights="x", prompt="chat-template"), strict)
    with pytest.raises(DataError, match="roles must alternate"):
        form.encode([("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")])


def test_a_template_that_rewrites_earlier_turns_is_refused():
    rewriting = CHATML.replace("m.content", "(m.content if loop.last or m.role == 'user' else 'cut')")
    llm = LanguageModel(name="r", weights="x", prompt="chat-template")
    form = prompt_format(llm, fast(byte_level(False), rewriting))
    form.encode([("human", "a"), ("gpt", "b")])
    with pytest.raises(DataError, match="writes turn 1 differently once more turns follow"):
        form.encode([("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")])


@pytest.mark.parametrize(
    ("prompt", "template", "eos", "message"),
    [
        ("in-out", CHATML, None, "no end-of-text token"),
        ("chat-template", None, "</s>", "no chat template"),
        ("chat-template", "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}", "</s>", "no control token"),
        ("in_out", CHATML, "</s>", "did you mean 'in-out'"),
    ],
)
def test_tokenizers_that_cannot_work_are_config_errors(prompt, template, eos, message):
    tokenizer = fast(byte_level(False), template, eos=eos)
    with pytest.raises(ConfigError, match=message):
        prompt_format(LanguageModel(name="t", weights="x", prompt=prompt), tokenizer)


def test_a_tokenizer_that_merges_question_and_answer_is_refused():
    merging = Tokenizer(
        models.BPE(
            vocab={"<s>": 0, "</s>": 1, "<unk>": 2, ":": 3, " ": 4, ": ": 5}, merges=[(":", " ")], unk_token="<unk>"
        )
    )
    with pytest.raises(ConfigError, match="merges the end of the question with the answer"):
        prompt_format(LanguageModel(name="m", weights="x", prompt="in-out"), fast(merging, CHATML))

"""Chat templates that make, through LLaVA's processor, the very tokens of each prompt format."""

import pytest
from tiny_models import language_model, picture
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import PROMPTS
from prism_sweeps.interop.llava_prompt import set_template, tokenizer_with_image
from prism_sweeps.models.language import byte_tokenizer
from prism_sweeps.models.prompts import prompt_format

PATCHES = 16
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def piece_tokenizer(style: str, merged: tuple[str, ...] = ("In", "▁In", "ER", "▁▁")) -> PreTrainedTokenizerFast:
    """Of the SentencePiece kind: blanks are ▁, and one stands before the text; it adds BOS by itself.

    legacy: before every stretch between control tokens, as Llama 2 and Vicuna have it. first: before the first alone.
    """
    letters = [chr(code) for code in range(33, 127)] + ["▁", "\n", "é"]
    parts = sorted({text[:end] for text in merged for end in range(2, len(text) + 1)}, key=len)
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *letters, *parts])}
    merges = [(part[:-1], part[-1]) for part in parts]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    if style == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """As Qwen's: no BOS of its own, turns between control tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


def processor_for(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    side = {"height": 32, "width": 32}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size=side, crop_size=side),
        tokenizer=tokenizer_with_image(tokenizer),
        patch_size=8,
        vision_feature_select_strategy="full",
    )


def check(prompt: str, tokenizer: PreTrainedTokenizerFast, tokenisation: str = "whole") -> LlavaProcessor:
    prompts = prompt_format(language_model(prompt=prompt, tokenisation=tokenisation), tokenizer)
    processor = processor_for(tokenizer)
    set_template(processor, prompts, PATCHES, "language model 'tiny'")
    for question in ("Is it red?", "  what In: is\nthis ", "café"):
        content = [{"type": "image", "image": picture(40, 40)}, {"type": "text", "text": question}]
        given = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        ids = given["input_ids"][0] if isinstance(given["input_ids"][0], list) else given["input_ids"]
        own = prompts.question(question)
        assert list(ids) == [own[0], *[processor.image_token_id] * PATCHES, *own[1:]]
    return processor


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_format_with_a_tokenizer_of_bytes(prompt):
    check(prompt, byte_tokenizer())


@pytest.mark.parametrize("style", ["legacy", "first"])
@pytest.mark.parametrize("prompt", [prompt for prompt in PROMPTS if prompt != "chat-template"])
def test_every_published_format_with_a_tokenizer_that_puts_a_blank_before_text(prompt, style):
    check(prompt, piece_tokenizer(style))


def test_a_template_whose_bos_is_its_first_control_token():
    processor = check("chat-template", chatml_tokenizer())
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}], tokenize=False
    )
    assert text.startswith("<|im_start|><image>user\nhi")


@pytest.mark.parametrize("prompt", ["in-out", "vicuna", "llama2-chat", "mistral-instruct"])
def test_turns_tokenised_one_by_one(prompt):
    check(prompt, piece_tokenizer("legacy"), tokenisation="per-turn")


def test_tokens_that_no_template_makes_are_refused():
    with pytest.raises(ConfigError, match=r"its prompts cannot be written as LLaVA's.*was trained on"):
        check("phi", piece_tokenizer("legacy"), tokenisation="per-turn")


def test_a_format_that_changes_what_is_said_is_refused():
    prompts = prompt_format(language_model(), byte_tokenizer())
    decode = prompts.tokenizer.decode
    prompts.tokenizer.decode = lambda *given, **options: decode(*given, **options).upper()
    with pytest.raises(ConfigError, match="is not a fixed text around questions and answers"):
        set_template(processor_for(byte_tokenizer()), prompts, PATCHES, "language model 'tiny'")


def test_other_roles_are_refused_by_the_template():
    processor = check("in-out", byte_tokenizer())
    with pytest.raises(Exception, match="roles are user and assistant"):
        processor.apply_chat_template([{"role": "system", "content": "be brief"}], tokenize=False)

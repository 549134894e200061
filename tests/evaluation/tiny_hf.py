"""Folders of transformers' own vision-language models: real classes, processors and tokenizers, tiny random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers import decoders as tokenizer_decoders
from transformers import (
    BertTokenizer,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    T5Config,
)

from prism_sweeps.evaluation.requests import Answer, Answerer, Request, Unanswered

QUESTION = "What colour is the car?"
OPTIONS = ("red", "blue green", "no")
SPECIAL = ["<s>", "</s>", "<pad>", "<unk>"]
TEXT = "USER: ASSISTANT: What colour is the car? red blue green yes no true false Answer the question one two three"
WIDTH = 32


def tokenizer(*more: str, bos: bool = True, max_length: int = 160) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a few words; BOS is put in front."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizer_decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 20, trainer)
    if bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=max_length, additional_special_tokens=list(more),
    )  # fmt: skip


def text_config(words: PreTrainedTokenizerFast, positions: int = 160) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip


def spread(model: torch.nn.Module, factor: float = 6.0) -> torch.nn.Module:
    """Weights as drawn let a model say one thing to everything."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return model


def llava(folder: Path, template: str | None = None, positions: int = 160) -> Path:
    torch.manual_seed(1)
    words = tokenizer("<image>")
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text_config(words, positions),
        image_token_index=words.convert_tokens_to_ids("<image>"), vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    spread(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def instructblip(folder: Path, encoder_decoder: bool = False) -> Path:
    torch.manual_seed(2)
    words = tokenizer("<image>")
    vocabulary = folder / "q-former-vocabulary"
    letters = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *map(chr, range(33, 127)),
        *(f"##{chr(c)}" for c in range(97, 123)),
    ]
    vocabulary.parent.mkdir(parents=True, exist_ok=True)
    vocabulary.write_text("\n".join(letters), encoding="utf-8")
    asked = BertTokenizer(str(vocabulary))
    text = (
        T5Config(
            vocab_size=len(words), d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=2,
            pad_token_id=2, eos_token_id=1, tie_word_embeddings=False,
        )
        if encoder_decoder
        else text_config(words, positions=400)
    )  # fmt: skip
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32,
            patch_size=8,
        ).to_dict(),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=len(letters), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, encoder_hidden_size=WIDTH, max_position_embeddings=128,
        ).to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = InstructBlipForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)  # of zeros nothing is seen
    spread(model, 3.0 if encoder_decoder else 6.0).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    InstructBlipProcessor(images, words, asked, num_query_tokens=4).save_pretrained(folder)
    return folder


QWEN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}{% if part.type == "
    "'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen2_vl(folder: Path) -> Path:
    torch.manual_seed(3)
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>"]
    words = tokenizer(*marks, bos=False)
    places = {mark: words.convert_tokens_to_ids(mark) for mark in marks}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0,
            "eos_token_id": 1, "pad_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 2, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 4, "patch_size": 8, "mlp_ratio": 2,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=places["<|image_pad|>"], video_token_id=places["<|video_pad|>"],
        vision_start_token_id=places["<|vision_start|>"], vision_end_token_id=places["<|vision_end|>"],
    )  # fmt: skip
    spread(Qwen2VLForConditionalGeneration(config)).save_pretrained(folder)
    images = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    )
    Qwen2VLProcessor(images, words, Qwen2VLVideoProcessor(patch_size=8), chat_template=QWEN).save_pretrained(folder)
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "llava": llava,
    "instructblip": instructblip,
    "instructblip-t5": lambda folder: instructblip(folder, encoder_decoder=True),
    "qwen2_vl": qwen2_vl,
}


# ---- what they are asked


def ask(model: Answerer, requests: list[Request]) -> dict[str, Answer | Unanswered]:
    told = {request.id: answer for part in model.answers(requests) for request, answer in part}
    assert sorted(told) == sorted(request.id for request in requests)
    return told


def free(images: list[Path], count: int = 5) -> list[Request]:
    texts = (f"{QUESTION} one", f"{QUESTION} two three Answer the question", QUESTION)
    return [
        Request(f"free {n}", images[n % 3].name, images[n % 3], texts[n % len(texts)], limit=5) for n in range(count)
    ]


def choices(images: list[Path], **changes) -> list[Request]:
    request = Request("", None, None, QUESTION, options=OPTIONS)
    return [
        replace(request, id=f"choice {n}", shown=image.name, image=image, text=f"{QUESTION} one" * n, **changes)
        for n, image in enumerate(images, start=1)
    ]

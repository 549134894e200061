"""LLaVA folders: transformers loads them and says what we say."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import language_model, model_of, picture, spec_of, tower
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.evaluation.asking import read_one
from prism_sweeps.interop import llava
from prism_sweeps.interop.model import Model

QUESTIONS = ("what is this?", "How many dogs are left of the cat?", "x")


def reopened(folder: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    return (
        LlavaForConditionalGeneration.from_pretrained(folder).eval(),
        LlavaProcessor.from_pretrained(folder, backend="pil"),
    )


def inputs_of(processor: LlavaProcessor, image, question: str) -> dict[str, torch.Tensor]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip


@torch.inference_mode()
def compare(model: Model, folder: Path, sizes: list[tuple[int, int]]) -> None:
    """Largest difference of logits, relative to the largest logit; greedy texts are equal."""
    theirs, processor = reopened(folder)
    worst = 0.0
    for seed, size in enumerate(sizes):
        image = picture(*size, seed)
        for question in QUESTIONS:
            given = inputs_of(processor, image, question)
            ids = model.loaded.prompts.question(question)
            ours = read_one(model.loaded, image, ids).logits_BV[0]
            found = theirs(**given).logits[0, -1, : len(ours)]
            worst = max(worst, float((ours - found).abs().max() / ours.abs().max()))
            answer = theirs.generate(**given, max_new_tokens=12)[0, given["input_ids"].shape[1] :]
            assert model.loaded.prompts.decode(answer.tolist()) == model.ask(image, question, 12)
    assert worst <= 1e-5


SIZES = [(50, 40), (40, 66), (32, 32)]


@pytest.mark.parametrize("kind", ["clip", "siglip", "so400m", "nano", "open_clip"])
def test_a_tower_of_each_family_gives_the_same_logits_and_text(kind, tmp_path):
    model = model_of(spec_of(kind))
    llava.save(model, tmp_path / "out")
    compare(model, tmp_path / "out", SIZES)


@pytest.mark.parametrize("resize", ["crop", "letterbox"])
def test_every_resize_is_expressed(resize, tmp_path):
    model = model_of(spec_of("clip", resize=resize))
    llava.save(model, tmp_path / "out")
    compare(model, tmp_path / "out", SIZES)


def test_answers_differ_between_images_and_questions():
    model = model_of(spec_of("clip"))
    answers = {model.ask(picture(40, 40, seed), question, 12) for seed in range(3) for question in QUESTIONS}
    assert len(answers) > 3  # else equal texts would show nothing


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "qwen3", "olmo2"])
def test_language_models_of_other_families(architecture, tmp_path):
    config = {"head_dim": 12} if architecture == "qwen3" else {}
    model = model_of(spec_of("clip", llm=language_model(architecture=architecture, config=config)))
    llava.save(model, tmp_path / "out")
    compare(model, tmp_path / "out", SIZES[:1])


@torch.inference_mode()
def test_bf16_stays_bf16(tmp_path):
    model = model_of(spec_of("clip"))
    model.vlm.to(torch.bfloat16)
    llava.save(model, tmp_path / "out")
    theirs, processor = reopened(tmp_path / "out")
    assert {each.dtype for each in theirs.parameters()} == {torch.bfloat16}
    image = picture(50, 40)
    ours = read_one(model.loaded, image, model.loaded.prompts.question("what?")).logits_BV[0]
    found = theirs(**inputs_of(processor, image, "what?")).logits[0, -1, : len(ours)].float()
    assert (ours - found).abs().max() < 0.05 * ours.abs().max()


@pytest.mark.parametrize("llm", ["zoo:nano-base", "zoo:nano-instruct"])
def test_the_nano_world_can_be_exported(llm, tmp_path):
    shape = {"width": 128, "depth": 4, "heads": 4, "kv_heads": 4, "mlp_width": 384, "vocabulary": 1024}
    prompt = "in-out" if llm.endswith("base") else "chat-template"
    spec = spec_of("nano", llm=language_model(weights=llm, prompt=prompt, context=1024, tied_embeddings=True, **shape))
    model = model_of(spec)
    llava.save(model, tmp_path / "out")
    compare(model, tmp_path / "out", SIZES)


def test_the_template_puts_the_image_after_bos_and_takes_several_turns(tmp_path):
    model = model_of(spec_of("clip"))
    llava.save(model, tmp_path / "out")
    _, processor = reopened(tmp_path / "out")
    turns = [("human", "what?"), ("gpt", "a dog"), ("human", "where?")]
    messages = [
        {"role": "user", "content": "<image>\nwhat?"},
        {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]},
        {"role": "user", "content": "where?"},
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s><image>In: what?\nOut: a dog</s>In: where?\nOut:"
    ids = processor(images=picture(40, 40), text=text, add_special_tokens=False)["input_ids"][0]
    own = model.loaded.prompts.encode(turns).ids
    patches = [processor.image_token_id] * model.vlm.vision.patches
    assert ids == [own[0], *patches, *own[1:]]
    alone = [{"role": "user", "content": "what?"}]
    assert processor.apply_chat_template(alone, tokenize=False) == "<s>In: what?\nOut:"
    assert len(processor.tokenizer) == len(model.tokenizer) + 1


def test_the_vocabulary_grows_only_where_there_is_no_room(tmp_path):
    full = model_of(spec_of("clip", llm=language_model(vocabulary=258)))
    llava.save(full, tmp_path / "full")
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    assert (config["text_config"]["vocab_size"], config["image_token_index"]) == (320, 258)
    compare(full, tmp_path / "full", SIZES)
    assert full.vlm.llm.get_input_embeddings().weight.shape[0] == 258
    llava.save(model_of(spec_of("clip")), tmp_path / "roomy")
    assert json.loads((tmp_path / "roomy" / "config.json").read_text())["text_config"]["vocab_size"] == 300


REFUSED = {
    "two towers": (lambda: model_of(spec_of("clip", "siglip")), r"2 towers \(clip, siglip\), LLaVA one"),
    "linear": (lambda: model_of(spec_of("clip", projector="linear")), "its projector is linear"),
    "fused mlp": (lambda: model_of(spec_of("clip", projector="fused-mlp")), "its projector is fused-mlp"),
    "convolutional": (lambda: model_of(spec_of("conv")), "tower 'conv' .* is no ViT"),
    "dinov2": (lambda: model_of(spec_of("dinov2")), r"cannot be written as transformers' CLIPVisionModel.*ls1"),
    "no norm before the blocks": (lambda: model_of(spec_of("in1k")), "needs .*pre_layrnorm.*does not have"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llava_cannot_express_is_refused_and_nothing_is_written(case, tmp_path):
    build, reason = REFUSED[case]
    with pytest.raises(ConfigError, match=f"(?s){reason}"):
        llava.save(build(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_tower_with_equal_parts_put_together_otherwise_is_refused(tmp_path, monkeypatch):
    model = model_of(spec_of("clip"))
    monkeypatch.setattr("prism_sweeps.interop.llava_vision.activation_name", lambda _: "relu")
    with pytest.raises(ConfigError, match="gives other features"):
        llava.save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_image_processor_that_sees_otherwise_is_refused(tmp_path, monkeypatch):
    model = model_of(spec_of("clip", resize="crop"))
    squashing = llava.image_processor(spec_of("clip", resize="naive"), tower("clip"))
    monkeypatch.setattr(llava, "image_processor", lambda *_: squashing)
    with pytest.raises(ConfigError, match="makes other pixels than resize=crop did"):
        llava.save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_head_with_a_bias_is_refused(tmp_path):
    model = model_of(spec_of("clip", llm=language_model(architecture="phi", kv_heads=4)))
    with pytest.raises(ConfigError, match=r"the head of its language model \(tiny\) has a bias"):
        llava.save(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

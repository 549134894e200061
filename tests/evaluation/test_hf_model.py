"""Models of others through the Answerer: what transformers alone says, whatever the batch."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_hf
import torch
from PIL import Image
from tiny_hf import OPTIONS, QUESTION, ask, choices, free
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, LlamaForCausalLM

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.evaluation.baselines import Source, load_model, load_processor
from prism_sweeps.evaluation.hf_model import HFModel
from prism_sweeps.evaluation.own_prompt import OwnPrompt
from prism_sweeps.evaluation.requests import Answer, Request

KINDS = list(tiny_hf.FOLDERS)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[Q]{% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% else %}[A]  {{ message.content[0].text }}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}[A]{% endif %}"
)


def opened(folder: Path, batch: int = 4) -> HFModel:
    source = Source(str(folder), None)
    return HFModel(load_model(source, torch.float32, torch.device("cpu")), load_processor(source), batch)


# ---- against transformers alone

PROMPTS = {
    "llava": "USER: <image>\n{} ASSISTANT:",
    "instructblip": "{}",
    "instructblip-t5": "{}",
    "qwen2_vl": "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n",
}
GAPS = {"llava": " ", "instructblip": " ", "instructblip-t5": " ", "qwen2_vl": ""}


def plain_inputs(processor, kind: str, request: Request):
    with Image.open(request.image) as image:
        text = PROMPTS[kind].format(request.text)
        return text, processor(images=image.convert("RGB"), text=text, return_tensors="pt")


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_free_text_is_what_generate_says_of_one(kind: str, folders, images):
    requests = free(images)
    told = ask(opened(folders[kind]), requests)
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folders[kind]),
        AutoProcessor.from_pretrained(folders[kind]),
    )
    for request in requests:
        _, inputs = plain_inputs(processor, kind, request)
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0]
        if kind in ("llava", "qwen2_vl", "instructblip"):
            given = inputs["input_ids"].shape[1]
            ids = ids[given:] if len(ids) > given else ids
        assert told[request.id] == Answer(
            processor.tokenizer.decode(ids, skip_special_tokens=True).strip(), size=Image.open(request.image).size
        )
    assert len({answer.text for answer in told.values()}) > 1


@torch.inference_mode()
def mean_log_likelihood(model, processor, kind: str, request: Request, option: str, first: bool) -> float:
    """One forward over question and option, nothing shared or padded."""
    text, inputs = plain_inputs(processor, kind, request)
    encode = processor.tokenizer
    before, both = (encode(each, add_special_tokens=False).input_ids for each in (text, text + GAPS[kind] + option))
    ids = both[len(before) :][: 1 if first else None]
    if kind == "instructblip-t5":
        logits = model(**inputs, decoder_input_ids=torch.tensor([[2, *ids[:-1]]])).logits[0]
    else:
        longer = dict(inputs)
        longer["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        if "mm_token_type_ids" in inputs:
            longer["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(ids)))
        logits = model(**longer).logits[0, -len(ids) - 1 : -1]
    likely = logits.log_softmax(dim=-1)
    return float(np.mean([likely[place, token] for place, token in enumerate(ids)]))


@pytest.mark.parametrize("likelihood", ["full-string", "first-token"])
@pytest.mark.parametrize("kind", KINDS)
def test_options_are_as_likely_as_one_forward_pass_says(kind: str, likelihood: str, folders, images):
    requests = choices(images, likelihood=likelihood)
    told = ask(opened(folders[kind]), requests)
    model = AutoModelForImageTextToText.from_pretrained(folders[kind]).eval()
    processor = AutoProcessor.from_pretrained(folders[kind])
    for request in requests:
        first = likelihood == "first-token"
        expected = [mean_log_likelihood(model, processor, kind, request, option, first) for option in OPTIONS]
        answer = told[request.id]
        assert answer.log_likelihoods == pytest.approx(expected, abs=2e-4)
        assert answer.text == OPTIONS[int(np.argmax(expected))]
        assert answer.size == Image.open(request.image).size


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_changes_nothing(kind: str, folders, images):
    requests = [*free(images), *choices(images)]
    alone, together = (ask(opened(folders[kind], batch), requests) for batch in (1, 4))
    for name, answer in alone.items():
        assert together[name].text == answer.text
        assert together[name].log_likelihoods == pytest.approx(answer.log_likelihoods, abs=2e-4)


def test_questions_about_one_image_share_its_features(folders, images):
    model, seen = opened(folders["llava"], batch=8), []
    model.model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    ask(model, free(images, count=8))
    assert seen == [3]


def test_a_model_s_own_generation_defaults_do_not_count(folders, images, tmp_path: Path):
    for kind in ("llava", "instructblip"):
        folder = tmp_path / kind
        shutil.copytree(folders[kind], folder)
        own = {"do_sample": True, "temperature": 9.0, "num_beams": 3, "repetition_penalty": 5.0, "max_length": 7}
        GenerationConfig(**own, bos_token_id=0, eos_token_id=1, pad_token_id=2).save_pretrained(folder)
        changed = opened(folder)
        assert ask(changed, free(images)) == ask(opened(folders[kind]), free(images))


def test_an_answer_ends_where_the_model_ends_it(folders, images):
    model = opened(folders["llava"])
    (request,) = free(images, 1)
    ids = generated_ids(model, request)
    model.model.generation_config.eos_token_id = [1, ids[2]]
    assert ids[2] not in ids[:2]
    assert ask(model, [request])["free 0"].text == model.processor.tokenizer.decode(ids[:2]).strip()


def generated_ids(model: HFModel, request: Request) -> list[int]:
    _, inputs = plain_inputs(model.processor, "llava", request)
    return model.model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :].tolist()


# ---- prompts


def test_a_chat_template_counts_with_one_bos_and_its_own_gap(images, tmp_path: Path):
    model = opened(tiny_hf.llava(tmp_path / "m", template=TEMPLATE))
    prompt = model.prompt
    assert prompt.around("What?") == "<s>[Q]<image>What?[A]"
    assert prompt.gap == "  "
    inputs = model.processor(text="x", return_tensors="pt")["input_ids"]
    assert inputs[0, 0] == 0  # the tokenizer puts BOS in front by itself
    (request,) = free(images, 1)
    read = model.model.generate
    shown = {}
    model.model.generate = lambda **given: shown.update(given) or read(**given)
    ask(model, [request])
    words = prompt.ids(prompt.around(request.text))
    assert words.count(0) == 1
    patches = 16  # in the place of one <image>
    assert shown["attention_mask"].sum() == len(words) - 1 + patches


def test_a_template_without_the_image_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="leaves out the image"):
        opened(tiny_hf.llava(tmp_path / "m", template="{{ messages[0].content[1].text }}"))


def test_a_model_that_nobody_says_how_to_ask(folders):
    processor = load_processor(Source(str(folders["llava"]), None))
    with pytest.raises(ConfigError, match=r"type 'fuyu'.*chat_template\.jinja"):
        OwnPrompt.of(processor, "fuyu")


def test_options_follow_what_the_processor_puts_behind():
    words = tiny_hf.tokenizer("<image>")
    processor = type("P", (), {"tokenizer": words, "chat_template": None})()
    prompt = OwnPrompt.of(processor, "paligemma")
    assert words.decode(prompt.option_ids(prompt.around(QUESTION), "blue green")) == "blue green"


# ---- what cannot be answered


def test_what_is_wrong_with_one_question_spares_the_others(folders, images, tmp_path: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:90])
    good = [*free(images, 2), *choices(images)]
    bad = [
        replace(good[0], id="broken", shown="broken", image=broken),
        replace(good[0], id="long", text="two " * 200),
        replace(good[2], id="long choice", text="two " * 200),
        replace(good[0], id="marked", text="what is <image>?"),
    ]
    model = opened(folders["llava"])
    told = ask(model, [*bad, *good])
    assert told["broken"].reason.startswith("example 'broken': image")
    assert "broken.png" in told["broken"].reason
    for name in ("long", "long choice"):
        assert "do not fit into the 160 positions" in told[name].reason
        assert f"'{name}'" in told[name].reason
    assert "<image>" in told["marked"].reason
    assert {request.id: told[request.id].text for request in good} == {n: a.text for n, a in ask(model, good).items()}


def test_a_picture_that_the_processor_refuses_costs_no_other(folders, images, tmp_path: Path):
    """Qwen's takes no picture that is 200 times as wide as it is high."""
    strip = tmp_path / "strip.png"
    Image.new("RGB", (2100, 10)).save(strip)
    good = [*free(images, 3), *choices(images)]
    bad = [replace(one, id=f"strip {one.id}", shown="strip", image=strip) for one in (good[0], good[3])]
    model = opened(folders["qwen2_vl"], batch=3)
    told, alone = ask(model, [*bad, *good]), ask(model, good)
    for request in bad:
        reason = told[request.id].reason
        assert reason.startswith(f"example '{request.id}' on image '{strip}': the model's processor takes it not: ")
        assert "aspect ratio" in reason
    assert {request.id: told[request.id].text for request in good} == {name: said.text for name, said in alone.items()}


def test_a_question_too_long_for_the_q_former(folders, images):
    good, long = free(images, 1)[0], replace(free(images, 1)[0], id="long", text="a b " * 70)
    told = ask(opened(folders["instructblip"]), [good, long])
    assert "128 of its Q-Former" in told["long"].reason
    assert told["free 0"] == ask(opened(folders["instructblip"]), [good])["free 0"]


def test_an_answer_gets_what_room_there_is(folders, images):
    model = opened(folders["llava"])
    (request,) = free(images, 1)
    used = len(model.prompt.ids(model.prompt.around(request.text))) - 1 + 16
    model.positions = used + 2
    short = replace(request, id="short", text="one")
    told = ask(model, [request, short])
    assert told["short"] == ask(opened(folders["llava"]), [short])["short"]
    ids = generated_ids(opened(folders["llava"]), request)
    assert told["free 0"].text == model.processor.tokenizer.decode(ids[:2]).strip()


def test_nothing_shown_is_grey(folders, images, tmp_path: Path):
    grey = tmp_path / "grey.png"
    Image.new("RGB", (384, 384), (128, 128, 128)).save(grey)
    (request,) = free(images, 1)
    model = opened(folders["qwen2_vl"])
    blank = ask(model, [replace(request, shown=None, image=None)])["free 0"]
    assert blank.size is None
    assert blank.text == ask(model, [replace(request, shown="grey", image=grey)])["free 0"].text


def test_first_tokens_that_are_equal_cannot_decide(folders, images):
    request = replace(choices(images)[0], options=("green one", "green two"), likelihood="first-token")
    with pytest.raises(ConfigError, match="full-string"):
        ask(opened(folders["llava"]), [request])
    assert isinstance(ask(opened(folders["llava"]), [replace(request, likelihood="full-string")])["choice 1"], Answer)


# ---- what cannot be loaded


def test_a_language_model_alone_is_refused(tmp_path: Path):
    words = tiny_hf.tokenizer()
    LlamaForCausalLM(tiny_hf.text_config(words)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="'llama', which takes no images"):
        opened(tmp_path)


def test_a_folder_without_processor(folders, tmp_path: Path):
    folder = tmp_path / "m"
    shutil.copytree(folders["llava"], folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="save the processor beside the weights"):
        opened(folder)


def test_weights_that_are_not_whole(folders, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    shutil.copytree(folders["llava"], folder)
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in sorted(weights) if "multi_modal_projector" in name)
    save_file(
        {name: tensor for name, tensor in weights.items() if name != gone},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ConfigError, match="lack 1 tensors"):
        opened(folder)
    whole = (folder / "model.safetensors").read_bytes()
    for content in (whole[:-9], whole[:5], b"?" * 99):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ConfigError, match="its weights cannot be loaded"):
            opened(folder)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="in safetensors files"):
        opened(folder)


def test_code_in_a_folder_is_not_run(folders, tmp_path: Path):
    folder = tmp_path / "m"
    shutil.copytree(folders["llava"], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    with pytest.raises(ConfigError, match="only model types of transformers itself"):
        opened(folder)
    assert not (tmp_path / "ran").exists()


def test_rows_hold_one_image_once(folders, images):
    from prism_sweeps.evaluation.own_prompt import rows_of

    prompt = OwnPrompt.of(load_processor(Source(str(folders["llava"]), None)), "llava")
    (first, second), _ = rows_of([free(images, 4)[0], free(images, 4)[3]], prompt)
    assert first.image is second.image

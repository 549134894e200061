"""The prism format: what is written comes back, whole or not at all, without a hub or a store."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import language_model, model_of, picture, saved_picture, spec_of

import prism_sweeps
from prism_sweeps.config.errors import ConfigError, StoreError
from prism_sweeps.evaluation.asking import read_one
from prism_sweeps.interop import prism
from prism_sweeps.interop.card import terms

ABOUT = {
    "origin": "Cell `12345678`.",
    "choices": {"backbone": "tiny", "schedule": "one-epoch"},
    "seed": 3,
    "data": {"finetune": ["llava: llava/chat.json, version 1"]},
    "scores": [
        {"benchmark": "pope", "condition": "real", "score": 81.25, "standard_error": 1.5, "n": 300},
        {"benchmark": "vsr", "condition": "blank", "score": 50.0, "standard_error": None, "n": 1},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prism.save(model_of(spec_of("clip", "siglip", projector="fused-mlp"), ABOUT), tmp_path / "model")
    return tmp_path / "model"


@torch.inference_mode()
def logits_of(model, image, question: str) -> torch.Tensor:
    return read_one(model.loaded, image, model.loaded.prompts.question(question)).logits_BV


CASES = {
    "fused": lambda: spec_of("clip", "siglip", projector="fused-mlp", resize="letterbox"),
    "open_clip": lambda: spec_of("open_clip", projector="linear"),
    "tied": lambda: spec_of("dinov2", llm=language_model(tied_embeddings=True)),
    "conv": lambda: spec_of("conv"),
    "chat": lambda: spec_of("nano", llm=language_model(prompt="chat-template")),
}


@pytest.mark.parametrize("case", CASES)
def test_what_comes_back_is_the_same_to_the_last_bit_and_says_the_same(case, tmp_path):
    model = model_of(CASES[case]())
    prism.save(model, tmp_path / "model")
    again = prism_sweeps.load(tmp_path / "model", device="cpu")
    own, found = model.vlm.state_dict(), again.vlm.state_dict()
    assert own.keys() == found.keys()
    assert all(torch.equal(own[name], found[name]) for name in own)
    for seed in range(2):
        image = picture(50, 40, seed)
        # tensors mapped from a file are aligned otherwise, so sums may be taken in another order
        torch.testing.assert_close(logits_of(model, image, "what?"), logits_of(again, image, "what?"))
        assert again.ask(image, "what?", max_new_tokens=8) == model.ask(image, "what?", max_new_tokens=8)
    assert again.spec == model.spec
    assert not again.vlm.training


def test_a_file_and_an_image_are_asked_alike(folder, tmp_path):
    model = prism_sweeps.load(folder)
    file = saved_picture(tmp_path, 40, 30)
    assert model.ask(str(file), "what?", 8) == model.ask(file, "what?", 8) == model.ask(picture(40, 30), "what?", 8)


def test_bf16_is_kept_and_can_be_asked_for(folder, tmp_path):
    half = prism_sweeps.load(folder, precision="bf16")
    assert half.vlm.projector[0].weight.dtype == torch.bfloat16
    prism.save(half, tmp_path / "half")
    assert load_file(tmp_path / "half" / "projector.safetensors")["0.weight"].dtype == torch.bfloat16
    assert prism_sweeps.load(tmp_path / "half").precision == "bf16"
    with pytest.raises(ConfigError, match=r"precision 'fp8'.*valid: bf16, bf16-true, fp32"):
        prism_sweeps.load(folder, precision="fp8")


def test_the_card_tells_axes_data_scores_and_licences(folder):
    card = (folder / "README.md").read_text()
    for line in (
        "| schedule | one-epoch |",
        "Seed 3.",
        "| finetune | llava: llava/chat.json, version 1 |",
        "| pope | real | 81.2 | 1.5 | 300 |",
        "| vsr | blank | 50.0 |  | 1 |",
        "| tower clip | timm vit_large_patch14_clip_quickgelu_224.openai, random:1 | none, random weights |",
        "prism_sweeps.load(",
    ):
        assert line in card


def test_terms_are_told_only_where_they_are_known():
    assert terms("hub", "timm vit_large_patch14_clip_336.openai") == "MIT (OpenAI CLIP)"
    assert terms("hub", "timm vit_large_patch14_clip_quickgelu_224.metaclip_2pt5b") == "CC BY-NC 4.0 (MetaCLIP)"
    assert terms("Qwen/Qwen2.5-3B-Instruct", "") == "Qwen Research License"
    assert terms("/home/me/tower.safetensors", "timm vit_tiny_patch16_224").startswith("not known here")


def test_everyone_may_read_the_files(folder):
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}


def test_importing_the_package_stays_light():
    code = "import sys, prism_sweeps; prism_sweeps.load; print('torch' in sys.modules, 'transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_a_folder_that_holds_something_is_left_alone(folder, tmp_path):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="is not an empty folder; nothing was written"):
        prism.save(model_of(spec_of("clip")), folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (tmp_path / "empty").mkdir()
    prism.save(model_of(spec_of("clip")), tmp_path / "empty")
    assert prism_sweeps.load(tmp_path / "empty").spec.backbone.towers.keys() == {"clip"}


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prism, "describe", dies)
    with pytest.raises(KeyboardInterrupt):
        prism.save(model_of(spec_of("clip")), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing(tiny_disk):
    with pytest.raises(StoreError, match=r"cannot write .*model"):
        prism.save(model_of(spec_of("clip", "siglip")), tiny_disk / "model")
    assert list(tiny_disk.iterdir()) == []


@pytest.mark.parametrize("name", ["/tmp/clip", "../clip", "a/b", "", ".."])
def test_a_towers_name_does_not_lead_out_of_the_folder(folder, name):
    config = folder / "config.json"
    content = json.loads(config.read_text())
    towers = content["model"]["backbone"]["towers"]
    content["model"]["backbone"]["towers"] = {name: next(iter(towers.values()))}
    config.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="cannot be the name of a tower"):
        prism_sweeps.load(folder)


def test_broken_folders_say_what_is_wrong(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"should be a folder that `prism export`.*no config\.json"):
        prism_sweeps.load(tmp_path)
    config = folder / "config.json"
    good = json.loads(config.read_text())
    for change, error, reason in (
        ({"prism": 2}, ConfigError, "not in the prism format 1: its config.json says prism: 2"),
        ({"model": {**good["model"], "resise": {}}}, ConfigError, "unknown key 'resise'; did you mean 'resize'"),
        ({"model": None}, ConfigError, "not a dict"),
    ):
        config.write_text(json.dumps({**good, **change}))
        with pytest.raises(error, match=reason):
            prism_sweeps.load(folder)
    config.write_text("{")
    with pytest.raises(StoreError, match="not valid JSON"):
        prism_sweeps.load(folder)
    config.write_text(json.dumps(good))
    file = folder / "projector.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if name != "0.bias"}, file)
    with pytest.raises(ConfigError, match=r"projector.*1 tensors missing \['0\.bias'\]"):
        prism_sweeps.load(folder)
    file.unlink()
    with pytest.raises(ConfigError, match=r"projector: weights .* should be one \.safetensors file"):
        prism_sweeps.load(folder)
    (folder / "towers" / "clip.safetensors").write_bytes(b"short")
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        prism_sweeps.load(folder)

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import LanguageModel
from prism_sweeps.models import language, weights
from prism_sweeps.models.language import byte_tokenizer, empty_language_model, load_language_model, load_tokenizer

SHAPE = {"width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "mlp_width": 64, "vocabulary": 300, "context": 128}


def llm(where: str = "random:1", **changes) -> LanguageModel:
    return LanguageModel(name="tiny", weights=where, prompt="in-out", **{**SHAPE, **changes})


@pytest.fixture
def saved(tmp_path):
    model = load_language_model(llm())
    model.save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def sharded(tmp_path):
    load_language_model(llm()).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    return tmp_path / "sharded"


def rewrite(file: Path, tensors: dict) -> None:
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_folder_gives_the_model_and_tokenizer_that_were_saved(saved, monkeypatch):
    monkeypatch.setattr(weights, "ZOO", saved.parent)
    ids = torch.tensor([[0, 5, 9]])
    expected = load_language_model(llm()).eval()(ids).logits
    for where in (str(saved), "zoo:tiny"):
        model = load_language_model(llm(where)).eval()
        assert torch.allclose(model(ids).logits, expected, atol=1e-6)
        assert model.config._attn_implementation == "sdpa"
        assert model.dtype == torch.float32
        tokenizer = load_tokenizer(llm(where))
        assert tokenizer("dog").input_ids == byte_tokenizer()("dog").input_ids
        assert tokenizer.chat_template == byte_tokenizer().chat_template


def test_random_models_have_the_stated_shape_and_leave_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tied, free = (load_language_model(llm(tied_embeddings=tied)) for tied in (True, False))
    assert torch.equal(torch.rand(2), expected)
    assert isinstance(tied, LlamaForCausalLM)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 300 * 32
    assert tied.config.num_key_value_heads == 2


@pytest.mark.parametrize("field", [*SHAPE, "tied_embeddings"])
def test_a_stated_shape_that_is_not_the_models_is_refused(saved, field):
    lie = {field: True} if field == "tied_embeddings" else {field: SHAPE[field] * 2}
    with pytest.raises(ConfigError, match=f"{field}: .* should be"):
        load_language_model(llm(str(saved), **lie))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(saved):
    with pytest.raises(ConfigError, match="258 tokens, the model 200"):
        load_tokenizer(llm(str(saved), vocabulary=200))


def test_a_special_token_beyond_the_vocabulary_is_let_be(saved, tmp_path):
    """Gemma 3's tokenizer has one, for images, that its text model has no row for."""
    tokenizer = load_tokenizer(llm(str(saved)))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    shutil.copytree(saved, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert len(load_tokenizer(llm(str(tmp_path / "saved"), vocabulary=258))) == 259
    with pytest.raises(ConfigError, match="259 tokens, the model 257"):
        load_tokenizer(llm(str(tmp_path / "saved"), vocabulary=257))


def test_missing_folders_broken_files_and_an_absent_hub(saved, tmp_path):
    with pytest.raises(ConfigError, match=r"absent' do not exist.*hub id"):
        load_language_model(llm(str(tmp_path / "absent")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_language_model(llm(str(tmp_path / "empty")))
    with pytest.raises(ConfigError, match=r"(?s)someone/some-model.*HF_HUB_OFFLINE"):
        load_language_model(llm("someone/some-model"))
    with pytest.raises(ConfigError, match=r"(?s)tokenizer of 'someone/some-model'.*HF_HUB_OFFLINE"):
        load_tokenizer(llm("someone/some-model"))
    with pytest.raises(ConfigError, match="random:SEED"):
        load_language_model(llm("random:x"))
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"model\.safetensors' is not a whole safetensors file.*write it again"):
        load_language_model(llm(str(saved)))


def test_shards_are_read_in_place_and_files_stay_as_they_are(sharded):
    before = {file: file.read_bytes() for file in sharded.glob("*.safetensors")}
    assert len(before) > 2
    expected = load_language_model(llm()).state_dict()
    model = load_language_model(llm(str(sharded)))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert before == {file: file.read_bytes() for file in before}
    assert {each.dtype for each in load_language_model(llm(str(sharded)), torch.bfloat16).parameters()} == {
        torch.bfloat16
    }


@pytest.mark.parametrize("broken", ["cut", "gone", "index", "missing", "unexpected", "shape"])
def test_folders_that_do_not_hold_the_model_are_refused(sharded, broken):
    shard = sorted(sharded.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    name, tensor = next(iter(tensors.items()))
    match broken:
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-7])
        case "gone":
            shard.unlink()
        case "index":
            (sharded / "model.safetensors.index.json").write_text('{"metadata": ')
        case "missing":
            rewrite(shard, {other: tensors[other] for other in tensors if other != name})
        case "unexpected":
            rewrite(shard, {**tensors, "model.extra": torch.ones(2)})
        case "shape":
            rewrite(shard, {**tensors, name: torch.ones(3, *tensor.shape)})
    said = {
        "cut": f"{shard.name}' is not a whole safetensors file",
        "gone": shard.name,
        "index": "cannot be loaded",
        "missing": f"1 tensors are missing, e.g. {name}",
        "unexpected": r"1 tensors are not the model's, e.g. model.extra",
        "shape": f"1 tensors have another shape than config.json says.*{name}",
    }
    with pytest.raises(ConfigError, match=said[broken]):
        load_language_model(llm(str(sharded)))


def test_a_head_of_its_own_is_not_tied(tmp_path):
    tied = llm(str(tmp_path), tied_embeddings=True)
    load_language_model(llm(tied_embeddings=True)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    for head in (embedding.clone(), embedding + 1):
        rewrite(tmp_path / "model.safetensors", {**tensors, "lm_head.weight": head})
        if torch.equal(head, embedding):
            model = load_language_model(tied)
            assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        else:
            with pytest.raises(ConfigError, match="the head is not the embedding"):
                load_language_model(tied)


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_weights_are_read_but_not_run(tmp_path):
    model = load_language_model(llm())
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    old = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(2)}
    torch.save({**model.state_dict(), **old}, tmp_path / "pytorch_model.bin")
    loaded = load_language_model(llm(str(tmp_path))).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    torch.save({**model.state_dict(), "x": Runs(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_language_model(llm(str(tmp_path)))
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Runs(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_a_gated_model_says_what_to_do(monkeypatch):
    response = SimpleNamespace(headers={}, status_code=403, request=None)

    def refuse(*_, **__):
        raise GatedRepoError("a gated repository", response=response)

    monkeypatch.setattr(language, "snapshot_download", refuse)
    with pytest.raises(ConfigError, match=r"(?s)Accept its licence on the hub, then `hf auth login`"):
        load_language_model(llm("meta-llama/Llama-2-7b-hf"))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_hub_id_becomes_a_folder_with_one_kind_of_weights(tmp_path, monkeypatch, kind):
    asked = []

    def download(name, allow_patterns):
        asked.append(allow_patterns)
        if len(asked) == 1 and kind == "safetensors":
            model.save_pretrained(tmp_path)
        elif len(asked) == 1:
            model.config.save_pretrained(tmp_path)
        else:
            torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        return str(tmp_path)

    model = load_language_model(llm())
    monkeypatch.setattr(language, "snapshot_download", download)
    loaded = load_language_model(llm("someone/some-model")).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    assert [any("bin" in pattern for pattern in patterns) for patterns in asked] == [False, True][: 1 + (kind == "bin")]


ARCHITECTURES = {
    "llama": {"head_dim": 16},
    "mistral": {"sliding_window": 16},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"partial_rotary_factor": 0.5},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8},
    "smollm3": {},
    "olmo2": {},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_runs_is_saved_and_is_checked_when_loaded(tmp_path, architecture):
    config = ARCHITECTURES[architecture]
    made = llm(architecture=architecture, config=config, tied_embeddings=architecture == "gemma3_text")
    model = load_language_model(made).eval()
    model.save_pretrained(tmp_path)
    stated = llm(str(tmp_path), architecture=architecture, config=config, tied_embeddings=made.tied_embeddings)
    loaded = load_language_model(stated).eval()
    ids = torch.tensor([[0, 5, 9, 7]])
    assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)
    # what the VLM does: embeddings in, hidden states out, head on top
    hidden = loaded.base_model(inputs_embeds=loaded.get_input_embeddings()(ids)).last_hidden_state
    assert torch.allclose(loaded.get_output_embeddings()(hidden), model(ids).logits, atol=1e-5)
    empty = empty_language_model(stated)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in loaded.named_parameters()}
    for name, value in config.items():
        wrong = {**config, name: value / 2 if isinstance(value, float) else value * 2}
        with pytest.raises(ConfigError, match=f"{name}: .* should be {value}"):
            load_language_model(replace(stated, config=wrong))


def test_an_architecture_or_field_that_is_none_is_refused(saved):
    with pytest.raises(ConfigError, match=r"'lama' is no causal LM of transformers; did you mean 'llama'"):
        load_language_model(llm(architecture="lama"))
    with pytest.raises(ConfigError, match=r"a llama config has no 'head_dims'; did you mean 'head_dim'"):
        load_language_model(llm(config={"head_dims": 8}))
    with pytest.raises(ConfigError, match="architecture: mistral should be llama"):
        load_language_model(llm(str(saved), architecture="mistral"))


def test_loading_in_the_dtype_of_the_files_takes_no_more_than_they_do():
    script = Path(__file__).parents[2] / "benchmarks/loading.py"
    command = [sys.executable, script, "--megabytes", "200", "--ways", "bf16"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ratios = json.loads(said.splitlines()[-1])["ratios"]
    assert 0.9 < ratios["bf16"] <= 1.2  # all of it was read, and nothing of it copied


def test_a_model_that_changes_its_logits_after_the_head_is_refused(tmp_path):
    config = Gemma2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=300, max_position_embeddings=128, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="final_logit_softcapping=30"):
        load_language_model(llm(str(tmp_path), tied_embeddings=True, architecture="gemma2"))

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import LanguageModel
from prism_sweeps.models import weights
from prism_sweeps.models.language import byte_tokenizer, load_language_model, load_tokenizer

SHAPE = {"width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "mlp_width": 64, "vocabulary": 300, "context": 128}


def llm(where: str = "random:1", **changes) -> LanguageModel:
    return LanguageModel(name="tiny", weights=where, prompt="in-out", **{**SHAPE, **changes})


@pytest.fixture
def saved(tmp_path):
    model = load_language_model(llm())
    model.save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


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
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_language_model(llm(str(saved)))


def test_a_model_that_changes_its_logits_after_the_head_is_refused(tmp_path):
    config = Gemma2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=300, max_position_embeddings=128, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="final_logit_softcapping=30"):
        load_language_model(llm(str(tmp_path), tied_embeddings=True))

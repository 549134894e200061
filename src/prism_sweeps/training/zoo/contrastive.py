"""nano-clip and nano-siglip: image and caption of one picture belong together, all other pairs of the batch do not.

Shapes: B pairs, T caption tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prism_sweeps.models.weights import ZOO
from prism_sweeps.training.zoo.language import load_zoo_tokenizer
from prism_sweeps.training.zoo.pictures import pictures
from prism_sweeps.training.zoo.towers import LOW, Run, new_tower, numbers, optimise, save, start_from

CAPTION_TOKENS = 56
SIZE = 12_000


class TextTower(nn.Module):
    """Two transformer layers over caption tokens; mean of the real positions."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(CAPTION_TOKENS, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        x_BTD = self.layers(self.tokens(ids_BT) + self.positions[: ids_BT.shape[1]], src_key_padding_mask=~mask_BT)
        return (x_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)


class Pairs(nn.Module):
    """Image tower, text tower, a linear map from each to a shared space, and the logits' scale and bias."""

    def __init__(self, vision: nn.Module, vocabulary: int, scale: float, bias: float) -> None:
        super().__init__()
        width = vision.embed_dim
        self.vision, self.text = vision, TextTower(vocabulary, width)
        self.vision_out, self.text_out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, pixels_BCHW: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits of all image-caption pairs, [B images, B captions]."""
        image_BD = F.normalize(self.vision_out(self.vision(pixels_BCHW)), dim=-1)
        text_BD = F.normalize(self.text_out(self.text(ids_BT, mask_BT)), dim=-1)
        return self.log_scale.clamp(max=math.log(100)).exp() * image_BD @ text_BD.T + self.bias


def softmax_loss(logits_BB: Tensor) -> Tensor:
    """CLIP (Radford et al. 2021, figure 3): cross entropy over rows and over columns."""
    target_B = torch.arange(len(logits_BB))
    return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2


def sigmoid_loss(logits_BB: Tensor) -> Tensor:
    """SigLIP (Zhai et al. 2023, algorithm 1): each pair on its own, right or wrong."""
    labels_BB = 2 * torch.eye(len(logits_BB)) - 1
    return -F.logsigmoid(labels_BB * logits_BB).sum() / len(logits_BB)


OBJECTIVES: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "nano-clip": (softmax_loss, 14.3, 0.0),
    "nano-siglip": (sigmoid_loss, 10.0, -10.0),
}
"""Name -> loss, first scale, first bias (the papers' own)."""


def train(name: str, pixels: int, folder: Path, samples: int, workers: int, scale: float) -> None:
    """Train one of the two towers at `pixels`; above the low resolution it starts from the low one's weights."""
    loss, temperature, bias = OBJECTIVES[name]
    run = Run(round(scale * samples), batch=128, learning_rate=2e-3 if pixels == LOW else 7e-4, scale=scale)
    data = pictures(folder, "mixed", pixels, SIZE, workers)
    tokenizer = load_zoo_tokenizer(ZOO / "nano-base")
    vision = new_tower(name, pixels)
    if pixels != LOW:
        start_from(vision, name, LOW)
    model = Pairs(vision, len(tokenizer), temperature, bias)
    at = numbers(run, len(data.captions))

    def loss_of(step: int) -> Tensor:
        chosen = at(step)
        text = tokenizer(
            [data.captions[i] for i in chosen],
            padding=True,
            truncation=True,
            max_length=CAPTION_TOKENS,
            return_tensors="pt",
        )
        return loss(model(data.batch(chosen), text["input_ids"], text["attention_mask"].bool()))

    optimise(run, model.parameters(), loss_of, f"{name} {pixels}")
    save(vision, name, pixels, run, f"{loss.__name__} over pairs of picture and caption, {SIZE} scenes")

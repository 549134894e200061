"""nano-clip and nano-siglip: parts of pictures and the phrases that describe them belong together, all others do not.

A picture of several things gives a pair for each of them, as in RegionCLIP (Zhong et al. 2022), and one for the whole.
Trained on as many pictures with captions of the whole, as the papers have it, single patches tell a linear probe no
more than raw pixels do. The losses are those of CLIP and SigLIP, the same phrase twice in a batch counting as one.

Shapes: B pictures, R regions, U different phrases, T tokens of a phrase, P patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prism_sweeps.data.nano_world.scenes import Box
from prism_sweeps.models.weights import ZOO
from prism_sweeps.training.zoo.language import load_zoo_tokenizer
from prism_sweeps.training.zoo.pictures import covered, pictures
from prism_sweeps.training.zoo.towers import LOW, Run, new_tower, numbers, optimise, save, start_from

PHRASE_TOKENS = 16
SIZE = 40_000
BATCH = 64


class TextTower(nn.Module):
    """Two transformer layers over the tokens of a phrase; mean of the real positions."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(PHRASE_TOKENS, width) * 0.02)
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

    def forward(self, pixels_BCHW: Tensor, boxes: Sequence[Sequence[Box]], ids_UT: Tensor, mask_UT: Tensor) -> Tensor:
        """Logits of all pairs of a region and a phrase, [R regions, U phrases]."""
        x_BPD = self.vision.forward_features(pixels_BCHW)
        region_RD = F.normalize(self.vision_out(pooled(x_BPD, boxes)), dim=-1)
        text_UD = F.normalize(self.text_out(self.text(ids_UT, mask_UT)), dim=-1)
        return self.log_scale.clamp(max=math.log(100)).exp() * region_RD @ text_UD.T + self.bias


def pooled(x_BPD: Tensor, boxes: Sequence[Sequence[Box]]) -> Tensor:
    """Mean over the patches of each region, one picture's regions after another's: [R, D]."""
    side = math.isqrt(x_BPD.shape[1])
    members = [covered(box, side) for of_one in boxes for box in of_one]
    owner = [picture for picture, of_one in enumerate(boxes) for _ in of_one]
    flat = torch.tensor([at * side * side + patch for at, few in zip(owner, members, strict=True) for patch in few])
    region = torch.tensor([index for index, few in enumerate(members) for _ in few])
    sums_RD = x_BPD.new_zeros(len(members), x_BPD.shape[2]).index_add(0, region, x_BPD.flatten(0, 1)[flat])
    return sums_RD / torch.tensor([[len(few)] for few in members])


def softmax_loss(logits_RU: Tensor, match_RU: Tensor) -> Tensor:
    """CLIP (Radford et al. 2021, figure 3): cross entropy over rows and over columns, shared among equal matches."""
    rows = -(logits_RU.log_softmax(1) * match_RU).sum(1).mean()
    columns = -((logits_RU.log_softmax(0) * match_RU).sum(0) / match_RU.sum(0)).mean()
    return (rows + columns) / 2


def sigmoid_loss(logits_RU: Tensor, match_RU: Tensor) -> Tensor:
    """SigLIP (Zhai et al. 2023, algorithm 1): each pair on its own, right or wrong."""
    return -F.logsigmoid((2 * match_RU - 1) * logits_RU).sum() / len(logits_RU)


OBJECTIVES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    "nano-clip": (softmax_loss, 14.3, 0.0),
    "nano-siglip": (sigmoid_loss, 10.0, -5.0),
}
"""Name -> loss, first scale, first bias. The scales are the papers' own; SigLIP's bias of -10 is for batches of
32 k: it stands for one true pair in so many, and in our few steps it would not come down in time."""


def train(name: str, pixels: int, folder: Path, samples: int, workers: int, scale: float) -> None:
    """Train one of the two towers at `pixels`; above the low resolution it starts from the low one's weights."""
    loss, temperature, bias = OBJECTIVES[name]
    run = Run(round(scale * samples), batch=BATCH, learning_rate=2e-3 if pixels == LOW else 7e-4, scale=scale)
    data = pictures(folder, "mixed", pixels, SIZE, workers)
    tokenizer = load_zoo_tokenizer(ZOO / "nano-base")
    vision = new_tower(name, pixels)
    if pixels != LOW:
        start_from(vision, name, LOW)
    model = Pairs(vision, len(tokenizer), temperature, bias)
    at = numbers(run, len(data.regions))

    def loss_of(step: int) -> Tensor:
        chosen = at(step)
        regions = [data.regions[index] for index in chosen]
        phrases = [phrase for of_one in regions for phrase, _ in of_one]
        unique = sorted(set(phrases))
        match_RU = F.one_hot(torch.tensor([unique.index(phrase) for phrase in phrases]), len(unique)).float()
        text = tokenizer(unique, padding=True, truncation=True, max_length=PHRASE_TOKENS, return_tensors="pt")
        boxes = [[box for _, box in of_one] for of_one in regions]
        logits_RU = model(data.batch(chosen), boxes, text["input_ids"], text["attention_mask"].bool())
        return loss(logits_RU, match_RU)

    optimise(run, model, loss_of, f"{name} {pixels}", folder)
    save(vision, name, pixels, run, f"{loss.__name__} over regions and their phrases, {SIZE} scenes")

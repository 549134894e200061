"""nano-dinov2: no text and no labels; a student agrees with the moving average of itself.

DINO's loss on the class token over crops (Caron et al. 2021) and iBOT's on masked patches (Zhou et al. 2022), the two
that DINOv2 (Oquab et al. 2023, section 4) adds up, with softmax centring.

Shapes: B pictures, N views, P patches, D width, K prototypes.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prism_sweeps.training.zoo.pictures import pictures
from prism_sweeps.training.zoo.towers import LOW, Run, new_tower, numbers, optimise, save, start_from

SIZE = 12_000
PROTOTYPES = 512
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.05
MASKED = 0.4


class Network(nn.Module):
    """Tower, mask token and one head for class token and patches."""

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        width = vision.embed_dim
        self.vision = vision
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.head = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.utils.parametrizations.weight_norm(nn.Linear(64, PROTOTYPES, bias=False))

    def forward(self, pixels_BCHW: Tensor, masked_BP: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the class token, [B, K], and of the patches, [B, P, K]."""
        x_BPD = self.vision.patch_embed(pixels_BCHW)
        if masked_BP is not None:
            x_BPD = torch.where(masked_BP[..., None], self.mask_token, x_BPD)
        x_BPD = self.vision.norm(self.vision.blocks(self.vision._pos_embed(x_BPD)))
        logits = self.prototypes(F.normalize(self.head(x_BPD), dim=-1))
        return logits[:, 0], logits[:, 1:]


def crops(pixels_BCHW: Tensor, low: float, size: int, generator: torch.Generator) -> Tensor:
    """One random square crop of each picture, side between `low` and 1 of the whole, resized, brightness jittered."""
    count = len(pixels_BCHW)
    side_B = low + (1 - low) * torch.rand(count, generator=generator)
    shift_B2 = (1 - side_B)[:, None] * (2 * torch.rand(count, 2, generator=generator) - 1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side_B
    theta[:, :, 2] = shift_B2
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    view = F.grid_sample(pixels_BCHW, grid, padding_mode="reflection", align_corners=False)
    gain, offset = 0.8 + 0.4 * torch.rand(count, 3, 1, 1, generator=generator), 0.2 * torch.rand(1, generator=generator)
    return view * gain + (offset - 0.1)


def cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """-sum_K teacher log student, per row."""
    return -(teacher * F.log_softmax(student / STUDENT_TEMPERATURE, dim=-1)).sum(-1)


class Teacher(nn.Module):
    """The moving average and its centres."""

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("centre_K", torch.zeros(PROTOTYPES))
        self.register_buffer("patch_centre_K", torch.zeros(PROTOTYPES))

    @torch.no_grad()
    def follow(self, student: Network, momentum: float) -> None:
        for mine, theirs in zip(self.network.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs, 1 - momentum)

    @torch.no_grad()
    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        logits_BK, logits_BPK = self.network(view)
        wanted = F.softmax((logits_BK - self.centre_K) / TEACHER_TEMPERATURE, dim=-1)
        patches = F.softmax((logits_BPK - self.patch_centre_K) / TEACHER_TEMPERATURE, dim=-1)
        self.centre_K.lerp_(logits_BK.mean(0), 0.1)
        self.patch_centre_K.lerp_(logits_BPK.mean((0, 1)), 0.1)
        return wanted, patches


def train(name: str, pixels: int, folder: Path, samples: int, workers: int, scale: float) -> None:
    """Two crops a picture; each one's class token predicts the other's, each one's masked patches their own."""
    run = Run(round(scale * samples), batch=64, learning_rate=1e-3 if pixels == LOW else 4e-4, scale=scale)
    data = pictures(folder, "mixed", pixels, SIZE, workers)
    vision = new_tower(name, pixels)
    if pixels != LOW:
        start_from(vision, name, LOW)
    student = Network(vision)
    teacher = Teacher(student)
    at = numbers(run, len(data.labels))

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * run.seed + step)
        if step:
            teacher.follow(student, 1 - 0.008 * 0.5 * (1 + math.cos(math.pi * step / run.steps)))
        whole = data.batch(at(step))
        first, second = (crops(whole, 0.5, pixels, generator) for _ in range(2))
        (target_first, patches_first), (target_second, patches_second) = teacher(first), teacher(second)
        total = torch.zeros(())
        for view, other, patches in ((first, target_second, patches_first), (second, target_first, patches_second)):
            masked_BP = torch.rand(patches.shape[:2], generator=generator) < MASKED
            logits_BK, logits_BPK = student(view, masked_BP)
            total = total + cross_entropy(logits_BK, other).mean() / 2
            total = total + cross_entropy(logits_BPK[masked_BP], patches[masked_BP]).mean() / 2
        return total

    optimise(run, nn.ModuleList([student, teacher]), loss_of, f"{name} {pixels}", folder)
    save(teacher.network.vision, name, pixels, run, f"self-distillation (DINO + iBOT losses), {SIZE} scenes, no text")

"""nano-in1k: which of the categories does the picture show? One object a picture, as in ImageNet-1k."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prism_sweeps.data.nano_world.words import CATEGORIES
from prism_sweeps.training.zoo.pictures import pictures
from prism_sweeps.training.zoo.towers import LOW, Run, new_tower, numbers, optimise, save, start_from

SIZE = 8_000


def train(name: str, pixels: int, folder: Path, samples: int, workers: int, scale: float) -> None:
    """Cross entropy with label smoothing 0.1 over the categories."""
    run = Run(round(scale * samples), batch=64, learning_rate=2e-3 if pixels == LOW else 7e-4, scale=scale)
    data = pictures(folder, "single", pixels, SIZE, workers)
    labels = torch.tensor(data.labels)
    vision = new_tower(name, pixels)
    if pixels != LOW:
        start_from(vision, name, LOW)
    model = nn.Sequential(vision, nn.Linear(vision.embed_dim, len(CATEGORIES)))
    at = numbers(run, len(labels))

    def loss_of(step: int) -> Tensor:
        chosen = at(step)
        return F.cross_entropy(model(data.batch(chosen)), labels[chosen], label_smoothing=0.1)

    optimise(run, model, loss_of, f"{name} {pixels}", folder)
    save(vision, name, pixels, run, f"{len(CATEGORIES)} categories, {len(labels)} scenes of one object")

"""What the tower scripts share: building the tower the config describes, the optimiser, the loop, the saved file."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prism_sweeps.config.compose import design_space
from prism_sweeps.models.weights import ZOO
from prism_sweeps.tracking.files import write_atomic

LOW, HIGH = 64, 96
KEEP_SECONDS = 60.0


@dataclass
class Run:
    """How long, and what came of it."""

    samples: int
    batch: int
    learning_rate: float
    scale: float = 1.0
    """Share of the recipe's samples that this run takes."""
    seed: int = 7
    began_with: str = ""
    """Digest of the weights before the first step."""
    commit: str | None = field(default_factory=lambda: _commit())
    losses: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    cpu_started: float = field(default_factory=time.process_time)

    @property
    def steps(self) -> int:
        return max(1, self.samples // self.batch)

    @property
    def recipe(self) -> list[float | str]:
        return [self.samples, self.batch, self.learning_rate, self.seed, self.began_with]

    @property
    def final_loss(self) -> float:
        """Mean over the last 20 steps."""
        tail = self.losses[-20:]
        return sum(tail) / len(tail)


def _commit() -> str | None:
    """The commit of the code that runs, `-dirty` after it if sources or configs have changed since."""

    def git(*command: str) -> str:
        found = subprocess.run(["git", *command], capture_output=True, text=True, cwd=ZOO.parent, check=False)
        return found.stdout.strip()

    changed = git("status", "--porcelain", "--", ":/*.py", ":/*.yaml")
    return git("rev-parse", "HEAD") + ("-dirty" if changed else "") or None


def new_tower(name: str, pixels: int, **options: Any) -> nn.Module:
    """The timm model that `conf/tower/<name>.yaml` describes, whole (with its last block), with fresh weights.

    Position embeddings begin as the sines and cosines that MAE keeps (He et al. 2022), about as long as those of the
    patches. Begun near zero and trained on what regions show, not on where they are, they hardly grow, and a patch does
    not know its place.
    """
    tower = design_space().part("backbone", name, {}).towers[name.removeprefix("nano-")]
    torch.manual_seed(7)
    model = timm.create_model(tower.model, img_size=pixels, num_classes=0, **tower.kwargs, **options)
    with torch.no_grad():
        model.pos_embed[0, model.num_prefix_tokens :] = 0.5 * place_waves(pixels // tower.patch, model.embed_dim)
    return model


def place_waves(side: int, width: int) -> Tensor:
    """Sines and cosines of each patch's row and column, waves_PD, over fractions of the side.

    So a place has nearly the same code in a picture of more patches.
    """
    middles = (torch.arange(side) + 0.5) / side
    angles = middles[:, None] * (2 * torch.pi * torch.logspace(-2, 2, width // 4, base=2.0))
    along = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([along.repeat_interleave(side, 0), along.repeat(side, 1)], 1)


def start_from(model: nn.Module, name: str, pixels: int) -> None:
    """Begin with the tower's weights at `pixels`, position embeddings resampled (as CLIP's 336-px model was made)."""
    tensors = {key: value.float() for key, value in load_file(weights_path(name, pixels)).items()}
    grid = model.patch_embed.grid_size
    tensors["pos_embed"] = timm.layers.resample_abs_pos_embed(
        tensors["pos_embed"], list(grid), num_prefix_tokens=model.num_prefix_tokens
    )
    model.load_state_dict(tensors)


def weights_path(name: str, pixels: int) -> Path:
    return ZOO / f"{name}-{pixels}.safetensors"


def optimise(run: Run, model: nn.Module, loss_of: Callable[[int], Tensor], title: str, folder: Path) -> None:
    """AdamW with warm-up and cosine decay over `run.steps`; `loss_of(step)` draws its own batch, by the step alone.

    Every minute all is kept in `folder`, and the same run started again goes on from there.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    rest = [p for p in trained if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=run.learning_rate, betas=(0.9, 0.98), fused=True)
    kept = folder / f"{title.replace(' ', '-')}.pt"
    run.began_with = _digest(model)
    warm = max(1, run.steps // 20)
    saved = time.monotonic()
    for step in range(go_on(run, model, optimiser, kept), run.steps):
        progress = max(0, step - warm) / max(1, run.steps - warm)
        rate = min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * progress))) * run.learning_rate
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        run.losses.append(loss.item())
        if step % 20 == 0 or step == run.steps - 1:
            spent = time.time() - run.started
            print(f"{title} {step + 1}/{run.steps} loss {run.losses[-1]:.4f} {spent:.0f} s", flush=True)
        if time.monotonic() - saved > KEEP_SECONDS:
            keep(run, model, optimiser, kept)
            saved = time.monotonic()
    kept.unlink(missing_ok=True)


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


def keep(run: Run, model: nn.Module, optimiser: torch.optim.Optimizer, path: Path) -> None:
    """Everything the rest of the run depends on, in one file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    spent = {"seconds": time.time() - run.started, "cpu_seconds": time.process_time() - run.cpu_started}
    states = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    torch.save({"recipe": run.recipe, "losses": run.losses, **spent, **states}, temporary)
    temporary.replace(path)


def go_on(run: Run, model: nn.Module, optimiser: torch.optim.Optimizer, path: Path) -> int:
    """The step to go on with: that of the kept run if recipe and first weights are the same, else 0."""
    kept = torch.load(path, weights_only=True) if path.exists() else None
    if kept is None or kept["recipe"] != run.recipe:
        return 0
    model.load_state_dict(kept["model"])
    optimiser.load_state_dict(kept["optimiser"])
    run.losses = kept["losses"]
    run.started -= kept["seconds"]
    run.cpu_started -= kept["cpu_seconds"]
    print(f"going on with step {len(run.losses) + 1} of {path}; remove it to begin anew", flush=True)
    return len(run.losses)


def numbers(run: Run, size: int) -> Callable[[int], np.ndarray]:
    """Step -> the picture numbers of its batch: passes over 0..size-1, each in a new order."""

    def at(step: int) -> np.ndarray:
        per_pass = size // run.batch
        order = np.random.default_rng([run.seed, step // per_pass]).permutation(size)
        first = (step % per_pass) * run.batch
        return order[first : first + run.batch]

    return at


def save(model: nn.Module, name: str, pixels: int, run: Run, note: str) -> None:
    """Half-precision safetensors beside a JSON that says how they were made."""
    ZOO.mkdir(exist_ok=True)
    path = weights_path(name, pixels)
    tensors = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors writes for the owner alone
    write_card(path.with_suffix(".json"), f"{name} {pixels}", run, note)


def write_card(path: Path, what: str, run: Run, note: str) -> None:
    """The JSON beside weights: command, commit, seconds, final loss."""
    card = {
        "command": f"python -m prism_sweeps.training.zoo {what}"
        + (f" --scale {run.scale:g}" if run.scale != 1 else ""),
        "note": note,
        "commit": run.commit,
        "samples": run.samples,
        "batch": run.batch,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "seconds": round(time.time() - run.started, 1),
        "cpu_seconds": round(time.process_time() - run.cpu_started, 1),
        "final_loss": round(run.final_loss, 4),
        "first_loss": round(run.losses[0], 4),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": sys.platform,
    }
    write_atomic(path, json.dumps(card, indent=2) + "\n")

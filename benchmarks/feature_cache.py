"""What a training step gains when the features of its images come from the store instead of from frozen towers.

    python benchmarks/feature_cache.py [--backbones nano-siglip nano-dinosiglip] [--rounds 7] [--steps 8] [--batch 8]

Nano scenes as PNG files, in one process on one thread. Each round does the same steps once with every image decoded,
transformed and seen by the towers, and once with its features read from the cache; `align` steps train the projector,
`finetune` steps the language model too. Ratios are of CPU seconds of a step, and of its image part by itself: towers /
cache. No optimiser step is in it, so a whole training step gains a little less.

Shapes: B images, P patches, D channels of the language model, T text tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.schema import Cell
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.data.nano_world.draw import draw
from prism_sweeps.data.nano_world.scenes import scene
from prism_sweeps.models.resize import image_transform, load_image
from prism_sweeps.models.vlm import VLM, build_vlm
from prism_sweeps.training.features import FeatureTable, features_root, fill
from prism_sweeps.training.image_hashes import never, silent

TEXT = 48
"""Tokens of a conversation, all but the first of them supervised."""
STAGES = {"align": ["projector"], "finetune": ["projector", "llm"]}
Sight = Callable[[list[Path]], Tensor]


def drawn(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        draw(scene("benchmark", number)).save(path)
    return paths


def step(vlm: VLM, features_BPV: Tensor, ids_BT: Tensor) -> Tensor:
    """Forward and backward of [BOS] [patches] [text]."""
    text_BTD = vlm.llm.get_input_embeddings()(ids_BT)
    embeds_BSD = torch.cat([text_BTD[:, :1], vlm.projector(features_BPV), text_BTD[:, 1:]], dim=1)
    hidden_BSD = vlm.llm.base_model(inputs_embeds=embeds_BSD, use_cache=False).last_hidden_state
    logits = vlm.llm.get_output_embeddings()(hidden_BSD[:, -ids_BT.shape[1] : -1])
    loss = cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten())
    loss.backward()
    vlm.zero_grad()
    return loss.detach()


def sights(vlm: VLM, cell: Cell, images: list[Path], store: Path) -> dict[str, Sight]:
    transform = image_transform(cell.backbone, cell.resolution, cell.resize)
    root = features_root(store, cell.backbone, cell.resolution, cell.resize, "fp32")
    fill(vlm.vision, transform, images, root, "fp32", silent, never)
    table = FeatureTable(root, images)

    @torch.no_grad()
    def towers(paths: list[Path]) -> Tensor:
        seen = [transform(load_image(path)) for path in paths]
        return vlm.vision({name: torch.stack([each[name] for each in seen]) for name in seen[0]})

    return {"towers": towers, "cache": lambda paths: torch.stack([table[path] for path in paths])}


def seconds(vlm: VLM, see: Sight, batches: list[list[Path]], ids_BT: Tensor) -> tuple[float, float, float]:
    """CPU seconds of a step and of its image part, and the mean loss."""
    seeing, losses, began = 0.0, [], time.process_time()
    for paths in batches:
        before = time.process_time()
        features_BPV = see(paths)
        seeing += time.process_time() - before
        losses.append(step(vlm, features_BPV, ids_BT))
    whole = time.process_time() - began
    return whole / len(batches), seeing / len(batches), torch.stack(losses).mean().item()


def compared(vlm: VLM, ways: dict[str, Sight], batches: list[list[Path]], rounds: int) -> dict[str, list[float]]:
    """step and image part -> towers / cache of each round, after one to warm up. The losses must agree."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, vlm.llm.config.vocab_size, (len(batches[0]), TEXT), generator=generator)
    ratios: dict[str, list[float]] = {"step": [], "image_part": []}
    for turn in range(rounds + 1):
        order = list(ways) if turn % 2 else list(ways)[::-1]
        found = {name: seconds(vlm, ways[name], batches, ids_BT) for name in order}
        (step_a, seen_a, loss_a), (step_b, seen_b, loss_b) = found["towers"], found["cache"]
        torch.testing.assert_close(loss_a, loss_b, rtol=0, atol=1e-5)
        if turn:
            ratios["step"].append(step_a / step_b)
            ratios["image_part"].append(seen_a / seen_b)
    print(
        f"  towers {1000 * step_a:.0f} ms a step, {1000 * seen_a:.1f} for images; cache {1000 * step_b:.0f}, ", end=""
    )
    print(f"{1000 * seen_b:.2f}")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["nano-siglip", "nano-dinosiglip"])
    parser.add_argument("--resolution", default="64")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        images = drawn(Path(folder), options.steps * options.batch)
        batches = [images[at : at + options.batch] for at in range(0, len(images), options.batch)]
        for backbone in options.backbones:
            cell, _ = compose_cell([f"backbone={backbone}", f"resolution='{options.resolution}'"])
            vlm = build_vlm(ModelSpec(cell.backbone, cell.resolution, cell.resize, cell.projector, cell.llm), seed=1)
            ways = sights(vlm, cell, images, Path(folder))
            for stage, trained in STAGES.items():
                vlm.train_only(trained)
                for part, ratios in compared(vlm, ways, batches, options.rounds).items():
                    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                    print(f"{backbone} {stage}, {part}, towers / cache: {statistics.median(ratios):.2f} ({spread})")
                    result[f"{backbone}_{stage}_{part}"] = round(statistics.median(ratios), 3)
    print(json.dumps({"benchmark": "feature_cache", "ratios": result}))


if __name__ == "__main__":
    main()

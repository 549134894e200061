"""Build the nano zoo: `python -m prism_sweeps.training.zoo all`, or one part, e.g. `nano-clip 96` or `nano-base`."""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path

import torch

from prism_sweeps.models.weights import ZOO
from prism_sweeps.training.zoo import classification, contrastive, distillation, language
from prism_sweeps.training.zoo.towers import HIGH, LOW, weights_path

TOWERS = {
    "nano-clip": (contrastive.train, 240_000, 24_000),
    "nano-siglip": (contrastive.train, 240_000, 24_000),
    "nano-dinov2": (distillation.train, 6_400, 960),
    "nano-in1k": (classification.train, 51_200, 2_560),
}
"""Name -> script, samples at the low resolution, samples at the high one."""
LANGUAGE = {"nano-base": language.train_base, "nano-instruct": language.train_instruct}


def build(part: str, pixels: int | None, options: argparse.Namespace) -> None:
    """Train one language model, or one tower at one resolution."""
    if pixels is None:
        LANGUAGE[part](options.folder, options.scale)
        return
    script, low, high = TOWERS[part]
    script(part, pixels, options.folder, low if pixels == LOW else high, len(os.sched_getaffinity(0)), options.scale)


def parts(wanted: str, pixels: int | None) -> list[tuple[str, int | None]]:
    """What `wanted` stands for, in an order that works: towers with captions use the tokenizer of nano-base."""
    every: list[tuple[str, int | None]] = [(name, None) for name in LANGUAGE]
    every += [(name, size) for name in TOWERS for size in (LOW, HIGH)]
    if wanted == "missing":
        return [(name, size) for name, size in every if not built(name, size)]
    return [(name, size) for name, size in every if wanted in ("all", name) and pixels in (None, size)]


def built(name: str, pixels: int | None) -> bool:
    """The card is written last, so weights with one are whole."""
    return (ZOO / name / "card.json" if pixels is None else weights_path(name, pixels).with_suffix(".json")).exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["all", "missing", *LANGUAGE, *TOWERS], help="missing: what is not there yet")
    parser.add_argument("pixels", nargs="?", type=int, choices=[LOW, HIGH], help="of a tower; both when left out")
    parser.add_argument(
        "--folder", type=Path, default=Path("prism-store/zoo"), help="where drawn pictures and unfinished runs are kept"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of the recipe's samples, for a quick build")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    gc.freeze()  # else each full collection walks everything the imports left
    for name, pixels in parts(options.part, options.pixels):
        build(name, pixels, options)


if __name__ == "__main__":
    main()

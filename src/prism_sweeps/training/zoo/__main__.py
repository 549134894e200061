"""Build the nano zoo: `python -m prism_sweeps.training.zoo all`, or one part, e.g. `nano-clip 96` or `nano-base`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from prism_sweeps.training.zoo import classification, contrastive, distillation, language
from prism_sweeps.training.zoo.towers import HIGH, LOW

TOWERS = {
    "nano-clip": (contrastive.train, 24_000, 2_560),
    "nano-siglip": (contrastive.train, 12_800, 2_560),
    "nano-dinov2": (distillation.train, 6_400, 1_280),
    "nano-in1k": (classification.train, 9_600, 2_560),
}
"""Name -> script, samples at the low resolution, samples at the high one."""
LANGUAGE = {"nano-base": language.train_base, "nano-instruct": language.train_instruct}


def build_tower(name: str, pixels: int, folder: Path, scale: float) -> None:
    script, low, high = TOWERS[name]
    script(name, pixels, folder, low if pixels == LOW else high, len(os.sched_getaffinity(0)), scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["all", *LANGUAGE, *TOWERS])
    parser.add_argument("pixels", nargs="?", type=int, choices=[LOW, HIGH], help="both when left out")
    parser.add_argument("--folder", type=Path, default=Path("prism-store/zoo"), help="where drawn pictures are kept")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the recipe's samples, for a quick build")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # The towers that learn from captions use the tokenizer of nano-base.
    for name in LANGUAGE if options.part == "all" else [options.part]:
        if name in LANGUAGE:
            LANGUAGE[name](options.scale)
    for name in TOWERS if options.part == "all" else [options.part]:
        if name in TOWERS:
            for pixels in [options.pixels] if options.pixels else [LOW, HIGH]:
                build_tower(name, pixels, options.folder, options.scale)


if __name__ == "__main__":
    main()

"""What single patches of the nano zoo's towers tell a linear probe: the category they show, the tile, their place.

    python benchmarks/patch_probe.py nano-clip nano-siglip [--pixels 64] [--scenes 2000]

A projector can pass on to the language model hardly more than this, so it is the first thing to look at after a tower
has been trained. Four scenes of five train the probe, the fifth tests it; raw pixels of the patch are the floor.

Shapes: B pictures, C colour channels, P patches, D channels, N patches that are asked about, K classes.
"""

from __future__ import annotations

import argparse
import json
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prism_sweeps.config.compose import design_space
from prism_sweeps.data.nano_world.draw import draw
from prism_sweeps.data.nano_world.scenes import ORDINARY, Scene, footprint, scene
from prism_sweeps.data.nano_world.words import CATEGORIES, TILES
from prism_sweeps.models.resize import square
from prism_sweeps.models.vision import build_vision
from prism_sweeps.training.zoo.pictures import covered, squared

HELD_OUT = 6_000_000
"""Scenes from this number on; training takes the first tens of thousands."""


def labelled(drawn: Scene, side: int) -> dict[str, dict[int, int]]:
    """What is asked -> patch -> class: the category of the thing a patch lies in, the colour of the tile, the place."""
    found: dict[str, dict[int, int]] = {"category": {}, "tile": {}}
    for thing in drawn.things:
        if thing.tile is not None:
            tile = list(TILES).index(thing.tile)
            found["tile"] |= dict.fromkeys(covered(squared(footprint(thing), drawn, "naive"), side), tile)
        named = dict.fromkeys(covered(squared(thing.box, drawn, "naive"), side), CATEGORIES.index(thing.category))
        found["category"] |= named
    asked = list(found["category"])
    return {**found, "column": {at: at % side for at in asked}, "row": {at: at // side for at in asked}}


def accuracy(features_ND: Tensor, classes_N: Tensor, first_test: int, steps: int = 300) -> float:
    """Share of right answers on the rows from `first_test` on of a softmax regression trained on those before."""
    mean_D, std_D = features_ND[:first_test].mean(0), features_ND[:first_test].std(0) + 1e-4
    x_ND = (features_ND - mean_D) / std_D
    probe = torch.nn.Linear(x_ND.shape[1], int(classes_N.max()) + 1)
    optimiser = torch.optim.AdamW(probe.parameters(), lr=3e-2, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-2 * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = torch.randint(first_test, (1024,), generator=generator)
        loss = F.cross_entropy(probe(x_ND[chosen]), classes_N[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        return (probe(x_ND[first_test:]).argmax(1) == classes_N[first_test:]).float().mean().item()


def probed(features_BPD: Tensor, answers: list[dict[str, dict[int, int]]]) -> dict[str, float]:
    found = {}
    for name in answers[0]:
        rows = [(b, patch, label) for b, of_one in enumerate(answers) for patch, label in of_one[name].items()]
        picture, patch, label = torch.tensor(rows).T
        first_test = int((picture < len(answers) * 4 // 5).sum())
        found[name] = round(accuracy(features_BPD[picture, patch], label, first_test), 3)
    return found


@torch.inference_mode()
def features(backbone: str, pixels_BCHW: Tensor) -> Tensor:
    space = design_space()
    resolution = space.part("resolution", str(pixels_BCHW.shape[-1]), {})
    vision = build_vision(space.part("backbone", backbone, {}), resolution).eval()
    parts = [vision(dict.fromkeys(vision.towers, part)) for part in pixels_BCHW.split(64)]
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+")
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--scenes", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    side = options.pixels // 8
    drawn = [scene("pretrain", number, ORDINARY) for number in range(HELD_OUT, HELD_OUT + options.scenes)]
    squares = np.stack([np.asarray(square(draw(each), "naive", options.pixels, (127, 127, 127))) for each in drawn])
    pixels_BCHW = torch.from_numpy(squares).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    answers = [labelled(each, side) for each in drawn]
    table = {"raw pixels": probed(F.unfold(pixels_BCHW, 8, stride=8).transpose(1, 2), answers)}
    for backbone in options.backbones:
        table[backbone] = probed(features(backbone, pixels_BCHW), answers)
    print(f"{'':16}" + "".join(f"{name:>10}" for name in answers[0]))
    for name, row in table.items():
        print(f"{name:16}" + "".join(f"{value:>10.2f}" for value in row.values()))
    print(json.dumps({"benchmark": "patch_probe", "pixels": options.pixels, "ratios": {}, "right": table}))


if __name__ == "__main__":
    main()

"""What a benchmark's questions are shown: their image, a grey one, or somebody else's.

The difference between conditions says how much of a score comes from looking.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from prism_sweeps.config.errors import ConfigError, DataError, nearest
from prism_sweeps.config.suite import CONDITIONS
from prism_sweeps.evaluation.benchmarks import Example

SEED = 21
BLANK = None

Shown = tuple[str, Path]
"""An image as the index names it, and where it is."""


def shown_images(examples: Sequence[Example], condition: str) -> dict[str, Shown | None]:
    """Image of an example -> the image shown in its stead; None is the mid-grey image.

    real: its own. blank: None. shuffled: another one of these examples, always the same; no image is shown in its own
    place, and each is shown in the place of one other, so questions that share an image still do.

    Raises ConfigError for another condition, DataError when there is only one image to shuffle.
    """
    images = {example.key: (example.key, example.image) for example in examples}
    if condition == "real":
        return dict(images)
    if condition == "blank":
        return dict.fromkeys(images, BLANK)
    if condition != "shuffled":
        raise ConfigError(f"unknown condition '{condition}'; {nearest(condition, CONDITIONS)}")
    if len(images) < 2:
        raise DataError("condition shuffled needs two images at least; these examples have one")
    circle = sorted(images)
    random.Random(SEED).shuffle(circle)
    return {key: images[other] for key, other in zip(circle, [*circle[1:], circle[0]], strict=True)}

"""The loss on conversations that are not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from prism_sweeps.config.errors import DataError
from prism_sweeps.data.batching import Example, collate
from prism_sweeps.data.steps import StepMaker
from prism_sweeps.models.batch import Batch
from prism_sweeps.models.vlm import VLM
from prism_sweeps.training.world import World

ROWS = 16
"""Examples per forward pass, where the engine does not say."""


@dataclass(frozen=True)
class Validation:
    """Called, it is the mean loss over the supervised tokens of all that is held out (nats), on every process."""

    vlm: VLM
    passes: Sequence[Callable[[], Batch]]
    """Of this process; every process has equally many."""
    world: World

    @torch.no_grad()
    def __call__(self) -> float:
        self.vlm.eval()
        total = torch.zeros(1, device=self.world.device)
        for make in self.passes:
            total += self.vlm(make().to(self.world.device))[0]
        self.vlm.train()
        return float(self.world.sum_over(total))


def validation(vlm: VLM, held_out: Sequence[Example], training: StepMaker, world: World) -> Validation | None:
    """Of these examples, laid out as those of `training` are; None where there are none.

    Images are read anew each time, for there may be many; once now, so that one that cannot be read is a DataError
    before training and not after it.
    """
    if not held_out:
        return None
    supervised = sum(int(example.supervised_T.sum()) for example in held_out)
    # The last example once more, weightless, until every process has equally many.
    missing = -len(held_out) % world.size
    chosen = [*held_out, *[held_out[-1]] * missing]
    weights = [1 / supervised] * len(held_out) + [0.0] * missing
    maker = replace(training, micro_batch=training.micro_batch or ROWS)
    cut = maker.cut([example.length for example in chosen])[world.rank]

    def passing(part: Sequence[int]) -> Callable[[], Batch]:
        return lambda: collate([chosen[at] for at in part], [weights[at] for at in part], maker.layout)

    passes = [passing(part) for part in cut]
    failure = None
    try:
        for make in passes:
            make()
    except DataError as error:
        failure = error
    world.fail_together(failure)
    return Validation(vlm, passes, world)

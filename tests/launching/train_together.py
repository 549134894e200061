"""`torchrun tests/launching/train_together.py STORE`: the tiny stage of the tests on every process that was started."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

import tiny_training as tiny
import torch

from prism_sweeps.config.specs import Job
from prism_sweeps.launching.progress import LineDisplay
from prism_sweeps.launching.together import run_together

FIRST, SECOND = "a" * 16, "b" * 16
ENGINE = replace(tiny.ENGINE, checkpoint_steps=5)


def jobs() -> dict[str, Job]:
    """An alignment and a finetuning after it, 60 steps each."""
    align = tiny.stage_spec(trains=["projector"], epochs=10.0)
    tune = tiny.stage_spec(epochs=10.0, parent=FIRST)
    return {FIRST: Job(FIRST, "align", align), SECOND: Job(SECOND, "tune", tune, [FIRST])}


if __name__ == "__main__":
    torch.set_num_threads(1)
    outcome = run_together(jobs(), tiny.open_store(Path(sys.argv[1])), ENGINE, LineDisplay())
    sys.exit(outcome.stopped_with if outcome.interrupted else int(bool(outcome.failed)))

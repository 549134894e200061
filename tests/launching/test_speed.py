"""What a finished job tells later plans."""

from __future__ import annotations

import sys

import pytest
import torch

from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.schema import Engine
from prism_sweeps.launching.run_job import speed_of
from prism_sweeps.planning.cost import job_cost
from prism_sweeps.planning.jobs import jobs_of
from prism_sweeps.planning.measured import Evaluated, Measured
from prism_sweeps.training.devices import device_name

CELL = compose_cell(["suite=easy-vqa", "data_mix=easy-vqa"])[0]
TRAIN, EVALUATE = jobs_of(CELL)[0][0], jobs_of(CELL)[1][0]
ENGINE = Engine(name="cpu", device="cpu", eval_batch=16)


def test_an_evaluation_tells_its_questions_a_second_from_begin_to_end() -> None:
    row = speed_of(EVALUATE, 20.0, ENGINE, {"score": 50.0, "n": 400}, ranks=1)
    assert isinstance(row, Evaluated)
    assert (row.examples_per_second, row.batch, row.answer) == (20.0, 16, "generate")
    assert (row.device, row.device_type) == (device_name(torch.device("cpu")), "cpu")
    cost = job_cost(EVALUATE)
    assert cost.flops is not None
    assert cost.examples is not None
    assert row.flops_per_second == pytest.approx(cost.flops / cost.examples * 20)
    of_four = speed_of(EVALUATE, 20.0, ENGINE, {"score": 50.0, "n": 400}, ranks=4)
    assert isinstance(of_four, Evaluated)
    assert (of_four.examples_per_second, of_four.flops_per_second) == (20.0, row.flops_per_second / 4)


def test_one_without_questions_time_or_device_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed_of(EVALUATE, 20.0, ENGINE, {"n": 0}, ranks=1) is None
    assert speed_of(EVALUATE, 0.0, ENGINE, {"n": 400}, ranks=1) is None
    monkeypatch.delitem(sys.modules, "torch")
    assert speed_of(EVALUATE, 20.0, ENGINE, {"n": 400}, ranks=1) is None


def test_a_training_job_tells_its_steps_alone() -> None:
    result = {"steps": 2, "seconds": 1.0, "examples": 16, "tokens": 320, "flops": 1e9, "peak_memory": 1 << 30}
    place = {"ranks": 2, "device": "fake", "device_type": "cpu", "peak_flops": None}
    row = speed_of(TRAIN, 60.0, ENGINE, result | place, ranks=1)
    assert isinstance(row, Measured)
    assert (row.tokens_per_second, row.flops_per_second, row.seconds) == (320.0, 5e8, 1.0)

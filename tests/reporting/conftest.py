"""A store with made-up results, so that reports are tested without training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prism_sweeps.config.schema import (
    Backbone,
    Engine,
    LanguageModel,
    Projector,
    Resize,
    Resolution,
    Stage,
    Tower,
    Tracking,
)
from prism_sweeps.config.schema import Store as StoreConfig
from prism_sweeps.config.specs import EvaluationSpec, Job, ModelSpec, StageSpec
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.planning.plan import Plan, PlannedCell
from prism_sweeps.tracking.records import Store

BASE = {"resize": "letterbox", "backbone": "nano-clip"}


@dataclass
class World:
    """What the made-up models can do. Scores are probabilities of a right answer, in 0..1."""

    study: str = "nano/made-up"
    description: str = "Made-up results."
    variants: Sequence[Mapping[str, str]] = ({}, {"resize": "naive"}, {"backbone": "nano-siglip"})
    seeds: Sequence[int] = (1, 2, 3)
    benchmarks: Sequence[str] = ("vqa", "easy-vqa")
    conditions: Sequence[str] = ("real", "shuffled")
    examples: int = 120
    effects: Mapping[str, float] = field(default_factory=lambda: {"resize=naive": 0.15})
    """Variant label -> how much likelier its answers are right than the baseline's 0.6."""
    seed_spread: float = 0.02
    failed: Sequence[tuple[str, int, str]] = ()
    """(variant label, seed, benchmark) whose evaluation with real images failed."""
    blind: float = 0.3
    blind_yes_no: float = 0.58
    answer: str = "red"


def fingerprint(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def label(overrides: Mapping[str, str]) -> str:
    return ", ".join(f"{axis}={value}" for axis, value in overrides.items()) or "baseline"


def model(choices: Mapping[str, str]) -> ModelSpec:
    tower = Tower(name="t", model="vit", width=32, depth=2, heads=2, patch=8, weights={64: "zoo:t.safetensors"})
    llm = LanguageModel(
        name="llm", weights="zoo:llm", prompt="in-out", width=32, depth=2, heads=2, kv_heads=2, mlp_width=64,
        vocabulary=100, context=128,
    )  # fmt: skip
    return ModelSpec(
        Backbone(choices["backbone"], {"t": tower}),
        Resolution("64", 64),
        Resize(choices["resize"], choices["resize"]),
        Projector("mlp", "mlp"),
        llm,
    )


def train_job(study: str, name: str, seed: int, spec: ModelSpec) -> Job:
    stage = Stage(trains=["projector", "llm"], epochs=1.0, global_batch=8, learning_rate=1e-3)
    what = StageSpec("finetune", spec, stage, {}, seed)
    return Job(fingerprint(study, "train", name, seed), f"finetune {name} seed {seed}", what)


def evaluation_job(parent: Job, benchmark: str, condition: str, spec: ModelSpec) -> Job:
    what = Benchmark(name=benchmark, index=benchmark, prompt="{question}", answer="generate", scorer="exact")
    title = f"{benchmark} ({condition}) of {parent.title}"
    spec_ = EvaluationSpec(spec, what, condition, parent.fingerprint)
    return Job(fingerprint(parent.fingerprint, benchmark, condition), title, spec_, [parent.fingerprint])


def make_plan(world: World) -> Plan:
    cells, jobs = [], {}
    for overrides in world.variants:
        choices = {**BASE, **overrides}
        spec = model(choices)
        for seed in world.seeds:
            train = train_job(world.study, label(overrides), seed, spec)
            tests = [evaluation_job(train, b, c, spec) for b in world.benchmarks for c in world.conditions]
            jobs |= {job.fingerprint: job for job in [train, *tests]}
            cells.append(
                PlannedCell(
                    id=fingerprint(world.study, label(overrides), seed)[:8],
                    choices=choices,
                    overrides=dict(overrides),
                    seed=seed,
                    baseline=not overrides,
                    config={"resize": {"strategy": choices["resize"]}, "seed": seed, "note": world.answer},
                    train=[train.fingerprint],
                    evaluate=[job.fingerprint for job in tests],
                )
            )
    seen = {axis: [BASE[axis], *(one[axis] for one in world.variants if axis in one)] for axis in BASE}
    axes = {axis: list(dict.fromkeys(values)) for axis, values in seen.items() if len(values) > 1}
    return Plan(world.study, world.description, axes, cells, jobs, Engine(name="cpu"), Tracking(), StoreConfig())


def answers(
    world: World, rng: np.random.Generator, benchmark: str, condition: str, chance: float
) -> list[dict[str, Any]]:
    """Rows as an evaluation writes them: two questions per image; in easy-vqa every other one is a yes/no question."""
    hardness = np.random.default_rng(len(benchmark)).normal(0, 0.1, world.examples)
    rows = []
    for index in range(world.examples):
        yes_no = benchmark == "easy-vqa" and index % 2 == 0
        p = chance if condition == "real" else world.blind_yes_no if yes_no else world.blind
        tags = {"type": "yes/no" if yes_no else "open"} if benchmark == "easy-vqa" else {}
        score = float(rng.random() < p + hardness[index // 2])
        rows.append(
            {"id": f"{benchmark}-{index}", "image": f"{benchmark}/{index // 2}.png", "answer": world.answer,
             "score": score, "gold": "blue", "tags": tags}
        )  # fmt: skip
    return rows


def fill(store: Store, world: World, plan: Plan) -> None:
    for cell in plan.cells:
        rng = np.random.default_rng([cell.seed, *label(cell.overrides).encode()])
        train = store.job(cell.train[0])
        for step in (1, 2, 3):
            train.append_metrics({"step": step, "loss": 3.0 / step + rng.random() / 10})
        train.finish({"loss": 1.0})
        luck = rng.normal(0, world.seed_spread)
        for name in cell.evaluate:
            spec, record = plan.jobs[name].spec, store.job(name)
            assert isinstance(spec, EvaluationSpec)
            which = (label(cell.overrides), cell.seed, spec.benchmark.name)
            if which in world.failed and spec.condition == "real":
                record.fail("out of memory")
                continue
            chance = 0.6 + world.effects.get(label(cell.overrides), 0.0) + luck
            rows = answers(world, rng, spec.benchmark.name, spec.condition, chance)
            record.write_predictions(rows)
            score = 100 * float(np.mean([row["score"] for row in rows]))
            record.finish({"score": score, "standard_error": 1.0, "n": len(rows), "metrics": {}, "groups": {}})


def build(root: Path, world: World) -> Store:
    """A store in `root` with one study as `world` says."""
    store = Store.open(root)
    plan = make_plan(world)
    store.study(world.study).write_plan(plan.to_plain())
    fill(store, world, plan)
    return store


@pytest.fixture(scope="session")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[World], Store]:
    return lambda world: build(tmp_path_factory.mktemp("store"), world)


@pytest.fixture(scope="session")
def made_up(store_of: Callable[[World], Store]) -> Store:
    return store_of(World())


@pytest.fixture(scope="session")
def world() -> type[World]:
    """The class, for tests that need another world (test folders are no packages, so it cannot be imported)."""
    return World

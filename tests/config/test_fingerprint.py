import hashlib
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prism_sweeps.config import weights
from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.fingerprint import fingerprint
from prism_sweeps.config.schema import (
    Backbone,
    Cell,
    LanguageModel,
    Projector,
    Resize,
    Resolution,
    Source,
    Stage,
    Tower,
)
from prism_sweeps.config.specs import EvaluationSpec, ModelSpec, StageSpec
from prism_sweeps.config.suite import Benchmark


def tower(**changed: Any) -> Tower:
    shape = {"model": "vit", "width": 8, "depth": 2, "heads": 2, "patch": 8}
    return Tower(**{"name": "t", "weights": {64: "/a", 96: "/b"}, **shape, **changed})


def model(**changed: Any) -> ModelSpec:
    lm = LanguageModel("lm", "/lm", "in-out", 8, 2, 2, 2, 16, 32, 128)
    parts = {
        "backbone": Backbone("b", {"a": tower(), "z": tower(model="other")}),
        "resolution": Resolution("64", 64),
        "resize": Resize("naive", "naive"),
        "projector": Projector("mlp", "mlp"),
        "llm": lm,
    }
    return ModelSpec(**{**parts, **changed})


def stage_spec(**changed: Any) -> StageSpec:
    stage = Stage(trains=["projector"], epochs=1.0, global_batch=4, learning_rate=0.1)
    sources = {"x": Source("d", "x.json"), "y": Source("d", "y.json")}
    return StageSpec(**{"name": "align", "model": model(), "stage": stage, "sources": sources, "seed": 1, **changed})


def evaluation_spec(**changed: Any) -> EvaluationSpec:
    benchmark = Benchmark("q", "d/q", prompt="{question}", answer="generate", scorer="exact")
    return EvaluationSpec(**{"model": model(), "benchmark": benchmark, "condition": "real", "parent": "p", **changed})


def test_golden() -> None:
    """These never change: a change here throws away every record anyone has."""
    assert fingerprint(stage_spec()) == "adf29d600d27e8c4"
    assert fingerprint(stage_spec(parent="0123456789abcdef", precision="bf16", max_steps=3)) == "03b0d9fd98abb534"
    assert fingerprint(evaluation_spec()) == "4f9e0f2f3f7f8fa0"


def test_it_is_the_hash_of_the_canonical_json() -> None:
    canonical = (
        '[1,"EvaluationSpec",{"benchmark":{"answer":"generate","index":"d/q","name":"q","prompt":"{question}",'
        '"scorer":"exact"},"condition":"real","parent":"p"}]'
    )
    assert fingerprint(evaluation_spec()) == hashlib.sha256(canonical.encode()).hexdigest()[:16]


def test_a_field_added_with_a_default_leaves_it() -> None:
    old = make_dataclass("Thing", [("kind", str)])("mlp")
    new = make_dataclass("Thing", [("kind", str), ("dropout", float, 0.0)])
    assert fingerprint(new("mlp")) == fingerprint(old)
    assert fingerprint(new("mlp", 0.1)) != fingerprint(old)


def cell() -> Cell:
    return deepcopy(compose_cell(["suite=easy-vqa", "stages=nano-two-stage", "backbone=nano-dinosiglip"])[0])


LOCAL: list[Callable[[Cell], Any]] = [
    lambda c: setattr(c.engine, "workers", 5),
    lambda c: setattr(c.engine, "micro_batch", 5),
    lambda c: setattr(c.engine, "device", "cuda"),
    lambda c: setattr(c.store, "root", "/else"),
    lambda c: setattr(c.tracking, "mlflow", False),
    lambda c: setattr(c.backbone, "name", "x"),
    lambda c: setattr(c.backbone.towers["siglip"], "name", "x"),
    lambda c: setattr(c.schedule, "name", "x"),
    lambda c: setattr(c.suite, "name", "x"),
    lambda c: c.backbone.towers["siglip"].weights.update({128: "/new"}),
    lambda c: c.backbone.towers["siglip"].weights.update({96: "/new"}),
]
COUNTED: list[Callable[[Cell], Any]] = [
    lambda c: setattr(c, "seed", 2),
    lambda c: setattr(c.engine, "precision", "bf16"),
    lambda c: setattr(c.resize, "strategy", "crop"),
    lambda c: setattr(c.projector, "kind", "linear"),
    lambda c: setattr(c.llm, "weights", "/else"),
    lambda c: setattr(c.schedule, "epochs", 1.5),
    lambda c: setattr(c.stages.chain["align"], "learning_rate", 0.5),
    lambda c: setattr(c.stages.chain["finetune"], "trains", ["llm"]),
    lambda c: setattr(c.data_mix.instruct["language"], "version", "2"),
    lambda c: setattr(c.suite, "conditions", ["real"]),
    lambda c: setattr(c.suite.benchmarks["easy-vqa"], "prompt", "{question}?"),
    lambda c: setattr(c.backbone.towers["siglip"], "kwargs", {}),
    lambda c: c.backbone.towers["siglip"].weights.update({64: "/new"}),
    lambda c: setattr(c.backbone, "towers", dict(reversed(c.backbone.towers.items()))),
    lambda c: setattr(c.stages, "chain", dict(reversed(c.stages.chain.items()))),
]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(LOCAL), max_size=4))
def test_what_is_local_never_matters(changes: list[Callable[[Cell], Any]]) -> None:
    changed = cell()
    for change in changes:
        change(changed)
    assert fingerprint(changed) == fingerprint(cell())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(LOCAL), max_size=2), st.sampled_from(COUNTED))
def test_what_changes_a_result_always_matters(
    locals_: list[Callable[[Cell], Any]], change: Callable[[Cell], Any]
) -> None:
    changed = cell()
    for each in locals_:
        each(changed)
    change(changed)
    assert fingerprint(changed) != fingerprint(cell())


def test_every_field_of_a_stage_counts() -> None:
    rates = {"vision_learning_rate": 0.5, "projector_learning_rate": 0.5}
    other = {"trains": ["llm"], "data": "align", "epochs": 2.0, "vision_blocks": 2, **rates}
    other |= {"batching": "packed", "loss": "micro-batch-mean", "micro_batch": 2, "bad_step": "skip", "spike": 4.0}
    for each in fields(Stage):
        spec = stage_spec()
        value = other.get(each.name, getattr(spec.stage, each.name))
        setattr(spec.stage, each.name, value if each.name in other else value + 0.25)
        assert fingerprint(spec) != fingerprint(stage_spec()), each.name


def shuffled(obj: Any, draw: Callable[[list[Any]], list[Any]], ordered: bool = False) -> Any:
    """`obj` with the keys of every dict whose order means nothing in another order."""
    if is_dataclass(obj):
        for each in fields(obj):
            setattr(obj, each.name, shuffled(getattr(obj, each.name), draw, "ordered" in each.metadata))
    elif isinstance(obj, dict):
        keys = list(obj) if ordered else draw(list(obj))
        return {key: shuffled(obj[key], draw) for key in keys}
    return obj


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_order_of_keys_never_matters(data: st.DataObject) -> None:
    other = shuffled(cell(), lambda keys: data.draw(st.permutations(keys)))
    assert fingerprint(other) == fingerprint(cell())


def test_an_evaluation_hangs_on_its_parent_benchmark_and_condition() -> None:
    base = fingerprint(evaluation_spec())
    assert fingerprint(evaluation_spec(parent="other")) != base
    assert fingerprint(evaluation_spec(condition="blank")) != base
    assert fingerprint(evaluation_spec(benchmark=Benchmark("q", "d/q", "2", "{question}", "generate"))) != base
    assert fingerprint(evaluation_spec(model=model(resize=Resize("crop", "crop")))) == base


def test_memory_gives_the_same_fingerprints() -> None:
    known: dict[Any, Any] = {}
    specs = [stage_spec(), stage_spec(seed=2), evaluation_spec()]
    assert [fingerprint(spec, known) for spec in specs] == [fingerprint(spec) for spec in specs]


def test_shipped_weights_count_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "ZOO", tmp_path)
    spec = stage_spec(model=model(backbone=Backbone("b", {"a": tower(weights={64: "zoo:a.safetensors"})})))
    absent = fingerprint(spec)
    (tmp_path / "a.safetensors").write_bytes(b"one")
    first = fingerprint(spec)
    os.utime(tmp_path / "a.safetensors", (1, 1))
    assert fingerprint(spec) == first
    (tmp_path / "a.safetensors").write_bytes(b"two")
    assert len({absent, first, fingerprint(spec)}) == 3


def test_a_folder_of_weights_counts_by_names_and_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "ZOO", tmp_path)
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm/config.json").write_text("{}")
    first = weights.identity("zoo:lm")
    assert first.startswith("zoo:lm#")
    (tmp_path / "lm/config.json").rename(tmp_path / "lm/other.json")
    assert weights.identity("zoo:lm") != first
    (tmp_path / "lm/other.json").rename(tmp_path / "lm/config.json")
    assert weights.identity("zoo:lm") == first
    assert weights.identity("hub/id") == "hub/id"

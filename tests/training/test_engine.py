"""Choices of the engine that must not change what is learned: each against a run without it, on one process."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import tiny_training as tiny
import torch
from test_processes import ALONE, TOGETHER, assert_alike

from prism_sweeps.config.errors import DataError
from prism_sweeps.tracking.records import Interrupted, Store
from prism_sweeps.training import blocks
from prism_sweeps.training.checkpoint_files import numbered
from prism_sweeps.training.telemetry import TrainingError


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {"activation_checkpointing": "selective"}),
        ({}, {"activation_checkpointing": "full", "micro_batch": 3}),
        ({"trains": ["vision", "projector", "llm"]}, {"activation_checkpointing": "full"}),
        ({}, {"data_workers": 2}),
        ({}, {"feature_cache": True}),
        ({"trains": ["projector"]}, {"feature_cache": True, "data_workers": 1}),
        ({"batching": "packed"}, {"row_tokens": 120, "activation_checkpointing": "selective"}),
        pytest.param({}, {"compile": True}, marks=pytest.mark.slow),
        pytest.param(
            {"batching": "packed"}, {"compile": True, "activation_checkpointing": "selective"}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_how_it_is_computed_does_not_matter(store: Store, changes: dict[str, object], settings: dict[str, object]):
    spec = tiny.stage_spec(**changes)
    tiny.train(store, ALONE, spec)
    tiny.train(store, TOGETHER, spec, replace(tiny.ENGINE, **settings))
    assert_alike(store.job(TOGETHER), store.job(ALONE))


@pytest.mark.parametrize("recomputed", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_are_compiled_once_for_all(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    recomputed: str,
    precision: str,
):
    """Once for the first length and once for any, whatever is sharded or recomputed."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(blocks.torch, "compile", partial(torch.compile, backend=backend))
    spec = tiny.stage_spec(precision=precision, max_steps=5)
    spec = replace(spec, model=replace(spec.model, llm=tiny.llm(depth=4)))
    tiny.train(store, ALONE, spec, replace(tiny.ENGINE, compile=True, activation_checkpointing=recomputed))
    assert 2 <= len(graphs) <= 3  # four blocks, five steps


def test_a_process_alone_in_bf16_sums_its_passes_up_in_fp32(store: Store):
    spec = tiny.stage_spec(precision="bf16")
    tiny.train(store, ALONE, spec)
    tiny.train(store, TOGETHER, spec, replace(tiny.ENGINE, micro_batch=1))
    curves = [[row["loss"] for row in store.job(name).read_metrics()] for name in (ALONE, TOGETHER)]
    assert curves[0] == pytest.approx(curves[1], rel=5e-3)


def test_features_are_kept_for_the_next_stage(store: Store):
    engine = replace(tiny.ENGINE, feature_cache=True)
    tiny.train(store, ALONE, tiny.stage_spec(trains=["projector"], max_steps=1), engine)
    kept = {path: path.stat().st_mtime_ns for path in (store.root / "features").rglob("*.safetensors")}
    assert kept
    tiny.train(store, TOGETHER, tiny.stage_spec(trains=["llm"], max_steps=1, parent=ALONE), engine)
    assert {path: path.stat().st_mtime_ns for path in (store.root / "features").rglob("*.safetensors")} == kept


# ---- bad steps


def test_a_bad_step_is_skipped_and_told(
    store: Store,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    """A loss that is infinite in step 3: the run without that batch's update goes on."""
    from prism_sweeps.models.vlm import VLM

    honest, asked = VLM.loss, iter(range(1000))

    def loss(self, batch):
        total, by_source = honest(self, batch)
        return (total * float("inf") if next(asked) == 2 else total), by_source

    monkeypatch.setattr(VLM, "loss", loss)
    with caplog.at_level(logging.WARNING):
        result = tiny.train(store, ALONE, tiny.stage_spec(bad_step="skip"))
    rows = store.job(ALONE).read_metrics()
    assert result["skipped"] == 1
    assert [row["loss"] is None for row in rows] == [False, False, True, *[False] * 9]
    assert len(rows[2]["skipped"]) == 8
    assert "step 3 was skipped" in caplog.text
    assert result["loss"] < rows[0]["loss"]


def test_a_jump_of_the_loss_stops_training(store: Store, monkeypatch: pytest.MonkeyPatch):
    from prism_sweeps.models.vlm import VLM

    honest, asked = VLM.loss, iter(range(1000))

    def loss(self, batch):
        total, by_source = honest(self, batch)
        return (total * 5 if next(asked) == 20 else total), by_source

    monkeypatch.setattr(VLM, "loss", loss)
    with pytest.raises(TrainingError, match=r"training jumped at step 21: .*conversations tiny/\d+"):
        tiny.train(store, ALONE, tiny.stage_spec(epochs=4.0, spike=3.0))


def test_skipping_for_ever_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch):
    from prism_sweeps.models.vlm import VLM

    honest = VLM.loss
    monkeypatch.setattr(
        VLM, "loss", lambda self, batch: (honest(self, batch)[0] * float("nan"), honest(self, batch)[1])
    )
    with pytest.raises(TrainingError, match=r"64 bad steps in a row"):
        tiny.train(store, ALONE, tiny.stage_spec(epochs=12.0, bad_step="skip"))


# ---- what a run tells


def test_rows_tell_losses_by_source_rates_and_memory(store: Store):
    spec = tiny.stage_spec(max_steps=3)
    source = next(iter(spec.sources.values()))
    spec = replace(spec, sources={"tiny": source, "again": replace(source, examples=20)})
    tiny.train(store, ALONE, spec, replace(tiny.ENGINE, peak_tflops=1.0))
    for row in store.job(ALONE).read_metrics():
        shares = [row.get(f"loss/{name}") for name in spec.sources]
        assert all(share is not None for share in shares)
        assert min(shares) <= row["loss"] <= max(shares)
        assert row["padded_per_second"] >= row["tokens_per_second"] > row["supervised_per_second"] > 0
        assert row["mfu"] == pytest.approx(row["flops"] / row["seconds"] / 1e12, abs=1e-4)
        assert row["peak_memory"] > 50 * 2**20


def test_validation_is_on_what_is_held_out_and_the_same_for_every_seed(store: Store):
    engine = replace(tiny.ENGINE, validate_every=4)
    tiny.train(store, ALONE, tiny.stage_spec(held_out=6, max_steps=10), engine)
    rows = store.job(ALONE).read_metrics()
    assert [row["step"] for row in rows if "validation_loss" in row] == [4, 8, 10]
    corpora = [tiny.read_corpus(tiny.stage_spec(held_out=6, seed=seed), store, engine, tiny.quiet) for seed in (1, 2)]
    held = [{example.conversation.name for example in corpus.held_out} for corpus in corpora]
    assert held[0] == held[1]
    assert not held[0] & {example.conversation.name for example in corpora[0].trained}
    assert len(corpora[0].trained) == 42


def test_a_profile_of_chosen_steps(store: Store):
    tiny.train(store, ALONE, tiny.stage_spec(max_steps=4), replace(tiny.ENGINE, profile="2:3"))
    with gzip.open(store.job(ALONE).path / "profile" / "rank0.json.gz") as stream:
        events = json.load(stream)["traceEvents"]
    assert any("addmm" in event.get("name", "") or "mm" in event.get("name", "") for event in events)


def test_checkpoints_by_steps(store: Store, monkeypatch: pytest.MonkeyPatch):
    from prism_sweeps.training.saving import Checkpoints

    honest, begun = Checkpoints.begin, []
    monkeypatch.setattr(
        Checkpoints, "begin", lambda self, step, *rest: (begun.append(step), honest(self, step, *rest))[1]
    )
    tiny.train(store, ALONE, engine=replace(tiny.ENGINE, checkpoint_steps=5))
    assert begun == [5, 10]


# ---- refused before training


@pytest.mark.parametrize(
    ("changes", "settings", "text"),
    [
        ({"precision": "fp8"}, {}, "unknown precision 'fp8'"),
        ({"batching": "packed"}, {"row_tokens": 20}, "row_tokens is 20, but the longest example takes"),
        ({"batching": "packed"}, {"attention": "varlen"}, "needs a GPU"),
        ({"held_out": 48}, {}, "held_out is 48, but the stage has 48 conversations"),
        ({"batching": "bagged"}, {}, "batching is 'bagged'"),
    ],
)
def test_bad_arithmetic_is_refused(store: Store, changes: dict[str, object], settings: dict[str, object], text: str):
    from prism_sweeps.config.errors import PrismError

    with pytest.raises(PrismError, match=text):
        tiny.train(store, ALONE, tiny.stage_spec(**changes), replace(tiny.ENGINE, **settings))
    assert not store.job(ALONE).metrics.exists()
    assert not numbered(store.job(ALONE).checkpoints)


def test_a_held_out_image_that_cannot_be_read_is_told_before_training(store: Store):
    spec = tiny.stage_spec(held_out=5)
    held = tiny.read_corpus(spec, store, tiny.ENGINE, tiny.quiet).held_out
    image = next(example.conversation.image for example in held if example.conversation.image is not None)
    image.write_bytes(b"no image any more")
    with pytest.raises(DataError, match=rf"conversation tiny/\d+: .*{image.name}"):
        tiny.train(store, ALONE, spec)
    assert not store.job(ALONE).metrics.exists()


def test_bad_steps_in_a_row_are_counted_over_interruptions(store: Store, monkeypatch: pytest.MonkeyPatch):
    from prism_sweeps.models.vlm import VLM

    honest = VLM.loss

    def loss(self, batch):
        total, by_source = honest(self, batch)
        return total * float("nan"), by_source

    monkeypatch.setattr(VLM, "loss", loss)
    spec = tiny.stage_spec(epochs=12.0, bad_step="skip")
    for _ in range(2):
        asked = iter(range(25))
        with pytest.raises(Interrupted):
            tiny.train(store, ALONE, spec, stop=lambda asked=asked: next(asked, None) is None)
    with pytest.raises(TrainingError, match=r"at step 64 \(64 bad steps in a row\)"):
        tiny.train(store, ALONE, spec)


def test_rows_that_a_crash_has_lost_are_told(store: Store, caplog: pytest.LogCaptureFixture):
    asked = iter(range(6))
    with pytest.raises(Interrupted):
        tiny.train(store, ALONE, stop=lambda: next(asked, None) is None)
    store.job(ALONE).truncate_metrics(3)
    tiny.train(store, ALONE)
    assert "3 of the 6 metrics rows of this run are lost" in caplog.text

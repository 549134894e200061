"""What a stage promises, on a model that trains in a second."""

import errno
import json
import math
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny_training as tiny
import torch

from prism_sweeps.config.errors import ConfigError, DataError, StoreError
from prism_sweeps.models.vlm import build_vlm
from prism_sweeps.tracking.records import Interrupted, JobRecord, Store
from prism_sweeps.training import checkpoint_files
from prism_sweeps.training.telemetry import TrainingError

JOB = "a" * 16
TIMES = ("seconds", "data_wait", "tokens_per_second", "supervised_per_second", "padded_per_second", "peak_memory")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> JobRecord:
    torch.set_num_threads(1)
    store = tiny.open_store(tmp_path_factory.mktemp("undisturbed"))
    tiny.train(store)
    return store.job(JOB)


def curve(record: JobRecord) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in record.read_metrics()]


def same_bits(one: JobRecord, other: JobRecord) -> bool:
    mine, theirs = tiny.weights(one), tiny.weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def stop_at(step: int):
    """True when asked before step `step` of an attempt."""
    left = iter(range(step))
    return lambda: next(left, None) is None


# ---- learning


def test_a_stage_learns_and_tells_its_curve(undisturbed: JobRecord):
    rows = undisturbed.read_metrics()
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[0]["loss"] == pytest.approx(math.log(258), rel=0.05)
    assert sum(row["loss"] for row in rows[-3:]) < sum(row["loss"] for row in rows[:3])
    assert all(row["examples"] == 8 for row in rows)
    assert all(0 < row["supervised_tokens"] < row["tokens"] <= row["padded_tokens"] for row in rows)
    assert not undisturbed.checkpoints.exists()


def test_result_sums_the_curve(store: Store):
    result = tiny.train(store, spec=tiny.stage_spec(max_steps=3))
    rows = store.job(JOB).read_metrics()
    assert result["steps"] == 3
    assert result["examples"] == 24
    assert result["supervised_tokens"] == sum(row["supervised_tokens"] for row in rows)
    assert result["loss"] == pytest.approx(sum(row["loss"] for row in rows) / 3)
    json.dumps(result)


def test_loss_of_a_step_is_the_mean_over_supervised_tokens(store: Store):
    """Against transformers' own loss of each conversation alone, weighted by its tokens."""
    spec = tiny.stage_spec(global_batch=48, max_steps=1)
    tiny.train(store, spec=spec)
    total = count = 0.0
    for supervised, loss in tiny.losses_by_transformers(spec, store):
        total, count = total + loss * supervised, count + supervised
    row = store.job(JOB).read_metrics()[0]
    assert row["supervised_tokens"] == count
    assert row["loss"] == pytest.approx(total / count, rel=1e-5)


def test_micro_batches_do_not_matter(store: Store):
    spec, curves = tiny.stage_spec(global_batch=16), {}
    for cut in (1, 3, 4, 16):
        tiny.train(store, f"{cut:016x}", spec, replace(tiny.ENGINE, micro_batch=cut))
        curves[cut] = curve(store.job(f"{cut:016x}"))
    for cut in (1, 3, 4):
        for mine, whole in zip(curves[cut], curves[16], strict=True):
            assert mine["loss"] == pytest.approx(whole["loss"], abs=1e-5)
            assert mine["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
            for key in ("examples", "tokens", "supervised_tokens", "learning_rate"):
                assert mine[key] == whole[key]


def test_a_projector_learns_nothing_from_rows_without_an_image_however_they_are_cut(store: Store):
    """Every sixth conversation is text alone: by itself it leaves a frozen language model without a gradient."""
    curves = []
    for name, cut in (("0" * 16, 0), ("1" * 16, 1)):
        spec = tiny.stage_spec(trains=["projector"], max_steps=6)
        tiny.train(store, name, spec, replace(tiny.ENGINE, micro_batch=cut))
        curves.append([row[key] for row in curve(store.job(name)) for key in ("loss", "grad_norm")])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_same_spec_gives_the_same_bits_and_another_seed_does_not(undisturbed: JobRecord, store: Store):
    tiny.train(store)
    tiny.train(store, "b" * 16, tiny.stage_spec(seed=4))
    assert same_bits(store.job(JOB), undisturbed)
    assert not same_bits(store.job("b" * 16), undisturbed)


# ---- chains


def test_frozen_modules_stay_and_the_chain_hands_its_weights_on(store: Store):
    align = tiny.stage_spec(trains=["projector"], max_steps=3)
    tiny.train(store, "b" * 16, align)
    assert sorted(file.name for file in store.job("b" * 16).weights.iterdir()) == ["projector.safetensors"]
    fresh = build_vlm(align.model, align.seed).projector.state_dict()
    aligned = tiny.weights(store.job("b" * 16))
    assert not torch.equal(aligned["projector.0.weight"], fresh["0.weight"])

    tiny.train(store, "c" * 16, tiny.stage_spec(trains=["llm"], max_steps=2, parent="b" * 16))
    found = tiny.weights(store.job("c" * 16))
    assert {name for name in found if name.startswith("projector.")} == aligned.keys()
    assert all(torch.equal(found[name], aligned[name]) for name in aligned)
    assert any(name.startswith("llm.") for name in found)

    tiny.train(store, "d" * 16, tiny.stage_spec(trains=["vision"], max_steps=1, parent="c" * 16))
    last = tiny.weights(store.job("d" * 16))
    assert all(torch.equal(last[name], found[name]) for name in found)
    assert any(name.startswith("vision.") for name in last)


def test_missing_parent_is_named(store: Store):
    with pytest.raises(StoreError, match=f"stage before are missing.*run job {'e' * 16} first"):
        tiny.train(store, spec=tiny.stage_spec(parent="e" * 16))


def test_finished_stage_is_not_trained_again(store: Store):
    spec = tiny.stage_spec(max_steps=2)
    result = tiny.train(store, spec=spec)
    before = (store.job(JOB).weights / "llm.safetensors").stat().st_mtime_ns
    store.job(JOB).checkpoints.mkdir()  # as after a kill between the weights and their checkpoints' end
    assert tiny.train(store, spec=spec) == result
    assert (store.job(JOB).weights / "llm.safetensors").stat().st_mtime_ns == before
    assert not store.job(JOB).checkpoints.exists()


# ---- stops, kills, damage


def test_stops_anywhere_leave_no_trace(undisturbed: JobRecord, store: Store):
    draw = random.Random(7)
    stops = 0
    while True:
        try:
            tiny.train(store, stop=stop_at(draw.randint(1, 4)))
            break
        except Interrupted:
            stops += 1
    assert stops >= 3
    assert same_bits(store.job(JOB), undisturbed)
    assert curve(store.job(JOB)) == curve(undisturbed)


def test_kill_leaves_no_trace(undisturbed: JobRecord, store: Store):
    # Forked: a new interpreter would spend most of the test on importing torch.
    worker = multiprocessing.get_context("fork").Process(target=train_slowly, args=(store,))
    worker.start()
    wait_for(lambda: len(store.job(JOB).read_metrics()) >= 5, worker)
    worker.kill()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert not store.job(JOB).weights.exists()
    assert any(store.job(JOB).checkpoints.iterdir())
    tiny.train(store)
    assert same_bits(store.job(JOB), undisturbed)
    assert curve(store.job(JOB)) == curve(undisturbed)


def train_slowly(store: Store) -> None:
    def pause() -> bool:
        time.sleep(0.05)
        return False

    tiny.train(store, engine=replace(tiny.ENGINE, checkpoint_seconds=0.0), stop=pause)


def wait_for(condition: Callable[[], bool], worker: multiprocessing.Process) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert worker.is_alive(), "the worker ended early"
        assert time.monotonic() < until
        time.sleep(0.01)


def test_damaged_checkpoint_costs_a_few_steps(undisturbed: JobRecord, store: Store, caplog: pytest.LogCaptureFixture):
    with pytest.raises(Interrupted):
        tiny.train(store, engine=replace(tiny.ENGINE, checkpoint_seconds=0.0), stop=stop_at(6))
    newest = next(checkpoint_files.numbered(store.job(JOB).checkpoints)[0].glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:1000])
    tiny.train(store)
    assert "is damaged" in caplog.text
    assert same_bits(store.job(JOB), undisturbed)
    assert curve(store.job(JOB)) == curve(undisturbed)


def test_full_disk_fails_and_resumes(undisturbed: JobRecord, store: Store, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Interrupted):
        tiny.train(store, stop=stop_at(4))

    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "write_tensors", fail)
        with pytest.raises(StoreError, match=r"the disk is full.*step-00000004, is kept"):
            tiny.train(store, engine=replace(tiny.ENGINE, checkpoint_seconds=0.0))
    tiny.train(store)
    assert same_bits(store.job(JOB), undisturbed)
    assert curve(store.job(JOB)) == curve(undisturbed)


def test_changed_data_are_noticed(store: Store):
    with pytest.raises(Interrupted):
        tiny.train(store, stop=stop_at(2))
    chats = store.data / "tiny-chats" / "chat.json"
    chats.write_text(json.dumps(json.loads(chats.read_text())[1:]))
    with pytest.raises(StoreError, match="prepared data have changed"):
        tiny.train(store)


def test_divergence_names_step_and_conversations(store: Store):
    with pytest.raises(TrainingError, match=r"diverged at step \d+: loss .* on conversations tiny/\d+"):
        tiny.train(store, spec=tiny.stage_spec(learning_rate=1e30))
    assert not store.job(JOB).weights.exists()


def test_unreadable_image_names_its_conversation_and_keeps_the_checkpoint(undisturbed: JobRecord, store: Store):
    image = store.data / "tiny-chats" / "images" / f"{LATE}.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:40])
    with pytest.raises(DataError, match=rf"conversation tiny/{LATE}: .*{LATE}\.png"):
        tiny.train(store, engine=replace(tiny.ENGINE, checkpoint_seconds=0.0))
    assert checkpoint_files.numbered(store.job(JOB).checkpoints)
    image.write_bytes(whole)
    tiny.train(store)
    assert same_bits(store.job(JOB), undisturbed)


LATE = 31
"""A conversation that comes up after the second step of the first epoch."""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"trains": ["projektor"]}, "did you mean 'projector'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"epochs": None}, "has no epochs"),
    ],
)
def test_impossible_specs_are_refused(store: Store, changes: dict[str, object], text: str):
    with pytest.raises(ConfigError, match=text):
        tiny.train(store, spec=tiny.stage_spec(**changes))


def test_bf16_trains(store: Store):
    result = tiny.train(store, spec=tiny.stage_spec(precision="bf16"))
    rows = store.job(JOB).read_metrics()
    assert result["loss"] < rows[0]["loss"]
    assert all(tensor.dtype == torch.bfloat16 for tensor in tiny.weights(store.job(JOB)).values())

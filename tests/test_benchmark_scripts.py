"""What the benchmarks take for equal before they time it, at sizes that take seconds."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError
from types import ModuleType

import pytest
import torch

from prism_sweeps.tracking.records import Store
from prism_sweeps.training.world import ALONE, World

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark_named(monkeypatch: pytest.MonkeyPatch):
    """Imports a script of `benchmarks/`, and what lies beside it."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def imported(name: str) -> ModuleType:
        return importlib.import_module(name)

    return imported


# ---- train: beside transformers' Trainer


def test_all_ways_of_a_step_are_on_the_curve_of_transformers_trainer(benchmark_named, tmp_path: Path):
    train = benchmark_named("train")
    setting = train.setting_in(tmp_path, train.SMALL, 4, "grouped")
    ways = ("ours", "all logits", "AdamW not fused", "packed, cached")
    turns = train.compared(setting, {name: train.our_step(setting, train.OURS[name]) for name in ways})
    theirs = turns.losses[train.PEER]
    assert max(theirs) - min(theirs) > 0.01  # else equal curves would show little
    for name in ways:
        assert turns.losses[name] == pytest.approx(theirs, abs=1e-4), name
        assert len(turns.seconds[name]) == 4


def test_a_side_that_begins_elsewhere_is_found_out(benchmark_named, tmp_path: Path):
    train = benchmark_named("train")
    setting = train.setting_in(tmp_path, train.SMALL, 1, "grouped")
    ours = train.our_step(setting, set())
    with pytest.raises(AssertionError, match="other begins at"):
        train.compared(setting, {"other": lambda number: ours(number) + 2e-4})


# ---- evaluate: beside transformers' generate


def test_all_sides_of_an_evaluation_say_the_same(benchmark_named, tmp_path: Path):
    evaluate = benchmark_named("evaluate")
    setting = evaluate.setting_in(tmp_path, evaluate.SMALL)
    for choices in (True, False):
        found = evaluate.compared(setting, 0, 2, 3, choices)
        assert found.seconds.keys() == {"ours", "batch1", "batched"}
        assert len(found.lengths) == (0 if choices else 6)
        medians = evaluate.told("kind", [found], 6)
        assert medians["kind_vs_batch1"] == round(found.seconds["batch1"][0] / found.seconds["ours"][0], 2)
    assert len(set(found.lengths)) > 1  # else nothing would end early


def test_an_answer_or_a_likelihood_that_differs_is_found_out(benchmark_named):
    evaluate = benchmark_named("evaluate")
    own = {"a": ("A", (-0.5, -1.0)), "b": ("x", ())}
    evaluate.check_equal(own, {"a": ("A", (-0.50005, -1.0)), "b": ("x", ())}, "other")
    with pytest.raises(AssertionError, match="question b: 'x', by other 'y'"):
        evaluate.check_equal(own, {**own, "b": ("y", ())}, "other")
    with pytest.raises(AssertionError, match=r"likelihoods by other are 2\.0e-04 away"):
        evaluate.check_equal(own, {**own, "a": ("A", (-0.5, -1.0002))}, "other")
    with pytest.raises(AssertionError, match="other answered other questions"):
        evaluate.check_equal(own, {"a": own["a"]}, "other")


def test_answers_that_differ_with_the_batch_are_counted(benchmark_named, tmp_path: Path, monkeypatch):
    evaluate, sizes = benchmark_named("evaluate"), benchmark_named("batch_sizes")
    setting = evaluate.setting_in(tmp_path, evaluate.SMALL)
    requests = evaluate.asked(setting, 0, 2, 2, choices=True)
    assert set(sizes.compared({"fp32": setting.loaded}, requests, "choice").values()) == {0.0}
    real = sizes.answers

    def one_other(model, requests, size):
        said = real(model, requests, size)
        first = min(said)
        return said | {first: replace(said[first], text=f"by {size}")}

    monkeypatch.setattr(sizes, "answers", one_other)
    told = sizes.compared({"bf16": setting.loaded}, requests, "choice")
    assert told == {f"choice_bf16_{size}": 0.25 for size in (4, 16, 64)}


# ---- plan: beside Hydra's compose


def test_planned_cells_are_those_that_hydra_composes(benchmark_named):
    plan = benchmark_named("plan")
    cells = plan.planned(["backbone=nano-clip,nano-siglip", "resize=letterbox,naive", "suite=easy-vqa"]).cells[:3]
    others = plan.composed(cells)
    plan.check_equal(cells, others)
    others[1]["resize"]["strategy"] = "crop"
    with pytest.raises(AssertionError, match=f"cell {cells[1].id} .* is another one by Hydra"):
        plan.check_equal(cells, others)


# ---- checkpoint, loss_equality, gpu


def test_a_run_with_checkpoints_has_the_losses_of_one_without(benchmark_named, tmp_path: Path):
    checkpoint = benchmark_named("checkpoint")
    world, store = World(ALONE, torch.device("cpu")), Store.open(tmp_path / "store")
    make = partial(checkpoint.built, checkpoint.made_model(32, 2), 4, world, store)
    checkpoint.check_equal(make, tmp_path)


def test_curves_that_part_are_told_from_other_conversations(benchmark_named):
    compare = benchmark_named("loss_equality")
    rows = [{"step": 1, "loss": 2.0, "tokens": 40}, {"step": 2, "loss": 1.0, "tokens": 50, "grad_norm": 3.0}]
    assert compare.differences({"align": rows}, {"align": rows}) == []
    apart = [rows[0], {**rows[1], "loss": 1.25}]
    (found,) = compare.differences({"align": rows}, {"align": apart})
    assert (found.stage, found.step, found.what, found.size) == ("align", 2, "loss", 0.2)
    assert compare.report({"align": rows}, [found]) == 0.2
    others = compare.differences({"align": rows}, {"align": [{**rows[0], "tokens": 41}, rows[1]]})
    assert compare.report({"align": rows}, others) == float("inf")
    with pytest.raises(ValueError, match="other stages or numbers of steps"):
        compare.differences({"align": rows}, {"align": rows[:1]})


def test_the_working_tree_runs_from_where_it_is_laid_out_with_its_own_design_space(benchmark_named, tmp_path: Path):
    compare = benchmark_named("loss_equality")
    compare.lay_out(".", tmp_path / "a")
    compare.check_imports(tmp_path / "a", {"PYTHONPATH": str(tmp_path / "a")})
    shutil.rmtree(tmp_path / "a" / "prism_sweeps" / "conf")
    with pytest.raises((RuntimeError, CalledProcessError)):
        compare.check_imports(tmp_path / "a", {"PYTHONPATH": str(tmp_path / "a")})


def test_the_trainer_is_counted_on_the_very_batches_of_our_padded_way(benchmark_named, tmp_path: Path):
    ways, trainer = benchmark_named("gpu_ways"), benchmark_named("gpu_trainer")
    asked = ways.Asked("ours/padded/eager/none", ways.TINY, "fp32", 2, 0, tmp_path)
    ours = ways.built(asked, "padded", "eager", "none", World(ALONE, torch.device("cpu")))
    for step, batch in enumerate(trainer.batches(asked, 3)):
        data, told = ours.data(step), trainer.told(batch, asked)
        assert sorted(data.names) == sorted(each.conversation.name for each in batch)
        assert (told["tokens"], told["padded"]) == (data.tokens, data.padded)
        collated = [trainer.collate([trainer.row(each, asked) for each in batch[at : at + 2]]) for at in (0, 2)]
        assert sum(each["input_ids"].numel() for each in collated) == data.padded
        assert sum(int((each["labels"] != -100).sum()) for each in collated) == sum(data.supervised)


def test_the_precision_that_fits_is_the_most_exact_one(benchmark_named):
    gpu = benchmark_named("gpu")
    assert gpu.chosen_precision(6.76e9, 80e9) == "bf16-true"
    assert gpu.chosen_precision(6.76e9, 141e9) == "bf16"
    with pytest.raises(SystemExit, match="no precision fits"):
        gpu.chosen_precision(6.76e9, 40e9)


def test_a_step_on_packed_rows_never_asks_a_tensor_for_its_content(benchmark_named, tmp_path: Path):
    ways = benchmark_named("gpu_ways")
    with ways.Asking() as asking:
        assert bool(torch.ones(2).sum() > 1)
    (place,) = asking.places
    assert "test_benchmark_scripts" in place
    asked = ways.Asked("waits", ways.TINY, "bf16-true", 2, 0, tmp_path)
    assert ways.waits(asked, World(ALONE, torch.device("cpu")))["asks_packed"] == []

"""Frames and comparisons on made-up studies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prism_sweeps.config.errors import StoreError
from prism_sweeps.reporting.comparisons import (
    compare_axes,
    compare_variants,
    grids_of,
    look,
    look_at_groups,
    look_together,
)
from prism_sweeps.reporting.frame import read_study
from prism_sweeps.tracking.records import Store

STUDY = "nano/made-up"


def test_effects_are_found_and_no_others(made_up: Store) -> None:
    frames = read_study(made_up, STUDY)
    baseline, naive, siglip = compare_variants(frames, grids_of(frames))
    assert (baseline.label, naive.label, siglip.label) == ("baseline", "resize=naive", "backbone=nano-siglip")
    assert baseline.mean is None
    assert naive.mean is not None
    assert siglip.mean is not None
    assert naive.mean.low < 15 < naive.mean.high
    assert siglip.mean.low < 0 < siglip.mean.high
    assert naive.mean.seeds == 3


def test_a_difference_is_that_of_the_two_scores(made_up: Store) -> None:
    frames = read_study(made_up, STUDY)
    baseline, naive, _ = compare_variants(frames, grids_of(frames))
    for name in frames.benchmarks:
        gap = naive.scores[name].score - baseline.scores[name].score
        assert naive.differences[name].value == pytest.approx(gap)
    assert naive.mean is not None
    assert naive.mean.value == pytest.approx(naive.mean_score - baseline.mean_score)


def test_failed_evaluations_stay_visible(store_of: Callable[..., Store], world: Any) -> None:
    store = store_of(world(failed=[("resize=naive", 2, "vqa")], examples=20))
    frames = read_study(store, STUDY)
    assert frames.scores["score"].isna().sum() == 1
    assert frames.jobs.set_index("state").loc["failed", "reason"] == "out of memory"
    assert frames.cells.set_index(["variant", "seed"]).loc[("resize=naive", 2), "state"] == "failed"
    naive = compare_variants(frames, grids_of(frames))[1]
    assert (naive.scores["vqa"].done, naive.scores["vqa"].planned) == (2, 3)
    assert naive.differences["vqa"].seeds == 2
    assert naive.mean is not None
    assert naive.mean.seeds == 2


def test_a_product_grid_gives_main_effects_over_matched_pairs(store_of: Callable[..., Store], world: Any) -> None:
    both = {"resize": "naive", "backbone": "nano-siglip"}
    variants = [{}, {"resize": "naive"}, {"backbone": "nano-siglip"}, both]
    effects = {"resize=naive": 0.2, "backbone=nano-siglip": 0.0, "resize=naive, backbone=nano-siglip": 0.3}
    frames = read_study(store_of(world(variants=variants, effects=effects, seeds=(1,))), STUDY)
    resize, _ = compare_axes(frames, grids_of(frames))
    naive = resize.rows[1]
    assert [row.label for row in resize.rows] == ["letterbox", "naive"]
    assert naive.variants == ("resize=naive", "resize=naive, backbone=nano-siglip")
    assert naive.partners == ("baseline", "backbone=nano-siglip")
    assert resize.rows[0].variants == ("baseline", "backbone=nano-siglip")
    rows = {row.label: row.mean_score for row in compare_variants(frames, grids_of(frames))}
    expected = np.mean([rows[a] - rows[b] for a, b in zip(naive.variants, naive.partners, strict=True)])
    assert naive.mean is not None
    assert naive.mean.value == pytest.approx(expected)


def test_axes_changed_only_together_are_named(store_of: Callable[..., Store], world: Any) -> None:
    both = {"resize": "naive", "backbone": "nano-siglip"}
    frames = read_study(store_of(world(variants=[{}, both], examples=10, seeds=(1,))), STUDY)
    resize, _ = compare_axes(frames, grids_of(frames))
    assert [row.label for row in resize.rows] == ["letterbox"]
    assert resize.alone == ["resize=naive, backbone=nano-siglip"]


def test_what_is_answerable_blind_is_not_called_seeing(made_up: Store) -> None:
    frames = read_study(made_up, STUDY)
    grids = grids_of(frames)
    assert {one.benchmark: one.verdict for one in look(frames, grids, "baseline")}["vqa"] == "sees"
    groups = {one.group: one for one in look_at_groups(frames, grids, "baseline", "easy-vqa")}
    assert groups["type = yes/no"].verdict == "no evidence"
    assert groups["type = yes/no"].blind_share > 0.8
    assert groups["type = open"].verdict == "sees"
    assert groups["type = open"].examples == 60


def test_looking_together_averages_the_variants_example_by_example(made_up: Store) -> None:
    frames = read_study(made_up, STUDY)
    grids = grids_of(frames)
    together = {(one.benchmark, one.condition): one for one in look_together(frames, grids)}
    alone = [{(one.benchmark, one.condition): one for one in look(frames, grids, name)} for name in frames.variants]
    for key, one in together.items():
        each = [table[key] for table in alone if key in table]
        assert one.variant == f"{len(each)} variants"
        assert one.gain.value == pytest.approx(np.mean([sight.gain.value for sight in each]))
        assert one.with_image == pytest.approx(np.mean([sight.with_image for sight in each]))
    assert together.keys() == set().union(*alone)


def test_scores_that_weigh_splits_equally_are_recognised(made_up: Store, store_of: Any, world: Any) -> None:
    store = store_of(world(variants=[{}], seeds=(1,), benchmarks=("pope",), conditions=("real",), examples=4))
    frames = read_study(store, STUDY)
    record = store.job(frames.scores["job"].iloc[0])
    rows = record.read_predictions()
    scores, splits = [1.0, 1.0, 1.0, 0.0], ["easy", "easy", "easy", "hard"]
    record.write_predictions(
        [row | {"score": s, "tags": {"split": t}} for row, s, t in zip(rows, scores, splits, strict=True)]
    )
    for score, by_split, unexplained in [(50.0, {"pope"}, set()), (75.0, set(), set()), (60.0, set(), {"pope"})]:
        record.finish({"score": score, "n": 4})
        frames = read_study(store, STUDY)
        assert (frames.by_split, frames.unexplained) == (by_split, unexplained)
        assert 100 * grids_of(frames)["baseline", "pope", "real"].mean() == (50.0 if by_split else 75.0)


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no study"):
        read_study(Store.open(tmp_path), "nano/none")

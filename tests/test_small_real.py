"""Real weights from end to end, as a user has them: fetched, trained for two steps, scored and asked."""

import json
from pathlib import Path

import pytest

from prism_sweeps import cli
from prism_sweeps.data.small_weights import ensure_small_weights
from prism_sweeps.tracking.records import Store

pytestmark = [pytest.mark.download, pytest.mark.slow]
TOWERS = {"small-efficientnet-lite0": 128, "small-dinov2-s": 112}


@pytest.mark.parametrize(("mix", "suite"), [("small-easy-vqa", "easy-vqa"), ("small-nano", "small-nano")])
@pytest.mark.parametrize("tower", TOWERS)
def test_a_cell_trains_is_scored_and_answers(
    tower: str, mix: str, suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure_small_weights(lambda done, total, note: None)
    cell = [f"backbone={tower}", f"resolution={TOWERS[tower]}", "resize=naive", "llm=small-smollm2"]
    cell += ["stages=small-one-stage", f"data_mix={mix}", f"suite={suite}", "schedule.max_steps=2", "suite.examples=24"]
    place = ["--store", str(tmp_path)]
    assert cli.main(["train", *cell, "--name", "real", *place]) == 0
    store = Store.open(tmp_path, None)
    (trained,) = [job for job in store.study("real").plan()["jobs"].values() if job["spec"]["kind"] == "train"]
    rows = store.job(trained["fingerprint"]).read_metrics()
    assert len(rows) == 2
    assert 0 < rows[-1]["loss"] < 8  # nats a token; a guess among 49,152 tokens costs 10.8
    capsys.readouterr()
    image = next((tmp_path / "data").rglob("*.png"))
    question = ["what shape is in the image?", "--cell", *cell]
    assert cli.main(["ask", str(image), *question, "--max-new-tokens", "8", "--json", *place]) == 0
    assert json.loads(capsys.readouterr().out)["answer"]

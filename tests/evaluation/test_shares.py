"""A benchmark shared out among processes, and what they say together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks
from tiny_evaluation import PARENT, benchmark, model_spec, open_store

from prism_sweeps.config.errors import DataError, PrismError, StoreError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import EvaluationSpec
from prism_sweeps.evaluation.asked import asked_of, shares
from prism_sweeps.evaluation.requests import Request, Unanswered
from prism_sweeps.evaluation.runner import Progress, evaluate, put_down
from prism_sweeps.evaluation.together import agreed
from prism_sweeps.tracking.answers import AnswerFiles
from prism_sweeps.tracking.records import Store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_question_has_one_process_and_images_are_not_torn_apart(store, count):
    asked = asked_of(store.data / "colours", benchmark(), "real")
    parts = shares(asked, count)
    assert Counter(each.key for part in parts for each in part) == Counter(each.request.key for each in asked)
    assert max(map(len, parts)) - min(map(len, parts)) <= 3
    images = [{each.shown for each in part} for part in parts]
    assert sum(map(len, images)) == 7


def test_with_fewer_images_than_processes_questions_are_shared_out(store):
    asked = asked_of(store.data / "colours", benchmark(), "real")
    assert [len(part) for part in shares(asked, 21)] == [1] * 21
    assert [len(part) for part in shares(asked_of(store.data / "colours", benchmark(), "blank"), 2)] == [11, 10]
    assert sorted(len(part) for part in shares(asked[:2], 4)) == [0, 0, 1, 1]


def test_one_of_several_processes_tells_how_far_all_are(tmp_path):
    told: list[int] = []
    progress = Progress(done=10, total=50, mine=10, report=lambda done, *_: told.append(done), stop=lambda: False)
    batches = [[(Request(f"{batch}-{i}", None, None, "?"), Unanswered("no"))] for batch in range(2) for i in range(5)]
    put_down(batches, AnswerFiles(tmp_path, "nobody"), progress)
    assert told == [14, 18, 22, 26, 30, 34, 38, 42, 46, 50]


@dataclass
class Others:
    """Peers who say what they are told to."""

    failures: list[Any]
    rank: int = 0
    size: int = 2
    heard: list[Any] = field(default_factory=list)

    def told_by_first(self, message: Any) -> Any:
        return message

    def all_say(self, message: Any) -> list[Any]:
        self.heard.append(message)
        return [message, *self.failures]


def test_what_is_wrong_in_one_process_is_raised_in_all():
    peers = Others([None, StoreError("disk full")])
    with pytest.raises(StoreError, match="disk full"):
        agreed(lambda: 1, peers)
    assert agreed(lambda: 1, Others([None])) == 1

    def fails() -> None:
        raise DataError("here")

    peers = Others([None])
    with pytest.raises(DataError, match="here"):
        agreed(fails, peers)
    assert isinstance(peers.heard[0], DataError)

    def breaks() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # a fault of ours ends this process, and thereby the others
        agreed(breaks, peers)
    assert len(peers.heard) == 1


def scored_by_two(root: Path) -> str:
    """What one of two processes gets of an evaluation."""
    import torch
    import torch.distributed as dist

    from prism_sweeps.training.world import Place, World

    world = World(Place(dist.get_rank(), 2), torch.device("cpu"), dist.new_group(backend="gloo"))
    store = Store.open(root)
    record = store.job("c" * 16)
    spec = EvaluationSpec(model_spec(), benchmark(), "real", PARENT)
    try:
        result = evaluate(spec, record, store, Engine(device="cpu"), lambda *_: None, lambda: False, world)
    except PrismError as error:
        return str(error)
    return f"n {result['n']}" if result else "nothing"


@pytest.mark.slow
def test_two_processes_score_as_one_and_both_tell_of_an_unreadable_image(store, tmp_path):
    image = store.data / "colours/images/4.png"
    whole = image.read_bytes()
    image.write_bytes(b"?")
    store.job("c" * 16).path.mkdir(parents=True)
    said = run_ranks(2, tmp_path, scored_by_two, store.root)
    assert said[0] == said[1]
    assert said[0].startswith("3 of 21 questions cannot be answered: example '4-0'")
    image.write_bytes(whole)
    assert run_ranks(2, tmp_path, scored_by_two, store.root) == ["n 21", "nothing"]
    assert len(store.job("c" * 16).read_predictions()) == 21


@pytest.mark.slow
def test_two_processes_both_tell_of_answers_that_cannot_be_read(store, tmp_path):
    record = store.job("c" * 16)
    record.path.mkdir(parents=True)
    assert run_ranks(2, tmp_path, scored_by_two, store.root) == ["n 21", "nothing"]
    broken = sorted(record.answers.glob("*.jsonl"))[0]
    broken.write_text("{half a row\n" + broken.read_text())
    said = run_ranks(2, tmp_path, scored_by_two, store.root)
    assert said == [f"{broken.resolve()}, line 1 is not valid JSON" + said[0][said[0].index(" (") :]] * 2

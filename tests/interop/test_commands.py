"""prism export and prism import, from the command line to a folder that answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_released import Reference, choices  # noqa: F401
from tiny_models import picture, saved_picture
from transformers import LlavaForConditionalGeneration, LlavaProcessor

import prism_sweeps
from prism_sweeps import cli
from prism_sweeps.models.trained import save_trained
from prism_sweeps.models.vlm import build_vlm
from prism_sweeps.planning.plan import Plan, make_plan
from prism_sweeps.tracking.records import Store

CELL = ["backbone=nano-clip", "llm=nano-base", "resize=naive", "stages=nano-one-stage"]


def trained(root: Path, overrides: list[str], modules: tuple[str, ...] = ("projector",)) -> Plan:
    """A recorded study of one cell that says it is trained and scored once; its projector is as drawn."""
    plan = make_plan(overrides, "mine")
    store = Store.open(root)
    store.study("mine").write_plan(plan.to_plain())
    cell = plan.cells[0]
    job = plan.jobs[cell.train[-1]]
    record = store.job(job.fingerprint)
    with record.claim():
        record.begin(job, plan.engine)
        save_trained(build_vlm(job.spec.model, 1), record.weights, modules)
        record.finish({"loss": 1.0})
    scored = store.job(cell.evaluate[0])
    with scored.claim():
        scored.begin(plan.jobs[cell.evaluate[0]], plan.engine)
        scored.finish({"score": 61.5, "standard_error": 2.25, "n": 100, "metrics": {}, "groups": {}})
    return plan


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRISM_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def prism(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_nano_cell_is_asked_in_the_store_in_its_folder_and_in_llava(store, tmp_path, capsys):
    cell = trained(store, CELL).cells[0]
    file = saved_picture(tmp_path, 90, 70)
    assert prism("ask", file, "what is on the left ?", "--cell", cell.id, "--max-new-tokens", "12") == 0
    answer = capsys.readouterr().out.rstrip("\n")
    assert answer
    assert prism("export", cell.id, "--to", tmp_path / "own", "--json") == 0
    assert printed(capsys)["folder"] == str(tmp_path / "own")
    own = prism_sweeps.load(tmp_path / "own")
    assert own.ask(file, "what is on the left ?", max_new_tokens=12) == answer
    card = (tmp_path / "own" / "README.md").read_text()
    assert "| nano-vqav2 | real | 61.5 | 2.2 | 100 |" in card
    assert "| data_mix | nano |" in card
    assert prism("export", tmp_path / "own", "--format", "llava", "--to", tmp_path / "from-folder") == 0
    assert prism("export", *CELL, "--format", "llava", "--to", tmp_path / "from-cell") == 0
    for folder in ("from-folder", "from-cell"):
        assert llava_answer(tmp_path / folder, file, "what is on the left ?") == answer


def llava_answer(folder: Path, file: Path, question: str) -> str:
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    processor = LlavaProcessor.from_pretrained(folder, backend="pil")
    content = [{"type": "image", "path": str(file)}, {"type": "text", "text": question}]
    given = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    made = model.generate(**given, max_new_tokens=12)[0, given["input_ids"].shape[1] :]
    return str(processor.decode(made, skip_special_tokens=True)).strip()


def test_what_cannot_be_exported_is_told_and_nothing_is_written(store, tmp_path, capsys):
    plan = trained(store, [*CELL, "projector=linear"])
    name, to = plan.cells[0].id, tmp_path / "out"
    for arguments, reason in (
        ([name, "--format", "onnx"], "--format onnx; valid: llava, prism"),
        ([name, "--format", "llava"], "its projector is linear (linear), LLaVA's is mlp"),
        (["nothere"], "no cell 'nothere' in mine"),
        ([*CELL, "seed=9"], "is not trained in"),
    ):
        assert prism("export", *arguments, "--to", to) == 2
        assert reason in capsys.readouterr().err
        assert not to.exists()
    to.mkdir()
    (to / "kept").touch()
    assert prism("export", name, "--to", to) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in to.iterdir()] == ["kept"]


def test_a_released_run_comes_in(choices, tmp_path, capsys):  # noqa: F811
    run = Reference().write(tmp_path / "tiny", vision=True)
    assert prism("import", run, "--config-dir", choices, "--json") == 0
    told = printed(capsys)
    assert told["folder"] == str(tmp_path / "tiny-prism")
    assert (told["model"], told["towers"]) == ("tiny+1m", "checkpoint")
    assert isinstance(prism_sweeps.load(told["folder"]).ask(picture(40, 40), "what?", 4), str)
    assert prism("export", told["folder"], "--format", "llava", "--to", tmp_path / "llava") == 0
    assert LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava").config.image_token_id == 258
    assert prism("import", run, "--config-dir", choices) == 2
    assert "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        prism(command, "--help")
    assert exit_.value.code == 0
    assert f"  prism {command} " in capsys.readouterr().out

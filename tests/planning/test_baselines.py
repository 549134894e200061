"""Finished models in plans: which one it is, what is asked of it, and that a plan with them comes back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors.torch import save_file

from prism_sweeps.config.baselines import content_of
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.specs import BaselineSpec
from prism_sweeps.planning import baselines
from prism_sweeps.planning.baselines import make_baseline_plan, names_baselines
from prism_sweeps.planning.outline import outline_of, outlined
from prism_sweeps.planning.plan import Plan, summary

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = ["suite=nano", "suite.examples=4", "suite.conditions=[real]"]


def model_folder(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    save_file({"w": torch.tensor([value, 2.0])}, folder / "model.safetensors")
    return folder


def test_a_model_is_its_files(tmp_path: Path):
    folder = model_folder(tmp_path / "a")
    content = content_of(f"hf:{folder}")
    assert content.startswith("sha256:")
    (folder / "README.md").write_text("words")
    (folder / "model.onnx").write_text("not read")
    assert content_of(f"hf:{folder}") == content
    assert content_of(f"hf:{shutil.copytree(folder, tmp_path / 'elsewhere')}") == content
    for left in ("checkpoint-500/config.json", ".cache/huggingface/x.json", "trainer_state.json", "LICENSE.txt"):
        (folder / left).parent.mkdir(parents=True, exist_ok=True)
        (folder / left).write_text("{}")
    assert content_of(f"hf:{folder}") == content
    (folder / "qformer_tokenizer").mkdir()
    (folder / "qformer_tokenizer/vocab.txt").write_text("a")
    whole = content_of(f"hf:{folder}")
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    assert len({content, whole, content_of(f"hf:{folder}")}) == 3
    # Two fine-tuned models have headers and sizes in common; their numbers differ.
    other = model_folder(tmp_path / "b", value=1.5)
    sizes = {(each / "model.safetensors").stat().st_size for each in (folder, other)}
    assert len(sizes) == 1
    assert content_of(f"hf:{other}") != content


def test_a_folder_that_was_moved_is_the_same_model_to_one_who_asks_it(tmp_path: Path):
    folder = model_folder(tmp_path / "a")
    here = make_baseline_plan([f"model=hf:{folder}", *SMALL])
    by_vllm = make_baseline_plan([f"model=vllm:{folder}", *SMALL])
    copy = shutil.copytree(folder, tmp_path / "b")
    there = make_baseline_plan([f"model=hf:{copy}", *SMALL])
    assert here.jobs.keys() == there.jobs.keys()
    assert not here.jobs.keys() & by_vllm.jobs.keys()
    with pytest.raises(ConfigError, match=r"hf:.*/a and hf:.*/b are one model"):
        make_baseline_plan([f"model=hf:{folder},hf:{copy}", *SMALL])
    both = make_baseline_plan([f"model=hf:{folder},vllm:{copy}", *SMALL])
    assert len(both.cells) == 2


def test_weights_are_read_again_when_they_were_written_again(tmp_path: Path):
    folder = model_folder(tmp_path / "a")
    before = content_of(f"hf:{folder}")
    save_file({"w": torch.tensor([3.0, 2.0])}, folder / "model.safetensors")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert content_of(f"hf:{folder}") != before


def test_what_is_no_model_is_refused_with_what_would_be(tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {f"hf:{empty}": "no config.json", f"hf:{tmp_path}/no": "no such folder", "hf:": "should be hf:NAME"}
    cases |= {"llava": "should be hf:NAME", "hub:a/b": "should be hf:NAME", "hf:llava": "would be OWNER/NAME"}
    for model, told in cases.items():
        with pytest.raises(ConfigError, match=told):
            make_baseline_plan([f"model={model}" if model != "hf:" else "model='hf:'", *SMALL])
    pickled = model_folder(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no \.safetensors.*save_pretrained"):
        content_of(f"hf:{pickled}")
    own = model_folder(tmp_path / "own")
    (own / "config.json").write_text('{"prism": 1}')
    with pytest.raises(ConfigError, match=r"prism export .* --format llava"):
        content_of(f"hf:{own}")


def test_a_name_on_the_hub_is_its_commit(monkeypatch, tmp_path: Path):
    cached = tmp_path / "snapshots" / COMMIT / "config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: str(cached))
    assert content_of("hf:llava-hf/llava-1.5-7b-hf") == COMMIT

    def newest(self, name, **kwargs):
        return type("Info", (), {"sha": "f" * 40})()

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", newest)
    assert content_of("vllm:llava-hf/llava-1.5-7b-hf") == "f" * 40


def test_a_name_that_nothing_resolves_is_refused(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: None)

    def refuse(error):
        def model_info(self, name, **kwargs):
            raise error

        return model_info

    for unreachable in (ConnectionError("no network"), HTTPError("no network"), OfflineModeIsEnabled("no network")):
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse(unreachable))
        with pytest.raises(ConfigError, match="out of reach; fetch it where there is a network"):
            content_of("hf:llava-hf/llava-1.5-7b-hf")
    answer = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse(RepositoryNotFoundError("gone", response=answer)))
    with pytest.raises(ConfigError, match="neither a folder nor a model of the hub"):
        content_of("hf:llava-hf/nothing")


def test_a_hub_that_does_not_answer_is_told_of(monkeypatch):
    """By the library's own request, to a port where nobody listens."""
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: None)
    nobody = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: nobody)
    with pytest.raises(ConfigError, match="the hub is out of reach"):
        content_of("hf:llava-hf/llava-1.5-7b-hf")


def test_a_plan_asks_every_model_everything_and_comes_back(tmp_path: Path):
    a, b = model_folder(tmp_path / "a"), model_folder(tmp_path / "b", value=2.0)
    changes = ["suite.examples=4", "suite.conditions=[real,blank]", "engine.precision=bf16"]
    plan = make_baseline_plan([f"model=hf:{a},hf:{b}", "suite=nano", *changes])
    assert plan.study == "baseline/a+b"
    assert [cell.overrides["model"] for cell in plan.cells] == [f"hf:{a}", f"hf:{b}"]
    assert [cell.baseline for cell in plan.cells] == [True, False]
    assert len(plan.jobs) == 2 * 13 * 2
    for cell in plan.cells:
        assert cell.train == []
        specs = [plan.jobs[name].spec for name in cell.evaluate]
        assert {type(spec) for spec in specs} == {BaselineSpec}
        assert {spec.model for spec in specs} == {cell.overrides["model"]}
        assert {spec.precision for spec in specs} == {"bf16"}
        assert {spec.benchmark.examples for spec in specs} == {4}
        assert [plan.jobs[name].parents for name in cell.evaluate] == [[]] * 26
    written = json.loads(json.dumps(plan.to_plain()))
    assert Plan.from_plain(written) == plan
    assert [job.what for job in outline_of(written).jobs.values()] == [job.what for job in outlined(plan).jobs.values()]
    assert {each.condition for each in outlined(plan).jobs.values()} == {"real", "blank"}


def test_a_plan_of_unknown_cost_says_so(tmp_path: Path):
    model = f"model=hf:{model_folder(tmp_path / 'a')}"
    plan = make_baseline_plan([model, *SMALL, "cluster.gpu=h100-80gb", "engine=gpu"])
    found = summary(plan, {})["totals"]["all"]
    assert (found["jobs"], found["evaluate"], found["unknown"], found["not_timed"]) == (13, 13, 13, 13)


def test_a_job_is_the_model_its_files_and_what_is_asked(tmp_path: Path, monkeypatch):
    folder = model_folder(tmp_path / "a")

    def jobs(*changes: str) -> set[str]:
        return set(make_baseline_plan([f"model=hf:{folder}", *SMALL, *changes]).jobs)

    first = jobs()
    assert jobs("engine.eval_batch=3", "store.root=elsewhere") == first
    assert jobs("engine.precision=bf16").isdisjoint(first)
    monkeypatch.chdir(tmp_path)
    assert set(make_baseline_plan(["model=hf:./a", *SMALL]).jobs) == first
    assert set(make_baseline_plan([f"model=vllm:{folder}", *SMALL]).jobs).isdisjoint(first)
    (folder / "config.json").write_text('{"model_type": "llava", "x": 1}')
    assert jobs().isdisjoint(first)


def test_a_finished_model_takes_no_other_choices(tmp_path: Path):
    assert names_baselines(["suite=nano", "model=hf:a/b"])
    assert not names_baselines(["model_x=1", "llm=nano-base"])
    model = f"model=hf:{model_folder(tmp_path / 'a')}"
    for override in ("backbone=nano-clip", "seed=2", "stages.chain={}"):
        with pytest.raises(ConfigError, match=r"a finished model is as it is.*only suite, engine"):
            make_baseline_plan([model, override])
    with pytest.raises(ConfigError, match="condition is 'dark'"):
        make_baseline_plan([model, "suite.conditions=[dark]"])


@pytest.mark.parametrize("model", ["hf:/x/.hidden", "hf:owner/name with spaces", "hf:o/-dash"])
def test_names_of_models_make_names_of_studies(model: str):
    from prism_sweeps.config.names import check_study_name

    check_study_name(baselines.default_name([model, model]))

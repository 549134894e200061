"""vLLM's way of answering, with a double of its offline API: signatures and fields as in vllm/entrypoints/llm.py.

The double computes with the transformers model of the same folder, so answers must be those of `HFModel`.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_hf
import torch
from tiny_hf import ask, choices, free
from transformers import AutoModelForImageTextToText, AutoProcessor

from prism_sweeps.config.baselines import content_of
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import BaselineSpec
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation import baselines
from prism_sweeps.evaluation.hf_model import HFModel
from prism_sweeps.evaluation.requests import Unanswered
from prism_sweeps.evaluation.vllm_model import VLLMModel


@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int | None = 16
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True


class LLM:
    """Continues and scores tokens; refuses a call one of whose prompts is too long, and keeps what came before it."""

    def __init__(
        self, model, *, tokenizer=None, trust_remote_code=False, dtype="auto", revision=None, tokenizer_revision=None,
        seed=None, **kwargs,
    ):  # fmt: skip
        assert trust_remote_code is False
        assert kwargs == {"load_format": "safetensors", "limit_mm_per_prompt": {"image": 1}}
        self.dtype, self.model = dtype, AutoModelForImageTextToText.from_pretrained(model).eval()
        self.processor, self.left = AutoProcessor.from_pretrained(model), []
        self.calls = 0

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        self.calls += 1
        for prompt, given in zip(prompts, sampling_params, strict=True):
            if len(prompt["prompt_token_ids"]) + 15 > self.model.config.text_config.max_position_embeddings:
                raise ValueError("The decoder prompt is longer than the maximum model length")
            self.left.append(self.answer(prompt, given))
        told, self.left = self.left, []
        return told

    @torch.inference_mode()
    def answer(self, prompt, given: SamplingParams):
        assert given.temperature == 0.0
        ids, mark, patches = prompt["prompt_token_ids"], self.model.config.image_token_id, 16
        place = ids.index(mark)
        ids = ids[:place] + [mark] * patches + ids[place + 1 :]
        pixels = self.processor.image_processor(prompt["multi_modal_data"]["image"], return_tensors="pt")[
            "pixel_values"
        ]
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)), "pixel_values": pixels}
        new = self.model.generate(**inputs, max_new_tokens=given.max_tokens, do_sample=False)[0, len(ids) :]
        text = self.processor.tokenizer.decode(new, skip_special_tokens=given.skip_special_tokens)
        told = None
        if given.prompt_logprobs is not None:
            assert given.prompt_logprobs == 0
            likely = self.model(**inputs).logits[0].log_softmax(dim=-1)
            told = [None] + [
                {ids[n]: SimpleNamespace(logprob=likely[n - 1, ids[n]].item())} for n in range(1, len(ids))
            ]
        return SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=told, outputs=[SimpleNamespace(text=text)])


@pytest.fixture
def vllm(monkeypatch):
    made = types.ModuleType("vllm")
    made.LLM, made.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", made)
    baselines._last.clear()
    yield made
    baselines._last.clear()


def spec_of(folder: Path, scheme: str) -> BaselineSpec:
    model = f"{scheme}:{folder}"
    return BaselineSpec(
        model, content_of(model), Benchmark("b", "b", "1", "{question}", "generate", scorer="gqa"), "real"
    )


def test_it_says_what_transformers_says(vllm, folders, images):
    engine = Engine(name="here", eval_batch=2, device="cpu")
    there, here = (baselines.answerer_of(spec_of(folders["llava"], scheme), engine) for scheme in ("vllm", "hf"))
    assert isinstance(there, VLLMModel)
    assert isinstance(here, HFModel)
    assert there.llm.dtype == "float32"
    requests = [
        *free(images),
        *choices(images),
        *(replace(r, id=f"f{r.id}") for r in choices(images, likelihood="first-token")),
    ]
    requests.append(replace(requests[0], id="grey", shown=None, image=None))
    ours, theirs = ask(here, requests), ask(there, requests)
    for name, answer in ours.items():
        assert theirs[name].text == answer.text
        assert theirs[name].size == answer.size
        assert theirs[name].log_likelihoods == pytest.approx(answer.log_likelihoods, abs=2e-4)


def test_one_prompt_that_is_too_long_spares_the_others(vllm, folders, images):
    engine = Engine(name="here", eval_batch=8, device="cpu")
    model = baselines.answerer_of(spec_of(folders["llava"], "vllm"), engine)
    good = [*free(images, 3), *choices(images)]
    long = [replace(good[1], id="long", text="two " * 170), replace(good[-1], id="long choice", text="two " * 170)]
    told = ask(model, [good[0], long[0], *good[1:], long[1]])
    assert "longer than the maximum" in told["long"].reason
    assert isinstance(told["long choice"], Unanswered)
    expected = ask(model, good)
    assert {request.id: told[request.id] for request in good} == expected


def test_without_vllm_the_error_says_how_to_install_it(monkeypatch, folders):
    monkeypatch.setitem(sys.modules, "vllm", None)
    baselines._last.clear()
    with pytest.raises(ConfigError, match=r"pip install 'prism-sweeps\[vllm\]'"):
        baselines.answerer_of(spec_of(folders["llava"], "vllm"), Engine(name="here", device="cpu"))


def test_a_model_whose_prompt_differs_in_vllm_is_refused(vllm, folders):
    with pytest.raises(ConfigError, match=r"'instructblip' and has no chat template.*model=hf:"):
        baselines.answerer_of(spec_of(folders["instructblip"], "vllm"), Engine(name="here", device="cpu"))


def test_files_that_changed_since_they_were_planned_are_refused(tmp_path: Path):
    spec = spec_of(tiny_hf.llava(tmp_path / "m"), "hf")
    tiny_hf.llava(tmp_path / "m", template="{{ 1 }}")
    with pytest.raises(ConfigError, match="not those that were planned"):
        baselines.answerer_of(spec, Engine(name="here", device="cpu"))

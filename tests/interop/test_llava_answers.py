"""A cell of ours, and the LLaVA folder it was exported to, give the same answers, each through its own `Answerer`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import language_model, model_of, saved_picture, spec_of
from transformers import AutoProcessor

from prism_sweeps.config.schema import Engine
from prism_sweeps.evaluation.baselines import Source, load_model
from prism_sweeps.evaluation.hf_model import HFModel
from prism_sweeps.evaluation.prism_model import PrismModel
from prism_sweeps.evaluation.requests import Request
from prism_sweeps.interop import llava


@pytest.mark.parametrize("prompt", ["in-out", "vicuna"])
def test_both_say_the_same(prompt: str, tmp_path: Path):
    ours = model_of(spec_of("clip", llm=language_model(prompt=prompt, context=256)))
    llava.save(ours, tmp_path / "llava")
    source = Source(str(tmp_path / "llava"), None)
    # With images by PIL, as we read them: by default transformers takes torchvision, whose pixels differ a little.
    processor = AutoProcessor.from_pretrained(tmp_path / "llava", backend="pil")
    theirs = HFModel(load_model(source, torch.float32, torch.device("cpu")), processor, batch=3)
    images = [saved_picture(tmp_path, 40 + 9 * number, 50, number) for number in range(3)]
    free = [Request(f"f{n}", image.name, image, "what is this" + "?" * n, limit=6) for n, image in enumerate(images)]
    options = ("yes", "no", "a red one")
    chosen = [Request(f"c{n}", image.name, image, "is it?", options) for n, image in enumerate(images)]
    first = [
        Request(f"g{n}", image.name, image, "it?", ("yes",), likelihood="first-token") for n, image in enumerate(images)
    ]
    requests = [*free, *chosen, *first]

    def told(model):
        return {request.id: answer for part in model.answers(requests) for request, answer in part}

    own, exported = told(PrismModel(ours.loaded, Engine(name="here", eval_batch=3))), told(theirs)
    for name, answer in own.items():
        assert exported[name].text == answer.text
        assert exported[name].size == answer.size
        assert exported[name].log_likelihoods == pytest.approx(answer.log_likelihoods, abs=5e-4)
    assert len({own[request.id].text for request in free}) > 1

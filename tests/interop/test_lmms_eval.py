"""Our models as lmms-eval wants them: against the real package where it is, else against its documented interface.

By hand, lmms-eval 0.7.3 itself has run two local tasks (free text and options) with this model class.
"""

from __future__ import annotations

import abc
import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_models import model_of, picture, spec_of

import prism_sweeps
from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.interop import prism

TASK, SPLIT = "tiny", "test"


class AbstractModel(abc.ABC):
    """What of `lmms_eval.api.model.lmms` (0.7.3) a model must bring along, and what it finds there."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...


@dataclass
class GenerationResult:
    text: object
    token_counts: object = None


@dataclass
class Instance:
    arguments: tuple

    @property
    def args(self) -> tuple:
        return self.arguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("lmms") / "model"
    prism.save(model_of(spec_of("clip")), to)
    return to


@pytest.fixture
def lmms_class(monkeypatch):
    if importlib.util.find_spec("lmms_eval") is None:
        names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.api.instance")
        made = {name: types.ModuleType(name) for name in names}
        made["lmms_eval.api.model"].lmms = AbstractModel
        made["lmms_eval.api.instance"].Instance = Instance
        made["lmms_eval.api.instance"].GenerationResult = GenerationResult
        for name, module in made.items():
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "prism_sweeps.interop.lmms_eval", raising=False)
    yield importlib.import_module("prism_sweeps.interop.lmms_eval").Prism
    sys.modules.pop("prism_sweeps.interop.lmms_eval", None)


DOCS = [{"image": picture(40, 50, seed), "question": f"what is {seed}?", "answer": "ab"} for seed in (0, 1, 2)]
DOCS.append(DOCS[0] | {"question": "how many dogs are left?"})


def visual(doc) -> list:
    return [doc["image"]]


@pytest.fixture
def model(lmms_class, folder):
    made = lmms_class(pretrained=str(folder), device="cpu", precision="fp32", batch_size=2, max_batch_size=None)
    made.task_dict = {TASK: {SPLIT: DOCS}}
    return made


def asked(doc_id: int, middle, show=visual) -> Instance:
    return Instance(arguments=(DOCS[doc_id]["question"], middle, show, doc_id, TASK, SPLIT))


def test_free_text_is_what_the_model_says_in_the_order_asked(model, folder):
    wanted = {"max_new_tokens": 5, "temperature": 0, "do_sample": False, "until": ["\n\n"]}
    own = prism_sweeps.load(folder, device="cpu")
    told = model.generate_until([asked(place, wanted) for place in (3, 1, 0, 2)])
    assert told == [own.ask(DOCS[place]["image"], DOCS[place]["question"], 5) for place in (3, 1, 0, 2)]
    assert len(set(told)) > 1


def test_text_ends_where_the_task_says(model):
    (whole,) = model.generate_until([asked(1, {"max_new_tokens": 8})])
    end = whole[2:4]
    assert model.generate_until([asked(1, {"max_new_tokens": 8, "until": end})]) == [whole[: whole.index(end)]]


def test_what_the_model_says_has_the_least_loss_and_is_greedy(model):
    gap, token = model.model.loaded.prompts.answer("b")
    llm, read = model.model.vlm.llm, []
    llm.get_input_embeddings().register_forward_hook(lambda module, args, out: read.append(args[0]))

    def prefer(module, args, logits):
        """After the gap b, after anything else the gap."""
        last = read[-1][:, -1:] if logits.ndim == 2 else read[-1][:, -logits.shape[1] :]
        then = torch.where(last == gap, token, gap).reshape(logits.shape[:-1])
        return logits + 100 * torch.nn.functional.one_hot(then, logits.shape[-1])

    llm.get_output_embeddings().register_forward_hook(prefer)
    told = [each.text for each in model.loglikelihood([asked(0, " b"), asked(0, " c"), asked(0, lambda doc: "ab")])]
    assert [greedy for _, greedy in told] == [True, False, False]
    assert told[0][0] == min(loss for loss, _ in told)


@torch.inference_mode()
def test_a_loss_is_the_negative_mean_log_likelihood(model):
    ((loss, _),) = [each.text for each in model.loglikelihood([asked(2, " abc")])]
    loaded, vlm = model.model.loaded, model.model.vlm
    answer = loaded.prompts.answer("abc")
    ids = torch.tensor([[*loaded.prompts.question(DOCS[2]["question"]), *answer]])
    pixels = {name: tensor[None] for name, tensor in loaded.transform(DOCS[2]["image"]).items()}
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    embeds, mask = vlm.embed(ids, everywhere, everywhere[:, 0], vlm.image_tokens(pixels))
    logits = vlm.llm(inputs_embeds=embeds, attention_mask=mask.long()).logits[0, -len(answer) - 1 : -1]
    likely = logits.log_softmax(dim=-1)[range(len(answer)), answer]
    assert loss == pytest.approx(-likely.mean().item(), abs=1e-5)


def test_what_it_cannot_do_is_said(model, lmms_class, folder):
    with pytest.raises(ConfigError, match="several rounds"):
        model.generate_until_multi_round([])
    with pytest.raises(ConfigError, match="one image is wanted, and it shows Image, Image"):
        model.generate_until([asked(0, {}, lambda doc: [doc["image"], doc["image"]])])
    with pytest.raises(ConfigError, match="one image is wanted, and it shows nothing"):
        model.loglikelihood([asked(0, "a", lambda doc: [])])
    for wanted in ({"do_sample": True, "temperature": 0.7}, {"num_beams": 3}):
        with pytest.raises(ConfigError, match="greedily"):
            model.generate_until([asked(0, wanted)])
    with pytest.raises(ConfigError, match="pretained"):
        lmms_class(pretrained=str(folder), pretained="x")
    long = Instance(arguments=("x " * 400, {}, visual, 0, TASK, SPLIT))
    with pytest.raises(DataError, match="positions"):
        model.generate_until([long])

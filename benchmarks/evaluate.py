"""Questions a second of an evaluation beside transformers' `generate`, one question at a time and in batches.

    python benchmarks/evaluate.py [--quick] [--rounds 5] [--images 4] [--questions 16] [--threads 1]

A small LLaVA with random weights sees images of 336 x 336 pixels in patches of 14, which are 576 tokens, and is asked
several things about each: which of two letters is likelier, or for a text of 16 tokens at most. What ends an answer is
made likely enough that most are short (their lengths are told). All sides have the same weights, in fp32 on the CPU:

- ours: `PrismModel` from JPEG files and questions to answers, with nothing prepared;
- batch 1: `LlavaForConditionalGeneration.generate` of the exported model, question by question, as the reference's
  evaluation does it, but ending at the end token and, of choices, after the one token that decides;
- batched: the same in batches of 16, padded on the left.

The latter two get pixels and token ids ready made, which is not counted. A round asks every side the same new images in
turns, each side first in turn; answers have to be equal, and log-likelihoods to 1e-4. A ratio is their time over ours
of one round, so above 1 ours is faster: medians of CPU time (the clock's beside them) with the range over the rounds.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import made_stage
import torch
from torch import Tensor
from training_data import Geometry, model_spec
from transformers import LlavaForConditionalGeneration

from prism_sweeps.config.schema import Engine
from prism_sweeps.evaluation.loading import LoadedModel
from prism_sweeps.evaluation.prism_model import PrismModel
from prism_sweeps.evaluation.requests import Answer, Request
from prism_sweeps.interop import llava
from prism_sweeps.interop.model import Model
from prism_sweeps.models.language import load_tokenizer
from prism_sweeps.models.prompts import prompt_format
from prism_sweeps.models.resize import image_transform, load_image
from prism_sweeps.models.vlm import build_vlm

TOWER = {"pixels": 336, "patch": 14, "tower_width": 192, "tower_depth": 4}
LARGE = Geometry(**TOWER, width=256, depth=4, mlp_width=1024, vocabulary=8192)
SMALL = Geometry(28, 14, 32, 3, 32, 2, 64, 400, 4)
"""For a test."""
LETTERS = ("A", "B")
LIMIT = 16
BATCH = 16
"""Questions at a time, where a side takes several."""
ENDING = 4.0
"""How much larger the end token's row of the head is than others: it is said after five tokens in the median."""
WORDS = (
    "is",
    "the",
    "red",
    "box",
    "left",
    "of",
    "a",
    "dog",
    "what",
    "colour",
    "has",
    "it",
    "how",
    "many",
    "are",
    "there",
)
PEERS = ("batch1", "batched")

Said = tuple[str, tuple[float, ...]]
"""An answer, and the log-likelihoods of its options."""
Seconds = tuple[float, float]
"""Of CPU, and of the clock."""


@dataclass(frozen=True)
class Setting:
    """One model, ours and exported."""

    loaded: LoadedModel
    theirs: LlavaForConditionalGeneration
    folder: Path
    pixels: int

    @property
    def image_token(self) -> int:
        return self.theirs.config.image_token_index


def setting_in(folder: Path, geometry: Geometry) -> Setting:
    spec = model_spec(geometry)
    spec.llm.prompt = "chat-template"
    vlm = build_vlm(spec, 3).eval()
    tokenizer = load_tokenizer(spec.llm)
    with torch.no_grad():
        for parameter in vlm.llm.parameters():  # weights as drawn say one thing to everything
            if parameter.dim() == 2:
                parameter.mul_(4.0)
        head = vlm.llm.get_output_embeddings().weight
        head[len(tokenizer) :] = 0.0  # what the tokenizer cannot write is never said
        head[tokenizer.eos_token_id] *= ENDING
    loaded = LoadedModel(
        vlm=vlm,
        prompts=prompt_format(spec.llm, tokenizer),
        transform=image_transform(spec.backbone, spec.resolution, spec.resize),
        text_positions=spec.llm.context - vlm.vision.patches,
    )
    llava.save(Model(spec, loaded, "fp32", {}), folder / "llava")
    theirs = LlavaForConditionalGeneration.from_pretrained(folder / "llava").eval()
    return Setting(loaded, theirs, folder, geometry.pixels)


def asked(setting: Setting, turn: int, images: int, questions: int, choices: bool) -> list[Request]:
    """JPEG files, and so many questions of 2 to 5 words about each."""
    draw = random.Random(turn)
    paths = made_stage.made_images(setting.folder / f"{turn}-{choices}", images, setting.pixels)
    requests = []
    for path in paths:
        for number in range(questions):
            text = " ".join(draw.choices(WORDS, k=draw.randint(2, 5))) + "?"
            options = LETTERS if choices else ()
            requests.append(Request(f"{path.stem}-{number}", path.stem, path, text, options, LIMIT))
    return requests


# ---- ours


def ours(setting: Setting, requests: Sequence[Request]) -> tuple[dict[str, Said], float]:
    """What we say, and the seconds it waited for images."""
    model = PrismModel(setting.loaded, Engine(name="benchmark", device="cpu", eval_batch=BATCH))
    said = {}
    for part in model.answers(requests):
        for request, answer in part:
            assert isinstance(answer, Answer), answer
            said[request.id] = (answer.text, answer.log_likelihoods)
    return said, model.waited


# ---- transformers


@dataclass(frozen=True)
class Given:
    """What `generate` is given for one question: input_ids, and pixel_values_1CHW."""

    request: Request
    ids: list[int]
    pixels: Tensor


def given(setting: Setting, requests: Sequence[Request]) -> list[Given]:
    """BOS, the image's places, then the text."""
    found, pixels = [], {}
    for path in {request.image for request in requests}:
        (pixels_CHW,) = setting.loaded.transform(load_image(path)).values()
        pixels[path] = pixels_CHW[None]
    for request in requests:
        ids = setting.loaded.prompts.question(request.text)
        patches = [setting.image_token] * setting.loaded.vlm.vision.patches
        found.append(Given(request, [ids[0], *patches, *ids[1:]], pixels[request.image]))
    return found


@torch.inference_mode()
def generated(setting: Setting, prepared: Sequence[Given], batch: int) -> tuple[dict[str, Said], list[int]]:
    """The same questions through `generate`, so many at a time; and how many tokens the texts have."""
    prompts, said, lengths = setting.loaded.prompts, dict[str, Said](), list[int]()
    for start in range(0, len(prepared), batch):
        part = prepared[start : start + batch]
        longest = max(len(each.ids) for each in part)
        padding = [longest - len(each.ids) for each in part]
        out = setting.theirs.generate(
            input_ids=torch.tensor([[1] * pad + each.ids for pad, each in zip(padding, part, strict=True)]),
            attention_mask=torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding]),
            pixel_values=torch.cat([each.pixels for each in part]),
            max_new_tokens=1 if part[0].request.options else LIMIT,
            do_sample=False,
            eos_token_id=prompts.end_ids,
            pad_token_id=prompts.end_ids[0],
            return_dict_in_generate=True,
            output_logits=bool(part[0].request.options),
        )
        for row, each in enumerate(part):
            if each.request.options:
                said[each.request.id] = likeliest(each.request, out.logits[0][row], prompts.answer)
            else:
                tokens = [token for token in out.sequences[row, longest:].tolist() if token not in prompts.end_ids]
                said[each.request.id] = (prompts.decode(tokens), ())
                lengths.append(len(tokens))
    return said, lengths


def likeliest(request: Request, logits_V: Tensor, tokens: Callable[[str], list[int]]) -> Said:
    """As the reference takes it: the likeliest of the first tokens."""
    scores = tuple(float(logits_V.float().log_softmax(-1)[tokens(option)[0]]) for option in request.options)
    return request.options[max(range(len(scores)), key=scores.__getitem__)], scores


def check_equal(own: dict[str, Said], other: dict[str, Said], name: str) -> None:
    """Raises AssertionError, naming the question, where answers or log-likelihoods differ."""
    assert own.keys() == other.keys(), f"{name} answered other questions"
    for question, (text, scores) in own.items():
        there, others = other[question]
        assert text == there, f"question {question}: {text!r}, by {name} {there!r}"
        far = max((abs(one - two) for one, two in zip(scores, others, strict=True)), default=0.0)
        assert far < 1e-4, f"question {question}: likelihoods by {name} are {far:.1e} away"


# ---- in turns


@dataclass
class Round:
    """What one round took, by side."""

    seconds: dict[str, Seconds] = field(default_factory=dict)
    waited: float = 0.0
    lengths: list[int] = field(default_factory=list)
    """Tokens of each text."""


def compared(setting: Setting, turn: int, images: int, questions: int, choices: bool) -> Round:
    """All sides on the same questions, all answers equal."""
    requests = asked(setting, turn, images, questions, choices)
    prepared, found, gave = given(setting, requests), Round(), {}
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(setting, requests),
        "batch1": lambda: generated(setting, prepared, 1),
        "batched": lambda: generated(setting, prepared, BATCH),
    }
    names = list(sides)
    for name in names[turn % 3 :] + names[: turn % 3]:
        gc.collect()
        cpu, clock = time.process_time(), time.perf_counter()
        gave[name] = sides[name]()
        found.seconds[name] = (time.process_time() - cpu, time.perf_counter() - clock)
    said, found.waited = gave["ours"]
    for name in PEERS:
        check_equal(said, gave[name][0], name)
    found.lengths = gave["batched"][1]
    return found


def ratios(rounds: Sequence[Round], peer: str, clock: bool = False) -> list[float]:
    """Their time over ours, by round."""
    return [each.seconds[peer][clock] / each.seconds["ours"][clock] for each in rounds]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def told(kind: str, rounds: Sequence[Round], asked_at_once: int) -> dict[str, float]:
    """Prints it; returns the medians."""
    found = {}
    for side in ("ours", *PEERS):
        each = [1000 * found.seconds[side][0] / asked_at_once for found in rounds]
        print(f"{kind}, {side}: {spread(each)} CPU ms a question")
    for peer in PEERS:
        by_cpu, by_clock = ratios(rounds, peer), ratios(rounds, peer, clock=True)
        print(f"{kind}, {peer} / ours: {spread(by_cpu)} of CPU time, {spread(by_clock)} by the clock")
        found[f"{kind}_vs_{peer}"] = round(statistics.median(by_cpu), 2)
    waits = [each.waited / each.seconds["ours"][1] for each in rounds]
    print(f"{kind}: {spread(waits)} of our time was spent waiting for images", flush=True)
    found[f"{kind}_data_wait_share"] = round(statistics.median(waits), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4, help="a round")
    parser.add_argument("--questions", type=int, default=16, help="about each image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round of two images")
    options = parser.parse_args()
    rounds, images = (1, 2) if options.quick else (options.rounds, options.images)
    torch.set_num_threads(options.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        setting = setting_in(Path(folder), LARGE)
        compared(setting, 1000, 1, 2, choices=False)  # memory is touched for the first time
        for kind in ("choice", "answer"):
            done = []
            for turn in range(rounds):
                done.append(compared(setting, turn, images, options.questions, kind == "choice"))
                seconds = ", ".join(f"{name} {cpu:.2f}" for name, (cpu, _) in done[-1].seconds.items())
                print(f"{kind}, round {turn + 1}, CPU s: {seconds}; all answers equal", flush=True)
            if kind == "answer":
                print(f"answers have {spread([length for each in done for length in each.lengths])} tokens")
            found |= told(kind, done, images * options.questions)
    waits = {key: found.pop(key) for key in list(found) if key.endswith("share")}
    print(json.dumps({"benchmark": "evaluate", "ratios": found, "questions_per_image": options.questions, **waits}))


if __name__ == "__main__":
    main()

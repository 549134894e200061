"""How many answers of one model differ with the number of questions asked at a time, in fp32 and in bf16.

    python benchmarks/batch_sizes.py [--images 16] [--questions 8] [--threads 1]

The small LLaVA of `evaluate.py`, with random weights, whose answers hang on small differences more than those of a
trained model do. The same questions are asked 1, 4, 16 and 64 at a time; told is the share of answers that are not
those of batches of one, for choices and for texts of 16 tokens at most, and by how much log-likelihoods differ at most.
In fp32 no answer may differ.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import tempfile
from pathlib import Path

import evaluate
import torch

from prism_sweeps.config.schema import Engine
from prism_sweeps.evaluation.loading import LoadedModel
from prism_sweeps.evaluation.prism_model import PrismModel
from prism_sweeps.evaluation.requests import Answer, Request

SIZES = (1, 4, 16, 64)


def answers(model: LoadedModel, requests: list[Request], size: int) -> dict[str, Answer]:
    asked = PrismModel(model, Engine(name="benchmark", device="cpu", eval_batch=size))
    said = {request.id: answer for part in asked.answers(requests) for request, answer in part}
    assert all(isinstance(answer, Answer) for answer in said.values())
    return said


def farthest(one: dict[str, Answer], other: dict[str, Answer]) -> float:
    """Nats between the log-likelihoods of any option."""
    pairs = (zip(one[name].log_likelihoods, other[name].log_likelihoods, strict=True) for name in one)
    return max((abs(a - b) for pair in pairs for a, b in pair), default=0.0)


def compared(models: dict[str, LoadedModel], requests: list[Request], kind: str) -> dict[str, float]:
    """Shares of differing answers by kind, precision and size."""
    rates = {}
    for precision, model in models.items():
        alone = answers(model, requests, 1)
        for size in SIZES[1:]:
            together = answers(model, requests, size)
            differing = sum(alone[name].text != together[name].text for name in alone)
            rates[f"{kind}_{precision}_{size}"] = round(differing / len(requests), 4)
            far = farthest(alone, together)
            nats = f", likelihoods by {far:.1e} at most" if far else ""
            print(f"{kind}, {precision}, {size} at a time: {differing} of {len(requests)} differ{nats}", flush=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--questions", type=int, default=8, help="about each image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tiny model and two images")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    geometry, images = (evaluate.SMALL, 2) if options.quick else (evaluate.LARGE, options.images)
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        setting = evaluate.setting_in(Path(folder), geometry)
        loaded = setting.loaded
        short = dataclasses.replace(loaded, vlm=copy.deepcopy(loaded.vlm).to(torch.bfloat16))
        for kind in ("choice", "answer"):
            requests = evaluate.asked(setting, 0, images, options.questions, kind == "choice")
            rates |= compared({"fp32": loaded, "bf16": short}, requests, kind)
    assert not any(rate for name, rate in rates.items() if "fp32" in name), "in fp32 answers hang on the batch"
    print(json.dumps({"benchmark": "batch_sizes", "ratios": rates}))


if __name__ == "__main__":
    main()

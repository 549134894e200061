"""A random VLM of a few thousand weights and a benchmark about flat colours, for the tests here."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from prism_sweeps.config.schema import Backbone, Engine, LanguageModel, Projector, Resize, Resolution, Tower
from prism_sweeps.config.specs import EvaluationSpec, ModelSpec
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.evaluation.runner import evaluate
from prism_sweeps.models.trained import save_trained
from prism_sweeps.models.vlm import VLM, build_vlm
from prism_sweeps.tracking.records import Store

PARENT = "a" * 16
COLOURS = ["red", "green", "blue", "yellow", "black"]


def model_spec(context: int = 160) -> ModelSpec:
    """16 patches, a byte tokenizer."""
    tower = Tower(
        name="tiny",
        model="vit_tiny_patch16_224",
        kwargs={"embed_dim": 32, "depth": 3, "num_heads": 4, "patch_size": 8},
        weights={32: "random:1"},
        width=32,
        depth=3,
        heads=4,
        patch=8,
        prefix_tokens=1,
    )
    llm = LanguageModel(
        name="tiny",
        weights="random:2",
        prompt="in-out",
        width=32,
        depth=2,
        heads=4,
        kv_heads=2,
        mlp_width=64,
        vocabulary=258,
        context=context,
    )
    return ModelSpec(Backbone("tiny", {"tiny": tower}), Resolution("32", 32), Resize("naive", "naive"), MLP, llm)


MLP = Projector("mlp", "mlp")


def tiny_vlm() -> VLM:
    """Its language model's weights are large, so that different rows get answers that differ."""
    vlm = build_vlm(model_spec(), seed=3)
    with torch.no_grad():
        for parameter in vlm.llm.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)
    return vlm.eval()


def benchmark(**changes: object) -> Benchmark:
    fields = {"name": "colours", "index": "colours", "prompt": "{question}", "answer": "generate", "scorer": "exact"}
    return Benchmark(**{**fields, "max_new_tokens": 6, **changes})


def write_benchmark(folder: Path, images: int = 7, each: int = 3) -> None:
    """`each` questions about every one of `images` pictures, of different lengths."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for image in range(images):
        name = f"images/{image}.png"
        Image.new("RGB", (30, 20), (36 * image, 255 - 30 * image, 90)).save(folder / name)
        for number in range(each):
            rows.append(
                {
                    "id": f"{image}-{number}",
                    "image": name,
                    "question": "colour" + "?" * (1 + (5 * image + 3 * number) % 11),
                    "answers": ["ABCDE"[(image + number) % 5]],
                    "options": COLOURS,
                    "box": [0.1, 0.1, 0.6, 0.9],
                    "context": "some {braces} and </s>",
                    "tags": {"number": number, "split": "random" if image % 2 else "popular"},
                }
            )
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def open_store(root: Path) -> Store:
    """A store with the benchmark and the trained weights of job PARENT."""
    store = Store.open(root)
    write_benchmark(store.data / "colours")
    save_trained(tiny_vlm(), store.job(PARENT).weights, ["projector", "llm"])
    return store


def run(store: Store, name: str, condition: str = "real", batch: int = 4, stop=lambda: False, **changes: object):
    """`evaluate` of one benchmark; the result and the prediction rows by id."""
    spec = EvaluationSpec(model_spec(), benchmark(**changes), condition, PARENT)
    record = store.job(name)
    record.path.mkdir(parents=True, exist_ok=True)
    result = evaluate(spec, record, store, Engine(device="cpu", eval_batch=batch), lambda *_: None, stop)
    return result, {row["id"]: row for row in record.read_predictions()}

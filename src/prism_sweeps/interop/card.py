"""The card of a model: what it is, what it was trained on, how it scored, under whose terms its parts are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prism_sweeps.config.small_weights import SMALL
from prism_sweeps.config.specs import ModelSpec

LICENCES = {
    "zoo:": "MIT, made by this package",
    "random:": "none, random weights",
    ".openai": "MIT (OpenAI CLIP)",
    ".metaclip": "CC BY-NC 4.0 (MetaCLIP)",
    "siglip": "Apache 2.0 (SigLIP)",
    "dinov2.lvd": "Apache 2.0 (DINOv2)",
    "dinov3.lvd": "DINOv3 License",
    "patch16_224.augreg": "Apache 2.0 (ViT AugReg)",
    "meta-llama/llama-2": "Llama 2 Community License",
    "meta-llama/llama-3.1": "Llama 3.1 Community License",
    "meta-llama/llama-3.2": "Llama 3.2 Community License",
    "lmsys/vicuna": "Llama 2 Community License",
    "mistralai/mistral-7b": "Apache 2.0",
    "microsoft/phi": "MIT",
    "google/gemma": "Gemma Terms of Use",
    "qwen/qwen2.5-3b": "Qwen Research License",
    "qwen/qwen": "Apache 2.0",
    "allenai/olmo": "Apache 2.0",
    "huggingfacetb/smollm": "Apache 2.0",
}
"""Part of a weights reference or an architecture's name -> the terms its publisher states; the first that fits."""
USE = """\
```python
import prism_sweeps

model = prism_sweeps.load("THIS_FOLDER")
print(model.ask("photo.png", "What is on the left?"))
```"""


def card(spec: ModelSpec, about: Mapping[str, Any], use: str = USE) -> str:
    """Markdown. `about` may have origin (a sentence), choices (axis -> choice), seed, stages (rows of stage, trains,
    length, batch, learning rate), data (stage -> lines), scores (rows of benchmark, condition, score, standard_error,
    n)."""
    choices = about.get("choices") or choices_of(spec)
    parts = [f"# {spec.backbone.name} + {spec.llm.name}", about.get("origin", ""), use, "## What it is"]
    parts.append(table(["axis", "choice"], [[axis, choice] for axis, choice in choices.items()]))
    if about.get("seed") is not None:
        parts.append(f"Seed {about['seed']}.")
    if about.get("stages"):
        head = ["stage", "trains", "length", "global batch", "learning rate"]
        parts += ["## How it was trained", table(head, about["stages"])]
    if about.get("data"):
        parts += ["## What it was trained on", table(["stage", "source"], [list(row) for row in lines(about["data"])])]
    if about.get("scores"):
        head = ["benchmark", "image", "score (%)", "standard error", "questions"]
        parts += ["## How it scored", table(head, [score_row(row) for row in about["scores"]])]
    parts += ["## Licences of its parts", table(["part", "from", "terms"], licence_rows(spec))]
    parts.append(
        "The terms are those their publishers state, as known here; look at the source before passing this on."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def choices_of(spec: ModelSpec) -> dict[str, str]:
    """The names of the model's own axes."""
    axes = ("backbone", "resolution", "resize", "projector", "llm")
    return {axis: getattr(spec, axis).name for axis in axes}


def lines(data: Mapping[str, list[str]]) -> Iterator[tuple[str, str]]:
    for half, sources in data.items():
        yield from ((half, source) for source in sources)


def score_row(row: Mapping[str, Any]) -> list[str]:
    error = row["standard_error"]  # None where a benchmark has too few images to tell
    told = "" if error is None else f"{error:.1f}"
    return [row["benchmark"], row["condition"], f"{row['score']:.1f}", told, str(row["n"])]


def licence_rows(spec: ModelSpec) -> list[list[str]]:
    """Each pretrained part, where it came from, and its terms."""
    rows = []
    for name, tower in spec.backbone.towers.items():
        weights = tower.weights.get(spec.resolution.pixels, "")
        source = f"{tower.source} {tower.model.replace('{pixels}', str(spec.resolution.pixels))}"
        rows.append(
            [f"tower {name}", source if weights.startswith("hub") else f"{source}, {weights}", terms(weights, source)]
        )
    rows.append([f"language model {spec.llm.name}", spec.llm.weights, terms(spec.llm.weights, "")])
    return rows


def terms(weights: str, model: str) -> str:
    """The licence of weights, as far as it is known here."""
    kind, _, name = weights.partition(":")
    if kind == "small":
        return SMALL[name.partition("/")[0]].licence
    known = (licence for mark, licence in LICENCES.items() if mark in f"{weights} {model}".lower())
    return next(known, "not known here; see where it came from")


def table(head: list[str], rows: list[list[Any]]) -> str:
    ruled = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in ruled)

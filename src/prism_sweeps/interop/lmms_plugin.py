"""What lmms-eval finds by this package's entry point, before it loads any model."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The name by which `lmms-eval --model` knows our models."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="prism", simple_class_path="prism_sweeps.interop.lmms_eval.Prism")

"""The formula against torch's own count of a tiny VLM's forward and backward pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prism_sweeps.config.flops import Operations, training_operations
from prism_sweeps.config.schema import Backbone, LanguageModel, Projector, Resize, Resolution, Stage, Tower, Tuning
from prism_sweeps.config.specs import ModelSpec, StageSpec
from prism_sweeps.models.adapters import add_adapters
from prism_sweeps.models.vlm import VLM, build_vlm

PIXELS, PATCH, PATCHES, VISION, WIDTH, MLP, VOCABULARY = 32, 8, 16, 32, 48, 96, 300
TEXT, TARGETS = 13, 5


def stage(*trains: str, blocks: int | None = None, tuning: Tuning | None = None) -> StageSpec:
    kwargs = {"patch_size": PATCH, "embed_dim": VISION, "depth": 4, "num_heads": 2}
    towers = {
        f"t{i}": Tower(
            f"t{i}", model="vit_tiny_patch16_224", kwargs=kwargs, weights={PIXELS: f"random:{i}"}, width=VISION,
            depth=4, heads=2, patch=PATCH, prefix_tokens=1,
        )
        for i in range(2)
    }  # fmt: skip
    llm = LanguageModel(
        "l", "random:9", "in-out", width=WIDTH, depth=3, heads=4, kv_heads=2, mlp_width=MLP, vocabulary=VOCABULARY,
        context=64,
    )  # fmt: skip
    model = ModelSpec(Backbone("b", towers), Resolution("r", PIXELS), Resize("x", "naive"), Projector("p", "mlp"), llm)
    recipe = Stage(trains=list(trains), epochs=1.0, global_batch=2, learning_rate=1e-3, vision_blocks=blocks)
    return StageSpec("s", model, recipe, {}, seed=1, tuning=tuning or Tuning())


def built(spec: StageSpec) -> VLM:
    vlm = build_vlm(spec.model, spec.seed)
    vlm.train_only(spec.stage.trains, spec.stage.vision_blocks)
    if spec.tuning.method == "lora":
        add_adapters(vlm.llm, spec.tuning, spec.seed)
    return vlm


def counted(spec: StageSpec, image: bool, examples: int = 2) -> int:
    """Of a pass over some equal examples, as torch counts it, products of attention included."""
    vlm = built(spec)
    pixels = {name: torch.randn(examples, 3, PIXELS, PIXELS) for name in spec.model.backbone.towers}
    # The backend on the CPU has no entry in torch's table; the plain one is made of products that have.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        embeds_BSD = vlm.llm.get_input_embeddings()(torch.ones(examples, TEXT, dtype=torch.long))
        if image:
            with torch.set_grad_enabled("vision" in spec.stage.trains):
                features_BPV = vlm.vision(pixels)
            embeds_BSD = torch.cat([embeds_BSD[:, :1], vlm.projector(features_BPV), embeds_BSD[:, 1:]], dim=1)
        hidden_BSD = vlm.llm.base_model(inputs_embeds=embeds_BSD, use_cache=False).last_hidden_state
        loss = vlm.llm.get_output_embeddings()(hidden_BSD[:, -TARGETS:]).sum()
        if loss.requires_grad:
            loss.backward()
    return counter.get_total_flops()


PROJECTOR_START = 2 * 2 * VISION * WIDTH * PATCHES
"""Of its first layer: the gradient of its input, which nobody below asks for; the formula counts it."""
VISION_START = 2 * 2 * 3 * PATCH**2 * VISION * PATCHES
LORA = Tuning("lora", "lora", rank=4, alpha=8.0)

CASES = {
    "align": (stage("projector"), True, PROJECTOR_START),
    "finetune": (stage("projector", "llm"), True, PROJECTOR_START),
    "everything": (stage("vision", "projector", "llm"), True, VISION_START),
    "last block": (stage("vision", "projector", "llm", blocks=1), True, 0),
    "llm alone": (stage("llm"), True, 0),
    "adapters": (stage("projector", "llm", tuning=LORA), True, PROJECTOR_START),
    "align, text": (stage("projector"), False, 0),
    "finetune, text": (stage("projector", "llm"), False, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_the_formula_is_what_torch_counts(case: str) -> None:
    """To a part in 500, once the input gradient of the lowest trained layer is allowed for.

    What is left are the angles of rotary positions, which torch multiplies out and the formula ignores.
    """
    spec, image, not_computed = CASES[case]
    ours = training_operations(spec, image).of(TEXT + PATCHES * image, TARGETS)
    assert ours - not_computed == pytest.approx(counted(spec, image) / 2, rel=0.002)
    assert not_computed < 0.05 * ours


def test_a_batch_is_the_sum_of_its_examples() -> None:
    operations = training_operations(stage("projector", "llm"), image=True)
    lengths, targets = [30, 41, 64, 64], [3, 9, 12, 30]
    apart = sum(operations.of(length, wanted) for length, wanted in zip(lengths, targets, strict=True))
    together = operations.total(4, sum(lengths), sum(length**2 for length in lengths), sum(targets))
    assert together == pytest.approx(apart, rel=1e-12)


def test_text_that_nothing_trained_sees_costs_a_forward_pass() -> None:
    """Three ways to train with the same language model: its gradient, none, and its own."""
    image, lone = (training_operations(stage("projector"), each) for each in (True, False))
    whole = training_operations(stage("llm"), image=False)
    assert (image.position, image.square) == (2 * lone.position, 3 * lone.square)
    assert (whole.position, whole.square, whole.target) == (3 * lone.position, 3 * lone.square, 3 * lone.target)
    assert lone.fixed == 0.0
    assert Operations(1, 2, 3, 4).of(10, 5) == 1 + 20 + 300 + 20

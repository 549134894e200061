"""Floating-point operations of one example, from shapes alone: what plans estimate by and utilisation is measured by.

A matrix product of N weights takes 2N operations per token forward, and backward 2N for the gradient of its input and
2N for that of its weights (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). So a trained module takes 6N, a frozen
one below everything trained 2N, and a frozen one that a gradient must pass through 4N. Attention has no weights but
two inputs in each of its products: 4 x length x width per token and layer forward (PaLM, arXiv 2204.02311, appendix B),
and twice that backward wherever a gradient passes, trained or not.

These are the model's own operations. What is computed twice to save memory is not in them, nor is padding; attention
counts every pair of positions of a document, as PaLM does, though causal kernels skip half of them. The head counts
where a token is predicted and nowhere else.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from prism_sweeps.config.checks import backbone_patches, patches
from prism_sweeps.config.schema import LanguageModel, Projector, Tower, Tuning
from prism_sweeps.config.shapes import head_width, linear_layers, projector_widths
from prism_sweeps.config.specs import ModelSpec, StageSpec


@dataclass(frozen=True)
class Operations:
    """Of one example, as a polynomial: fixed + position x L + square x L^2 + target x M.

    L is its positions in the language model, patches included, and M those at which a token is predicted.
    """

    fixed: float = 0.0
    position: float = 0.0
    square: float = 0.0
    target: float = 0.0

    def of(self, positions: int, targets: int) -> float:
        """Of one example."""
        return self.total(1, positions, positions**2, targets)

    def total(self, examples: int, positions: int, squares: int, targets: int) -> float:
        """Of several: how many, and the sums of their L, L^2 and M."""
        return examples * self.fixed + positions * self.position + squares * self.square + targets * self.target

    def __add__(self, other: Operations) -> Operations:
        return Operations(
            self.fixed + other.fixed,
            self.position + other.position,
            self.square + other.square,
            self.target + other.target,
        )

    def __mul__(self, factor: float) -> Operations:
        return Operations(self.fixed * factor, self.position * factor, self.square * factor, self.target * factor)


NOTHING = Operations()


@dataclass(frozen=True)
class Part:
    """A module, or some of its blocks: its parameters, and the forward operations with weights and without."""

    parameters: int
    linear: Operations
    attention: Operations = field(default=NOTHING)

    @property
    def forward(self) -> Operations:
        return self.linear + self.attention

    def __add__(self, other: Part) -> Part:
        return Part(self.parameters + other.parameters, self.linear + other.linear, self.attention + other.attention)

    def without(self, some: Part) -> Part:
        return self + Part(-some.parameters, some.linear * -1, some.attention * -1)


@dataclass(frozen=True)
class Section:
    """A part that a stage runs whole: all of it is trained, or none."""

    module: str
    part: Part
    trained: bool


def training_operations(spec: StageSpec, image: bool) -> Operations:
    """Forward and backward of one example of the stage; one without an image passes neither tower nor projector."""
    total, gradient = NOTHING, False
    for section in sections(spec):
        if section.module != "llm" and not image:
            continue
        passes = gradient or section.trained
        total += section.part.linear * (3 if section.trained else 2 if gradient else 1)
        total += section.part.attention * (3 if passes else 1)
        gradient = passes
    return total


def forward_operations(model: ModelSpec) -> Operations:
    """One pass over an example with an image, nothing trained."""
    return sum((part.forward for part in parts(model).values()), NOTHING)


def sections(spec: StageSpec) -> list[Section]:
    """What the stage runs, in the order in which an example passes it."""
    found: list[Section] = []
    for module, part in parts(spec.model).items():
        trained = module in spec.stage.trains
        if trained and module == "vision" and spec.stage.vision_blocks is not None:
            last = last_blocks(spec.model, spec.stage.vision_blocks)
            found += [Section(module, part.without(last), False), Section(module, last, True)]
        elif trained and module == "llm" and spec.tuning.method == "lora":
            # Before the layers that they stand beside, since a gradient passes through those from the first one on.
            found += [Section(module, adapters(spec.model.llm, spec.tuning), True), Section(module, part, False)]
        else:
            found.append(Section(module, part, trained))
    return found


def parts(model: ModelSpec) -> dict[str, Part]:
    """Vision, projector and llm, as they are built (without the towers' last block)."""
    pixels, towers = model.resolution.pixels, model.backbone.towers.values()
    count = backbone_patches(model.backbone, pixels)
    return {
        "vision": sum((tower_part(tower, patches(tower, pixels)) for tower in towers), Part(0, NOTHING)),
        "projector": projector_part(model.projector, sum(tower.width for tower in towers), model.llm.width, count),
        "llm": language_model_part(model.llm),
    }


def tower_part(tower: Tower, count: int) -> Part:
    """A ViT without its last block and final norm, or a whole conv tower: what `count` patch features need."""
    if tower.kind == "conv":
        return tower_blocks(tower, count, tower.depth)
    width, length = tower.width, count + tower.prefix_tokens
    embedding = 3 * tower.patch**2 * width
    vectors = width + length * width + tower.prefix_tokens * width
    return tower_blocks(tower, count, tower.depth - 1) + Part(embedding + vectors, Operations(2 * embedding * count))


def tower_blocks(tower: Tower, count: int, blocks: int) -> Part:
    """So many blocks on `count` patches; of a conv tower, their share in what it states, as if all were alike."""
    if tower.kind == "conv":
        share, pixels = blocks / tower.depth, count * tower.patch**2
        stated = (tower.flops_per_pixel or 0.0) * pixels
        return Part(round((tower.parameters or 0) * share), Operations(stated * share))
    width, hidden = tower.width, round(tower.width * tower.mlp_ratio)
    length = count + tower.prefix_tokens
    matrices = 4 * width**2 + 2 * width * hidden
    vectors = 4 * width + hidden + width + 4 * width  # biases, two norms
    return Part(
        blocks * (matrices + vectors),
        Operations(blocks * 2 * matrices * length),
        Operations(blocks * 4 * length**2 * width),
    )


def last_blocks(model: ModelSpec, blocks: int) -> Part:
    """The last so many of every tower's blocks that run."""
    pixels, towers = model.resolution.pixels, model.backbone.towers.values()
    return sum((tower_blocks(tower, patches(tower, pixels), blocks) for tower in towers), Part(0, NOTHING))


def projector_part(projector: Projector, vision: int, llm: int, count: int) -> Part:
    """From `vision` channels to `llm`, on `count` patches."""
    widths = projector_widths(projector, vision, llm)
    matrices = sum(a * b for a, b in itertools.pairwise(widths))
    return Part(matrices + sum(widths[1:]), Operations(2 * matrices * count))


def adapters(llm: LanguageModel, tuning: Tuning) -> Part:
    """A (rank x in) and B (out x rank) beside each target of every block."""
    widths = [width for name, width in linear_layers(llm).items() if not tuning.targets or name in tuning.targets]
    matrices = llm.depth * sum(tuning.rank * (width_in + width_out) for width_in, width_out in widths)
    return Part(matrices, Operations(position=2 * matrices))


def language_model_part(llm: LanguageModel) -> Part:
    """Its linear layers, two norms a block, embedding and head."""
    matrices = sum(width_in * width_out for width_in, width_out in linear_layers(llm).values())
    embedding = llm.vocabulary * llm.width
    outside = embedding * (1 if llm.tied_embeddings else 2) + llm.width
    return Part(
        llm.depth * (matrices + 2 * llm.width) + outside,
        Operations(position=llm.depth * 2 * matrices, target=2 * embedding),
        Operations(square=llm.depth * 4 * llm.heads * head_width(llm)),
    )

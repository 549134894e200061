"""What the types cannot say: names with a closed set of values, numbers with a range, axes that must fit each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from string import Formatter

from prism_sweeps.config import schema, suite
from prism_sweeps.config.cluster import check_cluster
from prism_sweeps.config.compose import design_space
from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.schema import Backbone, Cell, DataMix, Engine, LanguageModel, Stage, Tower
from prism_sweeps.config.shapes import KNOWN, linear_layers, projector_widths
from prism_sweeps.config.suite import Benchmark

PLACEHOLDERS = ("question", "options", "context")
BENCHMARK_CHOICES = {
    "answer": suite.ANSWERS,
    "likelihood": suite.LIKELIHOODS,
    "sampling": suite.SAMPLINGS,
    "box_frame": suite.BOX_FRAMES,
    "box_units": suite.BOX_UNITS,
}

Choices = Mapping[str, str]


def check_cell(cell: Cell, choices: Choices, config_dir: Path | None = None) -> None:
    """Raise ConfigError for a cell that cannot work, naming the choices at fault and those that would do.

    `choices` is the cell's choice of every group, as `compose_cell` returns it.
    """
    _check_names(cell, choices)
    _check_towers(cell, choices, config_dir)
    _check_context(cell, choices)
    _check_stages(cell, choices, config_dir)
    _check_projector(cell, choices)
    _check_tuning(cell, choices)
    _check_suite(cell, choices)


def check_place(cell: Cell, choices: Choices, config_dir: Path | None = None) -> None:
    """Raise ConfigError for a cluster that cannot be meant. It is the same for all cells of a plan."""
    check_cluster(cell.cluster, f"cluster={choices['cluster']}", _job_names(cell, config_dir))


def _job_names(cell: Cell, config_dir: Path | None) -> set[str]:
    """What a job of any cell can be called by, besides its kind."""
    space = design_space(config_dir)
    return {
        *cell.stages.chain,
        *(stage for choice in space.choices("stages") for stage in space.part("stages", choice, {}).chain),
        *cell.suite.benchmarks,
        *(name for group in ("llm", "backbone", "benchmark") for name in space.choices(group)),
    }


def patches(tower: Tower, pixels: int) -> int:
    """Patch tokens of a square image. A remainder smaller than a patch is cut off, as timm's patch embedding does."""
    return (pixels // tower.patch) ** 2


def backbone_patches(backbone: Backbone, pixels: int) -> int:
    """Patch tokens of a backbone, whose towers all have as many."""
    return patches(next(iter(backbone.towers.values())), pixels)


def _one_of(value: str, valid: Iterable[str], what: str) -> None:
    if value not in valid:
        raise ConfigError(f"{what} is '{value}'; {nearest(value, valid)}")


def _positive(value: float | None, what: str) -> None:
    if value is not None and not (value > 0 and isfinite(value)):
        raise ConfigError(f"{what} is {value}; it must be positive and finite")


def _check_names(cell: Cell, choices: Choices) -> None:
    _positive(cell.resolution.pixels, f"resolution={choices['resolution']}: pixels")
    _one_of(cell.resize.strategy, schema.STRATEGIES, f"resize={choices['resize']}: strategy")
    _check_text(cell.llm, f"llm={choices['llm']}")
    _check_engine(cell.engine, f"engine={choices['engine']}")


def _check_text(llm: LanguageModel, where: str) -> None:
    _one_of(llm.prompt, schema.PROMPTS, f"{where}: prompt")
    _one_of(llm.tokenisation, schema.TOKENISATIONS, f"{where}: tokenisation")
    _positive(llm.max_text, f"{where}: max_text")
    if llm.tokenisation == "per-turn" and llm.prompt == "chat-template":
        raise ConfigError(
            f"{where}: a chat template writes whole conversations, so with it tokenisation must be whole; per-turn "
            "goes with the other prompts"
        )


def _check_towers(cell: Cell, choices: Choices, config_dir: Path | None) -> None:
    where, pixels = f"backbone={choices['backbone']}", cell.resolution.pixels
    if not cell.backbone.towers:
        raise ConfigError(f"{where} has no towers")
    for name, tower in cell.backbone.towers.items():
        _one_of(tower.kind, schema.TOWER_KINDS, f"{where}: kind of tower '{name}'")
        _one_of(tower.source, schema.TOWER_SOURCES, f"{where}: source of tower '{name}'")
        _check_tower_shape(tower, f"{where}: tower '{name}'")
        if pixels not in tower.weights:
            raise ConfigError(_no_weights(where, cell.backbone, name, pixels, config_dir))
        # Published weights settle their own grid (SigLIP's 27 x 27 of 384 px); any others must divide evenly.
        published = tower.kind == "vit" and tower.weights[pixels].partition(":")[0] == "hub"
        if pixels % tower.patch and not published:
            fits = _listed(str(p) for p in sorted(tower.weights) if p % tower.patch == 0)
            raise ConfigError(
                f"{where}: {pixels} px are no multiple of the patch {tower.patch} of tower '{name}'; fit: {fits}"
            )
    grids = {name: patches(tower, pixels) for name, tower in cell.backbone.towers.items()}
    if len(set(grids.values())) > 1:
        counts = ", ".join(f"'{name}' {count}" for name, count in grids.items())
        raise ConfigError(f"{where} at {pixels} px: its towers must have equally many patches, but have {counts}")


def _check_tower_shape(tower: Tower, where: str) -> None:
    """A convolutional tower has no attention, and its shape does not tell what it costs."""
    for number in ("width", "depth", "patch", "parameters", "flops_per_pixel"):
        _positive(getattr(tower, number), f"{where}: {number}")
    if tower.kind == "vit":
        _positive(tower.heads, f"{where}: heads")
        return
    if tower.source != "timm":
        raise ConfigError(
            f"{where} is of kind conv and source {tower.source}; only timm's convolutional ones are known"
        )
    if tower.heads or tower.prefix_tokens:
        raise ConfigError(f"{where} is of kind conv, so its heads and prefix_tokens must be 0")
    if tower.parameters is None or tower.flops_per_pixel is None:
        raise ConfigError(f"{where} is of kind conv, so it must state its parameters and flops_per_pixel")


def _no_weights(where: str, backbone: Backbone, name: str, pixels: int, config_dir: Path | None) -> str:
    common = set.intersection(*(set(tower.weights) for tower in backbone.towers.values()))
    instead = _choices_with("backbone", lambda b: all(pixels in t.weights for t in b.towers.values()), config_dir)
    return (
        f"{where} has no weights at {pixels} px (tower '{name}'); "
        f"it has them at: {_listed(map(str, sorted(common)))}; "
        f"backbones that have {pixels} px: {_listed(instead)}"
    )


def _choices_with(group: str, fits: Callable[..., bool], config_dir: Path | None) -> list[str]:
    space = design_space(config_dir)
    return [name for name in space.choices(group) if fits(space.part(group, name, {}))]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "(none)"


def _check_context(cell: Cell, choices: Choices) -> None:
    tokens = backbone_patches(cell.backbone, cell.resolution.pixels)
    if tokens + 1 >= cell.llm.context:
        raise ConfigError(
            f"backbone={choices['backbone']} at {cell.resolution.pixels} px gives {tokens} patch tokens, "
            f"but llm={choices['llm']} has a context of {cell.llm.context}; take a lower resolution or another llm"
        )


def _check_stages(cell: Cell, choices: Choices, config_dir: Path | None) -> None:
    where, chain = f"stages={choices['stages']}", list(cell.stages.chain.items())
    if not chain:
        raise ConfigError(f"{where} has no stage")
    for position, (name, stage) in enumerate(chain):
        _check_stage(stage, f"{where}: stage '{name}'", last=position == len(chain) - 1)
        _check_vision_blocks(stage, cell.backbone, f"{where}: stage '{name}'")
        if not getattr(cell.data_mix, stage.data):
            instead = _choices_with("data_mix", lambda mix, half=stage.data: bool(getattr(mix, half)), config_dir)
            raise ConfigError(
                f"{where}: stage '{name}' reads {stage.data} data, which data_mix={choices['data_mix']} has not; "
                f"mixes that have it: {_listed(instead)}"
            )
    _positive(cell.schedule.epochs, f"schedule={choices['schedule']}: epochs")
    _positive(cell.schedule.max_steps, f"schedule={choices['schedule']}: max_steps")
    _check_mix(cell.data_mix, f"data_mix={choices['data_mix']}")


def _check_stage(stage: Stage, where: str, last: bool) -> None:
    if not stage.trains:
        raise ConfigError(f"{where} trains nothing; valid: {', '.join(schema.MODULES)}")
    for module in stage.trains:
        _one_of(module, schema.MODULES, f"{where}: a trained module")
    _one_of(stage.data, schema.HALVES, f"{where}: data")
    rates = ("learning_rate", "vision_learning_rate", "projector_learning_rate")
    for number in ("epochs", "global_batch", *rates, "max_grad_norm"):
        _positive(getattr(stage, number), f"{where}: {number}")
    _check_batches(stage, where)
    if not 0 <= stage.weight_decay < inf:
        raise ConfigError(f"{where}: weight_decay is {stage.weight_decay}; it must be finite and not negative")
    for fraction in ("warmup_ratio", "beta1", "beta2"):
        if not 0 <= getattr(stage, fraction) < 1:
            raise ConfigError(f"{where}: {fraction} is {getattr(stage, fraction)}; it must be at least 0 and below 1")
    if last and stage.epochs is not None:
        raise ConfigError(
            f"{where} is the last, so its length is the schedule's: leave epochs null, set schedule.epochs"
        )
    if not last and stage.epochs is None:
        raise ConfigError(f"{where} is not the last, so the schedule is not its: give it epochs")


def _check_batches(stage: Stage, where: str) -> None:
    _one_of(stage.batching, schema.BATCHINGS, f"{where}: batching")
    _one_of(stage.loss, schema.LOSSES, f"{where}: loss")
    _one_of(stage.bad_step, schema.BAD_STEPS, f"{where}: bad_step")
    _positive(stage.micro_batch, f"{where}: micro_batch")
    if stage.spike is not None and not 1 < stage.spike < inf:
        raise ConfigError(f"{where}: spike is {stage.spike}; a spike is a multiple of the mean, so more than 1")
    if stage.held_out < 0:
        raise ConfigError(f"{where}: held_out is {stage.held_out}; it is a number of conversations, 0 for none")
    averaged = stage.loss == "micro-batch-mean"
    if averaged != (stage.micro_batch is not None):
        raise ConfigError(
            f"{where}: loss is {stage.loss} and micro_batch {stage.micro_batch}; micro-batch-mean needs a micro_batch "
            "(the reference's is 16), token-mean takes none"
        )
    if stage.micro_batch is not None and stage.global_batch % stage.micro_batch:
        raise ConfigError(
            f"{where}: global_batch {stage.global_batch} is no multiple of micro_batch {stage.micro_batch}; "
            f"{divisors_text(stage.global_batch)}"
        )


def divisors_text(number: int) -> str:
    """Which numbers divide it, in words for an error."""
    found = [n for n in range(1, number + 1) if number % n == 0]
    return f"these divide {number}: {', '.join(map(str, found))}"


def _check_engine(engine: Engine, where: str) -> None:
    _one_of(engine.precision, schema.PRECISIONS, f"{where}: precision")
    _one_of(engine.sharding, schema.SHARDINGS, f"{where}: sharding")
    _one_of(engine.activation_checkpointing, schema.RECOMPUTATIONS, f"{where}: activation_checkpointing")
    _one_of(engine.attention, schema.ATTENTIONS, f"{where}: attention")
    for number in ("checkpoint_steps", "validate_every", "peak_tflops"):
        _positive(getattr(engine, number), f"{where}: {number}")
    for number in ("workers", "micro_batch", "row_tokens", "data_workers"):
        if getattr(engine, number) < 0:
            raise ConfigError(f"{where}: {number} is {getattr(engine, number)}; it cannot be negative")
    profile_window(engine.profile, f"{where}: profile")


def profile_window(text: str | None, where: str) -> range:
    """`3:5` -> steps 3, 4 and 5, counted from 1; nothing where there is none. Raises ConfigError."""
    if text is None:
        return range(0)
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ConfigError(f"{where} is '{text}'; it should be FIRST:LAST, steps counted from 1, e.g. 10:12")
    return range(int(first), int(last) + 1)


def _check_vision_blocks(stage: Stage, backbone: Backbone, where: str) -> None:
    if stage.vision_blocks is None:
        return
    what = f"{where}: vision_blocks"
    _positive(stage.vision_blocks, what)
    if "vision" not in stage.trains:
        raise ConfigError(
            f"{what} is {stage.vision_blocks}, but the stage trains {', '.join(stage.trains)}: "
            "add vision to trains, or leave vision_blocks null"
        )
    for name, tower in backbone.towers.items():
        # A ViT is cut before its last block.
        runs = tower.depth - 1 if tower.kind == "vit" else tower.depth
        if stage.vision_blocks > runs:
            raise ConfigError(
                f"{what} is {stage.vision_blocks}, but of tower '{name}' {runs} blocks run; "
                "give at most as many, or null for all of vision"
            )


def _check_projector(cell: Cell, choices: Choices) -> None:
    where, projector = f"projector={choices['projector']}", cell.projector
    _one_of(projector.kind, schema.PROJECTORS, f"{where}: kind")
    _one_of(projector.drawn_from, schema.PROJECTOR_SEEDS, f"{where}: drawn_from")
    _positive(projector.hidden, f"{where}: hidden")
    projector_widths(projector, vision=1, llm=1)  # for its error: a linear projector with a hidden width


def _check_tuning(cell: Cell, choices: Choices) -> None:
    where, tuning = f"tuning={choices['tuning']}", cell.tuning
    _one_of(tuning.method, schema.TUNING, f"{where}: method")
    if tuning.method == "full":
        return
    _positive(tuning.rank, f"{where}: rank")
    _positive(tuning.alpha, f"{where}: alpha")
    if not 0 <= tuning.dropout < 1:
        raise ConfigError(f"{where}: dropout is {tuning.dropout}; it must be at least 0 and below 1")
    # Of other architectures the names are known when the model is loaded.
    if cell.llm.architecture in KNOWN:
        for target in tuning.targets:
            _one_of(target, linear_layers(cell.llm), f"{where}: a target in llm={choices['llm']}")
    if not any("llm" in stage.trains for stage in cell.stages.chain.values()):
        raise ConfigError(
            f"{where}, but no stage of stages={choices['stages']} trains the llm; take tuning=full or other stages"
        )


def _check_mix(mix: DataMix, where: str) -> None:
    for half in schema.HALVES:
        for name, source in getattr(mix, half).items():
            _positive(source.examples, f"{where}: examples of {half}.{name}")


def _check_suite(cell: Cell, choices: Choices) -> None:
    where = f"suite={choices['suite']}"
    if not cell.suite.conditions:
        raise ConfigError(f"{where}: conditions are empty; list some of {', '.join(suite.CONDITIONS)}")
    for condition in cell.suite.conditions:
        _one_of(condition, suite.CONDITIONS, f"{where}: a condition")
    _once(cell.suite.conditions, f"{where}: conditions")
    _positive(cell.suite.examples, f"{where}: examples")
    for benchmark in cell.suite.benchmarks.values():
        _check_benchmark(benchmark, f"{where}: benchmark '{benchmark.name}'")


def _once(values: Sequence[str], where: str) -> None:
    twice = next((value for value in values if list(values).count(value) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where} have '{twice}' twice; list it once")


def _check_benchmark(benchmark: Benchmark, where: str) -> None:
    if benchmark.answer == "choice" and not benchmark.choices:
        raise ConfigError(f"{where} answers by choice, but has no choices; list them under `choices`")
    _once(benchmark.choices, f"{where}: choices")
    for _, name, _, _ in Formatter().parse(benchmark.prompt):
        if name is not None:
            _one_of(name, PLACEHOLDERS, f"{where}: a placeholder of its prompt")
    for key, allowed in BENCHMARK_CHOICES.items():
        _one_of(getattr(benchmark, key), allowed, f"{where}: {key}")
    _positive(benchmark.max_new_tokens, f"{where}: max_new_tokens")
    _positive(benchmark.examples, f"{where}: examples")
    if not 0 < benchmark.iou_threshold <= 1:
        raise ConfigError(f"{where}: iou_threshold is {benchmark.iou_threshold}; it must be above 0 and at most 1")

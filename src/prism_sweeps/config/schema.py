"""The design space as types: one dataclass per axis, and `Cell`, the point where they meet.

Fields marked `local()` do not change a result (paths, workers, micro-batch size, ...) and stay out of fingerprints;
everything else is in. A field added later must have a default: fields at their default are left out of the hash, so
old fingerprints stay valid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from prism_sweeps.config.fields import LOCAL, ORDERED, WEIGHTS, local
from prism_sweeps.config.suite import Suite

AXES = ("backbone", "resolution", "resize", "projector", "llm", "stages", "tuning", "data_mix", "schedule")
"""The design axes: one config group each."""
GROUPS = (*AXES, "suite", "engine", "cluster", "tracking", "store")
"""Every config group a cell takes one choice of."""

STRATEGIES = ("letterbox", "naive", "crop")
PROJECTORS = ("linear", "mlp", "fused-mlp")
PROJECTOR_SEEDS = ("cell", "vision-width")
MODULES = ("vision", "projector", "llm")
PROMPTS = ("in-out", "vicuna", "llama2-chat", "llama2-chat-typo", "mistral-instruct", "phi", "chat-template")
TOKENISATIONS = ("whole", "per-turn")
TUNING = ("full", "lora")
TOWER_SOURCES = ("timm", "open_clip")
TOWER_KINDS = ("vit", "conv")
PRECISIONS = ("fp32", "bf16", "bf16-true")
BATCHINGS = ("grouped", "split-modality", "packed")
LOSSES = ("token-mean", "micro-batch-mean")
BAD_STEPS = ("stop", "skip")
SHARDINGS = ("full", "grad-only", "hybrid")
RECOMPUTATIONS = ("none", "selective", "full")
CLUSTERS = ("local", "slurm")
ATTENTIONS = ("auto", "by-document", "flex", "varlen", "flash")
HALVES = ("align", "instruct")
"""The halves of a data mix."""


@dataclass
class Tower:
    """One vision tower. Its shape is stated here so that planning needs neither torch nor a hub."""

    name: str = local()
    source: str = "timm"
    """Library that builds it: timm or open_clip."""
    model: str = MISSING
    """Architecture name in that library; `{pixels}` in it stands for the resolution."""
    kind: str = "vit"
    """vit: patch features of the second-to-last block. conv: the cells of the last feature map, timm alone."""
    interpolate: bool = False
    """Whether position embeddings may be resampled from the size the weights were trained at to the one asked for."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Overrides of the architecture (embed_dim, depth, ...), for towers the library has no name for."""
    weights: dict[int, str] = field(default_factory=dict, metadata=WEIGHTS)
    """Resolution in pixels -> where its weights are: `hub`, `hub:NAME` (where the library calls the model of this
    resolution something else), `zoo:FILE` (shipped with this package) or a path."""
    width: int = MISSING
    """Channels of its patch features."""
    depth: int = MISSING
    """Blocks, the last one included though a ViT is cut before it; of a conv tower, all groups after the stem."""
    heads: int = MISSING
    """0 for a conv tower."""
    patch: int = MISSING
    """Pixels along the side of a patch; of a conv tower, the stride of its last feature map."""
    prefix_tokens: int = 0
    mlp_ratio: float = 4.0
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    parameters: int | None = local(None)
    """Of a conv tower without its head, as its shape does not tell."""
    flops_per_pixel: float | None = local(None)
    """Forward operations of a conv tower for each pixel of an image, two per multiplication; they grow with its area.
    """


@dataclass
class Backbone:
    """One tower, or several whose patch features are concatenated on the channel dimension, in this order."""

    name: str = local()
    towers: dict[str, Tower] = field(default_factory=dict, metadata=ORDERED)


@dataclass
class Resolution:
    name: str = local()
    pixels: int = MISSING


@dataclass
class Resize:
    """How an image becomes a square (prismatic-vlms: letterbox, resize-naive, resize-crop)."""

    name: str = local()
    strategy: str = MISSING


@dataclass
class Projector:
    name: str = local()
    kind: str = MISSING
    hidden: int | None = None
    """Width of its first hidden layer; null as published: that of the language model (mlp), four
    times the towers' (fused-mlp).
    A fixed one makes backbones of different widths comparable."""
    drawn_from: str = "cell"
    """Seed of its first weights: the cell's; or vision-width, the towers' width, as the reference has it."""


@dataclass
class LanguageModel:
    """A causal LM that `AutoModelForCausalLM.from_pretrained` loads, with the shape that planning needs."""

    name: str = local()
    weights: str = field(default=MISSING, metadata=WEIGHTS)
    """`zoo:FOLDER` (shipped with this package), a local folder, or a hub id."""
    prompt: str = MISSING
    """in-out (base models: `In: ..\\nOut: ..`), vicuna, llama2-chat, mistral-instruct, phi: the formats of the
    reference, llama2-chat-typo with the system tag it misspells; chat-template: the tokenizer's own."""
    width: int = MISSING
    depth: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING
    mlp_width: int = MISSING
    vocabulary: int = MISSING
    context: int = MISSING
    tied_embeddings: bool = False
    architecture: str = "llama"
    """`model_type` of transformers' config (llama, mistral, phi, qwen2, ...)."""
    config: dict[str, Any] = field(default_factory=dict)
    """Further fields of that config that shape the model (head_dim, ...)."""
    tokenisation: str = "whole"
    """whole: a conversation is tokenised once. per-turn: each turn by itself, as the reference does it."""
    max_text: int | None = None
    """Tokens of text, BOS included, after which a conversation is cut off in training (2048 in the reference); null
    is as many as its context leaves beside the patches, which no text may exceed."""


@dataclass
class Stage:
    """One training phase. Sums of examples, not steps, decide its length, so it does not depend on the batch size."""

    trains: list[str] = field(default_factory=list)
    """Which of vision, projector, llm are trained; the rest is frozen."""
    data: str = "instruct"
    """Which half of the data mix it reads: align or instruct."""
    epochs: float | None = None
    """Passes over the data; null takes the schedule's, which only the last stage may and must do."""
    global_batch: int = MISSING
    learning_rate: float = MISSING
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    max_grad_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    vision_learning_rate: float | None = None
    projector_learning_rate: float | None = None
    """Of that part alone; null is `learning_rate`."""
    vision_blocks: int | None = None
    """Where vision is trained: only the last so many of a tower's blocks that run; null is all of it."""
    batching: str = "grouped"
    """Which examples share a global batch. grouped: of about equal length, with and without image together.
    split-modality: with or without image, never both, as the reference has it. packed: equal sums of lengths, laid
    end to end instead of padded."""
    loss: str = "token-mean"
    """token-mean: over the supervised tokens of the global batch. micro-batch-mean: the mean over `micro_batch`
    examples first and then over these, as in the reference, where a token of a short answer weighs more."""
    micro_batch: int | None = None
    """Examples whose mean is one summand of micro-batch-mean (16 in the reference). What is computed at once is
    the engine's micro_batch, whatever this says."""
    bad_step: str = "stop"
    """What a step is answered with whose loss or gradient is not finite, or is a spike. Its update is never made.
    stop: training ends, naming its conversations. skip: they are recorded and training goes on."""
    spike: float | None = None
    """A step is a spike when its loss is more than so many times the mean of the last 64; null: none is."""
    held_out: int = 0
    """Conversations that are kept out of training, drawn at random, and give the validation loss."""


@dataclass
class Stages:
    name: str = local()
    chain: dict[str, Stage] = field(default_factory=dict, metadata=ORDERED)
    """Stage name (align, finetune, full-finetune) -> recipe, in the order they run."""


@dataclass
class Tuning:
    """How a language model that a stage trains is trained: whole, or by low-rank adapters (LoRA, arXiv 2106.09685)."""

    name: str = local("full")
    method: str = "full"
    """full | lora"""
    rank: int = 16
    alpha: float = 32.0
    """Adapters are scaled by alpha / rank."""
    dropout: float = 0.0
    targets: list[str] = field(default_factory=list)
    """Names of the linear layers that get adapters; [] is all of the language model's but its head."""


@dataclass
class Schedule:
    """Train time of the last stage."""

    name: str = local()
    epochs: float = 1.0
    max_steps: int | None = None


@dataclass
class Source:
    """Conversations of one `chat.json`."""

    dataset: str = MISSING
    """Prepared dataset = folder under the data root; image paths in the file are relative to it."""
    file: str = MISSING
    """chat.json inside that folder, e.g. `instruct/chat.json`."""
    version: str = "1"
    examples: int | None = None
    """Only the first so many; null is all."""
    size: int | None = local(None)
    """Conversations in the file where that is published, so that a plan can tell costs before the data are there."""


@dataclass
class DataMix:
    name: str = local()
    align: dict[str, Source] = field(default_factory=dict)
    instruct: dict[str, Source] = field(default_factory=dict)


@dataclass
class Engine:
    """Where and how it runs. Only `precision` changes a result."""

    name: str = local()
    precision: str = "fp32"
    """fp32; bf16: computed in bfloat16 with weights, gradients and moments in fp32; bf16-true: all of it in bfloat16,
    for a third of the memory and some accuracy."""
    device: str = local("auto")
    workers: int = local(0)
    """Local processes a sweep runs at a time; 0 is one per core."""
    micro_batch: int = local(0)
    """Examples per forward pass of a process; 0 is its whole share of the global batch."""
    row_tokens: int = local(0)
    """Positions per forward pass where examples are packed; 0 is 4096, or more where an example is longer."""
    eval_batch: int = local(64)
    sharding: str = local("full")
    """Of several processes. full: weights are gathered for forward and again for backward. grad-only: once, and kept.
    hybrid: full within a node, whole copies across nodes."""
    activation_checkpointing: str = local("none")
    """What backward computes again instead of keeping. selective: all but attention and every second matrix product;
    full: whole blocks."""
    compile: bool | None = local(None)
    """torch.compile of each block; null: on a GPU."""
    attention: str = local("auto")
    """Kernel for packed examples: by-document (any device), flex, varlen, flash (GPU); auto takes the fastest here."""
    data_workers: int = local(0)
    """Processes that decode and transform images ahead of the step; 0 is a thread."""
    feature_cache: bool = local(False)
    """Whether what frozen towers see in an image is computed once and kept in the store, for all cells to use."""
    checkpoint_seconds: float = local(20.0)
    checkpoint_steps: int | None = local(None)
    """A checkpoint also every so many steps; null: by the clock alone."""
    keep_checkpoints: int = local(2)
    validate_every: int | None = local(None)
    """Steps between validation losses, where a stage holds conversations out; null: at the end only."""
    profile: str | None = local(None)
    """Steps FIRST:LAST (from 1) whose profile is written beside the metrics as a Chrome trace."""
    peak_tflops: float | None = local(None)
    """What a device can do at best in this precision, for MFU; null: known for common GPUs."""
    retries: int = local(1)


@dataclass
class Request:
    """What one allocation asks SLURM for; null leaves it to the cluster's defaults."""

    partition: str | None = local(None)
    """One, or several with commas between."""
    account: str | None = local(None)
    qos: str | None = local(None)
    time: str | None = local(None)
    """As sbatch has it: minutes, minutes:seconds, hours:minutes:seconds, days-hours, ..."""
    nodes: int = local(1)
    gpus_per_node: int = local(0)
    tasks_per_node: int | None = local(None)
    """Processes a node that train one model together; null is one for each GPU, and one where there is none."""
    cpus_per_task: int | None = local(None)
    memory: str | None = local(None)
    """A node's, as sbatch has it (64G)."""
    constraint: str | None = local(None)
    exclude: str | None = local(None)
    """Nodes to keep away from."""
    jobs_per_allocation: int = local(1)
    """Jobs side by side in one allocation of one node, each with a GPU of its own, where a job needs no more."""
    options: dict[str, Any] = field(default_factory=dict, metadata=LOCAL)
    """Any other option of sbatch: name without dashes -> value, true for one that has none."""


@dataclass
class Cluster(Request):
    """Where a sweep runs: on this machine, or as SLURM jobs that ask for what is said here."""

    name: str = local("local")
    kind: str = local("local")
    """local | slurm"""
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict, metadata=LOCAL)
    """What some jobs ask for instead. Name -> fields of the request; a job has a name when it is its kind (train,
    evaluate, report), its stage, benchmark, llm or backbone; `finetune_and_vicuna-v15-13b` is for those that have both.
    Later entries win."""
    max_parallel: int | None = local(None)
    """Allocations of one study that run at a time."""
    setup: list[str] = field(default_factory=list, metadata=LOCAL)
    """Shell lines before the job starts (module load, source, export)."""
    container: str | None = local(None)
    """Put before `python` in a job: apptainer exec --nv image.sif"""
    python: str | None = local(None)
    """Interpreter of jobs; null is the one that submits."""
    notice_seconds: int = local(120)
    """How long before its time limit a job is told to write a checkpoint."""
    report: bool = local(True)
    """Whether a last job brings MLflow and the report up to date, and submits again what nodes and limits ended."""
    gpu: str | None = local(None)
    """Kind of GPU (h100-80gb, a100-40gb, ...) for estimates before anything was measured."""


@dataclass
class Tracking:
    name: str = local()
    mlflow: bool = local(True)
    uri: str | None = local(None)
    """MLflow tracking URI; null is a SQLite file in the store."""


@dataclass
class Store:
    name: str = local()
    root: str = local("prism-store")
    data: str | None = local(None)
    """Where prepared data live; null is <root>/data."""


@dataclass
class Cell:
    """One point of the grid: everything that decides what is trained and how it is scored."""

    backbone: Backbone = field(default_factory=Backbone)
    resolution: Resolution = field(default_factory=Resolution)
    resize: Resize = field(default_factory=Resize)
    projector: Projector = field(default_factory=Projector)
    llm: LanguageModel = field(default_factory=LanguageModel)
    stages: Stages = field(default_factory=Stages)
    tuning: Tuning = field(default_factory=Tuning)
    data_mix: DataMix = field(default_factory=DataMix)
    schedule: Schedule = field(default_factory=Schedule)
    suite: Suite = field(default_factory=Suite)
    engine: Engine = field(default_factory=Engine)
    cluster: Cluster = field(default_factory=Cluster)
    tracking: Tracking = field(default_factory=Tracking)
    store: Store = field(default_factory=Store)
    seed: int = 1


@dataclass
class Block:
    """One part of a study's grid; a grid is the union of its blocks."""

    vary: str = "product"
    """product | one-at-a-time (around the baseline) | together (paired, equally long lists)."""
    axes: dict[str, list[Any]] = field(default_factory=dict)


@dataclass
class Study:
    """A named set of cells with a baseline cell and the axes under test (`conf/study/`)."""

    description: str = ""
    base: dict[str, Any] = field(default_factory=dict)
    """Overrides of every cell: axis -> choice, or dotted key -> value. The baseline cell is exactly these."""
    grid: list[Block] = field(default_factory=list)
    exclude: list[dict[str, Any]] = field(default_factory=list)
    """A cell that agrees with all entries of one of these is left out."""
    seeds: list[int] = field(default_factory=lambda: [1])

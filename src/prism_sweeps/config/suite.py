"""What is asked of a trained model: benchmarks, one small declaration each, and suites of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from prism_sweeps.config.fields import LOCAL, local

ANSWERS = ("generate", "choice", "letter", "box")
LIKELIHOODS = ("full-string", "first-token")
SAMPLINGS = ("first", "random")
BOX_FRAMES = ("image", "padded")
BOX_UNITS = ("normalised", "pixels")
CONDITIONS = ("real", "blank", "shuffled")

SCORER_VERSIONS: dict[str, int] = {
    "vizwiz": 2,  # the contractions of its own table
    "gqa": 2,  # spaces inside of an answer count, as in eval.py
    "exact": 2,  # what is nothing but punctuation can be told apart
    "choice": 2,  # the same; areas under curves
    "pope": 2,
    "letter": 2,  # areas under curves
    "tallyqa": 2,
    "ai2d": 2,
    "iou": 2,  # boxes among other numbers are read; box_frame and box_units
}
"""Scorer -> version, where it is not the first: raised when what it says of the same answers changes, upon which these
are scored again, and not asked for again."""


@dataclass
class OfficialFile:
    """One file, or one folder of images, as its publisher has it."""

    path: str = local()
    """Where it is inside the folder of downloads, and where it is looked for under `--from`."""
    also: list[str] = field(default_factory=list, metadata=LOCAL)
    """Where else under `--from`: how others name it."""
    url: str | None = local(None)
    archive: str | None = local(None)
    """The zip or tar file that `url` gives and that holds it; null: `url` gives the file itself."""
    sha256: str | None = local(None)
    """Of the file at `path`, where it is known."""


@dataclass
class Origin:
    """The official files that an index is made from (`prism data prepare`)."""

    reader: str = local()
    """Which layout they have: a reader of this package, or `package.module:function` of one's own."""
    files: dict[str, OfficialFile] = field(default_factory=dict, metadata=LOCAL)
    """What the reader calls a file -> where it is."""
    images: dict[str, OfficialFile] = field(default_factory=dict, metadata=LOCAL)
    """What the index calls a folder of images -> where it is."""
    counts: dict[str, int | None] = field(default_factory=dict, metadata=LOCAL)
    """Examples there should be: `all`, or TAG=VALUE -> how many; null: some, and nobody says how many."""
    note: str = local("")
    """What is known where the counts are others."""


@dataclass
class Benchmark:
    name: str = MISSING
    index: str = MISSING
    """Folder with index.jsonl under the data root."""
    version: str = "1"
    """Of the index: raised when its rows change, or images under their names, since what was scored on others is found
    again by it."""
    prompt: str = MISSING
    """Template over {question}, {options}, {context}."""
    answer: str = MISSING
    """How an answer is obtained: generate | choice | letter | box."""
    choices: list[str] = field(default_factory=list)
    likelihood: str = "full-string"
    """Of an option. full-string: mean over its tokens. first-token: of its first one, as in the reference. Both say
    the same where each option is one token."""
    max_new_tokens: int = 16
    scorer: str = MISSING
    """One of this package, or `package.module:name` of one's own."""
    iou_threshold: float = 0.5
    box_frame: str = "image"
    """What a model's box is relative to. image: the picture. padded: the square it is shown, padding included."""
    box_units: str = "normalised"
    """normalised: 0 to 1. pixels: of the picture, or of the square where that is the frame."""
    examples: int | None = None
    """Only so many of the index; null is all."""
    sampling: str = "first"
    """Which: the first of the index; or random: drawn by their ids, a larger draw containing a smaller one."""
    each: str | None = None
    """A tag: `examples` counts for each of its values."""
    origin: Origin | None = local(None)


@dataclass
class Suite:
    name: str = local()
    benchmarks: dict[str, Benchmark] = field(default_factory=dict)
    conditions: list[str] = field(default_factory=lambda: ["real"])
    """What the model is shown: its image (real), a grey one (blank), another example's (shuffled)."""
    examples: int | None = None
    """Overrides `examples` of every benchmark when set."""

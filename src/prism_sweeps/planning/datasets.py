"""How many examples the datasets hold that this package prepares, and how long their texts are, without reading them.

Sizes are exact but for `lvis4v` and `lrv`, which skip diagrams (6 % of the pictures). Text lengths are means over 240
pictures at 3.5 characters a token, about what a tokenizer of the nano world or of English gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from prism_sweeps.config.schema import Source
from prism_sweeps.config.suite import Benchmark

NANO_WORLD = re.compile(r"nano-world-(\d+)")
NANO_BENCHMARKS = re.compile(r"nano-benchmarks(?:-(\d+))?")
NANO_BENCHMARK_EXAMPLES = 1000
EASY_VQA = {"train/chat.json": 4000, "captions/chat.json": 3181, "test": 9673}

PER_SCENE = {"align": 1.0, "instruct": 1.0, "language": 1 / 8, "lvis4v": 0.94 / 3, "lrv": 0.94 / 2}
"""Conversations per scene in each source of a nano world."""
TEXT_TOKENS = {"align": 46, "instruct": 177, "language": 114, "lvis4v": 139, "lrv": 63, "train": 216, "captions": 24}
"""By the folder of the chat file; the last two are easy-VQA's, few of whose words nano-base's tokenizer knows whole."""
LONGEST_TEXT = {"align": 100, "instruct": 400, "language": 200, "lvis4v": 400, "lrv": 100, "train": 400, "captions": 30}
"""Of the same, no conversation of 240 pictures was longer for nano-base's tokenizer, prompts included."""
OTHER_TEXT_TOKENS = 200
QUESTION_TOKENS = 30
"""A benchmark's prompt and answer."""


def known_examples(sources: Mapping[str, Source]) -> int | None:
    """Examples of all `sources` together, each cut to its own `examples`; None if one of them is not known."""
    counts = [_source_examples(source) for source in sources.values()]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def text_tokens(sources: Mapping[str, Source]) -> int:
    """Estimated text tokens of an example, averaged over `sources` by their sizes."""
    counted = [(_source_examples(source) or 1, _source_tokens(source)) for source in sources.values()]
    total = sum(count for count, _ in counted)
    return round(sum(count * tokens for count, tokens in counted) / total) if total else OTHER_TEXT_TOKENS


def longest_text(sources: Mapping[str, Source]) -> int | None:
    """Text tokens of the longest conversation in `sources`; None if one of them is not known."""
    found = [
        LONGEST_TEXT.get(source.file.partition("/")[0]) if _is_ours(source) else None for source in sources.values()
    ]
    known = [longest for longest in found if longest is not None]
    return max(known, default=None) if len(known) == len(found) else None


def benchmark_examples(benchmark: Benchmark) -> int | None:
    """Examples a benchmark asks about; None if neither it nor its dataset says, or not which values `each` has."""
    held = _held(benchmark)
    if benchmark.examples is None:
        return held
    if benchmark.each is None:
        return _least(held, benchmark.examples)
    parts = [count for key, count in _declared(benchmark).items() if key.startswith(f"{benchmark.each}=")]
    return _least(held, sum(_least(count, benchmark.examples) or 0 for count in parts)) if parts else None


def _held(benchmark: Benchmark) -> int | None:
    dataset, _, inside = benchmark.index.partition("/")
    nano = NANO_BENCHMARKS.fullmatch(dataset)
    if nano is not None:
        return int(nano[1] or NANO_BENCHMARK_EXAMPLES)
    return EASY_VQA.get(inside) if dataset == "easy-vqa" else _declared(benchmark).get("all")


def _declared(benchmark: Benchmark) -> Mapping[str, int | None]:
    return benchmark.origin.counts if benchmark.origin is not None else {}


def _source_examples(source: Source) -> int | None:
    nano = NANO_WORLD.fullmatch(source.dataset)
    if nano is not None:
        per_scene = PER_SCENE.get(source.file.partition("/")[0])
        held = None if per_scene is None else round(int(nano[1]) * per_scene)
    else:
        held = EASY_VQA.get(source.file) if source.dataset == "easy-vqa" else source.size
    return _least(held, source.examples)


def _is_ours(source: Source) -> bool:
    return source.dataset == "easy-vqa" or NANO_WORLD.fullmatch(source.dataset) is not None


def _source_tokens(source: Source) -> int:
    return TEXT_TOKENS.get(source.file.partition("/")[0], OTHER_TEXT_TOKENS)


def _least(held: int | None, wanted: int | None) -> int | None:
    return min((count for count in (held, wanted) if count is not None), default=None)

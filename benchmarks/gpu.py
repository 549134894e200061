"""Finetuning a 7B vision-language model on one GPU: how much of it is used, and what transformers' Trainer makes of it.

    python benchmarks/gpu.py [--minutes 25] [--only packed] [--precision bf16-true]
    python benchmarks/gpu.py --tiny          the same code on a CPU, with a model of a few thousand weights

Needs no network and no data: CLIP ViT-L/14 at 336 px (frozen), a two-layer projector and a Llama of Llama-2-7B's shape,
all with random weights made on the GPU; conversations as long as LLaVA-1.5's, images as JPEGs of noise. Every way is a
process of its own, so that memory is really free before the next: padded or packed rows, blocks compiled or not, and
what is computed again in backward; against `LlavaForConditionalGeneration` under `Trainer` in the same precision, on
the same global batches, with images that are tensors already. A way that does not fit says so. The best of either
side are then run in turn for as long as there are minutes.

MFU counts the model's own operations (config/flops.py) on real positions, over the vendor's dense peak; what is
computed twice or for padding is not in it. Ratios: `mfu` of our best way, `vs_trainer` its real tokens a second over
the Trainer's best. Rows on synchronisation say whether a step ever waits for the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gpu_ways as ways
import torch

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],  # Trainer takes all it sees
    "HF_HUB_OFFLINE": "1",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # lengths that change leave holes
}
"""Of both sides."""
HEADER = (
    "| way | s a step | tokens/s | supervised/s | padded/s | MFU | GB at most | graphs |\n"
    "|---|---|---|---|---|---|---|---|"
)
COLUMNS = ("seconds", "tokens_per_second", "supervised_per_second", "padded_per_second", "mfu", "peak_memory", "graphs")
FORMATS = ("{:.3f}", "{:,.0f}", "{:,.0f}", "{:,.0f}", "{:.3f}", "{:.1f}", "{}")


@dataclass(frozen=True)
class Budget:
    """Bytes a weight takes in training, and what an optimiser of 7B of them leaves of a GPU."""

    precision: str
    master: int
    gradient: int
    moments: int

    def needed(self, weights: float) -> float:
        return weights * (self.master + self.gradient + self.moments)


BUDGETS = (Budget("bf16", 4, 4, 8), Budget("bf16-true", 2, 2, 4))
ROOM = 1.12
"""What is needed besides, at least: one row's activations, frozen tower, logits."""


def chosen_precision(weights: float, memory: float) -> str:
    """The most exact one whose weights, gradients and moments fit; says how that was reckoned."""
    for budget in BUDGETS:
        needed = budget.needed(weights)
        each = f"{budget.master} + {budget.gradient} + {budget.moments}"
        fits = needed * ROOM < memory
        print(
            f"{budget.precision}: {weights / 1e9:.2f} G weights x ({each}) bytes = {needed / 1e9:.0f} GB of "
            f"{memory / 1e9:.0f}: {'fits' if fits else 'does not fit'}"
        )
        if fits:
            return budget.precision
    raise SystemExit("no precision fits on this GPU; --precision tries one nevertheless")


def measured(way: str, options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """What a process of its own found; `failed` says why there is nothing."""
    command = [sys.executable, __file__, "--child", way, "--precision", precision, "--steps", str(options.steps)]
    command += ["--images", str(options.images)] + (["--tiny"] if options.tiny else [])
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.limit, env=os.environ | ENVIRONMENT
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {options.limit} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"way"')]
    if not lines:
        said = (done.stderr or done.stdout).strip().splitlines() or ["said nothing"]
        print(f"{way}:\n" + "\n".join(said[-25:]), file=sys.stderr)
        return {"failed": f"exit code {done.returncode}: {said[-1][:200]}"}
    found: dict[str, Any] = json.loads(lines[-1])
    print(f"{way}: {time.monotonic() - began:.0f} s in all", file=sys.stderr, flush=True)
    return found


def row(way: str, found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"| {way} | {found['failed']} " + "| " * (len(COLUMNS) - 1) + "|"
    values = dict(found, peak_memory=found["peak_memory"] / 1e9)
    cells = [
        text.format(values[key]) if values.get(key) is not None else ""
        for key, text in zip(COLUMNS, FORMATS, strict=True)
    ]
    return f"| {way} | " + " | ".join(cells) + " |"


def best(found: dict[str, list[dict[str, Any]]], side: str) -> str | None:
    """The way of a side with the most real tokens a second."""
    speeds = {way: runs[0]["tokens_per_second"] for way, runs in found.items() if way.startswith(side) and runs}
    return max(speeds, key=speeds.__getitem__, default=None)


def compared(found: dict[str, list[dict[str, Any]]], ours: str, theirs: str) -> dict[str, Any]:
    pairs = [one["tokens_per_second"] / other["tokens_per_second"] for one in found[ours] for other in found[theirs]]
    print(f"{ours} / {theirs}: {statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f}) real tokens/s")
    return {
        "vs_trainer": round(statistics.median(pairs), 3),
        "vs_trainer_spread": [round(f(pairs), 3) for f in (min, max)],
    }


def run_all(options: argparse.Namespace, precision: str) -> dict[str, list[dict[str, Any]]]:
    """Every way once, then the best of both sides in turn; those that the minutes were too few for are told."""
    end = time.monotonic() + 60 * options.minutes
    found: dict[str, list[dict[str, Any]]] = {}
    print(HEADER, flush=True)

    def take(way: str) -> None:
        one = measured(way, options, precision)
        found.setdefault(way, []).extend([one] if "failed" not in one else [])
        print(row(way, one), flush=True)

    for way in ways.listed(options.tiny):
        if options.only and options.only not in way:
            continue
        if time.monotonic() < end:
            take(way)
        else:
            print(row(way, {"failed": "not run: no minutes left"}), flush=True)
    both = [way for side in ("ours", "trainer") if (way := best(found, side)) is not None]
    while len(both) == 2 and len(found[both[1]]) < options.rounds and time.monotonic() < end:
        for way in both:
            take(way)
    return found


def report(options: argparse.Namespace, precision: str, found: dict[str, list[dict[str, Any]]]) -> None:
    ours, theirs = best(found, "ours"), best(found, "trainer")
    ratios: dict[str, Any] = {}
    if ours is not None:
        ratios["mfu"] = statistics.median(run["mfu"] for run in found[ours])
    if ours is not None and theirs is not None:
        ratios |= compared(found, ours, theirs)
    checks = measured("waits", options, precision)
    for key in sorted(checks.keys() - {"way"}):
        places = checks[key]
        told_of = f"{len(places)} {' '.join(places)}" if isinstance(places, list) else places
        print(f"host waits in a step, {key.replace('_', ' ')}: {told_of}")
    told = {"precision": precision, "device": ways.device_name(ways.device()), "best": ours, "waits": checks}
    print(json.dumps({"benchmark": "gpu", "ratios": ratios, **told, "ways": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no way is begun (default: 25)")
    parser.add_argument("--only", help="ways whose name has this in it")
    parser.add_argument("--precision", choices=["bf16", "bf16-true", "fp32"], help="default: the best that fits")
    parser.add_argument("--steps", type=int, default=6, help="timed, after two that are not (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, help="of the two best ways, at most (default: 3)")
    parser.add_argument("--images", type=int, default=4, help="processes that read images (default: 4)")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one way (default: 600)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on whatever is here, to try the code")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = ways.TINY if options.tiny else ways.SEVEN_B
    if options.child:
        with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
            asked = ways.Asked(options.child, shape, options.precision, options.steps, options.images, Path(folder))
            print(json.dumps({"way": options.child} | ways.measure(asked)))
        return
    if options.tiny:
        options.steps, options.rounds, options.images = 2, 1, 1
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --tiny runs the same code on a CPU")
    print(f"{ways.device_name(ways.device())}, torch {torch.__version__}; {asdict(shape)}")
    precision = options.precision
    if precision is None:
        memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 1e9
        precision = chosen_precision(ways.trained_weights(shape), memory)
    report(options, precision, run_all(options, precision))


if __name__ == "__main__":
    main()

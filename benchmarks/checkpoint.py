"""What checkpoints cost a run: steps with one under way against steps without.

    python benchmarks/checkpoint.py [--width 640] [--steps 40] [--rounds 5] [--ranks 1] [--folder FOLDER]

Trains a random Llama through the package's loop, in blocks in turn: without a checkpoint; with one halfway through the
block, written in the background; with one that is waited for. A block's time is that of all its steps, begun and
written checkpoint included. The default is one of 500 MB every 40 steps, some 20 seconds of a core, which is how often
a run has one where nobody says otherwise. Several processes (`--ranks 1 2`, thrice the time) train under FSDP2 over
gloo, a thread each.

First it is asserted that losses with checkpoints are those without, bit for bit, and so are those of a run that goes on
from one. `step_time_kept` is the time without / with, of each round, written in the background; `cpu_time_kept`
the same of all threads' CPU time: what is kept where no core is free to write with. On a busy machine only the latter
can be believed.
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
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from made_stage import TINY_TOWER, Bench, bench, example, model_spec, random_llama, stage_spec
from torch import Tensor

from prism_sweeps.config.schema import Engine
from prism_sweeps.config.specs import ModelSpec
from prism_sweeps.tracking.records import Store
from prism_sweeps.training.saving import Checkpoints, load_newest
from prism_sweeps.training.stage import build_model
from prism_sweeps.training.world import World, joined, place_in

WAYS = ("none", "background", "waited for")
ENGINE = Engine(name="benchmark", device="cpu", checkpoint_seconds=1e9, sharding="grad-only")
LENGTH = 24


class WaitedFor(Checkpoints):
    """Written before the next step."""

    def begin(self, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> float:
        waited = super().begin(step, tensors, state)
        self.finish()
        return waited


def built(model: ModelSpec, steps: int, world: World, store: Store, batch: int = 4) -> Bench:
    spec = stage_spec(model, batch)
    examples = [example(n, LENGTH, None, 16, model.llm.vocabulary) for n in range(4 * batch)]
    return bench(spec, partial(build_model, spec, store), examples, steps, ENGINE, world, store)


def made_model(width: int, depth: int = 8) -> ModelSpec:
    return model_spec(TINY_TOWER, 32, random_llama(width, depth, 8, 3 * width, 4096, 256))


def check_equal(make: Callable[[], Bench], folder: Path, steps: int = 4) -> None:
    """Raises AssertionError where a checkpoint changes the steps beside it, or the steps after it are others."""
    half, plain, saving = steps // 2, make(), make()
    checkpoints = Checkpoints(folder / "check", 2, saving.world.control)
    losses = losses_of(plain.run(steps, checkpoints))
    with_one = losses_of(saving.run(steps, checkpoints, checkpoint_steps=half))
    assert with_one == losses, "checkpoints change the losses"
    again = make()
    assert load_newest(folder / "check", again.trainer.state(), again.world.control).step == half
    again.done = half
    assert losses_of(again.run(steps - half, checkpoints)) == losses[half:], "the steps after a checkpoint are others"


def losses_of(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows]


def timed(one: Bench, ways: Mapping[str, Checkpoints], steps: int, rounds: int) -> list[dict[str, dict[str, float]]]:
    """Of each round and way: wall and CPU seconds of so many steps, and those in which the loop stood still."""
    found = []
    for turn in range(-1, rounds):
        times = {}
        for way, checkpoints in ways.items():
            every = None if way == "none" else steps // 2
            begun = stood_still(checkpoints)
            wall, cpu = time.perf_counter(), time.process_time()
            one.run(steps, checkpoints, checkpoint_steps=every)
            times[way] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "begin": sum(begun)}
        if turn < 0:
            continue  # the first writes into fresh memory
        found.append(times)
        told = ", ".join(f"{way} {each['wall']:.2f} s" for way, each in times.items())
        if one.world.first:
            print(f"round {turn + 1}: {told}", file=sys.stderr, flush=True)
    return found


def stood_still(checkpoints: Checkpoints) -> list[float]:
    """Lets `checkpoints` take down the seconds of every `begin`."""
    seconds: list[float] = []
    begin = type(checkpoints).begin

    def clocked(*arguments: Any) -> float:
        began = time.perf_counter()
        waited = begin(checkpoints, *arguments)
        seconds.append(time.perf_counter() - began)
        return waited

    checkpoints.begin = clocked  # type: ignore[method-assign]
    return seconds


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """In one of several processes, or alone."""
    torch.set_num_threads(1)
    engine = ENGINE
    with joined(place_in(os.environ), engine) as world:
        store = Store.open(folder / f"store-{world.rank}")
        check_equal(partial(built, made_model(64, 2), 8, world, store), folder)
        one = built(made_model(options.width), len(WAYS) * options.steps * (options.rounds + 1), world, store)
        ways = {
            "none": Checkpoints(folder / "none", 2, world.control),
            "background": Checkpoints(folder / "background", 2, world.control),
            "waited for": WaitedFor(folder / "waited", 2, world.control),
        }
        size = sum(tensor.numel() * tensor.element_size() for tensor in one.trainer.state().values())
        return {"rounds": timed(one, ways, options.steps, options.rounds), "bytes": size, "rank": world.rank}


def started(options: argparse.Namespace, ranks: int) -> dict[str, Any]:
    """What the first of so many processes measured."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=options.folder) as folder:
        arguments = [__file__, "--child", folder, "--width", str(options.width)]
        arguments += ["--steps", str(options.steps), "--rounds", str(options.rounds)]
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *(several if ranks > 1 else []), *arguments]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(next(line for line in said.splitlines() if line.startswith('{"rounds"')))


def kept(found: dict[str, Any], way: str, clock: str) -> list[float]:
    """Of each round: the time without checkpoints over that with."""
    return [each["none"][clock] / each[way][clock] for each in found["rounds"]]


def table(found: dict[str, Any], steps: int, ranks: int) -> dict[str, float]:
    """Prints it; returns the ratios."""
    print(f"\n{ranks} process{'es' * (ranks > 1)}, {found['bytes'] / 1e6:.0f} MB in {steps} steps")
    print("| checkpoint | s a step | CPU s a step | begin, s | kept, median (min to max) | kept of CPU time |")
    print("|---|---|---|---|---|---|")
    for way in WAYS:
        wall, cpu, begin = (
            statistics.median(each[way][key] for each in found["rounds"]) for key in ("wall", "cpu", "begin")
        )
        ratios = " | ".join(
            f"{statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})"
            for each in (kept(found, way, "wall"), kept(found, way, "cpu"))
        )
        print(f"| {way} | {wall / steps:.3f} | {cpu / steps:.3f} | {begin:.2f} | {ratios} |", flush=True)
    names = {"step_time_kept": "wall", "cpu_time_kept": "cpu"}
    return {name: round(statistics.median(kept(found, "background", clock)), 3) for name, clock in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=640, help="channels of the Llama (default: 640, 500 MB)")
    parser.add_argument("--steps", type=int, default=40, help="of a block, one checkpoint in each (default: 40)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1], help="processes, e.g. 1 2 (default: 1)")
    parser.add_argument("--folder", help="where checkpoints go (default: the system's temporary folder)")
    parser.add_argument("--quick", action="store_true", help="a small model and few steps, in under a minute")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.width, options.steps, options.rounds = 256, 8, 2
    if options.child:
        found = measured(options, options.child)
        if found["rank"] == 0:
            print(json.dumps(found))
        return
    ratios = {}
    for ranks in options.ranks:
        found = table(started(options, ranks), options.steps, ranks)
        ratios |= {name + (f"_{ranks}_ranks" if ranks > 1 else ""): ratio for name, ratio in found.items()}
    print(json.dumps({"benchmark": "checkpoint", "ratios": ratios}))


if __name__ == "__main__":
    main()

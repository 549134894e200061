"""Training steps of this package beside those of transformers' Trainer: same model, weights, batches, learning rates.

    python benchmarks/train.py [--quick] [--steps 13] [--threads 1 2] [--compile] [--reference PRISMATIC_CHECKOUT]

LLaVA's second stage (tower frozen, projector and language model trained) on a small model with a real head; what is
trained on what, training_data.py says. All begin with the same weights, at the same loss (asserted), and stay on the
same curve (its largest difference is told). One session: after each step of Trainer all others take theirs, in turns,
and a ratio is Trainer's time over another's time for that very batch, so above 1 the other is faster. Median and 10 to
90 % over the steps, the first three left out. Memory: each alone in a process of its own.

Batches are of about equal length, as with Trainer's `group_by_length`; with `--batching packed` they are as they come,
as in Trainer by default. `ours` pads, as Trainer does. The lines below it change one thing each: logits of all
positions instead of supervised ones, AdamW that is not fused, rows packed instead of padded, features of the frozen
tower from the store (filling it is not counted), blocks compiled; then those that gain, together. With `--reference`,
the model of the reference (MIT, github.com/TRI-ML/prismatic-vlms) makes the same steps from a checkout of yours, as it
ships and without recomputation.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from training_data import (
    ENGINE,
    SMALL,
    WORLD,
    Geometry,
    batches_of,
    computed,
    draw_images,
    export,
    made_corpus,
    stage_spec,
)
from training_reference import reference_step, why_not
from training_trainer import trainer_of

from prism_sweeps.config.specs import StageSpec
from prism_sweeps.data.batching import Example
from prism_sweeps.data.steps import StepData, StepMaker
from prism_sweeps.models.batch import Batch
from prism_sweeps.models.vlm import VLM
from prism_sweeps.tracking.records import Store
from prism_sweeps.training.corpus import Corpus
from prism_sweeps.training.loop import Trainer
from prism_sweeps.training.stage import build_model, build_trainer, features_of, feed

WARM = 3
"""Steps that are not timed: memory is touched for the first time, blocks are compiled."""
SHORT = 4
"""Steps that memory is measured over."""
PEER = "Trainer"
OURS = {
    "ours": set(),
    "all logits": {"logits"},
    "AdamW not fused": {"unfused"},
    "packed": {"packed"},
    "cached features": {"cached"},
    "packed, cached": {"packed", "cached"},
}
COMPILED = {"compiled": {"compiled"}, "packed, cached, compiled": {"packed", "cached", "compiled"}}
REFERENCE = {"reference": True, "reference, nothing recomputed": False}
Step = Callable[[int], float]
"""Takes the step of this number (from 0); returns its loss."""


@dataclass(frozen=True)
class Setting:
    """What all sides share."""

    geometry: Geometry
    spec: StageSpec
    maker: StepMaker
    store: Store
    folder: Path
    """For what is written on the way."""

    @property
    def used(self) -> list[Example]:
        """In the order of the batches."""
        return [self.maker.examples[index] for batch in self.maker.batches for index in batch]

    @property
    def exported(self) -> Path:
        return self.folder / "llava"


def setting_in(folder: Path, geometry: Geometry, steps: int, batching: str) -> Setting:
    spec = stage_spec(geometry, batching)
    maker = batches_of(spec, made_corpus(geometry, folder / "images"), steps)
    store = Store.open(folder / "store")
    found = Setting(geometry, spec, maker, store, folder)
    draw_images(found.used)
    if not found.exported.exists():
        export(spec, store, found.exported)
    return found


# ---- our side


def our_step(setting: Setting, changes: set[str]) -> Step:
    """The engine's step on the engine's data, with `changes`."""
    engine = replace(ENGINE, feature_cache="cached" in changes, compile="compiled" in changes)
    spec = computed(setting.spec, "packed" in changes)
    vlm = build_model(spec, setting.store)
    trainer = build_trainer(spec, vlm, len(setting.maker.batches), engine, WORLD)
    features = features_of(spec, vlm, Corpus(setting.used, []), setting.store, engine, silent, never, WORLD)
    if "logits" in changes:
        vlm.loss = partial(loss_over_all_positions, vlm)
    if "unfused" in changes:
        unfuse(trainer)
    layout = replace(setting.maker.layout, packed="packed" in changes, features=features)
    if layout.packed and engine.compile:
        layout = replace(layout, positions=longest_batch(setting.maker))
    maker = replace(setting.maker, layout=layout)
    data = feed(maker, range(len(maker.batches)), engine, WORLD)
    return lambda number: taken(trainer, number, data)


def taken(trainer: Trainer, number: int, data: Iterator[StepData]) -> float:
    return float(trainer.step(number, next(data)).loss)


def loss_over_all_positions(vlm: VLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """As most models of transformers have it: logits_AV of all positions, most of whose labels are ignored."""
    hidden_BSD = vlm.llm.base_model(inputs_embeds=vlm.lay_out(batch), use_cache=False).last_hidden_state
    logits_AV = vlm.llm.get_output_embeddings()(hidden_BSD).flatten(0, 1).float()
    labels_A = torch.full((len(logits_AV),), -100).index_copy(0, batch.target_at_M, batch.targets_M)
    loss = cross_entropy(logits_AV, labels_A)
    return loss, (loss.detach() * len(batch.targets_M))[None]


class UnfusedAdamW(torch.optim.AdamW):
    """Takes every step: to leave bad ones out is what only the fused one can be told."""

    def step(self, closure: None = None) -> None:
        self.grad_scale = self.found_inf = None
        super().step()


def unfuse(trainer: Trainer) -> None:
    keys = ("params", "peak", "lr", "weight_decay")
    groups = [{key: group[key] for key in keys} for group in trainer.optimiser.param_groups]
    trainer.optimiser = UnfusedAdamW(groups, betas=trainer.optimiser.defaults["betas"])


def longest_batch(maker: StepMaker) -> int:
    """One length of a row for all steps, so that it is compiled once."""
    return max(sum(maker.examples[index].length for index in batch) for batch in maker.batches)


def silent(done: int, total: int, note: str) -> None:
    pass


def never() -> bool:
    return False


def step_of(name: str, setting: Setting) -> Step:
    """Any side but Trainer's, which has its own loop."""
    if name not in REFERENCE:
        return our_step(setting, (OURS | COMPILED)[name])
    vlm, spec = build_model(setting.spec, setting.store), setting.spec
    return reference_step(vlm, spec.model, setting.maker, spec.stage, recomputed=REFERENCE[name])


# ---- in turns


@dataclass
class Turns:
    """Lets every side take a step after each step of Trainer, and keeps all times and losses."""

    sides: dict[str, Step]
    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Wall and CPU, by side."""
    losses: dict[str, list[float]] = field(default_factory=dict)
    began: tuple[float, float] = (0.0, 0.0)

    def __call__(self, done: int) -> None:
        """Called when Trainer has done so many steps."""
        if done:
            self.note(PEER)
            names = list(self.sides)
            for name in names[done % len(names) :] + names[: done % len(names)]:  # each comes first in turn
                self.began = now()
                loss = self.sides[name](done - 1)
                self.note(name)
                self.losses.setdefault(name, []).append(loss)
            print(f"  step {done}: " + ", ".join(f"{self.seconds[name][-1][1]:.2f}" for name in (PEER, *names)))
            sys.stdout.flush()
        self.began = now()

    def note(self, name: str) -> None:
        wall, cpu = now()
        self.seconds.setdefault(name, []).append((wall - self.began[0], cpu - self.began[1]))


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def compared(setting: Setting, sides: dict[str, Step]) -> Turns:
    """All sides side by side. Raises AssertionError where one does not begin at Trainer's loss, within 1e-4."""
    turns = Turns(sides)
    with tempfile.TemporaryDirectory(dir=setting.folder) as output:
        trainer = trainer_of(setting.exported, setting.maker, setting.spec.stage, Path(output), turns)
        trainer.train()
    turns.losses[PEER] = [float(loss) for loss in trainer.losses]
    for name, losses in turns.losses.items():
        assert abs(losses[0] - turns.losses[PEER][0]) < 1e-4, f"{name} begins at {losses[0]}: {turns.losses[PEER][0]}"
    return turns


# ---- what is told


def row(turns: Turns, name: str, maker: StepMaker) -> dict[str, float | list[float]]:
    """Medians of one side; ratios with their 10 and 90 %."""
    wall, cpu = np.array(turns.seconds[name][WARM:]).T
    peer_wall, peer_cpu = np.array(turns.seconds[PEER][WARM:]).T
    chosen = [[maker.examples[index] for index in batch] for batch in maker.batches[WARM:]]
    supervised = sum(int(example.supervised_T.sum()) for batch in chosen for example in batch)
    real = sum(example.length for batch in chosen for example in batch)
    pairs = zip(turns.losses[name], turns.losses[PEER], strict=True)
    return {
        "wall": float(np.median(wall)),
        "cpu": float(np.median(cpu)),
        "supervised_per_second": supervised / wall.sum(),
        "tokens_per_second": real / wall.sum(),
        "wall_vs_trainer": np.percentile(peer_wall / wall, [50, 10, 90]).tolist(),
        "cpu_vs_trainer": np.percentile(peer_cpu / cpu, [50, 10, 90]).tolist(),
        "curve": max(abs(mine - theirs) for mine, theirs in pairs),
    }


HEAD = f"{'side':29} | wall s | CPU s | supervised/s | real/s | wall: Trainer / it | CPU: Trainer / it  | curve"


def line(name: str, found: dict[str, float | list[float]]) -> str:
    wall, cpu = ("{:.2f} ({:.2f}-{:.2f})".format(*found[key]) for key in ("wall_vs_trainer", "cpu_vs_trainer"))
    return (
        f"{name:29} | {found['wall']:6.3f} | {found['cpu']:5.3f} | {found['supervised_per_second']:12.0f} | "
        f"{found['tokens_per_second']:6.0f} | {wall:18} | {cpu:18} | {found['curve']:.0e}"
    )


def told(turns: Turns, maker: StepMaker) -> dict[str, dict[str, float | list[float]]]:
    found = {name: row(turns, name, maker) for name in (PEER, *turns.sides)}
    print(HEAD, *(line(name, each) for name, each in found.items()), sep="\n", flush=True)
    return found


# ---- memory


def alone(name: str, setting: Setting) -> None:
    """One side by itself; prints its peak of resident memory, and what the imports took of it (MiB)."""
    before = peak()
    if name == PEER:
        with tempfile.TemporaryDirectory() as output:
            trainer_of(setting.exported, setting.maker, setting.spec.stage, Path(output), lambda done: None).train()
    else:
        step = step_of(name, setting)
        for number in range(len(setting.maker.batches)):
            step(number)
    print(json.dumps([peak(), before]))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peaks(names: list[str], folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """MiB of each side above the imports."""
    found = {}
    for name in names:
        command = [sys.executable, __file__, "--alone", name, "--folder", str(folder), "--batching", options.batching]
        command += ["--steps", str(SHORT)] + (["--small"] if options.small else [])
        command += ["--reference", str(options.reference)] if options.reference else []
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        highest, before = json.loads(said.splitlines()[-1])
        print(f"{name}: {highest:.0f} MiB at most, {highest - before:.0f} above the imports", flush=True)
        found[name] = round(highest - before)
    return found


# ---- the whole


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=13, help="of each side, the first three not timed")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--batching", choices=("grouped", "packed"), default="grouped", help="what shares a batch")
    parser.add_argument("--sides", nargs="+", choices=(*OURS, *COMPILED), help="of ours; all by default")
    parser.add_argument("--compile", action="store_true", help="also with compiled blocks (minutes)")
    parser.add_argument("--reference", type=Path, help="a checkout of TRI-ML/prismatic-vlms")
    parser.add_argument("--quick", action="store_true", help="8 steps, without ablation and memory")
    parser.add_argument("--small", action="store_true", help="a model that shows nothing but that the script runs")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    geometry = SMALL if options.small else Geometry()
    if options.alone:
        torch.set_num_threads(1)
        why_not(options.reference)  # makes it importable
        alone(options.alone, setting_in(options.folder, geometry, options.steps, options.batching))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare_all(options, geometry, Path(folder))


def compare_all(options: argparse.Namespace, geometry: Geometry, folder: Path) -> None:
    names = options.sides or (["ours", "packed"] if options.quick else [*OURS, *(COMPILED if options.compile else ())])
    if reason := why_not(options.reference):
        print(f"without the reference: {reason}", flush=True)
    else:
        names += REFERENCE
    setting = setting_in(folder, geometry, 8 if options.quick else options.steps, options.batching)
    found = {}
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(
            f"{threads} threads, load {os.getloadavg()[0]:.1f}; CPU seconds of {PEER}, {', '.join(names)}:", flush=True
        )
        turns = compared(setting, {name: step_of(name, setting) for name in names})
        found[threads] = told(turns, setting.maker)
    memory = {} if options.quick else peaks([PEER, *names], folder, options)
    print(json.dumps({"benchmark": "train", **summary(found, names), "peak_mib": memory}))


def summary(found: dict[int, dict[str, dict[str, float | list[float]]]], names: list[str]) -> dict[str, object]:
    """The ratios that count: of the first side, with all threads; then all there are."""
    keys = ("wall_vs_trainer", "cpu_vs_trainer")
    best = found[max(found)]
    return {
        "ratios": {key: round(best[names[0]][key][0], 3) for key in keys},
        "threads": {
            threads: {name: {key: [round(part, 3) for part in rows[name][key]] for key in keys} for name in names}
            for threads, rows in found.items()
        },
    }


if __name__ == "__main__":
    main()

"""What processes gain from huge pages, for tensors and for Python's objects, and from not collecting the imports.

    python benchmarks/process_settings.py [--rounds 3] [--steps 8]

Each round starts one process per setting, in turn, and lets it do the same training steps of a language model of
nano-base's shape (16 rows of 250 tokens). Ratios are of CPU seconds, of the imports and of a step: plain / with the
setting.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time

HUGE = "glibc.malloc.hugetlb=1"
SETTINGS = {
    "plain": ({"GLIBC_TUNABLES": "", "PYTHONMALLOC": ""}, False),
    "huge_pages": ({"GLIBC_TUNABLES": HUGE, "PYTHONMALLOC": ""}, False),
    "huge_pages_for_python": ({"GLIBC_TUNABLES": HUGE, "PYTHONMALLOC": "malloc"}, False),
    "imports_set_aside": ({"GLIBC_TUNABLES": "", "PYTHONMALLOC": ""}, True),
    "all": ({"GLIBC_TUNABLES": HUGE, "PYTHONMALLOC": "malloc"}, True),
}
"""Name -> environment, whether the heap is frozen after the imports."""


def seconds(frozen: bool, steps: int) -> dict[str, float]:
    """CPU seconds of the imports and of a step, after one to warm up, and what the collector would walk."""
    import torch

    import prism_sweeps.launching.worker as worker
    from prism_sweeps.config.compose import design_space
    from prism_sweeps.training.zoo.language import new_llama

    worker.warm_up(worker.PRELOAD)
    imports = time.process_time()
    torch.manual_seed(0)
    model = new_llama(design_space().part("llm", "nano-base", {}))
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    ids_BT = torch.randint(0, model.config.vocab_size, (16, 250))
    objects = len(gc.get_objects())
    if frozen:
        gc.freeze()

    def step() -> None:
        model(input_ids=ids_BT, labels=ids_BT).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    step()
    began = time.process_time()
    for _ in range(steps):
        step()
    return {"imports": imports, "step": (time.process_time() - began) / steps, "objects": objects}


def measured(setting: str, steps: int) -> dict[str, float]:
    environment, _ = SETTINGS[setting]
    command = [sys.executable, __file__, "--setting", setting, "--steps", str(steps)]
    found = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--setting", choices=SETTINGS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.setting:
        print(json.dumps(seconds(SETTINGS[options.setting][1], options.steps)))
        return
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for turn in range(options.rounds):
        for name in SETTINGS:
            found = measured(name, options.steps)
            rounds[name].append(found)
            spent = f"{found['imports']:.1f} CPU s to import, {found['step']:.3f} a step"
            print(f"round {turn + 1} {name}: {spent}, {found['objects']} objects", flush=True)
    ratios = {}
    for name in list(SETTINGS)[1:]:
        for part in ("imports", "step"):
            pairs = [plain[part] / other[part] for plain, other in zip(rounds["plain"], rounds[name], strict=True)]
            print(f"{part}, plain / {name}: {statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})")
            ratios[f"{name}_{part}"] = round(statistics.median(pairs), 3)
    print(json.dumps({"benchmark": "process_settings", "ratios": ratios}))


if __name__ == "__main__":
    main()

"""Host memory that loading a language model takes, over the size of its weights in bf16.

    python benchmarks/loading.py [--megabytes 1000] [--shards 4]

Writes a Llama with random bf16 weights as sharded safetensors, and loads it in a fresh process per way: as this package
does, in bf16 and in fp32; and without a meta device, into a model of random fp32 weights that was built first. Every
tensor is read once afterwards, so that pages which are only mapped count too. Ratios are of the highest resident memory
over what the imports took; `_own` is without the pages that mirror the files, which the system takes back when memory
is short.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from prism_sweeps.config.schema import LanguageModel
from prism_sweeps.models.language import PreTrainedModel, empty_language_model, load_language_model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WAYS = (*DTYPES, "filled_fp32")
WIDTH, VOCABULARY = 1024, 32000


def made_model(where: str, megabytes: int) -> LanguageModel:
    """A Llama of about so many megabytes in bf16."""
    block = 2 * (4 * WIDTH**2 + 3 * WIDTH * 4 * WIDTH)
    depth = max(1, round((megabytes * 2**20 - 4 * VOCABULARY * WIDTH) / block))
    return LanguageModel("made", where, "in-out", WIDTH, depth, 16, 16, 4 * WIDTH, VOCABULARY, 2048)


def load(way: str, llm: LanguageModel) -> PreTrainedModel:
    """Read one of WAYS."""
    if way in DTYPES:
        return load_language_model(llm, DTYPES[way])
    model = load_language_model(replace(llm, weights="random:1"))
    tensors = {name: each for file in Path(llm.weights).glob("*.safetensors") for name, each in load_file(file).items()}
    model.load_state_dict(tensors)
    return model


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: all, and those that no file backs."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))


def measured(way: str, llm: LanguageModel) -> dict[str, float]:
    """Highest resident memory while loading and reading once, over the bf16 size, and seconds."""
    size = 2 * sum(each.numel() for each in empty_language_model(llm).parameters())
    before, highest, done = resident(), [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            highest[:] = map(max, highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    model = load(way, llm)
    seconds = time.perf_counter() - began
    for each in model.parameters():
        each.detach().view(torch.uint8).flatten()[::512].sum()
    done.set()
    watcher.join()
    highest[:] = map(max, highest, resident())
    peak, own = ((high - low) / size for high, low in zip(highest, before, strict=True))
    return {"peak": peak, "own": own, "seconds": seconds, "size": size / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(measured(options.ways[0], made_model(options.folder, options.megabytes))))
        return
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        model = load_language_model(made_model("random:1", options.megabytes), torch.bfloat16)
        model.save_pretrained(folder, max_shard_size=f"{options.megabytes // options.shards + 1}MB")
        for way in options.ways:
            command = [sys.executable, __file__, "--folder", folder, "--ways", way]
            command += ["--megabytes", str(options.megabytes)]
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found = json.loads(said.splitlines()[-1])
            print(
                f"{way}: {found['peak']:.2f} times {found['size']:.0f} MiB at most, {found['own']:.2f} of it its own, "
                f"{found['seconds']:.1f} s",
                flush=True,
            )
            ratios |= {way: round(found["peak"], 3), f"{way}_own": round(found["own"], 3)}
    print(json.dumps({"benchmark": "loading", "ratios": ratios}))


if __name__ == "__main__":
    main()

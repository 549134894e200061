"""Whether two commits train alike: the same short run by each, its loss curves compared step by step.

    python benchmarks/loss_equality.py A B [--steps 20] [--tolerance 0] [--overrides stages=nano-two-stage seed=2 ...]

A and B are commits, tags or branches; `.` is the working tree as it is. Their sources and design spaces are laid out in
a temporary folder each, and `prism train` of a nano cell runs from there on one thread; all else is read from its
records, so it does not matter how much of the inside has changed. The conversations are prepared once, by A, for both.

Exit code 0 where no loss or gradient norm differs by more than the tolerance (relative; 0 asks for equal bits), else 1.
A step whose tokens differ trained on other conversations: then order or preparation has changed, not the arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
QUICKLY_SCORED = ("suite=small-nano", "suite.examples=1", "suite.conditions=[real]", "tracking.mlflow=false")
COMPARED = ("loss", "grad_norm")
COUNTED = ("examples", "tokens", "supervised_tokens")
"""Of a step's conversations; what one of the two does not record is left out."""

Curves = dict[str, list[dict[str, Any]]]
"""Stage -> its metrics, by step."""


@dataclass(frozen=True)
class Difference:
    stage: str
    step: int
    what: str
    size: float
    """Relative; infinite where there is a number on one side only."""


def lay_out(commit: str, folder: Path) -> None:
    """The package of a commit with its design space inside, as it is installed.

    Importing prism_sweeps.conf would else fall through to the installed package, so to another commit's design space.
    """
    source = REPOSITORY
    if commit != ".":
        source = folder / "tree"
        source.mkdir(parents=True)
        archive = ["git", "-C", str(REPOSITORY), "archive", "--format=tar", commit, "src/prism_sweeps", "conf"]
        tar = subprocess.run(archive, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(source)], input=tar, check=True)
    junk = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source / "src" / "prism_sweeps", folder / "prism_sweeps", ignore=junk)
    shutil.copytree(source / "conf", folder / "prism_sweeps" / "conf", ignore=junk, dirs_exist_ok=True)


def trained(folder: Path, data: Path, overrides: list[str]) -> Curves:
    """The curves of `prism train`, run with the package in `folder`. Raises CalledProcessError when it fails."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    environment.pop("PRISM_STORE", None)
    check_imports(folder, environment)
    command = [sys.executable, "-m", "prism_sweeps.cli", "train", "--store", str(folder / "store")]
    command += [f"store.data={data}", "engine.workers=1", *QUICKLY_SCORED, *overrides]
    subprocess.run(command, cwd=folder, env=environment, stdout=sys.stderr, check=True)
    (file,) = (folder / "store" / "studies").glob("*/plan.json")
    jobs = json.loads(file.read_text(encoding="utf-8"))["jobs"].values()
    rows = {job["title"].partition(":")[0]: metrics(folder / "store" / "jobs" / job["fingerprint"]) for job in jobs}
    return {stage: found for stage, found in rows.items() if found}


def check_imports(folder: Path, environment: dict[str, str]) -> None:
    """Raises RuntimeError where another package than that in `folder` would run."""
    code = "import prism_sweeps, prism_sweeps.conf as c; print(*prism_sweeps.__path__, *c.__path__, sep='\\n')"
    told = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, check=True)
    for place in told.stdout.decode().split():
        if not Path(place).resolve().is_relative_to(folder.resolve()):
            raise RuntimeError(f"{place} would run instead of what is in {folder}")


def metrics(job: Path) -> list[dict[str, Any]]:
    file = job / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def differences(a: Curves, b: Curves) -> list[Difference]:
    """All of them, in the order of the steps. Raises ValueError where stages or their lengths differ."""
    sizes = [{stage: len(rows) for stage, rows in curves.items()} for curves in (a, b)]
    if sizes[0] != sizes[1] or not sizes[0]:
        raise ValueError(f"the two have other stages or numbers of steps: {sizes[0]} and {sizes[1]}")
    found = []
    for stage, rows in a.items():
        for mine, theirs in zip(rows, b[stage], strict=True):
            for what in COMPARED + COUNTED:
                one, other = mine.get(what, theirs.get(what)), theirs.get(what, mine.get(what))
                if one != other:
                    found.append(Difference(stage, mine["step"], what, relative(one, other)))
    return found


def relative(one: float | None, other: float | None) -> float:
    if one is None or other is None:
        return float("inf")
    return abs(one - other) / max(abs(one), abs(other))


def report(a: Curves, found: list[Difference]) -> float:
    """Prints what differs, and returns the largest difference of a loss or norm; infinite for other conversations."""
    steps = sum(map(len, a.values()))
    print(f"{steps} steps of {', '.join(a)}")
    print("| what | steps that differ | first, by how much | largest, relative |\n|---|---|---|---|")
    for what in COMPARED + COUNTED:
        these = [each for each in found if each.what == what]
        first = f"{these[0].stage} {these[0].step}, {these[0].size:.1e}" if these else ""
        print(f"| {what} | {len(these)} | {first} | {max((each.size for each in these), default=0.0):.2e} |")
    others = {(each.stage, each.step) for each in found if each.what in COUNTED}
    if others:
        print(f"{len(others)} steps trained on other conversations: their losses cannot be compared")
        return float("inf")
    return max((each.size for each in found), default=0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="a commit, or . for the working tree")
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument("--steps", type=int, default=20, help="of the last stage, at most (default: 20)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative difference allowed (default: 0)")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE", help="of the nano cell")
    options = parser.parse_args()
    overrides = [f"schedule.max_steps={options.steps}", *options.overrides]
    with tempfile.TemporaryDirectory(prefix="loss-equality-") as temporary:
        curves = []
        for name, commit in (("a", options.a), ("b", options.b)):
            folder = Path(temporary) / name
            lay_out(commit, folder)
            print(f"training with {name.upper()}, {commit}", flush=True)
            curves.append(trained(folder, Path(temporary) / "data", overrides))
    found = differences(*curves)
    largest = report(curves[0], found)
    first = {"stage": found[0].stage, "step": found[0].step} if found else None
    told = {"max_difference": str(largest) if largest == float("inf") else largest, "first": first}
    print(json.dumps({"benchmark": "loss_equality", "ratios": {}, **told, "a": options.a, "b": options.b}))
    return int(largest > options.tolerance)


if __name__ == "__main__":
    sys.exit(main())

"""`prism data prepare` as somebody gives it, who has official files and declarations in a folder of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from official_files import Case

from prism_sweeps import cli
from prism_sweeps.config.compose import design_space
from prism_sweeps.config.suite import Benchmark


def declare(at: Path, name: str, case: Case, **fields: Any) -> None:
    """The benchmark with the counts of a case, as the error about counts says it is declared."""
    content = {
        "defaults": [name, "_self_"],
        "name": f"my-{name}",
        "index": f"my/{name}",
        "origin": {"counts": case.counts},
        **fields,
    }
    (at / f"conf/benchmark/my-{name}.yaml").write_text(json.dumps(content))  # JSON is YAML


def prepare(at: Path, *arguments: str) -> int:
    return cli.main(
        ["data", "prepare", *arguments, "--store", str(at / "store"), "--config-dir", str(at / "conf")]
    )  # fmt: skip


def prepared(at: Path, name: str, *arguments: str) -> Path:
    """The folder of the index of my-<name>, made from `official`."""
    assert prepare(at, f"my-{name}", "--from", str(at / "official"), *arguments) == 0
    return at / "store/data/my" / name


def mine(at: Path, name: str) -> Benchmark:
    design_space.cache_clear()
    return design_space(at / "conf").benchmark(f"my-{name}")


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]

"""What this machine offers to jobs that run side by side."""

from __future__ import annotations

import os
from pathlib import Path

from prism_sweeps.config.schema import Engine

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(engine: Engine) -> list[str]:
    """Ids of the NVIDIA GPUs that jobs may use; [] when the engine is told to use the CPU or there is none."""
    if engine.device == "cpu":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    devices = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia*")]
    return sorted((name for name in devices if name.isdigit()), key=int)


def worker_count(engine: Engine, jobs: int) -> int:
    """Workers for so many jobs: what the engine says, else one per GPU, else one per core."""
    return max(1, min(jobs, engine.workers or len(gpus(engine)) or cores()))


def worker_environment(engine: Engine, index: int, workers: int) -> dict[str, str]:
    """Environment of worker `index`: its share of the cores, and its GPU."""
    environment = dict.fromkeys(THREAD_VARIABLES, str(max(1, cores() // workers)))
    if found := gpus(engine):
        environment["CUDA_VISIBLE_DEVICES"] = found[index % len(found)]
    return environment


def ask_for_huge_pages() -> None:
    """Processes started from now on get memory from glibc in huge pages, where the kernel leaves that to programs.

    Python's objects too, which otherwise lie in arenas of its own. What outgrows the processor's page table cache is
    slow to reach on some virtual machines; elsewhere this makes no difference, see `benchmarks/`.
    https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
    """
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    os.environ.setdefault("PYTHONMALLOC", "malloc")

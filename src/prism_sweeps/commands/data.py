"""prism data prepare: data sets, benchmarks' indexes, and the small real weights, before anything needs them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prism_sweeps.commands.opening import default_store, open_store
from prism_sweeps.config.compose import DesignSpace, design_space
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.launching.local import datasets
from prism_sweeps.launching.machine import cores
from prism_sweeps.launching.progress import display_for
from prism_sweeps.planning.plan import Plan, make_plan

SMALL = "small"
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Wanted:
    """What is to be prepared."""

    benchmarks: list[Benchmark]
    """Those that are made from official files."""
    datasets: list[str]


def run(arguments: Namespace) -> int:
    store, wanted = default_store(arguments), named(arguments.names, design_space(arguments.config_dir))
    if arguments.study:
        plan = make_plan([arguments.study], config_dir=arguments.config_dir)
        needed = needed_by(plan)
        wanted = Wanted([*wanted.benchmarks, *needed.benchmarks], [*wanted.datasets, *needed.datasets])
        store = open_store(plan.store, arguments)
    if not wanted.benchmarks and not wanted.datasets:
        raise ConfigError(
            "prepare what? name benchmarks (gqa), data sets (nano-benchmarks), or a study that needs them: "
            "--study nano/axes"
        )
    if (arguments.folder or arguments.download) and not wanted.benchmarks:
        raise ConfigError("--from and --download are for benchmarks that are made from official files, such as gqa")
    with display_for() as display:
        for name in dict.fromkeys(wanted.datasets):
            print(dataset_folder(name, store.data, arguments.workers, progress_of(display.preparing, name)))
        for index, benchmark in {benchmark.index: benchmark for benchmark in wanted.benchmarks}.items():
            print(index_folder(benchmark, store.data, arguments, progress_of(display.preparing, index)))
    return 0


def named(names: list[str], space: DesignSpace) -> Wanted:
    """Benchmarks by their names, and data sets by theirs; a benchmark that is drawn needs its data set."""
    benchmarks, others = [], []
    known = space.files.names("benchmark")
    for name in names:
        benchmark = space.benchmark(name) if name in known else None
        if benchmark is None:
            others.append(name)
        elif benchmark.origin is None:
            others.append(Path(benchmark.index).parts[0])
        else:
            benchmarks.append(benchmark)
    return Wanted(benchmarks, others)


def needed_by(plan: Plan) -> Wanted:
    """What the jobs of a plan read."""
    asked = [job.spec.benchmark for job in plan.jobs.values() if hasattr(job.spec, "benchmark")]
    benchmarks = {benchmark.index: benchmark for benchmark in asked if benchmark.origin is not None}
    made = {Path(index).parts[0] for index in benchmarks}
    return Wanted(list(benchmarks.values()), [name for name in datasets(plan.jobs) if name not in made])


def progress_of(preparing: Callable[[str, int, int, str], None], name: str) -> Progress:
    return lambda done, total, note: preparing(name, done, total, note)


def dataset_folder(name: str, data_root: Path, workers: int, progress: Progress) -> Path:
    """The folder of a data set, or of the small weights."""
    from prism_sweeps.data.prepare import ensure_dataset
    from prism_sweeps.data.small_weights import ensure_small_weights

    if name == SMALL:
        return ensure_small_weights(progress)
    return ensure_dataset(name, data_root, workers or cores(), progress)


def index_folder(benchmark: Benchmark, data_root: Path, arguments: Namespace, progress: Progress) -> Path:
    """The folder of a benchmark's index, which can be read and scored."""
    from prism_sweeps.data.indexes.finding import DOWNLOADS, Place
    from prism_sweeps.data.indexes.making import ensure_index
    from prism_sweeps.evaluation.benchmarks import read_index
    from prism_sweeps.evaluation.scorers import gold_of

    place = Place(data_root / DOWNLOADS, arguments.folder, arguments.folder is None or arguments.download)

    def check(folder: Path) -> None:
        for example in read_index(folder):
            gold_of(example, benchmark)

    return ensure_index(benchmark, data_root, place, progress, check)

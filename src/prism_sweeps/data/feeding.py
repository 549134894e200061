"""Batches made ahead of the step that needs them: by a thread, or by processes where decoding images is the bottleneck.

However they are made, they come in the order of the steps, and their content is that of the order alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from prism_sweeps.config.errors import DataError

AHEAD = 2
"""Steps whose batches are made early, by each process."""

Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetched(items: Iterable[Item], make: Callable[[Item], Made], ahead: int = AHEAD) -> Iterator[Made]:
    """`make(item)` for each item, in order, computed by one thread up to `ahead` items early.

    What `make` raises is raised when its item is due, not before: work done until then is kept.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass
class MadeOnDemand(Dataset[Made | DataError]):
    """`make(items[n])` as torch's loader asks for it; a DataError is handed over, not raised in the process."""

    items: Sequence[Item]
    make: Callable[[Item], Made]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Made | DataError:
        try:
            return self.make(self.items[number])
        except DataError as error:
            return error


def loaded_by_processes(
    items: Sequence[Item], make: Callable[[Item], Made], processes: int, device: torch.device
) -> Iterator[Made]:
    """`make(item)` for each item, in order, by `processes` forked ones; in pinned memory where `device` is a GPU.

    A DataError of `make` is raised when its item is due.
    """
    loader = DataLoader(
        MadeOnDemand(items, make),
        batch_size=None,
        num_workers=processes,
        prefetch_factor=AHEAD,
        pin_memory=device.type == "cuda",
        worker_init_fn=one_thread,
    )
    for made in loader:
        if isinstance(made, DataError):
            raise made
        yield made


def one_thread(worker: int) -> None:
    """There is a process a core already."""
    torch.set_num_threads(1)

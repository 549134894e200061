"""Signs of life of a job while it is worked on, with how far it is."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from prism_sweeps.config.errors import StoreError
from prism_sweeps.tracking.records import JobRecord, Report

LOG = logging.getLogger(__name__)

BEAT_SECONDS = 5.0


@contextlib.contextmanager
def beating(record: JobRecord, report: Report) -> Iterator[Report]:
    """A thread leaves a sign of life in the record every few seconds; gives the `report` that it learns progress by."""
    latest, moved = (0, 0, ""), time.monotonic()
    over = threading.Event()

    def told(done: int, total: int, text: str) -> None:
        nonlocal latest, moved
        latest, moved = (done, total, text), time.monotonic()
        report(done, total, text)

    def beat() -> None:
        failed = False
        while not over.wait(BEAT_SECONDS):
            try:
                record.beat(*latest, still=time.monotonic() - moved)
            except StoreError as error:
                if not failed:
                    LOG.warning("no signs of life of this job can be left: %s", error)
                failed = True

    record.beat(*latest)
    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield told
    finally:
        over.set()
        thread.join()

"""A profile of some steps, as a Chrome trace (to be opened in Perfetto, ui.perfetto.dev)."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from prism_sweeps.tracking.files import explained, make_folder

if TYPE_CHECKING:
    from torch.profiler import profile, record_function


def profiled(window: range, folder: Path, rank: int, done: int = 0) -> Profiled:
    """Around a training loop that calls `step()` after each step: writes `folder/rank0.json.gz` of those in `window`.

    Steps count from 1; `done` of them were made by earlier attempts, so a window that they have passed is over and
    one that they are in goes on with what is left of it. Ranks other than 0 run alike and write nothing. A loop that
    ends, or is left, within the window leaves the steps it completed, and a mark of the next. Raises StoreError when
    the file cannot be written.
    """
    return Profiled(window if rank == 0 else range(0), folder / "rank0.json.gz", done)


class Profiled:
    """See `profiled`. Outside its window it only counts."""

    def __init__(self, window: range, path: Path, done: int) -> None:
        self.window, self.path, self.done = window, path, done
        self.profile: profile | None = None
        self.mark: record_function | None = None
        self.started = False
        self.recorded = 0

    def __enter__(self) -> Profiled:
        self._before(self.done + 1)
        return self

    def step(self) -> None:
        """The step is over."""
        self.done += 1
        if self.mark is not None:
            self.mark.__exit__(None, None, None)
            self.mark = None
            self.recorded += 1
            if self.done == self.window[-1]:
                self._write()
        self._before(self.done + 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.mark is not None:
            self.mark.__exit__(kind, error, trace)
            self.mark = None
        if self.profile is not None:
            self._write()

    def _before(self, step: int) -> None:
        if not self.window:
            return
        # Tracing a GPU takes time to set up, which is spent in the step before where there is one.
        if self.profile is None and (step == self.window[0] - 1 or step in self.window):
            self.profile = _new_profile()
            self.profile.prepare_trace()
        if self.profile is not None and step in self.window:
            from torch.profiler import record_function

            self._start(self.profile)
            self.mark = record_function(f"step {step}")
            self.mark.__enter__()

    def _start(self, prepared: profile) -> None:
        if not self.started:
            prepared.start_trace()
            self.started = True

    def _write(self) -> None:
        finished, self.profile = self.profile, None
        if finished is None:
            return
        # One that was prepared has to be started and stopped, or torch goes on with it.
        self._start(finished)
        finished.stop_trace()
        if not self.recorded:
            return
        make_folder(self.path.parent)
        temporary = self.path.with_name(f".{os.getpid()}.{self.path.name}")
        try:
            with explained("write the profile", self.path, "the training it was taken of can be gone on with"):
                finished.export_chrome_trace(str(temporary))
                temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def _new_profile() -> profile:
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities)

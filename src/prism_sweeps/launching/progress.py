"""What a sweep shows while it runs: a live panel on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol

LINE_SECONDS = 30.0
SIGNS = {"done": "✓", "failed": "✗", "retry": "↻", "interrupted": "⏸"}
COLOURS = {"done": "green", "failed": "bold red", "retry": "yellow", "interrupted": "yellow"}


class Display(Protocol):
    """How a sweep is watched. All calls come from one thread."""

    def __enter__(self) -> Display: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...
    def preparing(self, dataset: str, done: int, total: int, note: str) -> None:
        """Progress of a data set that is being made."""

    def begin(self, workers: int, done: int, total: int) -> None:
        """Jobs are about to run; `done` of `total` were done before."""

    def working(self, worker: int, title: str, done: int, total: int, note: str) -> None:
        """Progress of the job of one worker."""

    def idle(self, worker: int) -> None:
        """The worker has no job."""

    def ended(self, how: str, title: str, detail: str) -> None:
        """An attempt at a job is over: done | failed | retry | interrupted."""

    def overall(self, done: int, seconds_left: float | None) -> None:
        """So many jobs are done."""

    def say(self, text: str) -> None:
        """One line that stays."""


def display_for(stream: object = None) -> Display:
    """The display that suits stderr: live on a terminal, lines in a file or a pipe."""
    return LiveDisplay() if getattr(stream or sys.stderr, "isatty", lambda: False)() else LineDisplay()


def duration(seconds: float | None) -> str:
    """Seconds as 42s, 3m05s or 2h10m; ? when unknown."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class LineDisplay:
    """Lines on stderr: every job that ends, and the running ones every half minute."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.running: dict[int, str] = {}
        self.said = time.monotonic()

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def preparing(self, dataset: str, done: int, total: int, note: str) -> None:
        self._now_and_then(f"preparing data set {dataset}: {done}/{total} {note}")

    def begin(self, workers: int, done: int, total: int) -> None:
        self.total, self.done = total, done
        self.say(f"{total - done} jobs to run on {workers} workers ({done} of {total} done before)")

    def working(self, worker: int, title: str, done: int, total: int, note: str) -> None:
        self.running[worker] = f"{title} {done}/{total} {note}".rstrip()

    def idle(self, worker: int) -> None:
        self.running.pop(worker, None)

    def ended(self, how: str, title: str, detail: str) -> None:
        self.done += how == "done"
        self.say(f"[{self.done}/{self.total}] {how:<6} {title}" + (f": {detail}" if detail else ""))

    def overall(self, done: int, seconds_left: float | None) -> None:
        self.done = done
        running = "; ".join(self.running.values())
        self._now_and_then(f"[{done}/{self.total}] {duration(seconds_left)} left; running: {running}")

    def say(self, text: str) -> None:
        self.said = time.monotonic()
        print(text, file=sys.stderr, flush=True)

    def _now_and_then(self, text: str) -> None:
        if time.monotonic() - self.said >= LINE_SECONDS:
            self.say(text)


class LiveDisplay:
    """One bar per worker and one for the whole on a terminal; finished jobs scroll by above."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            refresh_per_second=5,
        )
        self.whole = self.progress.add_task("jobs", total=None, note="starting", visible=False)
        self.dataset = self.progress.add_task("", total=None, note="", visible=False)
        self.bars: list[object] = []

    def __enter__(self) -> LiveDisplay:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for task in self.progress.task_ids[1:]:
            self.progress.update(task, visible=False)
        self.progress.stop()

    def preparing(self, dataset: str, done: int, total: int, note: str) -> None:
        self.progress.update(
            self.dataset, description=dataset, completed=done, total=total or None, note=note, visible=True
        )

    def begin(self, workers: int, done: int, total: int) -> None:
        self.progress.update(self.dataset, visible=False)
        self.bars = [self.progress.add_task("starting", total=None, note="") for _ in range(workers)]
        self.progress.update(self.whole, description="[bold]jobs", completed=done, total=total, visible=True)

    def working(self, worker: int, title: str, done: int, total: int, note: str) -> None:
        bar: object = self.bars[worker]
        self.progress.update(bar, description=escaped(title), completed=done, total=total or None, note=escaped(note))  # type: ignore[arg-type]

    def idle(self, worker: int) -> None:
        self.progress.update(self.bars[worker], description="[dim]idle", completed=0, total=None, note="")  # type: ignore[arg-type]

    def ended(self, how: str, title: str, detail: str) -> None:
        colour = COLOURS[how]
        self.progress.console.print(f"[{colour}]{SIGNS[how]} {how}[/] {escaped(title)}  [dim]{escaped(detail)}[/]")

    def overall(self, done: int, seconds_left: float | None) -> None:
        self.progress.update(self.whole, completed=done, note=f"{duration(seconds_left)} left")

    def say(self, text: str) -> None:
        self.progress.console.print(escaped(text), highlight=False)


def escaped(text: str) -> str:
    """Text without meaning as rich markup."""
    from rich.markup import escape

    return escape(text)

"""A study followed until all of it has ended: a live table on a terminal, a line for every change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape

from prism_sweeps.commands.status import counted, summary
from prism_sweeps.launching.overview import Overview, overview
from prism_sweeps.planning.outline import Outline
from prism_sweeps.tracking.records import Store

SECONDS = 10.0
"""Between two looks."""
AROUND = 14
"""Lines of a terminal that the table leaves free."""
TOLD = 10
"""Changes of one look that are told one by one."""
TOLD_STATES = ("failed", "lost", "cancelled", "silent")


class Screen(Protocol):
    """How a look is shown."""

    def __enter__(self) -> Screen: ...
    def __exit__(self, *error: Any) -> None: ...
    def show(self, found: Overview) -> None:
        """Called with every look."""


def screen_for(stream: TextIO) -> Screen:
    """Live on a terminal, lines in a file or a pipe."""
    return LiveScreen(Console(file=stream)) if stream.isatty() else LineScreen(stream)


def follow(
    store: Store, outline: Outline, seconds: float, screen: Screen, pause: Callable[[float], None] = time.sleep
) -> Overview:
    """Looks again and again until nothing changes by itself any more; returns the last look."""
    with screen:
        found = overview(store, outline)
        screen.show(found)
        quiet = 0
        while not ended(found, quiet):
            pause(seconds)
            found = overview(store, outline, found)
            screen.show(found)
            quiet = 0 if found.going_on() else quiet + 1
    return found


def ended(found: Overview, quiet: int) -> bool:
    """Whether it is over. Between two jobs of a sweep on one machine nothing runs for a moment, so one look at
    that is not enough where jobs are left."""
    return not found.going_on() and (quiet > 0 or not found.named("new", "interrupted"))


class LiveScreen:
    """A table that is drawn anew in its place."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveScreen:
        self.live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.live.stop()

    def show(self, found: Overview) -> None:
        parts = summary(found, max(5, self.console.height - AROUND))
        now = time.strftime("%H:%M:%S")
        self.live.update(Group(*parts, f"[dim]{now}, Ctrl-C stops watching and nothing else[/]"), refresh=True)


class LineScreen:
    """Lines, where something has changed."""

    def __init__(self, stream: TextIO) -> None:
        self.console = Console(file=stream, no_color=True, highlight=False, soft_wrap=True)
        self.before: Overview | None = None

    def __enter__(self) -> LineScreen:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def show(self, found: Overview) -> None:
        before, self.before = self.before, found
        if before is not None and before.counts() == found.counts() and before.answers == found.answers:
            return
        silent = "" if found.answers else "; SLURM does not answer"
        self.console.print(f"{time.strftime('%H:%M:%S')} {counted(found.counts())} jobs{silent}")
        for line in changes(before, found):
            self.console.print(f"    {escape(line)}")


def changes(before: Overview | None, found: Overview) -> list[str]:
    """What has gone wrong since the look before."""
    lines = []
    for name in found.named(*TOLD_STATES):
        standing = found.standings[name]
        if before is None or before.standings[name].state != standing.state:
            lines.append(f"{standing.state} {found.outline.jobs[name].title}: {standing.reason}")
    more = len(lines) - TOLD
    return lines if more <= 0 else [*lines[:TOLD], f"and {more} more"]

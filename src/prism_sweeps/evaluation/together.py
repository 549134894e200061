"""Processes that answer one benchmark together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from prism_sweeps.config.errors import PrismError

Result = TypeVar("Result")


class Peers(Protocol):
    """The processes that work on one job (`training.world.World`)."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def told_by_first(self, message: Any) -> Any:
        """What the first process says."""
        ...

    def all_say(self, message: Any) -> list[Any]:
        """Everyone's message, by rank."""
        ...


@dataclass(frozen=True)
class Alone:
    """A process with nobody beside it."""

    rank: int = 0
    size: int = 1

    def told_by_first(self, message: Any) -> Any:
        return message

    def all_say(self, message: Any) -> list[Any]:
        return [message]


ALONE = Alone()


def agreed(action: Callable[[], Result], peers: Peers) -> Result:
    """What `action` returns here, once it is over in all processes. A user's error in any is raised in all of them."""
    result, failure = None, None
    try:
        result = action()
    except PrismError as error:
        failure = error
    for error in peers.all_say(failure):
        if error is not None:
            raise error
    return result  # type: ignore[return-value]

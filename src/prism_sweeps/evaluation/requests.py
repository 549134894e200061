"""What a model is asked and what it says: the seam between benchmarks and whatever answers them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Request:
    """One question: all that its answer depends on besides the model."""

    id: str
    """Of the example."""
    shown: str | None
    """The image that is shown, as the index names it; None is the grey one. Requests with one image share it."""
    image: Path | None
    """Where that is; None is the grey image."""
    text: str
    """The question as rendered by the benchmark's prompt, without the model's own format around it."""
    options: tuple[str, ...] = ()
    """What may be answered; none where the answer is free text."""
    limit: int = 16
    """Tokens a free answer may have; fewer where the model has no room for them."""
    likelihood: str = "full-string"
    """By which an option is chosen (`Benchmark.likelihood`)."""

    @property
    def key(self) -> str:
        """16 hex digits that tell it from every other request; where the image lies on this machine does not count."""
        content = [self.id, self.shown, self.text, self.options, self.limit, self.likelihood]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Answer:
    """What the model says to a request."""

    text: str
    """Free text, special tokens left out; or the likeliest option, the first of equals."""
    log_likelihoods: tuple[float, ...] = ()
    """Of each option, in nats; `full-string`: mean per token, `first-token`: of the first one."""
    size: Size | None = None
    """Of the image before it was resized; None of the grey one."""


@dataclass(frozen=True)
class Unanswered:
    """Why a request has no answer: its image cannot be read, its text is longer than the model has room for."""

    reason: str
    """It names example and file."""


def by_image(requests: Iterable[Request]) -> list[list[Request]]:
    """Those about one image together, in the order in which images first come."""
    groups: dict[str | None, list[Request]] = {}
    for request in requests:
        groups.setdefault(request.shown, []).append(request)
    return list(groups.values())


Answered = tuple[Request, Answer | Unanswered]


class Answerer(Protocol):
    """A model that can be asked: a trained cell, or a baseline."""

    def answers(self, requests: Sequence[Request]) -> Iterator[list[Answered]]:
        """Each request once, in the model's own order, a list as soon as it is there (some seconds' worth at most).

        A request that cannot be answered ends nothing. Raises ConfigError for what is wrong with all of them (options
        whose first tokens are equal, where these are to decide).
        """
        ...

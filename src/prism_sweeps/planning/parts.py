"""Jobs of a plan as data in which what they have in common stands once, as thousands of them share a few models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from prism_sweeps.config.plain import from_plain, spec_from_plain
from prism_sweeps.config.specs import Job, ModelSpec
from prism_sweeps.config.suite import Benchmark

SHARED: dict[str, type] = {"model": ModelSpec, "benchmark": Benchmark}
"""Fields of specs that many jobs have in common."""
SIMPLE = (str, int, float, type(None))


class PlainOnce:
    """`config.plain.plain`, but for each object once: the same object gives the same data, to be read only."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        """Dataclasses, dicts and lists as what JSON can hold."""
        if isinstance(value, SIMPLE):
            return value
        # The object is kept with its data: an id is only its own while it lives.
        if id(value) not in self._seen:
            self._seen[id(value)] = (value, self._converted(value))
        return self._seen[id(value)][1]

    def _converted(self, value: Any) -> Any:
        if is_dataclass(value):
            return {each.name: self.of(getattr(value, each.name)) for each in fields(value)}
        if isinstance(value, Mapping):
            return {str(key): self.of(item) for key, item in value.items()}
        return [self.of(item) for item in value]


class Parts:
    """Takes shared fields out of jobs, and keeps each different one once, under a name."""

    def __init__(self) -> None:
        self._plain = PlainOnce()
        self._names: dict[str, str] = {}
        self._contents: dict[str, Any] = {}
        self._known: dict[int, str] = {}

    def taken_out_of(self, jobs: Mapping[str, Job]) -> dict[str, Any]:
        """`jobs` as plain data, with names in the place of shared fields, and `parts`, which these are the names of."""
        taken = {fingerprint: self._without(job) for fingerprint, job in jobs.items()}
        return {"parts": self._contents, "jobs": taken}

    def _without(self, job: Job) -> dict[str, Any]:
        spec = {}
        for each in fields(job.spec):
            value = getattr(job.spec, each.name)
            shared = each.name in SHARED and is_dataclass(value)  # the model of a baseline is a name
            spec[each.name] = self._name(each.name, value) if shared else self._plain.of(value)
        return {"fingerprint": job.fingerprint, "title": job.title, "spec": spec, "parents": list(job.parents)}

    def _name(self, kind: str, part: Any) -> str:
        if id(part) not in self._known:
            content = self._plain.of(part)
            name = self._names.setdefault(json.dumps(content, sort_keys=True), f"{kind}-{len(self._names) + 1}")
            self._contents[name] = content
            self._known[id(part)] = name
        return self._known[id(part)]


def jobs_from_plain(content: Mapping[str, Any]) -> dict[str, Job]:
    """The jobs of what `Parts` wrote, or of an older plan, in which nothing is shared; ConfigError where malformed."""
    parts: dict[str, Any] = {
        name: from_plain(SHARED[name.partition("-")[0]], part, f"plan.parts.{name}")
        for name, part in content.get("parts", {}).items()
    }
    return {name: _job(name, job, parts) for name, job in content.get("jobs", {}).items()}


def _job(identity: str, content: Mapping[str, Any], parts: Mapping[str, Any]) -> Job:
    spec = dict(content.get("spec", {}))
    for field in SHARED:
        if isinstance(name := spec.get(field), str):
            spec[field] = parts.get(name, name)
    parents = [str(parent) for parent in content.get("parents", [])]
    return Job(identity, str(content.get("title", "")), spec_from_plain(spec), parents)

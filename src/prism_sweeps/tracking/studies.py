"""The record of a study: its plan, in `<root>/studies/<name>/`, where others keep what they know of it, too."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from prism_sweeps.config.errors import StoreError
from prism_sweeps.tracking.files import in_lines, read_json, write_atomic


@dataclasses.dataclass(frozen=True)
class StudyRecord:
    """What was planned under one name."""

    name: str
    path: Path

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Replaces the plan."""
        write_atomic(self.path / "plan.json", in_lines(plan))

    def plan(self) -> dict[str, Any]:
        """The plan as written. Raises StoreError when there is none."""
        path = self.path / "plan.json"
        if not path.exists():
            raise StoreError(
                f"no study '{self.name}' in this store ({path} is missing); run it: prism sweep {self.name}"
            )
        return read_json(path, f"write it again: prism sweep {self.name}")

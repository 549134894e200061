"""What may be the name of a study or of a record: it becomes a folder."""

from __future__ import annotations

import re

from prism_sweeps.config.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+=-]{0,127}")


def check_study_name(name: str) -> None:
    """Raises ConfigError unless every part of `name` between slashes is a plain file name."""
    if not all(NAME.fullmatch(part) for part in name.split("/")):
        raise ConfigError(
            f"'{name}' cannot be the name of a study: use parts of letters, digits and _ . , + = - "
            "that do not start with a dot or a sign, with / between them, e.g. nano/axes"
        )

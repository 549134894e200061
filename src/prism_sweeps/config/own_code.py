"""Code of one's own, which a declaration names as `package.module:name`."""

from __future__ import annotations

import importlib
from typing import Any

from prism_sweeps.config.errors import ConfigError


def own_code(kind: str, name: str) -> Any:
    """What `name` is, which is wanted as a `kind` (scorer, reader).

    Raises ConfigError that names what is missing; what goes wrong inside of the module is raised as it is.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute or module.startswith("."):
        raise ConfigError(f"{kind} '{name}': package.module:name is wanted")
    try:
        code = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"{kind} '{name}': its module needs {error.name}, which is not installed") from error
        raise ConfigError(
            f"{kind} '{name}': there is no module {error.name}; its folder belongs on PYTHONPATH, or install it"
        ) from None
    if not hasattr(code, attribute):
        raise ConfigError(f"{kind} '{name}': module {module} has no {attribute}")
    return getattr(code, attribute)

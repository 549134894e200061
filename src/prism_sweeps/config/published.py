"""Configurations that others have published, as choices of this design space: `conf/reference/*.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

from prism_sweeps.config.compose import DesignSpace, design_space
from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.files import PACKAGED
from prism_sweeps.config.schema import AXES, Cell

FILE = PACKAGED / "reference" / "prismatic-vlms.yaml"


class Published:
    """The configurations of prismatic-vlms, looked up by what a cell is made of."""

    def __init__(self, config_dir: Path | None = None) -> None:
        self._space = design_space(config_dir)
        self._names = {key_of(choices, self._space): name for name, choices in configurations().items()}

    def name_of(self, cell: Cell, choices: Mapping[str, str]) -> str | None:
        """The id of the configuration that `cell` is, whatever its seed; None where it is none of them.

        A cell that changes a value inside a choice (a learning rate, say) is not the published one any more.
        """
        name = self._names.get(tuple(choices[axis] for axis in AXES))
        if name is None or any(self._space.part(axis, choices[axis], {}) != getattr(cell, axis) for axis in AXES):
            return None
        return name


@cache
def configurations() -> dict[str, dict[str, str]]:
    """Id -> its choice of each axis that the file names, the base's where it does not say otherwise."""
    content = OmegaConf.to_container(OmegaConf.load(FILE))
    assert isinstance(content, dict)
    base, changes = content["base"], content["configurations"]
    return {
        str(name): {**base, **{axis: str(choice) for axis, choice in changed.items() if axis != "row"}}
        for name, changed in changes.items()
    }


@cache
def rows() -> dict[str, str]:
    """Id -> its line in the table of published results beside the file; ids without one are left out."""
    content = OmegaConf.to_container(OmegaConf.load(FILE))
    assert isinstance(content, dict)
    return {str(name): str(changed["row"]) for name, changed in content["configurations"].items() if "row" in changed}


def key_of(choices: Mapping[str, str], space: DesignSpace) -> tuple[str, ...]:
    """One choice an axis; axes that came after the configurations were published stand at their default."""
    unknown = [axis for axis in choices if axis not in AXES]
    if unknown:
        raise ConfigError(f"{FILE.name}: unknown axis '{unknown[0]}'; {nearest(unknown[0], AXES)}")
    return tuple(str(choices.get(axis, space.default_choices[axis])) for axis in AXES)

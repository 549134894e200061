"""Choices and dotted overrides -> typed cells, as Hydra composes them but a thousand in seconds.

Every (group, choice, overrides inside that group) is composed, typed and validated once and then shared, so cells of a
grid hold the same objects: treat them as read-only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from prism_sweeps.config.errors import ConfigError, nearest
from prism_sweeps.config.files import ChoiceFiles, translated
from prism_sweeps.config.plain import cell_from_plain, plain, spec_from_plain
from prism_sweeps.config.schema import GROUPS, Cell, Study
from prism_sweeps.config.suite import Benchmark

__all__ = ["DesignSpace", "cell_from_plain", "compose_cell", "design_space", "load_study", "plain", "spec_from_plain"]

KINDS: dict[str, type] = get_type_hints(Cell)
OPEN = ("cluster.options", "cluster.overrides")
"""Where a key may be new: `checks` knows which ones mean something."""


class DesignSpace:
    """Everything a cell can be made of: the package's choices and those of a user's folder."""

    def __init__(self, files: ChoiceFiles) -> None:
        self.files = files
        self.default_choices, self.default_values = files.defaults()
        self._parts: dict[tuple[str, str, str], Any] = {}
        self._scratch: DictConfig = OmegaConf.structured(Cell)

    def choices(self, group: str) -> list[str]:
        """The names a group has."""
        return self.files.names(group)

    def benchmark(self, name: str) -> Benchmark:
        """The declaration of one benchmark (conf/benchmark/). Raises ConfigError."""
        known = self.files.names("benchmark")
        if name not in known:
            raise ConfigError(f"no benchmark '{name}'; {nearest(name, known)}")
        with translated(f"benchmark/{name}.yaml"):
            content = self.files.load("benchmark", name).benchmark
            found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Benchmark), content))
        assert isinstance(found, Benchmark)
        return found

    def cell(self, assignments: Mapping[str, Any]) -> tuple[Cell, dict[str, str]]:
        """The cell with these assignments (group -> choice, or dotted key -> value) and its choice of every group.

        An unknown group, choice or key, a value of the wrong type or a missing mandatory one is a ConfigError.
        """
        choices, values = dict(self.default_choices), dict(self.default_values)
        inside: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
        for key, value in assignments.items():
            head, _, rest = key.partition(".")
            if key in GROUPS:
                choices[key] = self.choice(key, value)
            elif head in GROUPS and rest:
                inside[head][key] = value
            elif key in self.default_values:
                values[key] = value
            else:
                raise ConfigError(f"unknown axis or key '{key}'; {nearest(head, [*GROUPS, *self.default_values])}")
        parts = {group: self.part(group, choices[group], inside[group]) for group in GROUPS}
        return Cell(**parts, **{key: self._value(key, value) for key, value in values.items()}), choices

    def choice(self, group: str, value: Any) -> str:
        """`value` as the name of a choice of `group`; ConfigError when there is none such."""
        name = str(value)
        if not isinstance(value, (str, int, float)) or name not in self.choices(group):
            raise ConfigError(f"{group}={name}: no such choice; {nearest(name, self.choices(group))}")
        return name

    def part(self, group: str, choice: str, overrides: Mapping[str, Any]) -> Any:
        """The typed content of one group: its choice with `overrides` (full dotted key -> value) applied."""
        identity = (group, choice, repr(overrides))
        if identity not in self._parts:
            self._parts[identity] = _typed(group, choice, self.files.load(group, choice), overrides)
        return self._parts[identity]

    def _value(self, key: str, value: Any) -> Any:
        with translated(f"{key}={value}"):
            self._scratch[key] = value
            return self._scratch[key]


def _typed(group: str, choice: str, content: DictConfig, overrides: Mapping[str, Any]) -> Any:
    with translated(f"{group}/{choice}.yaml"):
        typed = _merged(OmegaConf.create({group: OmegaConf.structured(KINDS[group])}), content)
    OmegaConf.set_struct(typed, True)
    for key, value in overrides.items():
        _check_path(typed, key, f"{group}={choice}")
        with translated(f"{key}={value}"):
            OmegaConf.update(typed, key, value, merge=True, force_add=_is_open(key))
    with translated(f"{group}/{choice}.yaml"):
        missing = OmegaConf.missing_keys(typed)
        if missing:
            raise ConfigError(f"{group}={choice}: '{min(missing)}' has no value; give one: {min(missing)}=VALUE")
        return OmegaConf.to_object(typed[group])


def _merged(typed: DictConfig, content: DictConfig | dict[str, Any]) -> DictConfig:
    merged = OmegaConf.merge(typed, content)
    assert isinstance(merged, DictConfig)
    return merged


def _is_open(key: str) -> bool:
    return any(f"{key}.".startswith(f"{place}.") for place in OPEN)


def _check_path(node: Any, key: str, where: str) -> None:
    walked: list[str] = []
    if _is_open(key):
        return
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            raise ConfigError(f"'{key}': {'.'.join(walked)} has no keys inside it; set it whole")
        found = {str(each): each for each in node}
        if part not in found:
            raise ConfigError(f"'{key}': {'.'.join(walked)} of {where} has no '{part}'; {nearest(part, found)}")
        node = node._get_node(found[part])
        walked.append(part)


@cache
def design_space(config_dir: Path | None = None) -> DesignSpace:
    """The design space of the package and of a user's folder, read once a process."""
    return DesignSpace(ChoiceFiles(config_dir))


def compose_cell(overrides: Sequence[str], config_dir: Path | None = None) -> tuple[Cell, dict[str, str]]:
    """The cell of `key=value` overrides in Hydra's grammar, and its choice of every group (backbone -> nano-clip).

    Errors are ConfigErrors that name the nearest valid group, choice or key. The cell's axes are not yet checked
    against each other: `checks.check_cell` does.
    """
    space = design_space(config_dir)
    assignments: dict[str, Any] = {}
    for text in overrides:
        override = assignment(space.files.parse(text))
        if override.is_sweep_override():
            raise ConfigError(f"'{text}' has several values; one cell takes one (use a sweep)")
        if override.key_or_group in assignments:
            raise ConfigError(f"'{override.key_or_group}' is given twice")
        assignments[override.key_or_group] = override.value()
    return space.cell(assignments)


def assignment(override: Override) -> Override:
    """`override` if it sets an existing key; adding, deleting and repackaging are ConfigErrors that say what to do."""
    text, key = override.input_line, override.key_or_group
    if override.type == OverrideType.DEL:
        raise ConfigError(f"'{text}': nothing can be removed; choose another value: {key}=VALUE")
    if override.type != OverrideType.CHANGE:
        bare = str(text).lstrip("+")
        raise ConfigError(
            f"'{text}': no prefix '+'; every key exists already, so write '{bare}'. "
            f"A new choice is a new YAML file in a --config-dir"
        )
    if override.package is not None:
        raise ConfigError(f"'{text}': what a choice is made of is set in its YAML file, not by '@'")
    return override


def load_study(name: str, config_dir: Path | None = None) -> Study:
    """The study `conf/study/<name>.yaml`, typed; unknown names and keys are ConfigErrors."""
    studies = design_space(config_dir).files.studies()
    if name not in studies:
        raise ConfigError(f"no study '{name}'; {nearest(name, studies)}")
    with translated(f"study/{name}.yaml"):
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Study), OmegaConf.load(studies[name])))
    assert isinstance(study, Study)
    return study

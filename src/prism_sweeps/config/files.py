"""The YAML files of the design space, read by Hydra's own composer.

Hydra's public `compose` builds a whole cell and Hydra's own config with it, about 40 ms each time, and needs a global
that `@hydra.main` may already hold. The parts of Hydra 1.3 below it compose one choice of one group in a few
milliseconds; a test holds the result equal to the public `compose`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import GroupDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    OmegaConfBaseException,
)
from yaml import YAMLError

from prism_sweeps.config.errors import ConfigError, PrismError, nearest
from prism_sweeps.config.schema import Cell

ConfigStore.instance().store(name="base_cell", node=Cell)


def _packaged() -> Path:
    installed = find_spec("prism_sweeps.conf")
    if installed is not None and installed.origin is not None:
        return Path(installed.origin).parent
    return Path(__file__).parents[3] / "conf"  # a checkout that is on the path without being installed


PACKAGED = _packaged()
"""The package's own files: module `prism_sweeps.conf`, which is the repository's folder `conf/`."""

BARE_TIME = re.compile(r"\btime:\s*(\d+(?::\d+)+)")


class ChoiceFiles:
    """The package's files and, if given, those of a user's `config_dir`, which adds choices and studies."""

    def __init__(self, config_dir: Path | None = None) -> None:
        self.folders = [PACKAGED]
        search = ConfigSearchPathImpl()
        search.append("main", f"file://{PACKAGED}")
        if config_dir is not None:
            self.folders.append(_checked(config_dir))
            search.append("config-dir", f"file://{config_dir.resolve()}")
        search.append("schema", "structured://")
        Plugins.instance()  # registers the sources pkg://, file://, structured://
        version.setbase("1.3")
        self._loader = ConfigLoaderImpl(search)
        self._repository = CachingConfigRepository(self._loader.repository)
        self._parser = OverridesParser.create(self._loader)
        self.parse = cache(self._parse)
        self.names = cache(self._names)

    def _parse(self, text: str) -> Override:
        """One command-line override in Hydra's grammar; a malformed one is a ConfigError."""
        if "=" not in text and not text.startswith("~"):
            raise ConfigError(f"'{text}' is no override; write key=value")
        with translated(f"'{text}'"):
            return self._parser.parse_overrides([text])[0]

    def _names(self, group: str) -> list[str]:
        """The choices of a group."""
        return sorted(self._repository.get_group_options(group))

    def studies(self) -> dict[str, Path]:
        """Study name (its path under `study/` without the ending) -> its file."""
        roots = [folder / "study" for folder in self.folders]
        return {str(file.relative_to(root).with_suffix("")): file for root in roots for file in root.rglob("*.yaml")}

    def defaults(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Of `cell.yaml`: the choice of each group, and the values beside them (`seed`)."""
        primary = self._repository.load_config("cell")
        assert primary is not None
        entries = [each for each in primary.defaults_list or [] if isinstance(each, GroupDefault)]
        chosen = {str(each.group): str(each.value) for each in entries}
        values = OmegaConf.to_container(primary.config)
        assert isinstance(values, dict)
        return chosen, {str(key): value for key, value in values.items() if key != "defaults"}

    def load(self, group: str, choice: str) -> DictConfig:
        """`{group: its content}` of one choice, the files it names in its defaults list merged in, not yet typed."""
        if group == "cluster":
            self._check_times(choice)
        with translated(f"{group}/{choice}.yaml"):
            wanted = [self.parse(f"+{group}='{choice}'")]
            order = create_defaults_list(self._repository, None, wanted, prepend_hydra=False, skip_missing=False)
            content = self._loader._compose_config_from_defaults_list(order.defaults, self._repository)
        foreign = [str(key) for key in content if key != group]
        if foreign:
            raise ConfigError(f"{group}/{choice}.yaml sets '{foreign[0]}': a choice sets only its own group '{group}'")
        return content

    def _check_times(self, choice: str) -> None:
        """YAML reads 12:00:00 as the number 43200, which sbatch would take for minutes."""
        for folder in self.folders:
            file = folder / "cluster" / f"{choice}.yaml"
            found = BARE_TIME.search(file.read_text(encoding="utf-8")) if file.exists() else None
            if found:
                raise ConfigError(f"{file}: time {found[1]} needs quotes: '{found[1]}'")


def _checked(config_dir: Path) -> Path:
    """`config_dir`, which must exist and only add: a file of its own that also is in the package would be dead."""
    if not config_dir.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder")
    for file in sorted(config_dir.rglob("*.yaml")):
        inside = file.relative_to(config_dir)
        if (PACKAGED / inside).exists():
            raise ConfigError(f"{file}: the package has a {inside} already; give yours another name")
    return config_dir


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Errors of Hydra, OmegaConf and YAML as ConfigErrors that begin with `where` and end with what is valid."""
    try:
        yield
    except PrismError:
        raise
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{where}: {_told(_root(error), where)}") from error


def _root(error: BaseException) -> BaseException:
    cause = error.__cause__
    return _root(cause) if isinstance(cause, (HydraException, OmegaConfBaseException, YAMLError)) else error


def _told(error: BaseException, where: str) -> str:
    first = str(error).strip().partition("\n")[0]
    if isinstance(error, MissingConfigException):
        wanted = Path(str(error.missing_cfg_file))
        # Hydra lists the options of a group default only, not those of a plain entry.
        options = error.options or [file.stem for file in (PACKAGED / wanted.parent).glob("*.yaml")]
        return f"no {wanted.parent} '{wanted.name}'; {nearest(wanted.name, options)}"
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)) and error.object_type is not None:
        return f"unknown key '{error.full_key}'; {nearest(str(error.key), _keys(error))}"
    if isinstance(error, InterpolationKeyError):
        return f"{error.full_key}: {first}; a choice may refer to nothing outside its own group"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return first if where.startswith(f"{error.full_key}=") else f"{error.full_key}: {first}"
    return str(error).partition("\nSee https://hydra.cc")[0]


def _keys(error: OmegaConfBaseException) -> list[str]:
    parent: Any = error.parent_node
    if isinstance(parent, Mapping):
        return [str(key) for key in parent]
    return list(getattr(error.object_type, "__dataclass_fields__", {}))

"""Which part of the package may import which; see the drawing in the design."""

import ast
from pathlib import Path

import pytest

import prism_sweeps

SOURCE = Path(prism_sweeps.__file__).parent
RECORDS = {"tracking.records", "tracking.files", "tracking.answers"}
MAY_IMPORT: dict[str, set[str]] = {
    "config": set(),
    "planning": {"config"},
    "models": {"config"},
    "data": {"config", "models.prompts", "models.resize", "models.batch"},
    "tracking": {"config", "planning"},
    "training": {"config", "models", "data", *RECORDS},
    "evaluation": {"config", "models", "data", *RECORDS},
    "reporting": {"config", "planning", "tracking"},
    "interop": {"config", "models", "tracking", "evaluation"},
    "launching": {"conf", "config", "planning", "tracking", "training", "evaluation", "data.prepare"},
}
MAY_IMPORT["commands"] = set(MAY_IMPORT)
HEAVY = {"torch", "torchvision", "timm", "open_clip", "transformers", "peft", "mlflow", "submitit", "pandas", "numpy"}
LIGHT = ("config", "planning")


def imports(path: Path) -> set[str]:
    """Full dotted names of what a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(part: str) -> list[Path]:
    return sorted((SOURCE / part).rglob("*.py"))


def inside(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_arrows_point_one_way(part: str) -> None:
    assert files(part)
    for path in files(part):
        own = {name.removeprefix("prism_sweeps.") for name in imports(path) if inside(name, "prism_sweeps")}
        for name in own:
            assert any(inside(name, allowed) for allowed in {part, *MAY_IMPORT[part]}), f"{path} imports {name}"


@pytest.mark.parametrize("part", LIGHT)
def test_the_light_parts_import_nothing_heavy(part: str) -> None:
    for path in files(part):
        heavy = {name.partition(".")[0] for name in imports(path)} & HEAVY
        assert not heavy, f"{path} imports {heavy}"


def test_records_can_be_written_and_read_without_torch_or_mlflow() -> None:
    heavy = {name.partition(".")[0] for name in imports(SOURCE / "tracking/records.py")} & (HEAVY - {"numpy"})
    assert not heavy


def test_every_part_has_its_arrows() -> None:
    parts = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert parts == set(MAY_IMPORT)


def test_the_command_line_imports_the_rest_lazily() -> None:
    tree = ast.parse((SOURCE / "cli.py").read_text(encoding="utf-8"))
    first = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {n.module or "" for n in first if isinstance(n, ast.ImportFrom)}
    modules |= {alias.name for n in first if isinstance(n, ast.Import) for alias in n.names}
    assert not {module.partition(".")[0] for module in modules} & HEAVY
    assert not {
        m for m in modules for part in ("training", "evaluation", "models") if inside(m, f"prism_sweeps.{part}")
    }

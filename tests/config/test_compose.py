import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict

from prism_sweeps.config.compose import DesignSpace, cell_from_plain, compose_cell, design_space, load_study, plain
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.files import PACKAGED, ChoiceFiles
from prism_sweeps.config.schema import GROUPS, Cell

SMALL = "suite=easy-vqa"
FAST = ("backbone", "resolution", "resize", "projector", "llm", "stages", "data_mix", "schedule", "store")


def by_hydra(overrides: list[str]) -> Cell:
    """The same cell by Hydra's public API."""
    with initialize_config_dir(str(PACKAGED), version_base="1.3"):
        config = compose("cell", overrides)
    with open_dict(config):
        config.pop("hydra", None)
    cell = OmegaConf.to_object(config)
    assert isinstance(cell, Cell)
    return cell


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [SMALL, "backbone=nano-dinosiglip", "resolution='96'", "stages=nano-full-finetune-two-stage"],
        [SMALL, "stages=two-stage", "stages.chain.align.epochs=2", "stages.chain.finetune.trains=[llm]", "seed=7"],
        [SMALL, "backbone.towers.clip.kwargs.depth=3", "backbone.towers.clip.mean=[0,0.5,1]", "schedule=1.25-epochs"],
        [SMALL, "suite.benchmarks.easy-vqa.prompt='{question} now'", "engine.precision=bf16", "schedule.max_steps=5"],
        [SMALL, "data_mix.instruct.language.examples=10", "llm.width=64", "store.data=/tmp/x y"],
    ],
)
def test_equals_hydras_own_compose(overrides: list[str]) -> None:
    assert compose_cell(overrides)[0] == by_hydra(overrides)


@settings(max_examples=3, deadline=None)
@given(st.data())
def test_any_choices_equal_hydras_own_compose(data: st.DataObject) -> None:
    chosen = {group: data.draw(st.sampled_from(design_space().choices(group)), group) for group in FAST}
    overrides = [SMALL, *(f"{group}='{choice}'" for group, choice in chosen.items())]
    cell, choices = compose_cell(overrides)
    assert cell == by_hydra(overrides)
    assert {group: choices[group] for group in FAST} == chosen


def test_choices_name_every_group() -> None:
    _, choices = compose_cell(["backbone=nano-siglip", "resolution=96"])
    assert tuple(choices) == GROUPS
    assert (choices["backbone"], choices["resolution"], choices["suite"]) == ("nano-siglip", "96", "nano")


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_composes_and_is_named_as_its_file(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org")
    space = design_space()
    assert space.choices(group)
    for choice in space.choices(group):
        assert space.part(group, choice, {}).name == choice


def test_fused_towers_keep_their_order() -> None:
    cell, _ = compose_cell([SMALL, "backbone=nano-dinosiglip"])
    assert list(cell.backbone.towers) == ["dinov2", "siglip"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("backbone=nano-clp", "did you mean 'nano-clip'"),
        ("backbon=nano-clip", "did you mean 'backbone'"),
        ("resolution.pixels=large", "resolution.pixels=large: Value 'large'"),
        ("resolution.pixel=64", "did you mean 'pixels'"),
        ("stages.chain.finetne.epochs=1", "did you mean 'finetune'"),
        ("stages.chain.align.epochs=1", "no 'align'; valid: finetune"),
        ("stages.chain.finetune.trains.0=llm", "set it whole"),
        ("backbone.towers.clip.weights={128:x}", "valid: 64, 96"),
        ("backbone.towers=3", "Cannot assign int"),
        ("schedule.max_steps=1.5", "could not be converted to Integer"),
        ("seed=x", "could not be converted to Integer"),
        ("seed=1,2", "several values"),
        ("backbone=null", "no such choice"),
        ("backbone=[nano-clip]", "no such choice"),
        ("resize=", "valid: crop, letterbox, naive"),
        ("+extra=1", "no prefix '+'"),
        ("++seed=1", "write 'seed=1'"),
        ("+backbone=nano-clip", "no prefix '+'"),
        ("~resize", "nothing can be removed"),
        ("tower@backbone.towers.clip=nano-siglip", "YAML file"),
        ("hydra.run.dir=x", "unknown axis or key 'hydra.run.dir'"),
        ("a=b=c", "'a=b=c'"),
        ("naive", "write key=value"),
    ],
)
def test_a_wrong_override_says_what_would_be_right(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_cell([SMALL, override])
    assert told in str(caught.value)


def test_one_key_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'resize' is given twice"):
        compose_cell([SMALL, "resize=naive", "resize=crop"])


def test_a_missing_mandatory_value_is_named(tmp_path: Path) -> None:
    write(tmp_path / "projector/half.yaml", "name: half")
    with pytest.raises(ConfigError, match=r"projector=half: 'projector\.kind' has no value"):
        compose_cell([SMALL, "projector=half"], tmp_path)
    assert compose_cell([SMALL, "projector=half", "projector.kind=mlp"], tmp_path)[0].projector.kind == "mlp"


def test_the_server_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    space = DesignSpace(ChoiceFiles())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        space.part("tracking", "mlflow-server", {})
    assert space.part("tracking", "mlflow-server", {"tracking.uri": "http://here"}).uri == "http://here"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert space.part("tracking", "mlflow-server", {}).uri == "http://there"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_users_folder_adds_choices_made_of_the_packages(tmp_path: Path) -> None:
    write(
        tmp_path / "backbone/twice.yaml",
        "defaults:\n- /tower@towers.a: nano-clip\n- /tower@towers.b: mine\nname: twice",
    )
    write(tmp_path / "tower/mine.yaml", "defaults:\n- nano-siglip\n- _self_\nname: mine\nweights: {64: /weights}")
    cell, choices = compose_cell([SMALL, "backbone=twice"], tmp_path)
    assert choices["backbone"] == "twice"
    assert {name: tower.name for name, tower in cell.backbone.towers.items()} == {"a": "nano-clip", "b": "mine"}
    assert cell.backbone.towers["b"].weights[64] == "/weights"
    with pytest.raises(ConfigError, match="no such choice"):
        compose_cell([SMALL, "backbone=twice"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: mine\nkin: mlp", r"projector/mine\.yaml: unknown key 'projector\.kin'; did you mean 'kind'"),
        ("name: mine\nkind: [mlp]", r"projector/mine\.yaml: projector\.kind: Cannot convert"),
        ("name: mine\nkind: 'mlp", r"projector/mine\.yaml: .*quoted scalar"),
        ("defaults:\n- mpl\nname: mine", r"no projector 'mpl'; did you mean 'mlp'"),
        ("# @package _global_\nresize:\n  strategy: crop", "sets 'resize': a choice sets only its own group"),
        ("name: mine\nkind: ${resize.strategy}", "nothing outside its own group"),
        ("- a list", r"projector/mine\.yaml"),
    ],
)
def test_a_wrong_file_of_a_user_is_named(tmp_path: Path, text: str, told: str) -> None:
    write(tmp_path / "projector/mine.yaml", text)
    with pytest.raises(ConfigError, match=f"(?s){told}"):
        compose_cell([SMALL, "projector=mine"], tmp_path)


def test_a_users_folder_cannot_shadow_or_be_absent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        compose_cell([SMALL], tmp_path / "nowhere")
    write(tmp_path / "resize/crop.yaml", "name: crop\nstrategy: naive")
    with pytest.raises(ConfigError, match="give yours another name"):
        compose_cell([SMALL], tmp_path)


def test_studies_are_found_typed_and_named(tmp_path: Path) -> None:
    assert load_study("nano/axes").grid[0].vary == "one-at-a-time"
    write(tmp_path / "study/mine.yaml", "base: {schedule.epochs: 2, resize: naive}\nseeds: [3]")
    assert load_study("mine", tmp_path).base == {"schedule.epochs": 2, "resize": "naive"}
    with pytest.raises(ConfigError, match="did you mean 'nano/axes'"):
        load_study("nano/axis")
    write(tmp_path / "study/typo.yaml", "sedes: [3]")
    with pytest.raises(ConfigError, match="did you mean 'seeds'"):
        load_study("typo", tmp_path)


def test_plain_round_trips_through_json() -> None:
    cell, _ = compose_cell(["backbone=nano-dinosiglip", "stages=nano-two-stage"])
    assert cell_from_plain(json.loads(json.dumps(plain(cell)))) == cell


def test_the_files_are_a_package() -> None:
    spec = find_spec("prism_sweeps.conf")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).parent == PACKAGED

import pytest

from prism_sweeps.config.compose import design_space
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Block, Study
from prism_sweeps.planning.grid import Grid, block_points, check_rules, matches, with_overrides

AXES = {"resize": ["naive", "crop"], "schedule.epochs": [1, 2]}


def grid(*overrides: str, study: Study | None = None) -> Grid:
    return with_overrides(study or Study(), overrides, design_space())


@pytest.mark.parametrize(
    ("vary", "points"),
    [
        ("product", [("naive", 1), ("naive", 2), ("crop", 1), ("crop", 2)]),
        ("together", [("naive", 1), ("crop", 2)]),
        ("one-at-a-time", [("naive", None), ("crop", None), (None, 1), (None, 2)]),
    ],
)
def test_blocks(vary: str, points: list[tuple[object, object]]) -> None:
    found = [(point.get("resize"), point.get("schedule.epochs")) for point in block_points(Block(vary, AXES))]
    assert found == points


def test_a_grid_is_the_union_of_its_blocks_behind_the_baseline() -> None:
    study = Study(grid=[Block("product", {"resize": ["naive"]}), Block("one-at-a-time", {"resize": ["naive", "crop"]})])
    assert Grid(study).points() == [{}, {"resize": "naive"}, {"resize": "crop"}]


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("resize=naive,crop", ["naive", "crop"]),
        ("resize=choice(naive,crop)", ["naive", "crop"]),
        ("resize=glob(*)", ["crop", "letterbox", "naive"]),
        ("resize=glob(*,exclude=crop)", ["letterbox", "naive"]),
        ("resize=sort(naive,crop)", ["crop", "naive"]),
        ("schedule.epochs=range(1,4)", [1, 2, 3]),
        ("schedule.epochs=range(0,1,0.5)", [0.0, 0.5]),
        ("stages.chain.finetune.learning_rate=1e-3,3e-4", [0.001, 0.0003]),
        ("suite.benchmarks.easy-vqa.prompt='a,b','c'", ["a,b", "c"]),
        ("stages.chain.finetune.trains=[llm],[projector,llm]", [["llm"], ["projector", "llm"]]),
    ],
)
def test_several_values_cross_the_grid_and_the_first_is_the_baselines(override: str, values: list[object]) -> None:
    made, key = grid(override), override.partition("=")[0]
    assert made.crossed == {key: values}
    assert made.study.base == {key: values[0]}
    assert made.points() == [{key: value} for value in values]


def test_one_value_moves_the_base_and_holds_the_axis_of_a_product() -> None:
    blocks = [Block("product", dict(AXES)), Block("one-at-a-time", dict(AXES)), Block("together", dict(AXES))]
    made = grid("resize=crop", study=Study(base={"resize": "naive", "seed_": 1}, grid=blocks))
    assert made.study.base["resize"] == "crop"
    assert [list(block.axes) for block in made.study.grid] == [["schedule.epochs"], list(AXES), ["schedule.epochs"]]


def test_several_values_replace_the_axis_and_cross_every_block() -> None:
    made = grid("resize=letterbox,crop", study=Study(grid=[Block("one-at-a-time", dict(AXES))]))
    assert made.points() == [
        {"resize": "letterbox"},
        {"resize": "crop"},
        {"schedule.epochs": 1, "resize": "letterbox"},
        {"schedule.epochs": 1, "resize": "crop"},
        {"schedule.epochs": 2, "resize": "letterbox"},
        {"schedule.epochs": 2, "resize": "crop"},
    ]


def test_the_study_itself_is_left_alone() -> None:
    study = Study(base={"resize": "naive"}, grid=[Block("product", dict(AXES))])
    grid("resize=crop", "seed=4", study=study)
    assert study == Study(base={"resize": "naive"}, grid=[Block("product", dict(AXES))])


@pytest.mark.parametrize(("override", "seeds"), [("seed=3", [3]), ("seed=1,2", [1, 2]), ("seed=range(3)", [0, 1, 2])])
def test_seeds(override: str, seeds: list[int]) -> None:
    made = grid(override)
    assert made.study.seeds == seeds
    assert made.points() == [{}]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("resize=interval(0,1)", "use range"),
        ("resize=shuffle(naive,crop)", "fixed order"),
        ("backbone=glob(x*)", "matches nothing"),
        ("schedule.epochs=range(3,1)", "has no values"),
        ("engine=cpu,gpu", "same for all of it"),
        ("engine.workers=1,2", "same for all of it"),
        ("+resize=naive,crop", "no prefix"),
        ("~resize", "nothing can be removed"),
        ("resize=naive,", "resize=naive,"),
    ],
)
def test_a_wrong_override_is_told(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        grid(override)


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (Block("prodct", AXES), "did you mean 'product'"),
        (Block("together", {"resize": ["naive"], "seed_": [1, 2]}), "resize 1, seed_ 2"),
        (Block("product", {"resize": []}), "'resize' has no values"),
        (Block("product", {"seed": [1, 2]}), "list the study's `seeds`"),
        (Block("product", {"store": ["a"]}), "same for all of it"),
    ],
)
def test_a_wrong_block_is_told(block: Block, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        block_points(block)


@pytest.mark.parametrize(
    ("study", "told"),
    [
        (Study(seeds=[]), "none given"),
        (Study(base={"seed": 1}), "belongs under `seeds`"),
        (Study(exclude=[{}]), "every cell"),
        (Study(exclude=[{"resize": "crp"}]), "did you mean 'crop'"),
        (Study(exclude=[{"resise": "crop"}]), "did you mean 'resize'"),
    ],
)
def test_rules_that_could_match_no_cell_are_told(study: Study, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_rules(study, design_space())


def test_a_rule_matches_cells_that_agree_with_all_of_it() -> None:
    choices, config = {"resolution": "96", "resize": "crop"}, {"schedule": {"epochs": 2.0}, "seed": 3}
    assert matches({"resolution": 96, "schedule.epochs": 2, "seed": 3}, choices, config)
    assert not matches({"resolution": 96, "schedule.epochs": 1}, choices, config)
    assert not matches({"schedule.epoch": 2}, choices, config)

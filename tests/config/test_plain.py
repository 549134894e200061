import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import MISSING

from prism_sweeps.config import schema
from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.plain import from_plain, plain, spec_from_plain
from prism_sweeps.config.schema import Cell, Source, Stage, Tower
from prism_sweeps.config.specs import EvaluationSpec, StageSpec
from prism_sweeps.config.suite import Benchmark
from prism_sweeps.planning.jobs import jobs_of

KINDS = [Benchmark, Source, Stage]


def small_cell(*overrides: str) -> Cell:
    return compose_cell(["suite=easy-vqa", *overrides])[0]


for each in vars(schema).values():
    if dataclasses.is_dataclass(each) and isinstance(each, type):
        # Else a mandatory field would now and then keep its default, the mark of a missing value.
        mandatory = {field.name: ... for field in dataclasses.fields(each) if field.default == MISSING}
        st.register_type_strategy(each, st.builds(each, **mandatory))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_object_round_trips_through_json(kind: type, data: st.DataObject) -> None:
    obj = data.draw(st.from_type(kind))
    again = from_plain(kind, json.loads(json.dumps(plain(obj))))
    assert repr(again) == repr(obj)  # by text, since nan is not equal to itself


def test_specs_round_trip_and_are_told_apart() -> None:
    train, evaluate = jobs_of(small_cell("stages=nano-two-stage"))
    for job in (*train, *evaluate):
        again = spec_from_plain(json.loads(json.dumps(plain(job.spec))))
        assert again == job.spec
        assert type(again) is (StageSpec if job in train else EvaluationSpec)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"widht": 3}, "tower: unknown key 'widht'; did you mean 'width'"),
        ({"width": "3"}, "tower.width: '3' is a str, not a int"),
        ({"width": True}, "tower.width: True is a bool"),
        ({"mean": [0.5, "x"]}, r"tower.mean\[1\]: 'x' is a str"),
        ({"weights": {"x": "hub"}}, "tower.weights: 'x' is a str, not a int"),
        ({"kwargs": []}, r"tower.kwargs: \[\] is a list, not a dict"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], told: str) -> None:
    tower = Tower("t", "timm", "vit", width=8, depth=2, heads=2, patch=8)
    with pytest.raises(ConfigError, match=told):
        from_plain(Tower, {**plain(tower), **change}, "tower")


def test_a_missing_entry_and_an_unknown_kind_are_named() -> None:
    content = plain(jobs_of(small_cell())[0][0].spec)
    with pytest.raises(ConfigError, match="'model'"):
        spec_from_plain({key: value for key, value in content.items() if key != "model"})
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        spec_from_plain({**content, "kind": "trian"})

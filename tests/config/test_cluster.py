"""What jobs ask a cluster for, and what cannot be asked for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from prism_sweeps.config.cluster import FIELDS, check_cluster, minutes, names_of, request_for, tasks_per_node
from prism_sweeps.config.compose import compose_cell
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.fingerprint import fingerprint
from prism_sweeps.config.schema import Cluster, Request
from prism_sweeps.planning.plan import Plan, make_plan

SMALL = "suite=easy-vqa"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", 90),
        ("90:30", 90.5),
        ("12:00:00", 720),
        ("0:10:30", 10.5),
        ("2-12", 3600),
        ("1-02:30", 1590),
        ("1-02:30:15", 1590.25),
        ("UNLIMITED", None),
        ("infinite", None),
        ("0", None),
        ("0:00:00", None),
    ],
)
def test_times_as_sbatch_has_them(text: str, value: float | None) -> None:
    assert minutes(text) == value


@pytest.mark.parametrize("text", ["", "soon", "1h", "1:2:3:4", "-5", "1-", "1.5"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no time; write minutes, H:M:S or D-H:M:S"):
        minutes(text)


def cluster(**changes: Any) -> Cluster:
    return Cluster(**{"name": "slurm", "kind": "slurm", **changes})


def test_overrides_hold_for_the_jobs_they_name() -> None:
    place = cluster(
        partition="gpu",
        gpus_per_node=8,
        options={"gres": "x"},
        overrides={
            "train": {"time": "8:00:00"},
            "evaluate": {"nodes": 1, "gpus_per_node": 1},
            "finetune_and_vicuna-13b": {"nodes": 4, "options": {"switches": 1}},
            "vqav2": {"time": 30},
        },
    )
    asked = {
        names: request_for(place, names.split())
        for names in (
            "train align vicuna-13b",
            "train finetune vicuna-7b",
            "train finetune vicuna-13b",
            "evaluate vqav2",
        )
    }
    assert [each.nodes for each in asked.values()] == [1, 1, 4, 1]
    assert [each.time for each in asked.values()] == ["8:00:00"] * 3 + ["30"]
    assert [each.gpus_per_node for each in asked.values()] == [8, 8, 8, 1]
    assert asked["train finetune vicuna-13b"].options == {"gres": "x", "switches": 1}
    assert asked["evaluate vqav2"].options == {"gres": "x"}
    assert {each.partition for each in asked.values()} == {"gpu"}


def test_later_overrides_win_and_null_takes_back() -> None:
    place = cluster(
        memory="64G", overrides={"train": {"memory": "32G"}, "align": {"memory": None, "tasks_per_node": None}}
    )
    assert request_for(place, {"train"}).memory == "32G"
    assert request_for(place, {"train", "align"}).memory is None


def test_names_of_jobs() -> None:
    plan = make_plan([SMALL, "stages=nano-two-stage"])
    names = [names_of(job) for job in plan.jobs.values()]
    assert {"train", "align", "nano-base", "nano-clip"} in names
    assert {"train", "finetune", "nano-base", "nano-clip"} in names
    assert {"evaluate", "easy-vqa", "nano-base", "nano-clip"} in names


@pytest.mark.parametrize(
    ("request_", "tasks"),
    [(Request(), 1), (Request(gpus_per_node=8), 8), (Request(gpus_per_node=8, tasks_per_node=1), 1)],
)
def test_processes_on_a_node(request_: Request, tasks: int) -> None:
    assert tasks_per_node(request_) == tasks


WRONG = [
    ({"kind": "slrum"}, "kind is 'slrum'.*slurm"),
    ({"max_parallel": 0}, "max_parallel is 0; it must be at least 1, or null"),
    ({"notice_seconds": 5}, "notice_seconds is 5; a checkpoint needs at least 10"),
    ({"time": "3"}, "notice_seconds is 120, more than half of the time limit 3"),
    ({"nodes": 0}, "nodes is 0; it must be at least 1"),
    ({"cpus_per_task": 0}, "cpus_per_task is 0"),
    ({"gpus_per_node": -1}, "gpus_per_node is -1; it cannot be negative"),
    ({"time": "tomorrow"}, "time: 'tomorrow' is no time"),
    ({"nodes": 2, "jobs_per_allocation": 4}, "4 jobs share an allocation of 2 nodes"),
    ({"options": {"array": "0-3"}}, "options.array is not yours to set: jobs of one shape become arrays"),
    ({"options": {"job_name": "x"}}, "options.job_name is not yours to set"),
    ({"options": {"parsable": True}}, "options.parsable is not yours to set: what sbatch says is read"),
    ({"options": {"test_only": True}}, "options.test_only is not yours to set: nothing would be submitted"),
    ({"options": {"mem": "3G"}}, "options.mem has a field of its own: cluster.memory"),
    ({"options": {"gpus-per-node": 3}}, "options.gpus-per-node has a field of its own: cluster.gpus_per_node"),
    ({"options": {"ntasks-per-node": 3}}, "has a field of its own: cluster.tasks_per_node"),
    ({"overrides": {"aling": {"nodes": 2}}}, "overrides.aling: no job is called 'aling'.*align"),
    ({"overrides": {"align_and_bert": {"nodes": 2}}}, "no job is called 'bert'"),
    ({"overrides": {"train": {"node": 2}}}, "cluster.overrides.train.node: no such field.*nodes"),
    ({"overrides": {"train": {"nodes": "two"}}}, "cluster.overrides.train.nodes is 'two'; it should be a whole number"),
    ({"overrides": {"train": {"nodes": True}}}, "it should be a whole number"),
    ({"overrides": {"train": {"nodes": None}}}, "it should be a whole number"),
    ({"overrides": {"train": {"options": "x"}}}, "it should be options of sbatch and their values"),
    ({"overrides": {"align": {"nodes": 0}}}, "overrides.align: nodes is 0"),
    ({"overrides": {"align": {"jobs_per_allocation": 2}}, "nodes": 2}, "overrides.align: 2 jobs share an allocation"),
]


@pytest.mark.parametrize(("changes", "text"), WRONG, ids=[text for _, text in WRONG])
def test_what_cannot_be_meant(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_cluster(cluster(**changes), "cluster=slurm", {"align", "finetune", "vqav2"})


def test_the_choices_of_the_package_can_be_meant() -> None:
    for name in ("local", "slurm"):
        assert make_plan([SMALL, f"cluster={name}"]).cluster.kind == name


def test_a_plan_checks_its_cluster_against_all_jobs_that_there_could_be() -> None:
    plan = make_plan([SMALL, "cluster=slurm", "cluster.overrides.align_and_vicuna-v15-7b.nodes=2"])
    assert plan.cluster.overrides["align_and_vicuna-v15-7b"] == {"nodes": 2}
    with pytest.raises(ConfigError, match="no job is called 'vicuna'"):
        make_plan([SMALL, "cluster=slurm", "cluster.overrides.vicuna.nodes=2"])


@pytest.mark.parametrize(
    "word",
    ["cluster.options={gres: x}", "cluster.options.gres=x", "cluster.overrides={train: {partition: p}}",
     "cluster.overrides.train.partition=p", "cluster.overrides={evaluate: {partition: p}}"],
)  # fmt: skip
def test_open_settings_are_given_whole_or_by_key(word: str) -> None:
    found = make_plan([SMALL, "cluster=slurm", word]).cluster
    assert "x" in found.options.values() or "p" in {each.get("partition") for each in found.overrides.values()}


def test_where_a_job_runs_changes_no_fingerprint() -> None:
    here, _ = compose_cell([SMALL])
    words = ["cluster=slurm", "cluster.gpus_per_node=8", "cluster.options.gres=x", "cluster.overrides.train.nodes=2"]
    there, _ = compose_cell([SMALL, *words])
    assert fingerprint(here, {}) == fingerprint(there, {})
    names = [list(make_plan([SMALL, *each]).jobs) for each in ([], words)]
    assert names[0] == names[1]


def test_a_cluster_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "ours.yaml").write_text(
        "defaults: [slurm, _self_]\nname: ours\npartition: gpu\ngpu: h100-80gb\nsetup: [module load cuda]\n"
    )
    place = make_plan([SMALL, "cluster=ours", "cluster.time=60"], config_dir=tmp_path).cluster
    assert (place.kind, place.partition, place.time, place.setup) == ("slurm", "gpu", "60", ["module load cuda"])
    assert place.overrides["evaluate"] == {"nodes": 1}


def test_a_cluster_round_trips_with_its_plan() -> None:
    plan = make_plan(
        [SMALL, "cluster=slurm", "cluster.options.exclusive=true", "cluster.overrides.train.time='1-00:00'"]
    )
    assert Plan.from_plain(plan.to_plain()).cluster == plan.cluster
    assert set(FIELDS) <= set(asdict(plan.cluster))

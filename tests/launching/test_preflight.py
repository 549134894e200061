"""What a cluster cannot give is told before anything is submitted, and how to ask for what it can."""

from __future__ import annotations

import pytest
from fake_slurm import FakeSlurm

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Request
from prism_sweeps.launching.slurm import preflight
from prism_sweeps.launching.slurm.preflight import as_time, checked, cleaned
from prism_sweeps.launching.slurm.scheduler import SchedulerDown
from prism_sweeps.planning.allocations import shape

PARTITIONS = [
    "gpu|gpu*|2-00:00:00|4:00:00|8|gpu:a100:4(S:0-1)|64|1/7/0/8",
    "big|big|7-00:00:00|n/a|2|gpu:h100:8|96+|1/1/0/2",
    "cpu|cpu|infinite|infinite|9|(null)|128|1/8/0/9",
]


@pytest.fixture
def cluster(slurm: FakeSlurm) -> FakeSlurm:
    slurm.set(partitions=PARTITIONS)
    return slurm


def test_the_limit_that_will_hold(cluster: FakeSlurm) -> None:
    """By it a job knows when it has been stopped late in its time limit."""
    requests = [
        Request(),
        Request(partition="big"),
        Request(partition="cpu"),
        Request(time="30"),
        Request(partition="gpu,big"),
    ]
    found = checked(requests)
    assert [found[shape(each)].time for each in requests] == ["04:00:00", "7-00:00:00", None, "30", "04:00:00"]


def test_each_shape_is_asked_for_once(cluster: FakeSlurm) -> None:
    checked([Request(nodes=2), Request(nodes=2), Request()])
    assert [name for name, *_ in cluster_calls(cluster)] == ["sinfo", "sbatch", "sbatch"]


def cluster_calls(cluster: FakeSlurm) -> list[list[str]]:
    with cluster.world() as world:
        calls: list[list[str]] = world.state["calls"]
        return calls


WRONG = [
    (Request(partition="gpus"), r"cluster.partition: this cluster has no partition 'gpus'.*gpu"),
    (Request(partition="gpu,bug"), "no partition 'bug'"),
    (Request(time="3-00:00:00"), "cluster.time is 3-00:00:00, but partition gpu allows at most 2-00:00:00"),
    (Request(time="UNLIMITED"), "cluster.time is UNLIMITED, but partition gpu allows at most"),
    (Request(time="0"), "cluster.time is 0, but partition gpu allows at most"),
    (Request(time="8-00", partition="gpu,big"), "but partition gpu or big allows at most 7-00:00:00"),
    (Request(nodes=9), "cluster.nodes is 9, but partition gpu has 8"),
    (Request(nodes=9, partition="gpu,big"), "cluster.nodes is 9, but partition gpu or big has 8"),
    (Request(gpus_per_node=8), "cluster.gpus_per_node is 8, but partition gpu has 4"),
    (Request(gpus_per_node=1, partition="cpu"), "cluster.gpus_per_node is 1, but partition cpu has 0"),
    (Request(gpus_per_node=4, cpus_per_task=20), "80 CPUs a node .* but the nodes of partition gpu have at most 64"),
    (Request(cpus_per_task=70, jobs_per_allocation=4), "70 CPUs a node"),
]


@pytest.mark.parametrize(("request_", "text"), WRONG, ids=[text[:40] for _, text in WRONG])
def test_requests_that_are_too_large(request_: Request, text: str, cluster: FakeSlurm) -> None:
    with pytest.raises(ConfigError, match=text):
        checked([request_])
    assert not cluster.jobs


@pytest.mark.parametrize(
    "request_",
    [
        Request(time="2-00:00:00", nodes=8, gpus_per_node=4, cpus_per_task=16),
        Request(time="7-00", partition="gpu,big", gpus_per_node=8),
        Request(time="UNLIMITED", partition="cpu", tasks_per_node=2, cpus_per_task=64),
        Request(gpus_per_node=4, cpus_per_task=64, jobs_per_allocation=4),
        Request(time="90", partition="cpu"),
    ],
)
def test_requests_that_fit(request_: Request, cluster: FakeSlurm) -> None:
    assert list(checked([request_])) == [shape(request_)]


def test_a_cluster_without_a_default_partition(slurm: FakeSlurm) -> None:
    slurm.set(partitions=["a|a|infinite|n/a|4|(null)|16|1/3/0/4", "b|b|infinite|n/a|4|(null)|16|1/3/0/4"])
    with pytest.raises(ConfigError, match=r"no default partition; set cluster.partition: a, b"):
        checked([Request()])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # Seen, with their exit codes, but for the second, which needs limits of accounts.
        ("allocation failure: Requested node configuration is not available", "Requested node configuration is not"),
        ("allocation failure: Invalid account or account/partition combination specified", "Invalid account"),
        ("allocation failure: Invalid feature specification", "Invalid feature specification"),
        ("sbatch: error: Invalid --time specification", "Invalid --time specification"),
        ("sbatch: unrecognized option '--bogus=3'\nTry \"sbatch --help\" for more information", "option '--bogus=3'$"),
    ],
)
def test_what_only_sbatch_knows(text: str, told: str, cluster: FakeSlurm) -> None:
    cluster.fault(text, "test-only", 1, prefix=False)
    with pytest.raises(ConfigError, match=rf"^SLURM refuses what cluster\.\* asks for: .*{told}") as caught:
        checked([Request()])
    assert "sbatch:" not in str(caught.value)


def test_a_controller_that_is_away_is_no_error_of_the_users(cluster: FakeSlurm) -> None:
    cluster.fault(
        "allocation failure: Unable to contact slurm controller (connect failure)", "test-only", 1, prefix=False
    )
    with pytest.raises(SchedulerDown):
        checked([Request()])


def test_sbatch_is_asked_with_what_will_be_submitted(cluster: FakeSlurm) -> None:
    request = Request(
        partition="gpu", account="us", qos="high", time="1:00:00", nodes=2, gpus_per_node=4, cpus_per_task=8,
        memory="64G", constraint="a100", exclude="n3",
        options={"exclusive": True, "mail_type": "END", "licenses": "x:1"},
    )  # fmt: skip
    checked([request])
    assert set(cluster_calls(cluster)[-1][1:]) == {
        "--test-only", "--wrap=true", "--partition=gpu", "--account=us", "--qos=high", "--time=1:00:00", "--nodes=2",
        "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=8", "--mem=64G", "--constraint=a100",
        "--exclude=n3", "--exclusive", "--mail-type=END", "--licenses=x:1", "--requeue", "--kill-on-invalid-dep=yes",
    }  # fmt: skip


def test_a_packed_allocation_has_one_task() -> None:
    asked: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight.scheduler, "call", lambda command: asked.append(command) or "")
        preflight.check_by_slurm(Request(gpus_per_node=4, jobs_per_allocation=4), enough=True)
        preflight.check_by_slurm(Request(gpus_per_node=4), enough=True)
    assert ["--ntasks-per-node=1" in each for each in asked] == [True, False]


@pytest.mark.parametrize(
    ("mins", "text"), [(10, "00:10:00"), (90.5, "01:30:30"), (1440, "1-00:00:00"), (1590.25, "1-02:30:15")]
)
def test_times_for_sbatch(mins: float, text: str) -> None:
    assert as_time(mins) == text


def test_hints_of_sbatch_at_itself_are_left_out() -> None:
    assert cleaned("sbatch: unrecognized option '--x' Try \"sbatch --help\" for more") == "unrecognized option '--x'"


def test_a_cluster_whose_nodes_are_down_is_not_refused_for_that(slurm: FakeSlurm):
    """What 22.05 says with all nodes drained: `sbatch --test-only` refuses, `sbatch` takes the job."""

    def asked(answer: str, enough: bool) -> None:
        slurm.fault(answer, "test-only", 1, prefix=False)
        preflight.check_by_slurm(Request(), enough)

    asked("Requested node configuration is not available", enough=False)
    with pytest.raises(ConfigError, match="node configuration is not available"):
        asked("Requested node configuration is not available", enough=True)
    with pytest.raises(ConfigError, match="Invalid account"):
        asked("Invalid account or account/partition combination specified", enough=False)

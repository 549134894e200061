"""Nodes that jobs fail on while they do not elsewhere."""

from __future__ import annotations

from typing import Any

from prism_sweeps.launching.slurm.hosts import bad_hosts
from prism_sweeps.tracking.records import NEW_STATE


def well(host: str, when: float) -> dict[str, Any]:
    return NEW_STATE | {"status": "done", "host": host, "finished": when}


def badly(*failures: tuple[str | None, float], final: bool = False) -> dict[str, Any]:
    return NEW_STATE | {"status": "failed", "failed_on": [list(each) for each in failures], "final": final}


def test_two_failures_in_a_row_and_a_success_elsewhere_since() -> None:
    assert bad_hosts([badly(("n1", 10)), badly(("n1", 20)), well("n2", 30)]) == {"n1": 2}
    assert bad_hosts([badly(("n1", 10), ("n1", 20), ("n1", 25)), well("n2", 15)]) == {"n1": 3}


def test_one_failure_is_not_enough() -> None:
    assert bad_hosts([badly(("n1", 10)), well("n2", 30)]) == {}


def test_where_nothing_goes_well_the_node_is_not_to_blame() -> None:
    assert bad_hosts([badly(("n1", 10)), badly(("n1", 20))]) == {}
    assert bad_hosts([badly(("n1", 10)), badly(("n1", 20)), well("n2", 5)]) == {}
    assert bad_hosts([badly(("n1", 10), ("n2", 11)), badly(("n1", 20), ("n2", 21))]) == {}


def test_a_success_on_the_node_itself_clears_it() -> None:
    states = [badly(("n1", 10)), badly(("n1", 20)), well("n2", 30)]
    assert bad_hosts([*states, well("n1", 25)]) == {}
    assert bad_hosts([*states, well("n1", 15)]) == {}  # one in a row
    assert bad_hosts([*states, well("n1", 5)]) == {"n1": 2}


def test_failures_that_no_node_can_help_do_not_count() -> None:
    """A wrong setting, a full disk."""
    assert bad_hosts([badly(("n1", 10), ("n1", 20), final=True), well("n2", 30)]) == {}


def test_jobs_that_were_lost_before_they_began_anywhere_blame_nobody() -> None:
    assert bad_hosts([badly((None, 10), (None, 20)), badly(("n1", 10), ("n1", 20)), well("n2", 30)]) == {"n1": 2}


def test_failures_on_one_of_several_nodes_blame_nobody() -> None:
    assert bad_hosts([badly(("", 10), ("", 20)), well("n2", 30)]) == {}


def test_a_job_that_failed_and_is_done_now_counts_against_where_it_failed() -> None:
    done_now = well("n2", 30) | {"failed_on": [["n1", 10], ["n1", 20]]}
    assert bad_hosts([done_now]) == {"n1": 2}


def test_nothing_known() -> None:
    assert bad_hosts([]) == {}
    assert bad_hosts([dict(NEW_STATE)]) == {}

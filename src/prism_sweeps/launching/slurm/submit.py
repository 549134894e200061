"""A plan's open jobs into SLURM's queue, each once, whoever else submits into the store and whenever a shell dies."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError

from prism_sweeps.config.cluster import request_for
from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Request
from prism_sweeps.config.specs import Job
from prism_sweeps.launching.pool import LaunchError
from prism_sweeps.launching.removed import replace_plan
from prism_sweeps.launching.slurm import limits, scheduler
from prism_sweeps.launching.slurm.hosts import bad_hosts
from prism_sweeps.launching.slurm.last import Last
from prism_sweeps.launching.slurm.limits import LimitReachedError, halves, in_step, singles
from prism_sweeps.launching.slurm.preflight import check_by_slurm, checked, cleaned
from prism_sweeps.launching.slurm.scheduler import Queued, SchedulerDown
from prism_sweeps.launching.slurm.script import executor_for
from prism_sweeps.launching.slurm.within import Work
from prism_sweeps.launching.snapshot import snapshot
from prism_sweeps.launching.standing import OPEN, Known, Standing, alive, known_of, standings
from prism_sweeps.planning.allocations import Allocation, Batch, allocations_of, batches_of, lanes_of, shape
from prism_sweeps.planning.plan import Plan
from prism_sweeps.tracking import submissions
from prism_sweeps.tracking.records import Store
from prism_sweeps.tracking.submissions import MARK, Allotted, Journal

Say = Callable[[str], None]
TRIES = 6
"""Of one sbatch that SLURM is too busy or too far away to answer."""


@dataclass
class Submitted:
    """What a submission did."""

    jobs: list[str] = field(default_factory=list)
    """Handed to SLURM by it."""
    allocations: int = 0
    calls: int = 0
    """Of sbatch."""
    last_job: str | None = None
    """SLURM's id of the report job."""
    standings: dict[str, Standing] = field(default_factory=dict)
    """Where the plan's jobs stood before."""


def submit(
    plan: Plan,
    store: Store,
    say: Say,
    weights: Mapping[str, float] | None = None,
    wanted: Callable[[str, Standing], bool] | None = None,
    forgive: bool = True,
) -> Submitted:
    """Submits the jobs of a plan that nobody has done, runs or waits to run, and returns at once.

    `wanted` leaves out some of these. `forgive`: they have all their retries again. Raises ConfigError for what this
    cluster cannot give, before anything is submitted; LaunchError when SLURM refuses or stays away: what was submitted
    until then stays, and the same call goes on from there.
    """
    requests = checked_requests(plan)
    with submissions.submitting(store.root, say):
        journal = submissions.read(store.root)
        settle(store, journal, say)
        known = known_of(plan.jobs, store, journal, must_answer=True)
        found = standings(plan.jobs, known)
        choose = wanted or (lambda name, standing: True)
        jobs = {name: job for name, job in plan.jobs.items() if found[name].state in OPEN and choose(name, found[name])}
        done = Submitted(standings=found)
        unreported = ids_without_report(plan, journal, known.queue or {})
        if not jobs and not unreported:
            return done
        replace_plan(store, plan)
        for name in jobs if forgive else ():
            if known.states[name]["failures"] or known.states[name]["final"]:
                store.job(name).forgive()
        sending = Sending(plan, store, say, requests, journal, known, snapshot(store), done)
        sending.send(jobs, weights or {}) if jobs else sending.send_last(unreported)
    return done


def checked_requests(plan: Plan) -> dict[str, Request]:
    """What the plan's allocations ask for, by `shape`, with the time limits that will hold. Raises ConfigError for what
    this cluster would refuse, and LaunchError where there is none."""
    if not scheduler.available():
        scheduler.call(["sbatch", "--version"])  # says what is missing
    return checked([*(each.request for each in allocations_of(plan.jobs, plan.cluster)), report_request(plan)])


def ids_without_report(plan: Plan, journal: Journal, queue: Mapping[str, Queued]) -> list[str]:
    """What is in the queue of a plan whose job that reports is not: its submission was cut off before."""
    if not plan.cluster.report or any(alive(queue.get(each)) for each in journal.last_jobs.get(plan.study, ())):
        return []
    return sorted({each.partition("_")[0] for each in slurm_ids(journal, plan.jobs, queue)})


def report_request(plan: Plan) -> Request:
    return request_for(plan.cluster, {"report"})


def settle(store: Store, journal: Journal, say: Say) -> None:
    """Batches of which it was never noted that SLURM has them: those that it has are taken out again, also those that
    it took only after it had been asked.

    Their tasks may lack the files that their shell had no time to put in place. Those of another user can be taken out
    by that user alone: until then they count as submitted.
    """
    doubtful = journal.unanswered | journal.withdrawn
    if not doubtful:
        return
    queue = scheduler.queue(doubtful.values())
    take_back(doubtful, queue, say)
    count_in(journal, store, queue, say)
    for batch in list(journal.unanswered):
        submissions.withdrawn(store.root, batch)
        journal.withdrawn[batch] = journal.unanswered.pop(batch)


def take_back(batches: Collection[str], queue: Mapping[str, Queued], say: Say) -> None:
    """Makes sure that SLURM does not have those of these batches that are the submitter's own."""
    marks = {f"{MARK}{batch}" for batch in batches}
    there = {name: job for name, job in queue.items() if job.comment in marks and alive(job)}
    left = {name.partition("_")[0] for name, job in there.items() if job.user == submissions.me()}
    if left:
        say(f"taking back {', '.join(sorted(left))}, whose submission was cut off half-way")
        scheduler.cancel(left)


def count_in(journal: Journal, store: Store, queue: Mapping[str, Queued], say: Say) -> None:
    """Takes other users' unanswered batches that SLURM has for submitted, in this reading of the journal alone."""
    users = {batch: user for batch, user in journal.unanswered.items() if user != submissions.me()}
    there = {job.comment.removeprefix(MARK): name.split("_") for name, job in queue.items() if alive(job)}
    for batch in users.keys() & there.keys():
        base, *task = there[batch]
        row = submissions.intended(store.root, batch)
        tasks = range(len(row["allocations"]))
        submissions.count_in(journal, row, [f"{base}_{number}" for number in tasks] if task else [base])
        del journal.unanswered[batch]
        say(
            f"{base} is of a submission by {users[batch]} that was cut off half-way; its jobs count as queued. It may "
            f"lack files, and {users[batch]} alone can take it back, by a sweep"
        )


@dataclass
class Sending:
    """One submission on its way, with the store's submission lock held."""

    plan: Plan
    store: Store
    say: Say
    requests: Mapping[str, Request]
    """Shape -> request as checked."""
    journal: Journal
    known: Known
    snapshot: Path
    result: Submitted
    ids: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Job in the queue -> its SLURM id, and how many jobs run side by side there."""

    def send(self, jobs: Mapping[str, Job], weights: Mapping[str, float]) -> None:
        """Submits these jobs, and after them the job that reports."""
        queue = self.known.queue or {}
        there = {name: each for name, each in self.journal.newest().items() if alive(queue.get(each.slurm_id))}
        self.ids = {name: (each.slurm_id, each.slots) for name, each in there.items() if name not in jobs}
        self.take_out({each for name, each in there.items() if name in jobs and set(each.jobs) <= set(jobs)})
        self.keep_away()
        allocations = [self.as_checked(each, jobs) for each in allocations_of(jobs, self.plan.cluster)]
        lanes = self.plan.cluster.max_parallel
        largest = scheduler.largest_array()
        batches = lanes_of(allocations, lanes, weights) if lanes else batches_of(allocations, largest)
        self.send_all(deque(batches), jobs)

    def send_all(self, batches: deque[Batch], jobs: Mapping[str, Job]) -> None:
        """Submits these batches, cut to what a limit leaves room for, and the job that reports on what was submitted.
        Raises LimitReachedError where not all are."""
        first_ids: list[str] = []
        full: LimitReachedError | None = None
        while batches and full is None:
            batch = batches.popleft()
            if batch.task_by_task is not None and not in_step(batch, self.ids):
                batches.extendleft(reversed(singles(batch)))
                continue
            try:
                ids = self.send_batch(batch, jobs)
            except LimitReachedError as error:
                # Of two places that are one too many, the last is for the job that reports.
                smallest = 2 if self.plan.cluster.report and first_ids else 1
                full = error if len(batch.allocations) <= smallest else None
                batches.extendleft(reversed(halves(batch)) if full is None else [batch])
                continue
            first_ids.append(ids[0].partition("_")[0])
            self.result.calls += 1
            self.tell(len(first_ids), len(first_ids) + len(batches))
        left = [allocation for batch in batches for allocation in batch.allocations]
        unreported = self.send_last_if_any(first_ids, tuple(name for each in left for name in each.jobs))
        if limit := full or unreported:
            reported = self.plan.cluster.report and bool(first_ids) and unreported is None
            raise self.stopped(limit, len(left), reported)

    def send_last_if_any(self, first_ids: Sequence[str], left: tuple[str, ...]) -> LimitReachedError | None:
        """The job that reports, where there is anything to report on; it submits the jobs that are left. Returns why
        SLURM does not take it."""
        if self.plan.cluster.report and first_ids:
            try:
                self.send_last(first_ids, left)
            except LimitReachedError as error:
                return error
        return None

    def stopped(self, limit: LimitReachedError, left: int, reported: bool) -> LimitReachedError:
        """What was submitted before a limit was reached, and how it goes on."""
        after = "the job that reports submits the others once these have ended, and the same command does so before"
        alone = "no job that reports is; the same command goes on once others have ended"
        submitted = f"{self.result.allocations} allocations are submitted, {left} are left"
        return LimitReachedError(f"{limit}. {submitted}; {after if reported else alone}")

    def tell(self, sent: int, total: int) -> None:
        if total > 20 and (sent % 20 == 0 or sent == total):
            self.say(f"{self.result.allocations} allocations submitted ({sent} of {total} calls of sbatch)")

    def take_out(self, superseded: Collection[Allotted]) -> None:
        """Takes out of the queue what waits for something that has failed: its jobs are submitted anew. What another
        user has there cannot be taken out; it will find its jobs claimed or done."""
        queue = self.known.queue or {}
        own = {each.slurm_id for each in superseded if queue[each.slurm_id].user == submissions.me()}
        if waiting := {slurm_id for slurm_id in own if queue[slurm_id].waiting}:
            scheduler.cancel(waiting)

    def keep_away(self) -> None:
        """From nodes on which jobs of this plan have failed again and again, and elsewhere not."""
        found = bad_hosts(self.known.states.values())
        for host, failures in found.items():
            self.say(
                f"keeping away from {host}: the last {failures} attempts there failed, and others elsewhere did not"
            )
        if found:
            self.requests = {key: self.elsewhere(each, sorted(found)) for key, each in self.requests.items()}

    def elsewhere(self, request: Request, away: Sequence[str]) -> Request:
        """Without these nodes, where there are others that it fits on."""
        found = replace(request, exclude=",".join(filter(None, (request.exclude, *away))))
        try:
            check_by_slurm(found, enough=True)
        except ConfigError as error:
            self.say(f"some jobs cannot be kept away from {', '.join(away)}: {error}")
            return request
        return found

    def as_checked(self, allocation: Allocation, jobs: Collection[str]) -> Allocation:
        """With its request as checked, and without what it needs no more because it is done."""
        needs = tuple(name for name in allocation.needs if name in self.ids or name in jobs)
        return replace(allocation, request=self.requests[shape(allocation.request)], needs=needs)

    def send_batch(self, batch: Batch, jobs: Mapping[str, Job]) -> list[str]:
        """One call of sbatch; returns the id of each allocation."""
        works = [
            Work(self.store.root, self.store.data, {n: jobs[n] for n in each.jobs}, self.plan.engine, each.slots)
            for each in batch.allocations
        ]
        name = job_name(self.plan.study) + ("" if batch.lane is None else f"-lane-{batch.lane + 1}")
        dependency = self.dependency(batch)
        ids = self.hand_over(batch.allocations, works, batch.request, name, dependency)
        for allocation, slurm_id in zip(batch.allocations, ids, strict=True):
            self.ids.update(dict.fromkeys(allocation.jobs, (slurm_id, allocation.slots)))
            self.result.jobs += allocation.jobs
            self.result.allocations += 1
        return ids

    def dependency(self, batch: Batch) -> list[str]:
        """What of `--dependency` a batch needs. Where jobs run side by side one may fail and another not, so their
        dependents start in any case and look themselves."""
        if batch.task_by_task is not None:
            slurm_id, _ = self.ids[batch.allocations[0].needs[0]]
            found = [f"aftercorr:{slurm_id.partition('_')[0]}"]
        else:
            needed = [self.ids[name] for name in batch.allocations[0].needs if name in self.ids]
            well = dict.fromkeys(slurm_id for slurm_id, slots in needed if slots == 1)
            anyhow = dict.fromkeys(slurm_id for slurm_id, slots in needed if slots > 1)
            found = [":".join((kind, *ids)) for kind, ids in (("afterok", well), ("afterany", anyhow)) if ids]
        return found + (["singleton"] if batch.lane is not None else [])

    def send_last(self, first_ids: Sequence[str], left: tuple[str, ...] = ()) -> None:
        """The job that brings MLflow and the report up to date once all others have ended, however they have."""
        last = Last(self.store.root, self.store.data, self.plan.study, left)
        request = self.requests[shape(report_request(self.plan))]
        waits = [":".join(("afterany", *dict.fromkeys(first_ids)))]
        self.result.last_job = self.hand_over([], [last], request, f"{job_name(self.plan.study)}-report", waits)[0]

    def hand_over(
        self,
        allocations: Sequence[Allocation],
        works: Sequence[Work | Last],
        request: Request,
        name: str,
        dependency: Sequence[str],
    ) -> list[str]:
        """Calls sbatch, again while SLURM is down, and notes before and after that it was."""
        folder = self.store.root / "slurm" / self.plan.study
        for left in reversed(range(TRIES)):
            batch = submissions.intend(
                self.store.root, self.plan.study, allocations, request, self.plan.engine.retries, self.snapshot.name
            )
            executor = executor_for(
                request, self.plan.cluster, folder, self.snapshot, self.store.root, batch, name, dependency,
                packed=any(each.slots > 1 for each in allocations), tasks=len(works),
            )  # fmt: skip
            try:
                with outside_of_jobs(), executor.batch():
                    jobs = [executor.submit(work) for work in works]
                ids = [str(job.job_id) for job in jobs]
            except (FailedJobError, FailedSubmissionError) as error:
                self.refused(batch, cleaned(str(error)), left)
                continue
            submissions.submitted(self.store.root, batch, ids)
            return ids
        raise AssertionError("the last refusal raises")

    def refused(self, batch: str, said: str, left: int) -> None:
        """Returns once SLURM answers again and does not have the batch. Raises LaunchError where trying again is of no
        use, or this was the last of its tries: `left` is how many there still are."""
        if not any(text in said for text in scheduler.DOWN):
            submissions.withdrawn(self.store.root, batch)
            if any(text in said for text in limits.TEXTS):
                raise LimitReachedError(f"SLURM refuses a job: {' '.join(said.split())}")
            raise LaunchError(self.half_way(f"SLURM refuses a job: {said}"))
        # Until it is known, the batch is left unanswered: SLURM may have taken it before it fell silent.
        down = SchedulerDown(self.half_way(f"SLURM does not answer: {said}"))
        if not left:
            raise down
        self.say(f"SLURM does not answer: {said}")
        time.sleep(scheduler.PAUSES[0])
        try:
            queue = scheduler.patiently(lambda: scheduler.queue([submissions.me()]), self.say)
        except SchedulerDown:
            raise down from None
        take_back([batch], queue, self.say)
        submissions.withdrawn(self.store.root, batch)

    def half_way(self, reason: str) -> str:
        """An error with what has been done before it."""
        return (
            f"{reason}. {self.result.allocations} allocations are submitted, the others are not; the same command goes "
            "on with them"
        )


@contextlib.contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Without variables that sbatch would heed before the request (SBATCH_*), and without what tells of an allocation
    that this process may be in: sbatch hands that on, and the memory of one job beside that of another is an error."""
    foreign = ("SBATCH_", "SLURM_", "SRUN_") if "SLURM_JOB_ID" in os.environ else ("SBATCH_",)
    named = [name for name in os.environ if name.startswith(foreign) and name != "SLURM_CONF"]
    before = {name: os.environ.pop(name) for name in named}
    try:
        yield
    finally:
        os.environ.update(before)


def job_name(study: str) -> str:
    return f"prism-{study.replace('/', '.')}"


def slurm_ids(journal: Journal, jobs: Collection[str], queue: Mapping[str, Queued]) -> set[str]:
    """Ids in the queue under which these jobs wait or run."""
    newest = journal.newest()
    return {newest[name].slurm_id for name in jobs if name in newest and alive(queue.get(newest[name].slurm_id))}

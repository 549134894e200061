"""Requests as what submitit's executor is told, and the shell around the tasks of a job."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor

from prism_sweeps.config.cluster import minutes, tasks_per_node
from prism_sweeps.config.schema import Cluster, Request
from prism_sweeps.tracking.submissions import MARK

ATTEMPTS = """\
# The tasks are told to make room, not this shell: it stays to ask what is to be done after them.
trap : TERM USR1 USR2
prism_requeue() (
  trap '' TERM USR1 USR2
  pause=5
  while true; do
    # SLURM would queue a job again that it is just ending because somebody has cancelled it.
    case $(squeue --noheader --jobs="$1" --format=%T,%r) in
      COMPLETING,TimeLimit) ;;
      COMPLETING,*) echo "prism: SLURM is ending it"; exit 1 ;;
    esac
    said=$(scontrol requeue "$1" 2>&1) && break
    echo "prism: not yet in the queue: $said"
    case $said in
      *"Job is pending execution"*) break ;;
      *"Invalid job id"* | *"ermission denied"* | *"presently disabled"* | *"command not found"*) exit 1 ;;
    esac
    sleep "$pause"
    pause=$((pause < 25 ? pause + 5 : 30))
  done
  [ -z "$2" ] || scontrol update JobId="$1" ExcNodeList="$2" || true
)
prism_attempts() {{
  local code tries=0 answer nodes id="${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}}}"
  id="${{id:-$SLURM_JOB_ID}}"
  while tries=$((tries + 1)); "$@"; code=$?; [ "$code" -ne 0 ]; do
    answer=$(trap '' TERM; {python} -m prism_sweeps.launching.slurm.after {store} {batch} \\
      "${{SLURM_ARRAY_TASK_ID:-0}}" "$code" "$tries" "$SECONDS" "${{SLURM_RESTART_COUNT:-0}}") \\
      || [ "$code" -eq 75 ] || return "$code"
    # What comes before it a container has said.
    read -r answer nodes <<< "$(tail -n 1 <<< "$answer")"
    case "$answer,$code" in
      again,* | requeue,* | end,*) ;;
      *,75) answer=requeue nodes= ;;
    esac
    case "$answer" in
      again) echo "prism: again, after exit code $code" ;;
      requeue)
        # Without these nodes there may be none that it fits on, and it would wait for ever.
        if [ -n "$nodes" ] && ! sbatch --test-only --exclude="$nodes" "$0"; then
          echo "prism: again, after exit code $code; there is no other node"
          continue
        fi
        echo "prism: back into the queue, after exit code $code${{nodes:+; not on $nodes}}"
        prism_requeue "$id" "$nodes" && sleep 300
        return "$code" ;;
      *) return "$code" ;;
    esac
  done
}}"""
"""A job goes back into the queue by its own id: that of an array's last task is the whole array's number.

It is asked for as long as the allocation lasts, for the controller may be away, unless SLURM says that it cannot be.
"""


def executor_for(
    request: Request,
    cluster: Cluster,
    folder: Path,
    snapshot: Path,
    store_root: Path,
    batch: str,
    name: str,
    dependency: Sequence[str],
    packed: bool,
    tasks: int,
) -> SlurmExecutor:
    """An executor that submits `tasks` calls (an array, if several) with this request.

    `request.time` is the limit that holds, also where it is the cluster's own.
    """
    python = " ".join(filter(None, (cluster.container, shlex.quote(cluster.python or sys.executable))))
    log = folder / ("%A_%a_%t_log.out" if tasks > 1 else "%j_%t_log.out")
    srun = f"prism_attempts srun --unbuffered --output={shlex.quote(str(log))} --open-mode=append --kill-on-bad-exit=1"
    executor = SlurmExecutor(folder=folder, python=f"{srun} {python}")
    executor.update_parameters(
        **parameters(request, packed),
        job_name=name,
        comment=f"{MARK}{batch}",
        dependency=",".join(dependency) or None,
        signal_delay_s=cluster.notice_seconds,
        stderr_to_stdout=True,
        use_srun=False,
        array_parallelism=tasks,
        setup=[
            f"export PYTHONPATH={shlex.quote(str(snapshot))}${{PYTHONPATH:+:$PYTHONPATH}}",
            # Since 22.05 srun does not take it over from sbatch.
            "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-}",
            '[ -n "$SRUN_CPUS_PER_TASK" ] || unset SRUN_CPUS_PER_TASK',
            *cluster.setup,
            ATTEMPTS.format(python=python, store=shlex.quote(str(store_root)), batch=batch),
        ],
    )
    return executor


def parameters(request: Request, packed: bool) -> dict[str, Any]:
    """What of submitit's parameters a request sets. A packed allocation has one task, which starts its jobs itself."""
    limit = minutes(request.time) if request.time is not None else None
    other: dict[str, Any] = {name.replace("_", "-"): value for name, value in request.options.items()}
    if request.memory is not None:
        other["mem"] = request.memory
    # requeue: wherever the cluster's own default is not to. kill-on-invalid-dep: else what needs a failed job waits on.
    other |= {"requeue": True, "kill-on-invalid-dep": "yes"}
    if request.time is not None:
        other["time"] = request.time
    return {
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "time": None if limit is None else math.ceil(limit),
        "nodes": request.nodes,
        "ntasks_per_node": 1 if packed else tasks_per_node(request),
        "gpus_per_node": request.gpus_per_node or None,
        "cpus_per_task": request.cpus_per_task,
        "constraint": request.constraint,
        "exclude": request.exclude,
        "wckey": None,
        "additional_parameters": other,
    }

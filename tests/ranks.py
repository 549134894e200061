"""Several processes that meet over gloo, for tests of what they do together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Forked from a process of its own: one that has trained and compiled has threads, whose locks a fork would inherit.
CONTEXT = multiprocessing.get_context("forkserver")
# A device mesh wants dynamo, and takes two seconds to import it in every process.
CONTEXT.set_forkserver_preload(
    ["torch._dynamo", "pytest", "prism_sweeps.training.stage", "prism_sweeps.evaluation.runner"]
)


def run_ranks(
    world: int, folder: Path, function: Callable[..., Any], *arguments: Any, killed: int | None = None
) -> list:
    """What `function(*arguments)` returns in each of `world` processes; all of it has to be picklable.

    Process `killed` is expected to die by SIGKILL; the others are then killed too, and there is nothing to return.
    """
    meeting = folder / f"meeting-{os.urandom(4).hex()}"
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(world)]
    processes = [
        CONTEXT.Process(target=_child, args=(rank, world, meeting, pipe, function, arguments))
        for rank, (_, pipe) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, pipe in pipes:
        pipe.close()
    if killed is not None:
        processes[killed].join(60)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
            process.join()
        assert codes[killed] == -signal.SIGKILL, f"exit codes {codes}"
        return []
    return _answers(processes, [receiver for receiver, _ in pipes])


def _answers(processes: list, receivers: list[Connection]) -> list:
    answers = []
    try:
        for rank, receiver in enumerate(receivers):
            assert receiver.poll(60), f"rank {rank} says nothing"
            kind, answer = receiver.recv()
            assert kind == "returned", f"rank {rank}:\n{answer}"
            answers.append(answer)
    finally:
        for process in processes:
            if len(answers) < len(processes):
                process.kill()
            process.join()
    return answers


def _child(
    rank: int, world: int, meeting: Path, pipe: Connection, function: Callable[..., Any], arguments: tuple
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
        pipe.send(("returned", function(*arguments)))
        dist.barrier()  # whoever leaves first takes the meeting place along
    except BaseException:
        pipe.send(("raised", traceback.format_exc()))
    finally:
        os._exit(0)

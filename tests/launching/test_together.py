"""Several real processes, as torchrun and srun start them: killed, told to make room, gone on with."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_together import FIRST, SECOND, jobs

from prism_sweeps.config.errors import ConfigError
from prism_sweeps.config.schema import Engine
from prism_sweeps.launching.pool import REQUEUE
from prism_sweeps.tracking.records import Store
from prism_sweeps.training.world import PORTS, Place, own_device, place_in

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parent / "train_together.py"


def torchrun(store: Path, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, "--max-restarts", str(restarts), "--monitor-interval", "0.1", str(SCRIPT), str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def by_hand(store: Path) -> list[subprocess.Popen[str]]:
    """Two processes as srun starts them: without anybody who restarts or ends them."""
    common = {
        "SLURM_JOB_ID": str(random.randrange(10_000, 10_000_000)),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NODEID": "0",
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | common | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text(encoding="utf-8").split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found if Path(f"/proc/{pid}").exists()}
    return [pid for pid, command in commands.items() if SCRIPT.name.encode() in command]


def steps_done(store: Path) -> int:
    opened = Store.open(store)
    return sum(len(opened.job(name).read_metrics()) for name in (FIRST, SECOND))


def wait_until(reached: int, store: Path, launcher: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while steps_done(store) < reached:
        if launcher.poll() is not None:
            assert launcher.stdout is not None
            raise AssertionError(launcher.stdout.read())
        assert time.monotonic() < until
        time.sleep(0.01)


def weights(store: Path) -> dict[str, torch.Tensor]:
    found = {}
    for name in (FIRST, SECOND):
        for file in sorted(Store.open(store).job(name).weights.glob("*.safetensors")):
            found |= {f"{name}.{key}": tensor for key, tensor in load_file(file).items()}
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    run = torchrun(store)
    text, _ = run.communicate(timeout=300)
    assert run.returncode == 0, text
    assert steps_done(store) == 120
    return weights(store)


def assert_undisturbed(store: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    found = weights(store)
    assert found.keys() == undisturbed.keys()
    assert all(torch.equal(found[name], undisturbed[name]) for name in found)
    for name in (FIRST, SECOND):
        assert Store.open(store).job(name).state()["status"] == "done"
        assert [row["step"] for row in Store.open(store).job(name).read_metrics()] == list(range(1, 61))


def test_either_process_may_be_killed_at_any_time(tmp_path: Path, undisturbed: dict[str, torch.Tensor]):
    """Torchrun ends the other and starts both again, which go on from the last checkpoint, to the same bits."""
    store, draw = tmp_path / "store", random.Random(11)
    run = torchrun(store, restarts=9)
    for number, reached in enumerate((4, 37, 64)):
        wait_until(reached, store, run)
        time.sleep(draw.random() * 0.05)
        os.kill(ranks_of(run)[number % 2], signal.SIGKILL)
    text, _ = run.communicate(timeout=300)
    assert run.returncode == 0, text
    assert_undisturbed(store, undisturbed)
    attempts = sum(Store.open(store).job(name).state()["attempts"] for name in (FIRST, SECOND))
    assert attempts >= 4, text


def test_told_to_make_room_all_end_with_the_code_for_again(tmp_path: Path, undisturbed: dict[str, torch.Tensor]):
    """One process hears of it, as with `scancel --signal` of a single task, and again: no second signal hurts."""
    store = tmp_path / "store"
    for reached, number in ((30, signal.SIGUSR2), (80, signal.SIGTERM)):
        processes = by_hand(store)
        wait_until(reached, store, processes[0])
        for _ in range(3):
            processes[1].send_signal(number)
        ends = [(process.communicate(timeout=120)[0], process.returncode) for process in processes]
        assert [code for _, code in ends] == [REQUEUE] * 2, ends
    last = by_hand(store)
    assert [(process.communicate(timeout=120)[0], process.returncode)[1] for process in last] == [0, 0]
    assert_undisturbed(store, undisturbed)


def test_an_error_of_one_process_is_told_in_the_record(tmp_path: Path):
    store = tmp_path / "store"
    processes = by_hand(store)
    wait_until(3, store, processes[0])
    record = Store.open(store).job(FIRST)
    # Only the second process sees this one again: the longest conversation goes to the first, the next to the second.
    for image in (Store.open(store).data / "tiny-chats" / "images").iterdir():
        image.write_bytes(b"no image any more")
    ends = [(process.communicate(timeout=120)[0], process.returncode) for process in processes]
    assert all(code == 1 for _, code in ends), ends
    state = record.state()
    assert state["status"] == "failed"
    assert re.search(r"conversation tiny/\d+: .*\.png", state["error"])


# ---- who is who


def test_a_process_alone_is_alone():
    assert place_in({}) == Place()
    assert place_in({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}).size == 1  # a batch script
    assert place_in({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1"}).size == 1


def test_srun_says_who_is_who():
    said = {
        "SLURM_JOB_ID": "1234567",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "11",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
        "SLURM_STEP_NODELIST": "gpu[007-009]",
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "2",
    }
    place = place_in(said)
    assert (place.rank, place.size, place.local_rank, place.local_size) == (9, 11, 1, 3)
    assert place.address == "gpu007"
    assert place.port in PORTS
    assert place_in(said | {"SLURM_JOB_ID": "1234568"}).port != place.port
    with pytest.raises(ConfigError, match="SLURM_LOCALID"):
        place_in({key: value for key, value in said.items() if key != "SLURM_LOCALID"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[003-007,012],login", "gpu003"), ("a-1,b[2-3]", "a-1"), ("r[1-2]-x", "r1-x")],
)
def test_the_first_host_of_a_list(nodes: str, first: str):
    from prism_sweeps.training.world import first_host

    assert first_host(nodes) == first


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ConfigError, match="number 5 of 8 on its node, which has 4 GPUs"):
        own_device(Engine(), Place(5, 8, 5, 8))


def test_the_jobs_of_the_script_are_a_chain():
    assert jobs()[SECOND].parents == [FIRST]

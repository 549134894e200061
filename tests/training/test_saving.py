import errno
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from prism_sweeps.config.errors import StoreError
from prism_sweeps.training import checkpoint_files
from prism_sweeps.training.checkpoint_files import numbered
from prism_sweeps.training.saving import Checkpoints, Loaded, Progress, load_newest, remove_all

SHAPES = {"uneven": (7, 3), "few": (2, 5), "one": (1,), "half": (5, 4), "none": (0, 3)}
"""Rows that 2 or 4 processes do not share evenly, and fewer rows than processes."""


def whole(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tensors["half"] = tensors["half"].bfloat16()
    return tensors


def plain(step: int) -> dict[str, torch.Tensor]:
    return {"count": torch.tensor(float(step)), "rng": torch.arange(9, dtype=torch.uint8) + step}


def state_of(step: int, layout: str) -> dict[str, torch.Tensor]:
    """The tensors of `step`, on a process alone (plain) or spread over all."""
    if layout == "plain":
        return whole(step) | plain(step)
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, size // 2) if layout == "hybrid" else (size,))
    placements = {
        "rows": [Shard(0)],
        "columns": [Shard(0)],
        "hybrid": [Replicate(), Shard(0)],
        "whole": [Replicate()],
    }[layout]
    spread = {name: distribute_tensor(tensor, mesh, placements) for name, tensor in whole(step).items()}
    if layout == "columns":
        spread["uneven"] = distribute_tensor(whole(step)["uneven"], mesh, [Shard(1)])
    return spread | plain(step)


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def group_of(layout: str) -> dist.ProcessGroup | None:
    alone = layout == "plain" or dist.get_world_size() == 1
    return None if alone else dist.new_group(backend="gloo")


def save(folder: Path, layout: str, *steps: int, keep: int = 2) -> None:
    checkpoints = Checkpoints(folder, keep, group_of(layout))
    for step in steps:
        checkpoints.begin(step, state_of(step, layout), {"steps": 9})
    checkpoints.finish()


def load(folder: Path, layout: str) -> Loaded:
    """Loads, and checks that all is as it was, in the memory it was given."""
    tensors = state_of(99, layout)
    places = {name: local(tensor).data_ptr() for name, tensor in tensors.items()}
    loaded = load_newest(folder, tensors, group_of(layout))
    step = 99 if loaded.step is None else loaded.step
    wanted = state_of(step, layout)
    for name, tensor in tensors.items():
        assert local(tensor).data_ptr() == places[name], name
        assert torch.equal(local(tensor), local(wanted[name])), name
    return loaded


# ---- one process


def test_newest_comes_back_and_only_the_last_are_kept(tmp_path: Path):
    save(tmp_path / "checkpoints", "plain", 3, 20, 100)
    assert [path.name for path in numbered(tmp_path / "checkpoints")] == ["step-00000100", "step-00000020"]
    assert load(tmp_path / "checkpoints", "plain") == Loaded(100, {"steps": 9}, [])
    remove_all(tmp_path / "checkpoints")
    assert load(tmp_path / "checkpoints", "plain") == Loaded(None, {}, [])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_it_is_what_torch_writes_and_reads(tmp_path: Path):
    """Read by torch's own reader; and what torch's own writer writes has the same tensors and metadata."""
    save(tmp_path / "ours", "plain", 5)
    tensors = {name: torch.zeros_like(tensor) for name, tensor in state_of(5, "plain").items()}
    reader = dcp.HuggingFaceStorageReader(str(tmp_path / "ours" / "step-00000005"))
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in state_of(5, "plain").items())

    writer = dcp.HuggingFaceStorageWriter(str(tmp_path / "theirs"), save_distributed=True)
    dcp.save(state_of(5, "plain"), storage_writer=writer, no_dist=True)
    (theirs,) = (tmp_path / "theirs").iterdir()
    (ours,) = (tmp_path / "ours" / "step-00000005").glob("*.safetensors")
    assert header(ours) == header(theirs)


def header(path: Path) -> dict:
    data = path.read_bytes()
    found = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = found.pop("__metadata__")
    for entry in found.values():
        del entry["data_offsets"]
    return {"about": about | {"DCP_SHARDING_INFO": json.loads(about["DCP_SHARDING_INFO"])}} | found


def test_tensors_may_change_while_they_are_written_and_the_next_waits(tmp_path: Path, monkeypatch):
    hold_writing = slow(monkeypatch)
    checkpoints = Checkpoints(tmp_path, 2, None)
    assert checkpoints.progress() == Progress.WRITTEN
    tensors = state_of(1, "plain")
    assert checkpoints.begin(1, tensors, {"steps": 9}) < 0.1
    for tensor in tensors.values():
        tensor.zero_()
    assert checkpoints.progress() == Progress.WRITING
    assert numbered(tmp_path) == []
    threading.Timer(0.5, hold_writing.set).start()
    assert checkpoints.begin(2, state_of(2, "plain"), {"steps": 9}) > 0.05
    checkpoints.finish()
    shutil.rmtree(tmp_path / "step-00000002")
    assert load(tmp_path, "plain").step == 1


def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Files are not written before the event is set."""
    allowed, write = threading.Event(), checkpoint_files.write_tensors
    monkeypatch.setattr(checkpoint_files, "write_tensors", lambda *given: allowed.wait(20) and write(*given))
    return allowed


def test_written_checkpoints_are_seen_when_they_are_committed(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, 2, None)
    checkpoints.commit()  # nothing was begun
    checkpoints.begin(1, state_of(1, "plain"), {"steps": 9})
    while checkpoints.progress() == Progress.WRITING:
        time.sleep(0.001)
    assert load(tmp_path, "plain").step is None
    checkpoints.commit()
    assert load(tmp_path, "plain").step == 1


def truncate(folder: Path) -> None:
    path = folder / "rank-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_a_bit(folder: Path) -> None:
    flip(folder / "rank-00000.safetensors", -1)


def flip_a_bit_of_the_header(folder: Path) -> None:
    flip(folder / "rank-00000.safetensors", 20)


def lose_a_file(folder: Path) -> None:
    (folder / "rank-00000.safetensors").unlink()


def lose_the_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def empty_the_state(folder: Path) -> None:
    (folder / "state.json").write_text("")


def make_the_state_a_list(folder: Path) -> None:
    (folder / "state.json").write_text("[1]")


def flip_a_digit_of_the_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"steps": 9', '"steps": 8'))


DAMAGES = [
    truncate,
    flip_a_bit,
    flip_a_bit_of_the_header,
    lose_a_file,
    lose_the_state,
    empty_the_state,
    make_the_state_a_list,
    flip_a_digit_of_the_state,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_falls_back_and_says_so(tmp_path: Path, damage):
    save(tmp_path, "plain", 1, 2)
    damage(tmp_path / "step-00000002")
    loaded = load(tmp_path, "plain")
    assert loaded.step == 1
    assert len(loaded.damaged) == 1
    assert "step-00000002 is damaged (" in loaded.damaged[0]
    assert loaded.damaged[0].endswith("and was passed over")


def test_any_flipped_byte_of_the_state_is_seen(tmp_path: Path):
    save(tmp_path, "plain", 1)
    path = tmp_path / "step-00000001" / "state.json"
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good)
        flip(path, at)
        if good[at : at + 1] == b"2" and at < good.index(b"crc32"):  # the version itself
            with pytest.raises(StoreError, match="newer prism-sweeps"):
                load(tmp_path, "plain")
        else:
            assert load(tmp_path, "plain").step is None, at


def test_what_was_passed_over_does_not_take_the_place_of_what_is_written_next(tmp_path: Path):
    save(tmp_path, "plain", 1, 5)
    flip_a_bit(tmp_path / "step-00000005")
    save(tmp_path, "plain", 3, keep=1)
    assert [path.name for path in numbered(tmp_path)] == ["step-00000003"]
    save(tmp_path, "plain", 3)  # again, over itself
    assert load(tmp_path, "plain").damaged == []


def test_what_a_kill_left_half_written_is_not_a_checkpoint_and_goes(tmp_path: Path):
    save(tmp_path, "plain", 1, 2)
    (tmp_path / "step-00000002").rename(tmp_path / ".tmp-abc")
    assert load(tmp_path, "plain") == Loaded(1, {"steps": 9}, [])
    Checkpoints(tmp_path, 2, None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_newer_format_is_not_taken_for_damage(tmp_path: Path):
    save(tmp_path, "plain", 1)
    path = tmp_path / "step-00000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 3}))
    with pytest.raises(StoreError, match="newer prism-sweeps"):
        load_newest(tmp_path, state_of(1, "plain"), None)


def test_other_model_is_refused(tmp_path: Path):
    save(tmp_path, "plain", 1)
    right = state_of(1, "plain")
    more = right | {"more": torch.zeros(1)}
    less = {name: tensor for name, tensor in right.items() if name != "few"}
    wide, typed = right | {"few": torch.zeros(2, 6)}, right | {"few": torch.zeros(2, 5, dtype=torch.float64)}
    for other, name in ((more, "more"), (less, "few"), (wide, "few"), (typed, "few")):
        with pytest.raises(StoreError, match=f"of another model: 1 tensors differ .* {name};"):
            load_newest(tmp_path, other, None)


def test_full_disk_keeps_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, "plain", 1)
    monkeypatch.setattr(checkpoint_files, "write_tensors", full_disk)
    checkpoints = Checkpoints(tmp_path, 2, None)
    checkpoints.begin(2, state_of(2, "plain"), {})
    while checkpoints.progress() == Progress.WRITING:
        time.sleep(0.001)
    assert checkpoints.progress() == Progress.FAILED
    with pytest.raises(StoreError, match=r"step-00000002: the disk is full; the one before, step-00000001, is kept"):
        checkpoints.abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load(tmp_path, "plain").step == 1


def full_disk(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_disk_that_is_really_full(tiny_disk: Path):
    save(tiny_disk, "plain", 1)
    checkpoints = Checkpoints(tiny_disk, 2, None)
    checkpoints.begin(2, {"weight": torch.zeros(100_000)}, {})
    with pytest.raises(StoreError, match="the disk is full"):
        checkpoints.begin(3, state_of(3, "plain"), {})
    checkpoints.begin(3, state_of(3, "plain"), {"steps": 9 * "a" * 10_000})
    with pytest.raises(StoreError, match=r"step-00000003: the disk is full"):  # of state.json alone
        checkpoints.finish()
    assert load(tiny_disk, "plain").step == 1
    save(tiny_disk, "plain", 3)
    assert load(tiny_disk, "plain").step == 3


def test_a_failure_that_is_not_the_disks_names_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise MemoryError("no room for the header")

    monkeypatch.setattr(checkpoint_files, "write_tensors", fail)
    checkpoints = Checkpoints(tmp_path, 2, None)
    checkpoints.begin(2, state_of(2, "plain"), {})
    with pytest.raises(StoreError, match=r"MemoryError: no room for the header; there is no earlier one"):
        checkpoints.finish()


# ---- several


@pytest.mark.parametrize(
    ("world", "layout", "files"),
    [(2, "rows", [0, 1]), (2, "columns", [0, 1]), (4, "hybrid", [0, 1]), (4, "rows", [0, 1, 2, 3]), (2, "whole", [0])],
)
def test_any_number_of_processes_reads_what_another_number_wrote(tmp_path: Path, world, layout, files):
    run_ranks(world, tmp_path, save, tmp_path / "checkpoints", layout, 3, 4)
    (folder, _) = numbered(tmp_path / "checkpoints")
    assert sorted(path.name for path in folder.iterdir()) == [f"rank-{rank:05d}.safetensors" for rank in files] + [
        "state.json"
    ]
    sizes = sum(tensor.nbytes for tensor in state_of(4, "plain").values())
    held = sum(path.stat().st_size - 8 - len_of_header(path) for path in folder.glob("*.safetensors"))
    assert held == sizes  # every element once
    assert load(tmp_path / "checkpoints", "plain") == Loaded(4, {"steps": 9}, [])
    other = 4 if world == 2 else 2
    assert run_ranks(other, tmp_path, load, tmp_path / "checkpoints", "rows") == [Loaded(4, {"steps": 9}, [])] * other


def len_of_header(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


def test_one_process_writes_and_four_read_in_two_copies(tmp_path: Path):
    save(tmp_path / "checkpoints", "plain", 7, 8)
    flip_a_bit(tmp_path / "checkpoints" / "step-00000008")
    answers = run_ranks(4, tmp_path, load, tmp_path / "checkpoints", "hybrid")
    assert {answer.step for answer in answers} == {7}
    assert all(answer == answers[0] for answer in answers)
    assert "the checksum of rank-00000.safetensors does not match" in answers[0].damaged[0]


def test_a_process_alone_may_have_sharded_tensors(tmp_path: Path):
    run_ranks(1, tmp_path, save, tmp_path / "checkpoints", "rows", 3)
    assert run_ranks(1, tmp_path, load, tmp_path / "checkpoints", "rows") == [Loaded(3, {"steps": 9}, [])]
    assert load(tmp_path / "checkpoints", "plain").step == 3


def test_a_full_disk_of_one_process_is_told_to_all(tmp_path: Path):
    run_ranks(2, tmp_path, save, tmp_path / "checkpoints", "rows", 1)
    first, second = run_ranks(2, tmp_path, save_on_full_disk, tmp_path / "checkpoints", 1)
    assert first == second
    assert "step-00000002: the disk is full; the one before, step-00000001, is kept" in first
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def save_on_full_disk(folder: Path, rank: int) -> str:
    if dist.get_rank() == rank:
        checkpoint_files.write_tensors = full_disk
    with pytest.raises(StoreError) as told:
        save(folder, "rows", 2)
    return str(told.value)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_killed_while_it_writes(tmp_path: Path, killed: int):
    folder = tmp_path / "checkpoints"
    run_ranks(2, tmp_path, save, folder, "rows", 1)
    run_ranks(2, tmp_path, save_and_die, folder, killed, killed=killed)
    assert [path.name[:5] for path in sorted(folder.iterdir())] == [".tmp-", "step-"]
    assert run_ranks(2, tmp_path, load, folder, "rows") == [Loaded(1, {"steps": 9}, [])] * 2
    run_ranks(2, tmp_path, save, folder, "rows", 3)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000003"]


def save_and_die(folder: Path, rank: int) -> None:
    def die(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
        path.write_bytes(b"half")
        if dist.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint_files.write_tensors = die
    save(folder, "rows", 2)


def test_another_model_is_refused_by_all(tmp_path: Path):
    save(tmp_path / "checkpoints", "plain", 1)
    assert run_ranks(2, tmp_path, load_other, tmp_path / "checkpoints") == [True, True]


def load_other(folder: Path) -> bool:
    with pytest.raises(StoreError, match=r"another model: 1 tensors differ .* few;"):
        load_newest(folder, state_of(1, "rows") | {"few": torch.zeros(2, 6)}, group_of("rows"))
    return True

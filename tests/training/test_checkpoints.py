import errno
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from prism_sweeps.config.errors import StoreError
from prism_sweeps.training import checkpoints
from prism_sweeps.training.checkpoints import Checkpoint, capture, load_newest, restore, save_checkpoint


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"weight": torch.full((64,), float(step)), "count": torch.tensor(step)}, {"steps": 9})


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        save_checkpoint(folder, checkpoint(step), keep)


def test_newest_comes_back_and_only_the_last_are_kept(tmp_path: Path):
    save(tmp_path / "checkpoints", 3, 20, 100)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000020", "step-00000100"]
    found, damaged = load_newest(tmp_path / "checkpoints")
    assert (found.step, found.state, damaged) == (100, {"steps": 9}, [])
    assert torch.equal(found.tensors["weight"], torch.full((64,), 100.0))
    assert found.tensors["count"].shape == ()


def test_nothing_there(tmp_path: Path):
    assert load_newest(tmp_path / "checkpoints") == (None, [])


def truncate(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lose_the_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def empty_the_state(folder: Path) -> None:
    (folder / "state.json").write_text("")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_the_state, empty_the_state])
def test_damaged_newest_falls_back_and_says_so(tmp_path: Path, damage):
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002")
    found, damaged = load_newest(tmp_path)
    assert found.step == 1
    assert len(damaged) == 1
    assert "step-00000002 is damaged" in damaged[0]


def test_what_a_kill_left_half_written_is_not_a_checkpoint(tmp_path: Path):
    save(tmp_path, 1)
    (tmp_path / "step-00000001").rename(tmp_path / ".tmp-abc")
    assert load_newest(tmp_path) == (None, [])


def test_newer_format_is_not_taken_for_damage(tmp_path: Path):
    save(tmp_path, 1)
    path = tmp_path / "step-00000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(StoreError, match="newer prism-sweeps"):
        load_newest(tmp_path)


def test_full_disk_keeps_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path, 1)
    monkeypatch.setattr(checkpoints, "write_tensors", fail)
    with pytest.raises(StoreError, match=r"step-00000002: the disk is full; the one before, step-00000001, is kept"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_newest(tmp_path)[0].step == 1


def test_disk_that_is_really_full(tiny_disk: Path):
    save(tiny_disk, 1)
    large = Checkpoint(2, {"weight": torch.zeros(100_000)}, {})
    with pytest.raises(StoreError, match="the disk is full"):
        save_checkpoint(tiny_disk, large, keep=2)
    assert load_newest(tiny_disk)[0].step == 1
    save(tiny_disk, 3)
    assert load_newest(tiny_disk)[0].step == 3


# ---- of a model


def stepped(seed: int) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    optimiser = torch.optim.AdamW(model[1].parameters(), lr=0.1, fused=True)
    take_step(model, optimiser)
    return model, optimiser


def take_step(model: nn.Module, optimiser: torch.optim.AdamW) -> None:
    model(torch.rand(5, 3)).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()


def test_restored_model_goes_on_bit_for_bit(tmp_path: Path):
    model, optimiser = stepped(1)
    tensors = capture(model, optimiser)
    assert not any("0.weight" in name for name in tensors)
    save_checkpoint(tmp_path, Checkpoint(1, tensors, {}), keep=1)
    take_step(model, optimiser)

    other, other_optimiser = stepped(2)
    other[0].load_state_dict(model[0].state_dict())
    restore(other, other_optimiser, load_newest(tmp_path)[0].tensors)
    take_step(other, other_optimiser)
    assert torch.equal(model[1].weight, other[1].weight)
    assert torch.equal(model[1].bias, other[1].bias)


def test_other_model_is_refused():
    model, optimiser = stepped(1)
    tensors = capture(model, optimiser)
    wide = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    wide[0].requires_grad_(False)
    with pytest.raises(StoreError, match=r"another model: 2 tensors differ .* 1\.bias"):
        restore(wide, optimiser, tensors)
    with pytest.raises(StoreError, match="another model"):
        restore(nn.Linear(3, 4), optimiser, tensors)

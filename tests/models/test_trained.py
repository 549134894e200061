import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from huggingface_hub import split_torch_state_dict_into_shards
from ranks import run_ranks
from safetensors.torch import load_file
from test_vlm import spec
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from prism_sweeps.config.errors import StoreError
from prism_sweeps.models import trained
from prism_sweeps.models.trained import load_trained, save_trained, trained_modules
from prism_sweeps.models.vlm import VLM, build_vlm

ALL = ["vision", "projector", "llm"]
SHARD = 100_000
"""Bytes; the tiny language model then takes three files."""


def moved(tied: bool = False) -> VLM:
    """A model with no weight as it was built."""
    vlm = build_vlm(spec(tied=tied), 1)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in vlm.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return vlm


def same(one: VLM, other: VLM) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == other_name and torch.equal(a, b) for (name, a), (other_name, b) in pairs)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", [SHARD, 10**9])
def test_trained_weights_come_back(tmp_path: Path, tied: bool, shard: int):
    vlm, fresh = moved(tied), build_vlm(spec(tied=tied), 2)
    for _ in range(2):  # an older folder is replaced
        save_trained(vlm, tmp_path / "weights", ALL, shard_bytes=shard)
    assert trained_modules(tmp_path / "weights") == set(ALL)
    load_trained(fresh, tmp_path / "weights")
    assert same(vlm, fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert (fresh.llm.lm_head.weight is fresh.llm.get_input_embeddings().weight) == tied
    written = [name for file in (tmp_path / "weights").glob("llm*.safetensors") for name in load_file(file)]
    assert ("lm_head.weight" in written) != tied


def test_files_are_cut_and_named_as_the_hub_does_it(tmp_path: Path):
    vlm = moved()
    save_trained(vlm, tmp_path / "weights", ALL, shard_bytes=SHARD)
    wanted = split_torch_state_dict_into_shards(
        dict(vlm.llm.state_dict()), filename_pattern="llm{suffix}.safetensors", max_shard_size=SHARD
    )
    index = json.loads((tmp_path / "weights" / "llm.safetensors.index.json").read_text())
    assert index["weight_map"] == wanted.tensor_to_filename
    assert index["metadata"]["total_size"] == wanted.metadata["total_size"]
    assert len(wanted.filename_to_tensors) > 2
    for file, names in wanted.filename_to_tensors.items():
        tensors = load_file(tmp_path / "weights" / file)
        assert sorted(tensors) == sorted(names)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= SHARD
    assert (tmp_path / "weights" / "projector.safetensors").is_file()


def test_a_tensor_larger_than_a_file_may_be_has_one_of_its_own():
    assert trained.shards_of({"a": 3, "b": 9, "c": 2, "d": 3, "e": 1}, 5) == [["a"], ["b"], ["c", "d"], ["e"]]


def test_types_are_those_asked_for_when_written_and_the_models_own_when_read(tmp_path: Path):
    whole, half = moved(), build_vlm(spec(), 3, torch.bfloat16)
    save_trained(whole, tmp_path / "weights", ["projector", "llm"], torch.bfloat16, shard_bytes=SHARD // 2)
    files = list((tmp_path / "weights").glob("*.safetensors"))
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.bfloat16}
    save_trained(whole, tmp_path / "fp32", ["vision"])
    load_trained(half, tmp_path / "weights")
    load_trained(half, tmp_path / "fp32")
    for (name, one), (_, other) in zip(whole.named_parameters(), half.named_parameters(), strict=True):
        assert other.dtype == torch.bfloat16, name
        assert torch.equal(one.to(torch.bfloat16), other), name


def test_only_the_named_modules_are_saved_and_nothing_half_written_stays(tmp_path: Path):
    vlm = build_vlm(spec(), 1)
    save_trained(vlm, tmp_path / "weights", ["projector"])
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["projector.safetensors"]
    with pytest.raises(AttributeError):
        save_trained(vlm, tmp_path / "other", ["projector", "nothing"])
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert trained_modules(tmp_path / "other") == set()


def test_a_full_disk_is_told_and_leaves_nothing(tiny_disk: Path):
    with pytest.raises(OSError, match="No space left") as told:
        save_trained(build_vlm(spec(), 1), tiny_disk / "weights", ["vision", "llm"])
    assert told.value.errno == errno.ENOSPC
    assert list(tiny_disk.iterdir()) == []


def test_weights_that_are_missing_truncated_or_of_another_model_are_store_errors(tmp_path: Path):
    vlm = build_vlm(spec(), 1)
    with pytest.raises(StoreError, match="should hold some of vision, projector, llm"):
        load_trained(vlm, tmp_path)
    save_trained(build_vlm(spec("linear"), 1), tmp_path / "linear", ["projector"])
    with pytest.raises(StoreError, match="of another model"):
        load_trained(vlm, tmp_path / "linear")
    save_trained(build_vlm(spec(towers=1), 1), tmp_path / "narrow", ["projector"])
    with pytest.raises(StoreError, match=r"(?s)projector\.safetensors.*size mismatch"):
        load_trained(vlm, tmp_path / "narrow")
    save_trained(vlm, tmp_path / "cut", ["llm"])
    path = tmp_path / "cut" / "llm.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match=r"llm\.safetensors"):
        load_trained(vlm, tmp_path / "cut")


def test_a_file_that_is_missing_among_several_is_named(tmp_path: Path):
    vlm = build_vlm(spec(), 1)
    save_trained(vlm, tmp_path, ["llm"], shard_bytes=SHARD)
    index = tmp_path / "llm.safetensors.index.json"
    written = json.loads(index.read_text())
    second = sorted(set(written["weight_map"].values()))[1]
    assert second.startswith("llm-00002-of-0000")
    whole = (tmp_path / second).read_bytes()

    (tmp_path / second).unlink()
    with pytest.raises(StoreError, match=f"{second}' cannot be loaded.*run the stage that wrote it again"):
        load_trained(vlm, tmp_path)
    (tmp_path / second).write_bytes(whole[:-4])
    with pytest.raises(StoreError, match=f"{second}' cannot be loaded"):
        load_trained(vlm, tmp_path)
    (tmp_path / second).write_bytes((tmp_path / second.replace("00002", "00001", 1)).read_bytes())
    with pytest.raises(StoreError, match=rf"{second}' does not hold what llm\.safetensors\.index\.json says"):
        load_trained(vlm, tmp_path)

    written["weight_map"].pop("lm_head.weight")
    index.write_text(json.dumps(written))
    with pytest.raises(StoreError, match=r"of another model: \['lm_head.weight'\]"):
        load_trained(vlm, tmp_path)
    for broken in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(broken)
        with pytest.raises(StoreError, match=r"index\.json' is no map"):
            load_trained(vlm, tmp_path)
    index.unlink()
    with pytest.raises(StoreError, match=r"index\.json' is no map"):
        load_trained(vlm, tmp_path)


# ---- several processes


def spread(tied: bool, hybrid: bool = False) -> VLM:
    """Blocks and root sharded by FSDP2, the towers whole; the root gathered in bf16, as a forward pass leaves it."""
    vlm = moved(tied)
    shape = (2, dist.get_world_size() // 2) if hybrid else (dist.get_world_size(),)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    vision = set(vlm.vision.parameters())
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for block in vlm.llm.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(vlm, mesh=mesh, mp_policy=policy, ignored_params=vision)
    vlm.unshard()
    return vlm


def gather_and_save(folder: Path, tied: bool, hybrid: bool) -> bool:
    vlm = spread(tied, hybrid)
    save_trained(vlm, folder, ALL, group=dist.new_group(backend="gloo"), shard_bytes=SHARD)
    assert trained_modules(folder) == set(ALL)  # for all, as soon as it returns
    return isinstance(vlm.llm.model.norm.weight, DTensor)


@pytest.mark.parametrize(("world", "tied", "hybrid"), [(2, True, False), (2, False, False), (4, False, True)])
def test_a_sharded_model_is_gathered(tmp_path: Path, world: int, tied: bool, hybrid: bool):
    assert run_ranks(world, tmp_path, gather_and_save, tmp_path / "weights", tied, hybrid) == [True] * world
    save_trained(moved(tied), tmp_path / "alone", ALL, shard_bytes=SHARD)
    files = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == files
    for file in files:
        assert (tmp_path / "weights" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes(), file


def fail_in_the_first(folder: Path) -> str:
    def full(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    trained.write_tensors = full
    with pytest.raises((OSError, StoreError)) as told:
        save_trained(spread(False), folder, ALL, shard_bytes=SHARD)
    return f"{type(told.value).__name__}: {told.value}"


def test_a_disk_that_is_full_stops_all(tmp_path: Path):
    first, second = run_ranks(2, tmp_path, fail_in_the_first, tmp_path / "weights")
    assert first.startswith("OSError")
    assert second.startswith("StoreError: the first process could not write the trained weights")
    assert "No space left" in second
    assert not any(path.name.startswith("weights") for path in tmp_path.iterdir())


def die_at_the_second_file(folder: Path) -> None:
    write, written = trained.write_tensors, []

    def die(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if written:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(path)
        write(path, tensors)

    trained.write_tensors = die
    save_trained(spread(False), folder, ALL, shard_bytes=SHARD)


def test_what_was_half_written_when_it_was_killed_is_no_weights(tmp_path: Path):
    run_ranks(2, tmp_path, die_at_the_second_file, tmp_path / "weights", killed=0)
    assert not (tmp_path / "weights").exists()
    run_ranks(2, tmp_path, gather_and_save, tmp_path / "weights", False, False)
    fresh = build_vlm(spec(), 2)
    load_trained(fresh, tmp_path / "weights")
    assert same(fresh, moved())

"""The cache of what frozen towers see."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from models.tiny_towers import TINY, tower
from PIL import Image
from safetensors import safe_open
from torch.utils.data import DataLoader

from prism_sweeps.config.errors import ConfigError, DataError, StoreError
from prism_sweeps.config.schema import Backbone, Resize, Resolution
from prism_sweeps.models.resize import image_transform, load_image
from prism_sweeps.models.vision import VisionBackbone, build_vision
from prism_sweeps.tracking.records import Interrupted
from prism_sweeps.training import features, image_hashes
from prism_sweeps.training.features import Damaged, FeatureTable, Filling, features_root, fill

BACKBONE = Backbone("pair", {"a": tower(), "b": tower(kwargs={**TINY, "embed_dim": 16}, width=16, where="random:7")})
RESOLUTION, RESIZE = Resolution("32", 32), Resize("letterbox", "letterbox")
TRANSFORM = image_transform(BACKBONE, RESOLUTION, RESIZE)
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def vision() -> VisionBackbone:
    return build_vision(BACKBONE, RESOLUTION).eval()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Ten files of nine pictures, an hour old."""
    draw = random.Random(0)
    paths = [tmp_path / "images" / f"{number}.png" for number in range(10)]
    paths[0].parent.mkdir()
    for path in paths[:9]:
        Image.frombytes("RGB", (12, 8), draw.randbytes(288)).resize((40, 24)).save(path)
    shutil.copy(paths[3], paths[9])
    for path in paths:
        os.utime(path, (time.time() - 3600,) * 2)
    return paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return features_root(tmp_path, BACKBONE, RESOLUTION, RESIZE, "fp32")


def never() -> bool:
    return False


def filled(vision, images, root, precision="fp32", stop=never, transform=TRANSFORM, **how) -> list[tuple]:
    """What was reported."""
    told: list[tuple] = []
    how = Filling(**{"batch": 3, "shard_images": 4, **how})
    fill(vision, transform, images, root, precision, lambda *progress: told.append(progress), stop, how)
    return told


def kept(root: Path) -> list[str]:
    """Hashes in all shards, as the files have them."""
    found = []
    for path in sorted(root.glob("*.safetensors")):
        with safe_open(path, "np") as shard:
            found += [bytes(row).hex() for row in shard.get_tensor("images")]
    return found


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def computed(told: list[tuple]) -> int:
    return max((done for done, _, note in told if note == "image features"), default=0)


# ---- what is kept


def test_features_are_the_towers_own_whatever_the_batch(vision, images, root):
    filled(vision, images, root)
    table = FeatureTable(root, images)
    assert len(table) == 10
    with torch.no_grad():
        for path in images:
            alone = vision({name: pixels[None] for name, pixels in TRANSFORM(load_image(path)).items()})[0]
            torch.testing.assert_close(table[path], alone, rtol=0, atol=1e-5)
    assert table[images[0]].shape == (16, 48)
    assert not table[images[0]].is_inference()
    assert table[images[0]].data_ptr() != table[images[0]].data_ptr(), "a copy of one's own, not the mapped file"


@pytest.mark.parametrize("precision", ["bf16", "bf16-true"])
def test_half_precision_is_what_training_would_see(images, root, precision):
    own = build_vision(BACKBONE, RESOLUTION).eval().bfloat16()
    pixels = {name: each[None].bfloat16() for name, each in TRANSFORM(load_image(images[0])).items()}
    with torch.no_grad():
        seen_PV = own(pixels)[0]
    filled(own, images[:1], root, precision)
    assert FeatureTable(root, images[:1])[images[0]].dtype == torch.bfloat16
    assert torch.equal(FeatureTable(root, images[:1])[images[0]], seen_PV)


def test_an_image_counts_once_and_a_second_fill_computes_nothing(vision, images, root):
    assert computed(filled(vision, images, root)) == 9
    assert sorted(kept(root)) == sorted({sha(path) for path in images})
    assert [note for *_, note in filled(vision, images, root)] == []
    assert computed(filled(vision, images[:2], root)) == 0


def test_shards_are_no_larger_than_asked(vision, images, root):
    filled(vision, images, root, batch=2, shard_bytes=5 * 16 * 48 * 4, shard_images=100)
    sizes = [safe_open(path, "np").get_slice("features").get_shape()[0] for path in root.glob("*.safetensors")]
    assert sorted(sizes) == [4, 5], "a part of a batch is not cut off to fill a shard"


def test_training_starts_from_the_same_random_state_as_without(vision, images, root):
    before = torch.get_rng_state()
    filled(vision, images, root)
    assert torch.equal(torch.get_rng_state(), before)


# ---- the key


def key(tmp_path: Path, backbone=BACKBONE, resolution=RESOLUTION, resize=RESIZE, precision="fp32", **more) -> Path:
    return features_root(tmp_path, backbone, resolution, resize, precision, **more)


def renamed() -> Backbone:
    towers = [dataclasses.replace(each, name="other", parameters=5) for each in BACKBONE.towers.values()]
    return Backbone("another", dict(zip("xy", towers, strict=True)))


def test_names_and_local_fields_do_not_count(tmp_path):
    same = key(tmp_path, renamed(), Resolution("low", 32), Resize("mine", "letterbox"))
    assert same == key(tmp_path)
    more = {**tower().weights, 64: "hub"}
    assert key(tmp_path, Backbone("b", {"a": dataclasses.replace(tower(), weights=more)})) == key(
        tmp_path, Backbone("b", {"a": tower()})
    ), "weights at another resolution"


def test_what_decides_features_counts(tmp_path):
    first, second = BACKBONE.towers.values()
    others = [
        {"resolution": Resolution("32", 64)},
        {"resize": Resize("letterbox", "naive")},
        {"precision": "bf16"},
        {"backbone": Backbone("pair", {"a": second, "b": first})},
        {"backbone": Backbone("pair", {"a": dataclasses.replace(first, weights={32: "random:3"}), "b": second})},
        {"backbone": Backbone("pair", {"a": dataclasses.replace(first, mean=[0.1, 0.5, 0.5]), "b": second})},
    ]
    assert len({key(tmp_path, **other) for other in [{}, *others]}) == len(others) + 1
    assert key(tmp_path, precision="bf16") == key(tmp_path, precision="bf16-true"), "towers are rounded in both"
    with pytest.raises(ConfigError, match="did you mean 'bf16'"):
        key(tmp_path, precision="bf61")


def test_weights_in_files_count_by_content(tmp_path):
    def with_weights(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        local = dataclasses.replace(tower(), weights={32: str(tmp_path / name)})
        return key(tmp_path, Backbone("b", {"a": local}))

    assert with_weights("one", b"1") == with_weights("two", b"1") != with_weights("one", b"2")
    assert key(tmp_path) != key(tmp_path, trained=tmp_path / "one") != key(tmp_path, trained=tmp_path / "two")


def test_other_towers_under_the_same_key_are_found_out(vision, images, root):
    filled(vision, images[:5], root)
    changed = tower(where="random:9")
    other = build_vision(dataclasses.replace(BACKBONE, towers={**BACKBONE.towers, "a": changed}), RESOLUTION)
    with pytest.raises(StoreError, match="features of other towers"):
        filled(other, images, root)


# ---- reading


def test_forked_readers_get_the_same_and_pickles_carry_no_features(vision, images, root):
    filled(vision, images, root)
    table = FeatureTable(root, images)
    own = torch.stack([table[path] for path in images])
    assert len(pickle.dumps(table)) < 4096
    assert torch.equal(pickle.loads(pickle.dumps(table))[images[4]], own[4])

    class Features(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> torch.Tensor:
            return table[images[index]]

    loader = DataLoader(Features(), batch_size=5, num_workers=2, multiprocessing_context=FORK)
    assert torch.equal(torch.cat(list(loader)), own)


def test_what_is_missing_is_named(vision, images, root):
    filled(vision, images[:4], root)
    with pytest.raises(DataError, match=r"5 of 9 images have no features in .*4\.png"):
        FeatureTable(root, images[:9])
    with pytest.raises(DataError, match=r"image '.*5\.png' is not among the 4"):
        FeatureTable(root, images[:4])[images[5]]


# ---- damage, kills, full disks


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_a_damaged_shard_is_told_passed_over_and_computed_anew(vision, images, root, damage):
    filled(vision, images, root)
    before = {path: FeatureTable(root, images)[path] for path in images}
    shard = sorted(root.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes({"truncated": content[:-7], "empty": b"", "garbage": b"\xff" * len(content)}[damage])
    with pytest.raises(DataError, match="images have no features"):
        FeatureTable(root, images)
    told = filled(vision, images, root)
    assert any(f"{shard} is damaged" in note for *_, note in told)
    assert 0 < computed(told) < 9
    assert sorted(kept(root)) == sorted({sha(path) for path in images})
    torch.testing.assert_close({p: FeatureTable(root, images)[p] for p in images}, before, rtol=0, atol=1e-5)


def flip(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[-5000] ^= 16
    shard.write_bytes(data)


def test_a_flipped_bit_is_noticed_when_it_is_read(vision, images, root):
    filled(vision, images, root, shard_images=100)
    flip(next(root.glob("*.safetensors")))
    table = FeatureTable(root, images)
    with pytest.raises(Damaged, match="run this again"):
        [table[path] for path in images]
    assert computed(filled(vision, images, root)) == 9
    assert len([FeatureTable(root, images)[path] for path in images]) == 10


def test_a_flipped_bit_that_filling_meets_is_mended_at_once(vision, images, root):
    filled(vision, images[:1], root)
    (shard,) = root.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[len(data) - 16 * 48 * 4 // 2] ^= 255
    shard.write_bytes(data)
    told = filled(vision, images[:1], root)
    assert any("was damaged on the disk" in note for *_, note in told)
    assert computed(told) == 1


class Slow(torch.nn.Module):
    """The towers, with a pause before each batch."""

    def __init__(self, vision: VisionBackbone, seconds: float) -> None:
        super().__init__()
        self.vision, self.seconds = vision, seconds
        self.patches, self.width = vision.patches, vision.width

    def forward(self, pixels):
        time.sleep(self.seconds)
        return self.vision(pixels)


def fill_slowly(vision, images, root, seconds, counts=None, **how):
    told = filled(Slow(vision, seconds), images, root, batch=1, **how)
    if counts is not None:
        counts.put((computed(told), [note for *_, note in told]))


def test_killed_in_the_middle_it_goes_on_from_the_last_shard(vision, images, root):
    process = FORK.Process(target=fill_slowly, args=(vision, images, root, 0.1), kwargs={"shard_images": 2})
    process.start()
    while len(kept(root)) < 4:
        time.sleep(0.02)
    (root / f"{sha(images[8])}.tmp").write_bytes(b"left over")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    there = len(kept(root))
    assert 4 <= there < 9
    assert computed(filled(vision, images, root)) == 9 - there
    assert sorted(kept(root)) == sorted({sha(path) for path in images})
    assert not list(root.glob("*.tmp"))


def test_two_processes_at_once_compute_each_image_once(vision, images, root, monkeypatch):
    monkeypatch.setattr(image_hashes, "PAUSE", 0.02)
    counts = FORK.Queue()
    both = [FORK.Process(target=fill_slowly, args=(vision, images, root, 0.1, counts)) for _ in range(2)]
    both[0].start()
    while not (root / "lock").exists():
        time.sleep(0.01)
    both[1].start()
    (one, notes_one), (two, notes_two) = counts.get(timeout=60), counts.get(timeout=60)
    assert sorted([one, two]) == [0, 9]
    assert any(note.startswith("waits for another process") for note in notes_one + notes_two)
    assert sorted(kept(root)) == sorted({sha(path) for path in images})
    for process in both:
        process.join()


def test_ranks_share_the_images_and_exclude_a_job_of_another_size(vision, images, root, monkeypatch):
    monkeypatch.setattr(image_hashes, "PAUSE", 0.02)
    counts = FORK.Queue()
    ways = [(0, 3), (1, 3), (2, 3), (0, 1)]
    processes = [
        FORK.Process(target=fill_slowly, args=(vision, images, root, 0.03, counts), kwargs={"ranks": ranks})
        for ranks in ways
    ]
    for process in processes:
        process.start()
    assert sum(counts.get(timeout=60)[0] for _ in ways) == 9
    assert sorted(kept(root)) == sorted({sha(path) for path in images})
    for process in processes:
        process.join()


def test_one_rank_computes_its_part_alone(vision, images, root):
    filled(vision, images, root, ranks=(1, 2))
    assert sorted(kept(root)) == sorted({digest for digest in map(sha, images) if int(digest[:2], 16) >= 128})


def test_asked_to_stop_it_keeps_what_it_has(vision, images, root):
    asked = iter([False] * 5 + [True])
    with pytest.raises(Interrupted, match="after the features of 4 of 9"):
        filled(vision, images, root, stop=lambda: next(asked), batch=1, shard_images=100)
    assert len(kept(root)) == 4
    assert computed(filled(vision, images, root)) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_and_the_others_are_kept(vision, images, root, workers):
    images[6].write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^image '.*6\.png' cannot be read") as raised:
        filled(vision, images, root, workers=workers)
    assert "Traceback" not in str(raised.value)
    assert len(kept(root)) == 6
    images[6].unlink()
    with pytest.raises(DataError, match=r"^image '.*6\.png' cannot be read: No such file"):
        filled(vision, images, root)


def test_too_small_a_disk_is_refused_before_anything_is_computed(vision, images, root, monkeypatch):
    free = type("Usage", (), {"free": 9 * 16 * 48 * 4 - 1})()
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: free)
    with pytest.raises(StoreError, match=r"9 images take 0\.0 MiB \(16 patches x 48 channels x 4 .*feature_cache off"):
        filled(vision, images, root)
    assert kept(root) == []
    free.free += 1
    assert computed(filled(vision, images, root)) == 9


def test_a_disk_that_fills_up_is_told_and_leaves_no_half_shard(vision, images, root, monkeypatch):
    def full(path: Path, tensors: dict) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "write_tensors", full)
    with pytest.raises(StoreError, match=r"the disk is full.*feature_cache off"):
        filled(vision, images, root)
    assert {path.name for path in root.iterdir()} == {"lock"}


# ---- hashes of files


def test_a_file_is_hashed_once_until_it_changes(vision, images, root, monkeypatch):
    filled(vision, images, root)
    read: list[str] = []
    monkeypatch.setattr(image_hashes, "file_hash", lambda path: read.append(path) or sha(Path(path)))
    assert filled(vision, images, root) == []
    assert read == []
    Image.new("RGB", (40, 24), "red").save(images[2])
    assert computed(filled(vision, images, root)) == 1
    assert read == [str(images[2])]
    FeatureTable(root, images)
    assert read == [str(images[2])] * 2, "changed a moment ago, it may change again unnoticed"


def test_the_list_of_files_is_shared_by_all_towers(vision, images, root, tmp_path, monkeypatch):
    filled(vision, images, root)
    monkeypatch.setattr(image_hashes, "file_hash", lambda path: pytest.fail("read again"))
    other = features_root(tmp_path, BACKBONE, RESOLUTION, Resize("naive", "naive"), "fp32")
    assert other != root
    filled(vision, images, other, transform=image_transform(BACKBONE, RESOLUTION, Resize("naive", "naive")))
    assert not torch.allclose(FeatureTable(root, images)[images[0]], FeatureTable(other, images)[images[0]])


def test_a_last_line_that_a_kill_cut_off_costs_that_line(images, tmp_path):
    folder = tmp_path / "features"
    wanted = {str(path): sha(path) for path in images}
    assert image_hashes.image_hashes(folder, images) == wanted
    lines = (folder / "images.jsonl").read_bytes()
    (folder / "images.jsonl").write_bytes(lines[:-20])
    assert image_hashes.image_hashes(folder, images) == wanted
    assert (folder / "images.jsonl").read_bytes() == lines

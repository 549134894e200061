"""What frozen towers see in images, computed once and kept in the store for every cell with the same towers.

    <store>/features/KEY/HASH.safetensors  features_NPV of some images, named after the first of them; never changed
    <store>/features/KEY/lock              its byte b is held by who computes images whose hash begins with b
    <store>/features/images.jsonl, lock    hashes of image files (`image_hashes`)

KEY is a fingerprint of all that decides the features, and images go by their content: equal towers, equal pictures,
one computation, whatever a cell is called. A shard appears by rename when it is on the disk, so a kill loses what was
in memory. Readers map shards, and processes share the pages.

Shapes: B images at once, N of a shard, K bytes of a hash, P patches, V channels of all towers, C H W an image.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prism_sweeps.config.errors import ConfigError, DataError, StoreError, nearest
from prism_sweeps.config.fingerprint import fingerprint
from prism_sweeps.config.schema import PRECISIONS, Backbone, Resize, Resolution
from prism_sweeps.models.resize import ImageTransform, load_image
from prism_sweeps.models.vision import VisionBackbone
from prism_sweeps.models.weights import write_tensors
from prism_sweeps.tracking.files import explained, make_folder, sync_folder
from prism_sweeps.tracking.records import Interrupted, Report
from prism_sweeps.training.image_hashes import Stop, file_hash, held, image_hashes, waiting_for

LAYOUT = 1
"""Raised when kept features may no longer stand for what the code computes."""
STRIPES = 256
"""First bytes of a hash: what ranks share among them, and lock."""
OTHER = 0.05
"""Relative distance from which features are another tower's, or another library's; rounding stays far below."""
SUFFIX = ".safetensors"
OFF = "or switch engine.feature_cache off"


# ---- where, and how much


@dataclass
class _Seen:
    """Everything that decides features, and nothing else."""

    layout: int
    backbone: Backbone
    resolution: Resolution
    resize: Resize
    computed: str
    trained: str | None = None


def features_root(
    store: Path, backbone: Backbone, resolution: Resolution, resize: Resize, precision: str, trained: Path | None = None
) -> Path:
    """The folder of the features that these towers have of images, whatever anything is called.

    Weights of the package and of local files count by content, those of a hub by name. `trained` is the
    `vision.safetensors` of a stage before, where one trained the towers.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision '{precision}'; {nearest(precision, PRECISIONS)}")
    towers = {
        str(place): replace(tower, weights=_by_content(tower.weights, resolution.pixels))
        for place, tower in enumerate(backbone.towers.values())
    }
    told = file_hash(trained) if trained else None
    seen = _Seen(LAYOUT, replace(backbone, towers=towers), resolution, resize, str(kept_dtype(precision)), told)
    return store / "features" / fingerprint(seen)


def _by_content(weights: dict[int, str], pixels: int) -> dict[int, str]:
    path = Path(weights.get(pixels, "")).expanduser()
    return {**weights, pixels: f"file#{file_hash(path)}"} if path.is_file() else weights


def kept_dtype(precision: str) -> torch.dtype:
    """That in which frozen towers compute in training: all of them in bfloat16 but where everything is fp32."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


# ---- shards


def _shards(root: Path) -> Iterator[tuple[Path, list[str] | Exception]]:
    """Each shard with the hashes of its images in order, or with what ails it."""
    for path in sorted(root.glob(f"*{SUFFIX}")):
        try:
            with safe_open(path, "pt") as shard:
                images_NK = shard.get_tensor("images").numpy()
                count = shard.get_slice("features").get_shape()[0]
            if len(images_NK) != count:
                raise ValueError(f"features of {count} images, hashes of {len(images_NK)}")
            yield path, [row.tobytes().hex() for row in images_NK]
        except FileNotFoundError:
            continue  # found damaged and removed by another process
        except (OSError, SafetensorError, ValueError) as error:
            yield path, error


def _write_shard(root: Path, hashes: Sequence[str], features_NPV: Tensor) -> None:
    path = root / f"{hashes[0]}{SUFFIX}"
    temporary = path.with_suffix(".tmp")
    tensors = {
        "features": features_NPV,
        "images": torch.frombuffer(bytearray.fromhex("".join(hashes)), dtype=torch.uint8).view(len(hashes), -1),
        "crc32": torch.tensor([_checksum(features_PV) for features_PV in features_NPV]),
    }
    remedy = f"the features computed before are kept; make room and run this again, {OFF}"
    with explained("write", path, remedy):
        try:
            write_tensors(temporary, tensors)
            temporary.replace(path)
            sync_folder(root)
        finally:
            temporary.unlink(missing_ok=True)


def _checksum(features_PV: Tensor) -> int:
    return zlib.crc32(features_PV.view(torch.uint8).numpy())


class Damaged(StoreError):  # noqa: N818 - it is mended by running again
    """A shard was not as it was written. It is removed, so that it is computed anew."""


class FeatureTable:
    """Path of an image -> its features_PV, a small copy out of mapped files. Forked processes share the files' pages.

    Raises DataError for images of which there are no features in `root`.
    """

    def __init__(self, root: Path, images: Sequence[Path]) -> None:
        hashes = image_hashes(root.parent, images)
        sound = [(path, found) for path, found in _shards(root) if not isinstance(found, Exception)]
        wanted = set(hashes.values())
        places = {
            digest: (number, row)
            for number, (_, found) in enumerate(sound)
            for row, digest in enumerate(found)
            if digest in wanted
        }
        if missing := [path for path, digest in hashes.items() if digest not in places]:
            raise DataError(
                f"{len(missing)} of {len(hashes)} images have no features in {root}, the first: {missing[0]}; "
                f"have them computed first, {OFF}"
            )
        self._files = [path for path, _ in sound]
        self._places = {path: places[digest] for path, digest in hashes.items()}
        self._mapped: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, image: Path) -> Tensor:
        """Raises DataError for an image that was not named, Damaged where the disk has not kept what was written."""
        place = self._places.get(os.fspath(image))
        if place is None:
            raise DataError(f"image '{image}' is not among the {len(self)} whose features were asked for")
        number, row = place
        features_NPV, crc32_N = self._shard(number)
        features_PV = features_NPV[row].clone()
        if _checksum(features_PV) != int(crc32_N[row]):
            self._files[number].unlink(missing_ok=True)
            raise Damaged(
                f"{self._files[number]} was damaged on the disk (features of '{image}') and is removed; "
                "run this again to have it computed anew"
            )
        return features_PV

    def _shard(self, number: int) -> tuple[Tensor, Tensor]:
        if number not in self._mapped:
            path = self._files[number]
            try:
                with safe_open(path, "pt") as shard:
                    self._mapped[number] = shard.get_tensor("features"), shard.get_tensor("crc32")
            except (OSError, SafetensorError) as error:
                raise StoreError(f"{path} cannot be read any more ({error}); run this again") from error
        return self._mapped[number]

    def __getstate__(self) -> dict[str, object]:
        """For a spawned process, which maps the files itself."""
        return {**self.__dict__, "_mapped": {}}


# ---- filling


@dataclass(frozen=True)
class Filling:
    """How `fill` works; none of it changes what is kept."""

    batch: int = 64
    workers: int = 0
    """Processes that decode images; 0 is this one."""
    ranks: tuple[int, int] = (0, 1)
    """Which of how many processes that share the images among them by their hash."""
    shard_images: int = 4096
    shard_bytes: int = 512 * 2**20


def fill(
    vision: VisionBackbone,
    transform: ImageTransform,
    images: Sequence[Path],
    root: Path,
    precision: str,
    report: Report,
    stop: Stop,
    how: Filling | None = None,
) -> None:
    """Computes the features that `root` (see `features_root`) does not hold yet, on the device where `vision` is.

    `vision` is whole (not sharded), and is put into evaluation mode. An image content is computed once, however many
    paths, processes or jobs have it; of several ranks each computes its part, so wait for all of them before reading.
    Raises DataError for an unreadable image, StoreError where the disk is too small or `root` holds another tower's
    features, and Interrupted when `stop()` asked for it; what was computed until then is kept.
    """
    how = how or Filling()
    vision.eval()
    hashes = image_hashes(root.parent, images, report, stop)
    first = {digest: path for path, digest in hashes.items()}
    stripes = _stripes(*how.ranks)
    make_folder(root)
    kept = _kept(root, report)
    if how.ranks[0] == 0 and (known := next((path for path, digest in hashes.items() if digest in kept), None)):
        try:
            _check_towers(vision, transform, Path(known), root, precision)
        except Damaged as error:
            report(0, len(first), str(error))
            kept = _kept(root, report)
    if not _missing(first, kept, stripes):
        return
    with held(root / "lock", stripes, waiting_for("computes the same image features", len(first), report, stop)):
        kept = _kept(root, report, stripes)
        _check_room(root, vision, precision, len(_missing(first, kept, range(STRIPES))))
        missing = _missing(first, kept, stripes)
        room = max(1, min(how.shard_images, how.shard_bytes // _bytes_of_one(vision, precision)))
        pinned = next(vision.parameters()).is_cuda
        batches = _batches(list(missing.values()), transform, min(how.batch, room), how.workers, pinned)
        see = partial(features_of, vision, precision=precision)
        _compute(see, batches, _Gathered(root, list(missing), room), report, stop)


def _stripes(rank: int, size: int) -> range:
    return range(STRIPES * rank // size, STRIPES * (rank + 1) // size)


def _stripe(name: str) -> int:
    return int(name[:2], 16)


def _missing(first: dict[str, str], kept: set[str], stripes: range) -> dict[str, str]:
    """Hash -> path, in the order of the images."""
    return {digest: path for digest, path in first.items() if digest not in kept and _stripe(digest) in stripes}


def _kept(root: Path, report: Report, own: range = range(0)) -> set[str]:
    """Hashes of the images that have features. Of the bytes in `own`, whose lock it holds, damaged shards go."""
    for leftover in root.glob("*.tmp"):
        if _stripe(leftover.name) in own:
            leftover.unlink(missing_ok=True)
    kept: set[str] = set()
    for path, found in _shards(root):
        if not isinstance(found, Exception):
            kept.update(found)
        elif _stripe(path.name) in own:
            report(0, 1, f"{path} is damaged ({found}) and is computed anew")
            path.unlink(missing_ok=True)
    return kept


def _bytes_of_one(vision: VisionBackbone, precision: str) -> int:
    return vision.patches * vision.width * kept_dtype(precision).itemsize


def _check_room(root: Path, vision: VisionBackbone, precision: str, images: int) -> None:
    needed, free = images * _bytes_of_one(vision, precision), shutil.disk_usage(root).free
    if needed > free:
        one = f"{vision.patches} patches x {vision.width} channels x {kept_dtype(precision).itemsize} bytes each"
        raise StoreError(
            f"features of {images} images take {_gigabytes(needed)} ({one}), but {root} has {_gigabytes(free)} left; "
            f"make room, {OFF}"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _check_towers(vision: VisionBackbone, transform: ImageTransform, image: Path, root: Path, precision: str) -> None:
    """One image again: towers from a hub are known by name alone, and libraries change."""
    kept_PV = FeatureTable(root, [image])[image].float()
    pixels = {tower: pixels_CHW[None] for tower, pixels_CHW in transform(load_image(image)).items()}
    seen_PV = features_of(vision, pixels, precision)[0].float()
    if kept_PV.shape != seen_PV.shape or (seen_PV - kept_PV).norm() > OTHER * seen_PV.norm():
        raise StoreError(
            f"{root} holds features of other towers: those of '{image}' differ from what these see; the weights or "
            f"the libraries changed under their name, so remove that folder, {OFF}"
        )


@torch.inference_mode()
def features_of(vision: VisionBackbone, pixels: dict[str, Tensor], precision: str) -> Tensor:
    """Tower -> pixels_BCHW to features_BPV as they are kept, on the CPU: what the towers give in training."""
    weights = next(vision.parameters())
    moved = {tower: each.to(weights.device, weights.dtype, non_blocking=True) for tower, each in pixels.items()}
    return vision(moved).to("cpu", kept_dtype(precision)).contiguous()


class _Pixels(Dataset):
    """Images for the towers. An unreadable one is handed over as its error; raised in a worker, it would be garbled."""

    def __init__(self, paths: Sequence[str], transform: ImageTransform) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor] | DataError:
        try:
            return self.transform(load_image(Path(self.paths[index])))
        except DataError as error:
            return error


def _stacked(images: list[dict[str, Tensor] | DataError]) -> dict[str, Tensor] | DataError:
    """tower -> pixels_BCHW, or the first error."""
    errors = [each for each in images if isinstance(each, DataError)]
    return errors[0] if errors else {tower: torch.stack([each[tower] for each in images]) for tower in images[0]}


def _batches(paths: list[str], transform: ImageTransform, size: int, workers: int, pinned: bool) -> DataLoader:
    return DataLoader(
        _Pixels(paths, transform),
        batch_size=size,
        num_workers=workers,
        collate_fn=_stacked,
        pin_memory=pinned,
        generator=torch.Generator(),  # else it draws from the global one, and training would begin in another state
    )


class _Gathered:
    """Features in the order of `hashes`, written as shards of at most `room` images."""

    def __init__(self, root: Path, hashes: Sequence[str], room: int) -> None:
        self.root, self.hashes, self.room = root, hashes, room
        self.written = self.done = 0
        self.waiting: list[Tensor] = []

    def add(self, features_BPV: Tensor) -> None:
        if self.done - self.written + len(features_BPV) > self.room:
            self.write()
        self.waiting.append(features_BPV)
        self.done += len(features_BPV)

    def write(self) -> None:
        if self.waiting:
            _write_shard(self.root, self.hashes[self.written : self.done], torch.cat(self.waiting))
        self.written = self.done
        self.waiting.clear()


def _compute(
    see: Callable[[dict[str, Tensor]], Tensor], batches: DataLoader, gathered: _Gathered, report: Report, stop: Stop
) -> None:
    """Asked to stop, or at an unreadable image, it writes what is in memory first."""
    total = len(gathered.hashes)
    for pixels in batches:
        if isinstance(pixels, DataError) or stop():
            gathered.write()
            note = f"stopped after the features of {gathered.done} of {total} images"
            raise pixels if isinstance(pixels, DataError) else Interrupted(note)
        gathered.add(see(pixels))
        report(gathered.done, total, "image features")
    gathered.write()

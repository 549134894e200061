"""Archives: what is wanted, whole; nothing that leads outside, no links, no bombs."""

from __future__ import annotations

import io
import tarfile
import warnings
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from official_files import put, put_tar, put_zip

from prism_sweeps.config.errors import DataError
from prism_sweeps.data import unpacking
from prism_sweeps.data.unpacking import unpack


def quiet(done: int, total: int, note: str) -> None:
    pass


def taken(archive: Path, wanted: str) -> Path:
    target = archive.parent / "out" / PurePosixPath(wanted).name
    return unpack(archive, PurePosixPath(wanted), target, quiet)


def refused(archive: Path, wanted: str, reason: str) -> None:
    """The archive is refused, nothing is left, and nothing lies outside."""
    with pytest.raises(DataError, match=reason):
        taken(archive, wanted)
    left = [path for path in archive.parent.rglob("*") if path != archive and not path.is_dir()]
    assert left == []
    assert not (archive.parent.parent / "evil").exists()


@pytest.mark.parametrize("pack", [put_zip, put_tar])
def test_a_folder_and_a_file_are_taken_from_wherever_they_are(tmp_path: Path, pack) -> None:
    files = {
        "__MACOSX/refcoco/._2.jpg": b"shadow",
        "top/refcoco/a/1.jpg": b"1",
        "top/refcoco/2.jpg": b"2",
        "top/refcoco+/2.jpg": b"other",
        "top/more/refcoco/3.jpg": b"deeper, not this one",
        "top/refs(unc).p": b"p",
    }
    pack(tmp_path, "x.archive", files)
    folder = taken(tmp_path / "x.archive", "refcoco")
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")} == {
        "a/1.jpg": b"1",
        "2.jpg": b"2",
    }
    assert taken(tmp_path / "x.archive", "anything/refs(unc).p").read_bytes() == b"p"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["refcoco", "refs(unc).p"]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "a\\..\\evil"])
@pytest.mark.parametrize("pack", [put_zip, put_tar])
def test_paths_that_lead_outside_are_refused(tmp_path: Path, pack, name: str) -> None:
    box = tmp_path / "box"
    pack(box, "x.archive", {"images/1.jpg": b"1", name: b"evil"})
    refused(box / "x.archive", "images", "would lie outside; nothing was taken")


def test_links_are_refused(tmp_path: Path) -> None:
    for kind, target in ((tarfile.SYMTYPE, "/etc"), (tarfile.LNKTYPE, "images/1.jpg"), (tarfile.FIFOTYPE, "")):
        box = tmp_path / str(kind[0])
        box.mkdir()
        with tarfile.open(box / "x.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo("images/1.jpg"), io.BytesIO())
            link = tarfile.TarInfo("images/link")
            link.type, link.linkname = kind, target
            archive.addfile(link)
        refused(box / "x.tar", "images", "is a link or a device")
    box = tmp_path / "zip"
    box.mkdir()
    with zipfile.ZipFile(box / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("images/link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc")
    refused(box / "x.zip", "images", "is a link or a device")


def test_a_file_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for kind, names in (("zip", ("images/1.jpg", "images/1.jpg")), ("dotted", ("images/1.jpg", "images/./1.jpg"))):
        box = tmp_path / kind
        box.mkdir()
        with zipfile.ZipFile(box / "x.zip", "w") as archive, warnings.catch_warnings(action="ignore"):
            for number, name in enumerate(names):
                archive.writestr(name, str(number))
        refused(box / "x.zip", "images", "'images/1.jpg' is in the archive twice")


def test_what_a_killed_unpacking_left_goes(tmp_path: Path) -> None:
    put_zip(tmp_path, "x.zip", {"images/1.jpg": b"1"})
    put(tmp_path, ".images.tmp-killed/unpacked/1.jpg", b"half")
    put(tmp_path, ".others.tmp-running/unpacked/1.jpg", b"half")
    unpack(tmp_path / "x.zip", PurePosixPath("images"), tmp_path / "images", quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".others.tmp-running", "images", "x.zip"]


def test_a_bomb_and_a_full_disk_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/1.jpg", bytes(4 << 20))
    monkeypatch.setattr(unpacking, "SMALL_BYTES", 1 << 20)
    refused(tmp_path / "x.zip", "images", "would unpack to 4,194,304 bytes, 300 times its size")
    monkeypatch.setattr(unpacking, "LARGEST_RATIO", 10_000)
    monkeypatch.setattr(unpacking, "SPARE_BYTES", 1 << 60)
    refused(tmp_path / "x.zip", "images", "unpacks to 4,194,304 bytes, and .* left")
    monkeypatch.setattr(unpacking, "SPARE_BYTES", 0)
    assert (taken(tmp_path / "x.zip", "images") / "1.jpg").stat().st_size == 4 << 20


def test_damaged_and_wrong_archives_are_named(tmp_path: Path) -> None:
    put_zip(tmp_path / "a", "x.zip", {"images/1.jpg": b"1" * 1000})
    whole = (tmp_path / "a/x.zip").read_bytes()
    put(tmp_path / "b", "x.zip", whole.replace(b"1" * 1000, b"1" * 999 + b"2"))
    put(tmp_path / "c", "x.zip", whole[:500])
    put(tmp_path / "d", "x.zip", "no archive")
    put_tar(tmp_path / "e", "x.tar.gz", {"images/1.jpg": bytes(range(256)) * 4000})
    tarred = (tmp_path / "e/x.tar.gz").read_bytes()
    put(tmp_path / "e", "x.tar.gz", tarred[: len(tarred) // 2])
    refused(tmp_path / "a/x.zip", "photos", "has no 'photos' in it")
    refused(tmp_path / "b/x.zip", "images", "is damaged")
    refused(tmp_path / "c/x.zip", "images", "is damaged")
    refused(tmp_path / "d/x.zip", "images", "is damaged, or no zip or tar file")
    refused(tmp_path / "e/x.tar.gz", "images", "is damaged|cannot be unpacked")

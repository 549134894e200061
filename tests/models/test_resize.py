import contextlib
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision import transforms as tv

from prism_sweeps.config.errors import ConfigError, DataError
from prism_sweeps.config.schema import Backbone, Resize, Resolution, Tower
from prism_sweeps.models import resize
from prism_sweeps.models.resize import STRIP, Frame, ImageTransform, frame, image_transform, load_image, square

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def torchvision_square(image: Image.Image, strategy: str, pixels: int, fill: tuple[int, int, int]) -> Image.Image:
    """The reference's three strategies out of torchvision's own pieces."""
    size = (pixels, pixels) if strategy == "naive" else pixels
    steps = [tv.Resize(size, tv.InterpolationMode.BICUBIC, antialias=True), tv.CenterCrop(pixels)]
    if strategy == "letterbox":
        side = max(image.size)
        steps.insert(0, tv.Pad(((side - image.width) // 2, (side - image.height) // 2), fill=fill))
    return tv.Compose(steps)(image)


@pytest.mark.parametrize("strategy", ["letterbox", "naive", "crop"])
@settings(max_examples=40, deadline=None)
@given(width=st.integers(7, 200), height=st.integers(7, 200), pixels=st.sampled_from([16, 63, 64]))
def test_square_is_torchvisions(strategy, width, height, pixels):
    image = noise(width, height, width * 1000 + height)
    ours, theirs = (fit(image, strategy, pixels, (122, 116, 104)) for fit in (square, torchvision_square))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (1, 1), (5, 4)])
def test_the_smallest_images_letterbox_as_torchvision_does(size):
    ours, theirs = (fit(noise(*size), "letterbox", 16, (122, 116, 104)) for fit in (square, torchvision_square))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_thin_strip_shows_its_middle_without_filling_the_memory():
    strip = Image.new("RGB", (200_000, 2), (255, 0, 0))
    strip.paste((0, 0, 255), (99_000, 0, 101_000, 2))
    assert square(strip, "crop", 64, (0, 0, 0)).getcolors() == [(64 * 64, (0, 0, 255))]


def test_a_strip_of_any_length_letterboxes_without_filling_the_memory(monkeypatch):
    monkeypatch.setattr(resize, "LONGEST", 512)
    strip = square(Image.new("RGB", (1_000_000, 100), (255, 0, 0)), "letterbox", 64, (0, 0, 0))
    assert strip.size == (64, 64)
    assert strip.getpixel((5, 2)) == (0, 0, 0)


@pytest.mark.parametrize("length", [STRIP, STRIP + 1, STRIP + 2, 200, 333])
def test_a_strip_is_cut_to_its_middle_without_a_trace(length):
    ours, theirs = (fit(noise(1, length), "crop", 16, (0, 0, 0)) for fit in (square, torchvision_square))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_letterbox_fills_with_the_mean_and_keeps_the_middle():
    wide = square(Image.new("RGB", (100, 50), (255, 0, 0)), "letterbox", 100, (122, 116, 104))
    assert wide.getpixel((50, 5)) == (122, 116, 104)
    assert wide.getpixel((50, 50)) == (255, 0, 0)


def backbone(**towers: tuple[tuple[float, ...], tuple[float, ...]]) -> Backbone:
    return Backbone(
        "b", {n: Tower(name=n, model="m", mean=list(mean), std=list(std)) for n, (mean, std) in towers.items()}
    )


@pytest.mark.parametrize("strategy", ["letterbox", "naive", "crop"])
def test_each_tower_gets_its_own_fill_and_normalisation(strategy):
    towers = backbone(clip=(CLIP_MEAN, CLIP_STD), siglip=((0.5,) * 3, (0.5,) * 3))
    pixels = image_transform(towers, Resolution("r", 32), Resize("x", strategy))(noise(50, 37))
    for name, tower in towers.towers.items():
        fill = tuple(int(255 * channel) for channel in tower.mean)
        picture = torchvision_square(noise(50, 37), strategy, 32, fill)
        expected = tv.Compose([tv.ToTensor(), tv.Normalize(tower.mean, tower.std)])(picture)
        assert pixels[name].shape == (3, 32, 32)
        assert pixels[name].dtype == torch.float32
        assert torch.allclose(pixels[name], expected, atol=1e-5)


def test_transform_survives_pickle_and_blank_is_grey():
    transform = image_transform(backbone(a=((0.5,) * 3, (0.25,) * 3)), Resolution("r", 8), Resize("x", "crop"))
    again = pickle.loads(pickle.dumps(transform))
    assert isinstance(again, ImageTransform)
    assert torch.allclose(again.blank()["a"], torch.full((3, 8, 8), (128 / 255 - 0.5) / 0.25), atol=1e-6)


def test_unknown_strategy_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'letterbox'"):
        image_transform(backbone(), Resolution("r", 8), Resize("x", "leterbox"))


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("P", 3, "png", (30, 60, 90)),
        ("RGBA", (10, 20, 30, 0), "png", (10, 20, 30)),
        ("LA", (77, 0), "png", (77, 77, 77)),
        ("L", 200, "png", (200, 200, 200)),
        ("1", 1, "png", (255, 255, 255)),
        ("CMYK", (0, 0, 0, 255), "tiff", (0, 0, 0)),
        ("I;16", 257 * 100, "png", (100, 100, 100)),
        ("I;16", 65535, "tiff", (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, colour, suffix, expected):
    image = Image.new(mode, (5, 4), colour)
    if mode == "P":
        image.putpalette([10 * channel * index for index in range(4) for channel in (1, 2, 3)])
    image.save(tmp_path / f"i.{suffix}")
    loaded = load_image(tmp_path / f"i.{suffix}")
    assert (loaded.mode, loaded.size, loaded.getpixel((2, 2))) == ("RGB", (5, 4), expected)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (4, 8)


def test_an_unreadable_file_is_a_data_error_that_names_it(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"text\.jpg"):
        load_image(tmp_path / "text.jpg")
    with pytest.raises(DataError, match=r"absent\.jpg"):
        load_image(tmp_path / "absent.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
def test_a_damaged_file_is_read_or_a_data_error_never_anything_else(tmp_path, suffix):
    path = tmp_path / f"i.{suffix}"
    noise(24, 16).save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(broken), 3):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(broken)
        with contextlib.suppress(DataError):
            assert load_image(path).mode == "RGB"


def test_an_absurd_size_is_a_data_error(tmp_path):
    noise(4, 4).save(tmp_path / "huge.png")
    data = bytearray((tmp_path / "huge.png").read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    (tmp_path / "huge.png").write_bytes(data)
    with pytest.raises(DataError):
        load_image(tmp_path / "huge.png")


KINDS = ("RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "I;16", "turned")


def write_odd_image(folder, number: int):
    """One of 200 files: every mode in turn, one in five of them a single row or column, the others of any odd size."""
    rng, kind = np.random.default_rng(number), KINDS[number % len(KINDS)]
    width, height = (int(edge) for edge in rng.integers(3, 150, 2))
    if number % 5 == 0:
        width, height = rng.permutation([1, int(rng.integers(1, 60))]).tolist()
    colours = noise(width, height, number)
    path = folder / f"{number}.{'tiff' if kind == 'CMYK' else 'png'}"
    if kind == "I;16":
        Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16)).save(path)
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(2, 9))
        colours.save(path, exif=exif)
    elif kind in ("LA", "RGBA"):
        seen = colours.convert(kind)
        seen.putalpha(noise(width, height, number + 1).convert("L"))
        seen.save(path)
    else:
        colours.convert(kind).save(path)
    return path


def plainly_read(path) -> Image.Image:
    with Image.open(path) as image:
        if image.mode == "I;16":
            return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
        return ImageOps.exif_transpose(image).convert("RGB")


def timm_pixels(image: Image.Image, strategy: str, pixels: int, mean, std) -> torch.Tensor:
    """timm's own evaluation transform at a crop of 1, after the padding or the resize of the reference."""
    evaluation = create_transform(
        (3, pixels, pixels), interpolation="bicubic", mean=mean, std=std, crop_pct=1.0, crop_mode="center"
    )
    if strategy == "letterbox":
        side = max(image.size)
        fill = tuple(int(255 * channel) for channel in mean)
        image = tv.Pad(((side - image.width) // 2, (side - image.height) // 2), fill=fill)(image)
    if strategy == "naive":
        image = tv.Resize((pixels, pixels), tv.InterpolationMode.BICUBIC)(image)
    return evaluation(image)


@pytest.mark.parametrize("strategy", ["letterbox", "naive", "crop"])
def test_pixels_are_those_of_timms_transform_on_200_odd_images(tmp_path, strategy):
    towers = {"clip": (CLIP_MEAN, CLIP_STD), "siglip": ((0.5,) * 3, (0.5,) * 3)}
    transform = image_transform(backbone(**towers), Resolution("r", 30), Resize("x", strategy))
    for number in range(200):
        path = write_odd_image(tmp_path, number)
        ours, image = transform(load_image(path)), plainly_read(path)
        for name, (mean, std) in towers.items():
            theirs = timm_pixels(image, strategy, 30, mean, std)
            assert torch.equal(ours[name], theirs), (strategy, path.name, image.size, name)


SIDES = st.integers(1, 3000)
SHARE = st.floats(0, 1)


def box_in(edges, region):
    """Four shares of a region's sides, as a box inside it."""
    (a, b, c, d), (left, top, right, bottom) = edges, region
    x1, x2 = sorted((left + a * (right - left), left + b * (right - left)))
    y1, y2 = sorted((top + c * (bottom - top), top + d * (bottom - top)))
    return x1, y1, x2, y2


@pytest.mark.parametrize("strategy", ["letterbox", "naive", "crop"])
@settings(max_examples=200)
@given(size=st.tuples(SIDES, SIDES), pixels=st.sampled_from([16, 63, 224, 384]), edges=st.tuples(*[SHARE] * 4))
def test_a_box_comes_back_from_the_square_where_nothing_is_cut_off(strategy, size, pixels, edges):
    there = frame(size, strategy, pixels)
    seen = there.from_square((0, 0, pixels, pixels))
    if strategy == "naive":
        assert seen == pytest.approx((0, 0, *size))
    if strategy == "letterbox":  # an odd difference costs at most one row or column
        assert seen == pytest.approx((0, 0, *size), abs=1.001)
    box = box_in(edges, seen)
    assert there.from_square(there.to_square(box)) == pytest.approx(box, abs=1e-6 * max(size))
    shown = there.to_square(seen)
    box = box_in(edges, shown)
    assert there.to_square(there.from_square(box)) == pytest.approx(box, abs=1e-6 * pixels)


@pytest.mark.parametrize("strategy", ["letterbox", "naive", "crop"])
@settings(max_examples=100)
@given(size=st.tuples(st.integers(9, 400), st.integers(9, 400)), edges=st.tuples(*[SHARE] * 4))
def test_a_drawn_marker_lands_where_the_box_says(strategy, size, edges):
    marker = tuple(round(edge) for edge in box_in(edges, (0, 0, *size)))
    assume(min(marker[2] - marker[0], marker[3] - marker[1]) >= 3)  # bicubic widens a lone pixel
    expected = frame(size, strategy, 96).to_square(marker)
    assume(min(expected[2] - expected[0], expected[3] - expected[1]) >= 4)
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), marker)
    found = square(image, strategy, 96, (0, 0, 0)).convert("L").point(lambda value: 255 * (value > 127)).getbbox()
    assert found == pytest.approx(expected, abs=1)


def test_what_a_crop_does_not_show_is_clipped():
    wide = frame((200, 100), "crop", 50)
    assert wide == Frame((200, 100), 50, (0.5, 0.5), (-25.0, 0.0))
    assert wide.to_square((0, 0, 100, 100)) == (0, 0, 25, 50)
    assert wide.to_square((0, 10, 40, 20)) == (0, 5, 0, 10)
    assert wide.from_square((0, 0, 50, 50)) == (50, 0, 150, 100)


def test_what_of_a_box_is_padding_is_clipped():
    wide = frame((200, 100), "letterbox", 50)
    assert wide.to_square((0, 0, 200, 100)) == (0, 12.5, 50, 37.5)
    assert wide.from_square((0, 0, 50, 50)) == (0, 0, 200, 100)
    with pytest.raises(ConfigError, match="did you mean 'crop'"):
        frame((2, 2), "cropp", 8)

"""The vendored pictures of the categories, and their sizes when scaled."""

from functools import cache
from importlib import resources

from PIL import Image


@cache
def sprite(category: str) -> Image.Image:
    """The RGBA picture of a category, trimmed to its visible part, long side 64 px."""
    with resources.files(__package__).joinpath("sprites", f"{category}.png").open("rb") as file:
        return Image.open(file).convert("RGBA")


@cache
def scaled_size(category: str, long_side: int) -> tuple[int, int]:
    """Width and height in pixels of a category's picture at a given long side."""
    width, height = sprite(category).size
    scale = long_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


@cache
def scaled_sprite(category: str, long_side: int) -> Image.Image:
    """The RGBA picture of a category at a given long side in pixels."""
    return sprite(category).resize(scaled_size(category, long_side), Image.Resampling.LANCZOS)

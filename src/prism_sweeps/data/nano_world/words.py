"""The closed vocabulary of the nano world: categories, colours, sizes, signs, and the few inflections they need."""

from types import MappingProxyType

# Seven categories in each group; the first COMMON of a group are drawn twice as often as the rest, which is what
# gives "popular" absent objects (POPE) a meaning.
GROUPS: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "animal": ("dog", "cat", "frog", "pig", "penguin", "whale", "crab"),
        "fruit": ("apple", "banana", "melon", "pear", "kiwi", "coconut", "strawberry"),
        "food": ("burger", "pizza", "carrot", "egg", "donut", "cheese", "cake"),
        "vehicle": ("car", "bus", "boat", "plane", "bike", "rocket", "tractor"),
        "plant": ("tree", "rose", "cactus", "sunflower", "palm", "tulip", "daisy"),
        "tool": ("key", "cup", "umbrella", "clock", "lamp", "camera", "book"),
    }
)
COMMON = 3
CATEGORIES: tuple[str, ...] = tuple(name for members in GROUPS.values() for name in members)
COMMON_CATEGORIES: tuple[str, ...] = tuple(name for members in GROUPS.values() for name in members[:COMMON])
GROUP_OF: MappingProxyType[str, str] = MappingProxyType(
    {name: group for group, members in GROUPS.items() for name in members}
)
_IRREGULAR_PLURALS = {
    "strawberry": "strawberries",
    "bus": "buses",
    "cactus": "cacti",
    "daisy": "daisies",
}

BACKGROUNDS: MappingProxyType[str, tuple[int, int, int]] = MappingProxyType(
    {
        "white": (244, 244, 242),
        "grey": (158, 160, 164),
        "black": (48, 48, 54),
        "blue": (140, 186, 236),
        "green": (160, 212, 150),
        "yellow": (246, 230, 146),
        "pink": (246, 184, 206),
        "brown": (170, 128, 92),
    }
)
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "chequered", "gradient", "speckled")
TILES: MappingProxyType[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (218, 44, 48),
        "orange": (250, 146, 26),
        "yellow": (250, 218, 36),
        "green": (34, 150, 62),
        "blue": (38, 84, 214),
        "purple": (140, 54, 186),
    }
)
SIZES: tuple[str, ...] = ("small", "medium", "large")
NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES: tuple[str, ...] = (
    "top left",
    "top",
    "top right",
    "left",
    "centre",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
SIGN_WORDS: tuple[str, ...] = (
    *("stop", "open", "shop", "exit", "taxi", "park", "cafe", "bank", "hotel", "music"),
    *("sale", "free", "slow", "fast", "left", "right", "north", "south", "east", "west"),
    *("milk", "tea", "rice", "fish", "soup", "salt", "zoo", "gym", "spa", "pub"),
    *("road", "lake", "hill", "farm", "beach", "sun", "moon", "gold", "jazz", "club"),
)


def plural(noun: str) -> str:
    """The plural of a category, group or "thing"."""
    return _IRREGULAR_PLURALS.get(noun, noun + "s")


def article(noun_phrase: str) -> str:
    """The noun phrase with its indefinite article: "an apple", "a red tile"."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"

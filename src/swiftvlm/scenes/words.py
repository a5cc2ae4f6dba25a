"""What scenes are made of: the kinds, colours, letters and fonts, and which of them only the test pool may show."""

from dataclasses import dataclass

# The order of kinds, colours and letters numbers labels, entries of codes and tokens: the weights rest on it.
SYMBOLS = {  # characters of DejaVu Sans, told apart at 20 pixels
    "umbrella": "\u2602",
    "anchor": "\u2693",
    "knight": "\u265e",
    "airplane": "\u2708",
    "scissors": "\u2702",
    "snowflake": "\u2744",
    "gear": "\u2699",
    "telephone": "\u260e",
    "sun": "\u2600",
    "cloud": "\u2601",
    "moon": "\u263e",
    "skull": "\u2620",
    "envelope": "\u2709",
    "flag": "\u2691",
    "heart": "\u2665",
    "star": "\u2605",
    "club": "\u2663",
}
SHAPES = ("disc", "square", "triangle", "cross", "ring", "hexagon", "arrow")
KINDS = (*SYMBOLS, *SHAPES)
PLURALS = {kind: {"scissors": "scissors", "cross": "crosses"}.get(kind, kind + "s") for kind in KINDS}

COLORS = {
    "red": (212, 32, 38),
    "orange": (246, 138, 20),
    "yellow": (248, 222, 50),
    "green": (34, 148, 56),
    "blue": (36, 82, 212),
    "purple": (138, 46, 168),
    "white": (246, 246, 246),
    "black": (18, 18, 20),
}
# Y has the place of J, which it replaced when training had begun (LOG.md).
LETTERS = "ABCDEFHYKLMNPRSTUVXZ"  # no I, O, Q, G, W, which pass for others when small; no J, which hangs below the line
LENGTHS = (2, 3)  # letters on a sign

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneralBol",
)
TEST_FONTS = ("DejaVuSerif-Bold",)

PHOTOS = (  # files inside scikit-image and scikit-learn
    "skimage/data/astronaut.png",
    "skimage/data/brick.png",
    "skimage/data/camera.png",
    "skimage/data/coins.png",
    "skimage/data/grass.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/moon.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/retina.jpg",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/flower.jpg",
)
TEST_PHOTOS = (
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/gravel.png",
    "sklearn/datasets/images/china.jpg",
)


def reserved(kind: str, color: str) -> bool:
    """Whether only the test pool shows this kind in this colour: 35 of the 192 combinations, spread over all."""
    # At most 3 of a kind's 8 colours, and 5 of a colour's 24 kinds: no word is new in the test pool.
    return (KINDS.index(kind) * 5 + list(COLORS).index(color) * 3) % 17 in (0, 5, 11)


@dataclass(frozen=True)
class Pool:
    """Where scenes may draw from: `train` and `test` share no seed and no photograph.

    The test pool shows every combination and font, the training pool only those that are not reserved.
    """

    name: str
    offset: int
    photos: tuple[str, ...]
    fonts: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


_PAIRS = tuple((kind, color) for kind in KINDS for color in COLORS)
TRAIN = Pool("train", 0, PHOTOS, FONTS, tuple(pair for pair in _PAIRS if not reserved(*pair)))
TEST = Pool("test", 10**12, TEST_PHOTOS, FONTS + TEST_FONTS, _PAIRS)
POOLS = {pool.name: pool for pool in (TRAIN, TEST)}

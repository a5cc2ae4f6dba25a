"""Image files of every kind as RGB pictures, or one clear line saying why not."""

import io
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from swiftvlm.errors import SwiftVLMError

MOST_PIXELS, LEAST_SIDE, MOST_RATIO = 100_000_000, 8, 50
RGB = tuple[int, int, int]


class ImageError(SwiftVLMError, ValueError):
    """A file that is no usable image; the message names the file and what was expected."""


def open_image(source: str) -> Image.Image:
    """The picture in a file, or on standard input for "-", upright and in RGB.

    Palette, grey, CMYK, 16-bit and transparent images are converted (transparency onto white); of an animation the
    first frame is taken. Raises `ImageError` for what is missing, not an image, truncated, over 100 megapixels, under
    8 pixels a side, or longer than 50 times its width.
    """
    name = "standard input" if source == "-" else source
    try:
        with warnings.catch_warnings():
            # Pillow warns a little below the limit that is checked here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(_read(source)))
            # `open` has read the header only: a huge picture is refused before it is decoded.
            _check_size(name, *picture.size)
            picture.load()
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more pixels than {MOST_PIXELS:,}, which looks like a decompression bomb") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image that Pillow can read") from None
    # Pillow tells a broken PNG chunk by a SyntaxError.
    except (OSError, SyntaxError, ValueError, EOFError) as broken:
        # ImageError is a ValueError: a size that was refused above, or a file that could not be read.
        if isinstance(broken, ImageError):
            raise
        raise ImageError(f"{name}: the image is damaged or truncated ({broken})") from None
    return to_rgb(ImageOps.exif_transpose(picture))


def _read(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read()
    path = Path(source)
    if path.is_dir():
        raise ImageError(f"{source}: is a folder, give an image file")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{source}: no such file") from None
    except (OSError, ValueError) as refused:
        raise ImageError(f"{source}: cannot be read ({refused})") from None


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels are more than {MOST_PIXELS:,}")
    if min(width, height) < LEAST_SIDE:
        raise ImageError(f"{name}: {width} x {height} pixels; each side needs at least {LEAST_SIDE}")
    if max(width, height) > MOST_RATIO * min(width, height):
        raise ImageError(f"{name}: {width} x {height} pixels; one side is over {MOST_RATIO} times the other")


def to_rgb(picture: Image.Image) -> Image.Image:
    """RGB, 8 bits a channel. 16-bit and floating-point greys are scaled to their own range, not clipped to white."""
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = np.asarray(picture, dtype=np.float64)
        # Modes I and F do not say how large a value may be: the largest that there is stands for white.
        top = 65535.0 if picture.mode.startswith("I;16") else max(float(np.nan_to_num(grey).max()), 1.0)
        scaled = np.clip(np.nan_to_num(grey) / top * 255.0, 0, 255).astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        # `convert` alone would drop the transparency and show whatever colour lies under it.
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def pad_to_square(picture: Image.Image, fill: RGB) -> Image.Image:
    """Centre the picture on a square of its longer side, as LLaVA-1.5 was trained (boxes refer to this square)."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), fill)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square

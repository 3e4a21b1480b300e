"""What Pillow decodes and the service does not: AVIF, JPEG 2000, first frames of animations, more kinds of TIFF."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from training.conversion.picture import Picture, check_size, percentiles, stretched

BITS_PER_SAMPLE, SAMPLE_FORMAT = 258, 339
"""Tags of a TIFF."""
SIGNED = 2
"""The format of values that have a sign."""


def by_pillow(path: Path) -> Picture:
    """Convert the first frame. Raises OSError, ValueError, SyntaxError, and what Pillow's plugins raise."""
    with Image.open(path) as opened:
        check_size(opened.width, opened.height)
        frames = getattr(opened, "n_frames", 1)
        opened.seek(0)
        bits, signed = _bits(opened), _tag(opened, SAMPLE_FORMAT) == SIGNED
        upright = ImageOps.exif_transpose(opened)
    frame = f"1 of {frames}" if frames > 1 else ""
    if upright.mode[0] in "IF":
        values = np.asarray(upright)
        low, high = (0.0, 2.0**bits - 1) if bits <= 16 and not signed else percentiles(values)
        window = f"{low:g} to {high:g}"
        return Picture(image=Image.fromarray(stretched(values, low, high)), frame=frame, depth=str(bits), window=window)
    return Picture(image=_on_white(upright), frame=frame, depth=str(bits))


def by_pillow_heif(path: Path) -> Picture:
    """Convert the first picture of a HEIC file. Needs the extra `heic`. Raises what `by_pillow` raises."""
    import pillow_heif  # noqa: PLC0415 (an extra, which only this needs)

    pillow_heif.register_heif_opener()
    return by_pillow(path)


def _bits(image: Image.Image) -> int:
    if bits := _tag(image, BITS_PER_SAMPLE):
        return bits
    return {"I;16": 16, "I;16B": 16, "I;16L": 16, "I": 32, "F": 32}.get(image.mode, 8)


def _tag(image: Image.Image, tag: int) -> int:
    """A number, of several the first, that a TIFF has in its directory; else 0."""
    value = image.getexif().get(tag, 0) if image.format == "TIFF" else 0
    return int(value[0] if isinstance(value, tuple) else value)


def _on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "L" else image.convert("L" if image.mode in ("1", "LA") else "RGB")

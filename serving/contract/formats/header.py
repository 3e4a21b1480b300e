"""What the header of an image file states, and how a file is refused."""

from dataclasses import dataclass

UPRIGHT = 1
MAX_SEGMENTS = 10_000
"""The most segments, chunks, strips or tiles of a file. A photograph of 10 MB in chunks of 4 KB has 2,600."""


class ImageError(ValueError):
    """A refused image. `code` is for programs, the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the header of an image file states. Sizes are in pixels, of the image as stored, before EXIF orientation."""

    format: str
    """A key of `image_header.FILE_EXTENSIONS`."""
    height: int
    width: int
    mode: str
    """L, LA, P, RGB, RGBA or CMYK, as Pillow names them, for every bit depth."""
    bits: int = 8
    """Bits of a value as it is decoded: 16, or 8 for any smaller number, too."""
    orientation: int = UPRIGHT
    """The EXIF value, 1 to 8. Any other value means upright, like 1."""
    frames: int = 1
    """The number of frames of an animation; 1 for any other image, even for a JPEG or TIFF with several pictures."""
    transparent: bool = False
    """Whether the image has an alpha channel or a transparent colour."""
    transparent_gray: int | None = None
    """The transparent gray value of a PNG without alpha, in the 8 or 16 bits of the decoded pixels."""


def damaged(why: str) -> ImageError:
    """The refusal of a file that cannot be decoded; `why` ends the sentence."""
    return ImageError("undecodable_image", f"the file is damaged: {why}")


def too_many_segments() -> ImageError:
    """The refusal of a file of more than MAX_SEGMENTS segments."""
    return damaged(f"it has more than {MAX_SEGMENTS:,} segments around its pixels")

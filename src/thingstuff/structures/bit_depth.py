"""How many bits of 16-bit samples are in use: microscopes and cameras fill 10, 12 or 14 of them, from the lowest up.

Read by the full range of 16 bits such an image is nearly black, so the depth is, in this order: what the caller says, what the
file says, and what the largest sample needs. The last is a guess and comes with a `BitDepthWarning`.
"""

import sys
from dataclasses import dataclass

from PIL.Image import Image
from PIL.ImageFile import ImageFile

from thingstuff.errors import BitDepthWarning, ConfigError, ImageError, warn

USUAL_DEPTHS = (8, 10, 12, 14)  # 8: bytes that a program has widened
_TIFF_BITS_PER_SAMPLE = 258
_TIFF_MAXIMUM_TAGS = (281, 341)  # MaxSampleValue, SMaxSampleValue
_ENDS_OF_RANGES = tuple(2**bits - 1 for bits in range(8, 17))
_PPM_FULL_RANGE = 65535
_OTHER_BYTE_ORDER = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L"}


def check_bit_depth(bit_depth: int | None) -> None:
    """Raises ConfigError for a depth that 16-bit samples can't have."""
    if bit_depth is not None and not 8 <= bit_depth <= 16:
        raise ConfigError(f"bit_depth says how many bits of 16-bit samples are in use, from 8 to 16; got {bit_depth}")


@dataclass(frozen=True)
class Stated:
    """What a file says of its 16-bit samples."""

    bits: int  # in use
    is_scaled: bool = False  # Pillow has scaled them to all 16


@dataclass(frozen=True)
class DeepSamples:
    """16-bit samples of an image: the largest, and what the file says of them."""

    largest: int
    told: Stated | None

    @property
    def said(self) -> int | None:
        """Bits by the file's own word, where it is true."""
        is_true = self.told is not None and (self.told.is_scaled or self.largest < 2**self.told.bits)
        return self.told.bits if self.told is not None and is_true else None


def is_deep_grey(image: Image, format_: str | None) -> bool:
    """Whether it is grey of 16 bits, which Pillow widens to 32 for some formats."""
    return image.mode.startswith("I;16") or (image.mode == "I" and format_ in ("PNG", "PPM"))


def stated(image: Image) -> Stated | None:
    """Bits in use by the file's own word, read before it is decoded.

    A TIFF may pack fewer than 16. Its MaxSampleValue counts where it is the end of a range, such as 4095; programs also write an
    image's own maximum there. The maximum of a PPM or PGM is its range. PNG's sBIT doesn't count: by its definition samples fill
    all 16 bits whatever it says.
    """
    bits = _tag(image, _TIFF_BITS_PER_SAMPLE)
    if isinstance(bits, tuple) and bits and 8 <= bits[0] < 16:
        return Stated(int(bits[0]))
    for tag in _TIFF_MAXIMUM_TAGS:
        value = _tag(image, tag)
        largest = max(value, default=0) if isinstance(value, tuple) else value
        if isinstance(largest, int | float) and largest in _ENDS_OF_RANGES:
            return Stated(int(largest).bit_length())
    if image.format == "PPM" and image.mode == "I":
        [(_, _, _, arguments)] = image.tile  # type: ignore[attr-defined]
        maximum = arguments[1] if isinstance(arguments, tuple) else _PPM_FULL_RANGE
        return Stated(maximum.bit_length(), is_scaled=maximum != _PPM_FULL_RANGE)
    return None


def _tag(image: Image, tag: int) -> object:
    try:
        return getattr(image, "tag_v2", {}).get(tag)
    except Exception:  # a broken tag says nothing
        return None


def bits_needed(largest: int) -> int:
    """The fewest usual bits that hold a sample."""
    return next((bits for bits in USUAL_DEPTHS if largest < 2**bits), 16)


def bits_in_use(largest: int, told: Stated | None, bit_depth: int | None, name: str) -> int:
    """Bits of an image whose largest sample this is: `bit_depth` where it is given, else as the file has told, else those needed.

    Raises:
        ImageError: a sample needs more bits than `bit_depth`, or the file has been scaled by another depth.
    """
    if told is not None and told.is_scaled:
        if bit_depth not in (None, told.bits):
            raise ImageError(
                f"{name}: says that its samples have {told.bits} bits, the bit depth asked for is {bit_depth}; "
                f"give {told.bits} for this file"
            )
        return 16
    if bit_depth is not None:
        if largest >= 2**bit_depth:
            raise ImageError(
                f"{name}: has 16-bit samples up to {largest}, more than the {2**bit_depth - 1} of {bit_depth} bits; "
                "give the bit depth that the images have (--bit-depth, in Python bit_depth); unless one is given, a model that "
                "has learnt from 16-bit images reads with theirs"
            )
        return bit_depth
    if told is not None and largest < 2**told.bits:
        return told.bits
    bits = bits_needed(largest)
    if largest > 0 and bits < 16:  # black is black at any depth
        warn(
            f"{name}: no 16-bit sample exceeds {largest}, so it is read as {bits}-bit data; if that is wrong, as for a dim image "
            "of all 16 bits or a dark one of a series, give the depth (--bit-depth, in Python bit_depth)",
            BitDepthWarning,
        )
    return bits


def is_deep_colour(image: ImageFile) -> bool:
    """Whether, not yet decoded, it is RGB of 16 bits, of which Pillow decodes the upper 8 alone."""
    return image.mode == "RGB" and "transparency" not in image.info and bool(image.tile) and _swapped(image) is not None


def decode_lower_bytes(image: ImageFile) -> None:
    """Make such an image decode the lower 8 bits: those that are the upper ones in the other order of bytes."""
    tiles = _swapped(image)
    assert tiles is not None
    image.tile = tiles


def _swapped(image: ImageFile) -> list | None:
    """What is to be decoded, each with the other order of bytes; None where it isn't RGB of 16 bits."""
    tiles: list = []
    for tile in image.tile:
        codec, extents, offset, arguments = tile
        first, rest = (arguments[0], arguments[1:]) if isinstance(arguments, tuple) and arguments else (arguments, None)
        if first not in _OTHER_BYTE_ORDER:
            return None
        swapped = _OTHER_BYTE_ORDER[first] if rest is None else (_OTHER_BYTE_ORDER[first], *rest)
        # Pillow before 11 has plain tuples
        tiles.append(tile._replace(args=swapped) if hasattr(tile, "_replace") else (codec, extents, offset, swapped))
    return tiles

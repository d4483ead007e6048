"""Text on pictures: its size, and what is left of it where room is short."""

import re
from functools import cache
from math import ceil

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@cache
def font_of(size: int) -> Font:
    return ImageFont.load_default(size)


def font_size(height: int, width: int) -> int:
    return min(max(round(max(height, width) / 56), 11), 48)


def text_size(text: str, font: Font) -> tuple[int, int]:
    left, top, right, bottom = font.getbbox(text)
    return ceil(right - left), ceil(bottom - top)


def shortened(text: str, font: Font, width: int) -> str:
    """The text on one line, cut with dots to `width` pixels; empty when not even one letter has room."""
    text = " ".join(text.split())
    if text_size(text, font)[0] <= width:
        return text
    for end in range(len(text) - 1, 0, -1):
        if text_size(text[:end] + "...", font)[0] <= width:
            return text[:end].rstrip() + "..."
    return ""


def plain_name(name: str) -> str:
    """A category's name for people: COCO calls its stuff sky-other-merged, door-stuff and the like."""
    return re.sub(r"(-(other|stuff|merged))+$", "", name) or name

"""The strip below a picture that says what its colours stand for."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from thingstuff.structures.segments import Segments
from thingstuff.visuals.colours import Colour
from thingstuff.visuals.text import font_of, font_size, plain_name, shortened, text_size

SWATCHES = 4  # colours of one class of things that are shown


def with_legend(picture: np.ndarray, segments: Segments, colours: Sequence[Colour]) -> np.ndarray:
    """The picture above a strip: for each class its colours, its name and, of things, how many; the largest class first."""
    entries = _entries(segments, colours)
    if not entries:
        return picture
    height, width = picture.shape[:2]
    font = font_of(font_size(height, width))
    line = text_size("Ag", font)[1]
    gap, side = line, round(1.1 * line)
    places, x, row = [], gap, 0
    for swatches, text in entries:
        text = shortened(text, font, width - 4 * gap - len(swatches) * side)
        wide = len(swatches) * side + gap // 2 + text_size(text, font)[0]
        if x > gap and x + wide + gap > width:
            x, row = gap, row + 1
        places.append((x, row, swatches, text))
        x += wide + 2 * gap
    pitch = round(1.9 * line)
    strip = Image.new("RGB", (width, (row + 1) * pitch + gap), "white")
    draw = ImageDraw.Draw(strip)
    for x, row, swatches, text in places:
        middle = gap // 2 + row * pitch + pitch // 2
        for number, colour in enumerate(swatches):
            left = x + number * side
            draw.rectangle((left, middle - side // 2, left + side - 2, middle + side // 2 - 1), fill=colour)
        draw.text((x + len(swatches) * side + gap // 2, middle), text, fill="black", font=font, anchor="lm")
    return np.concatenate([picture, np.asarray(strip)])


def _entries(segments: Segments, colours: Sequence[Colour]) -> list[tuple[list[Colour], str]]:
    areas = segments.areas
    shown = np.flatnonzero(areas)
    classes, place = np.unique(segments.classes[shown], return_inverse=True)
    of_class = np.bincount(place, weights=areas[shown], minlength=len(classes))
    entries = []
    for position in np.argsort(-of_class, kind="stable"):
        category = segments.categories[int(classes[position])]
        members = shown[place == position]
        swatches = list(dict.fromkeys(colours[member] for member in members[np.argsort(-areas[members], kind="stable")]))
        name = plain_name(category.name)
        text = f"{name} {len(members)}" if category.is_thing and len(members) > 1 else name
        entries.append((swatches[:SWATCHES], text))
    return entries

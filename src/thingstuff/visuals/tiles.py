"""Segments that tile the image: calm stuff, bright things, thin borders, a label at the visual centre of each."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int32
from PIL import Image, ImageDraw

from thingstuff.structures.segments import Segments
from thingstuff.visuals.centres import depths
from thingstuff.visuals.fills import outline_thickness
from thingstuff.visuals.labels import MAX_LABELS
from thingstuff.visuals.shapes import Rectangle, Shape
from thingstuff.visuals.text import font_of, font_size, plain_name, shortened, text_size

BORDER = 0.75  # share of white in the lines between segments
ROOM = 0.55  # of a label's height that must lie inside a segment to either side of its middle
MAX_SHARE = 0.2  # of the picture that all labels together may cover; the smallest segments go without


def paint_tiles(
    background: np.ndarray, segments: Segments, shapes: Sequence[Shape], scale: Fraction, opacity: float
) -> np.ndarray:
    """The picture with every segment's colour on it, and white lines where two meet."""
    owners = _owners(segments, shapes, scale, (int(background.shape[0]), int(background.shape[1])))
    colours = np.array([(0, 0, 0), *(shape.colour for shape in shapes)], np.float32)[owners]
    share = np.where(owners > 0, np.float32(opacity), np.float32(0))[..., None]
    picture = background * (1 - share) + colours * share
    lines = _borders(owners, outline_thickness(*owners.shape))[..., None] * np.float32(BORDER)
    return (picture * (1 - lines) + 255 * lines + 0.5).astype(np.uint8)


def _owners(
    segments: Segments, shapes: Sequence[Shape], scale: Fraction, size: tuple[int, int]
) -> Int32[np.ndarray, "height width"]:
    """The number of the shape that each pixel of the picture belongs to, from 1; 0 for void."""
    numbers = np.zeros(len(segments) + 1, np.int32)
    for number, shape in enumerate(shapes, start=1):
        numbers[shape.index + 1] = number
    owners = numbers[segments.panoptic_map()]
    if scale > 1:
        owners = owners.repeat(scale.numerator, axis=0).repeat(scale.numerator, axis=1)
        for number, shape in enumerate(shapes, start=1):  # rounded corners over square ones; where three meet these remain
            left, top, right, bottom = shape.box
            owners[top:bottom, left:right][shape.crop] = number
    elif scale < 1:
        step = scale.denominator
        rows, columns = (
            np.minimum(np.arange(side) * step + step // 2, full - 1) for side, full in zip(size, owners.shape, strict=True)
        )
        owners = owners[np.ix_(rows, columns)]
    return owners


def _borders(owners: Int32[np.ndarray, "height width"], thickness: int) -> np.ndarray:
    """Pixels on either side of where two numbers meet, in all so many pixels across."""
    lines = np.zeros(owners.shape, np.bool_)
    for axis in (0, 1):
        numbers, marked = np.moveaxis(owners, axis, 0), np.moveaxis(lines, axis, 0)
        meets = numbers[1:] != numbers[:-1]
        for step in range(thickness):
            shift = step // 2
            if step % 2 == 0:
                marked[: -1 - shift or None][: len(meets) - shift] |= meets[shift:]
            else:
                marked[1 + shift :] |= meets[: len(meets) - shift]
    return lines


def label_tiles(picture: np.ndarray, segments: Segments, shapes: Sequence[Shape], every: bool, scores: bool) -> np.ndarray:
    """The names at the visual centres: things on a tag of their colour, stuff as plain words.

    Without `every`, segments in which a label has no room go without, and at most MAX_LABELS get one, the largest.
    """
    height, width = picture.shape[:2]
    size = font_size(height, width)
    font = font_of(size)
    line, capital = text_size("Ag", font)[1], text_size("A", font)[1]
    margin = max(2, line // 4)
    drawn = Image.fromarray(picture)
    draw = ImageDraw.Draw(drawn)
    wanted: list[tuple[Shape, str, tuple[int, int]]] = []
    covered = 0
    for shape in shapes if every else shapes[:MAX_LABELS]:
        category = segments.categories[int(segments.classes[shape.index])]
        score = float(segments.scores[shape.index])
        text = plain_name(category.name) + (f" {score:.2f}" if scores and category.is_thing and score < 1 else "")
        text = shortened(text, font, width // 2 - 2 * margin)
        label = (text_size(text, font)[0] + 2 * margin, line + 2 * margin)
        if text and (every or covered + label[0] * label[1] <= MAX_SHARE * height * width):
            wanted.append((shape, text, label))
            covered += label[0] * label[1]
    taken: list[Rectangle] = []
    for shape, text, label in reversed(wanted):  # the smallest first: it has the fewest places
        place = _place(shape, label, taken, (height, width), every)
        if place is None:
            continue
        taken.append(place)
        left, top, _, bottom = place
        at = (left + margin, (top + bottom + capital) // 2)
        if segments.categories[int(segments.classes[shape.index])].is_thing:
            draw.rounded_rectangle((left, top, place[2] - 1, bottom - 1), radius=margin, fill=shape.colour)
            draw.text(at, text, fill="black", font=font, anchor="ls")
        else:
            dark = tuple(channel * 2 // 5 for channel in shape.colour)
            draw.text(at, text, fill="white", font=font, anchor="ls", stroke_width=max(1, size // 10), stroke_fill=dark)
    return np.asarray(drawn)


def _place(
    shape: Shape, label: tuple[int, int], taken: Sequence[Rectangle], size: tuple[int, int], every: bool
) -> Rectangle | None:
    """A label of (width, height) centred on the deepest point of the shape at which it touches no other label."""
    label_width, label_height = label
    room_x, room_y = size[1] - label_width, size[0] - label_height
    distance, step = depths(shape)
    ys, xs = np.nonzero(distance * step >= (0 if every else ROOM * label_height))
    if not len(ys) or min(room_x, room_y) < 0:
        return None
    depth = np.round(distance[ys, xs], 6)
    top = depth == depth.max()
    order = np.lexsort((np.hypot(ys - ys[top].mean(), xs - xs[top].mean()), -depth))  # of equally deep points the most central
    x = np.clip(shape.left + xs[order] * step + step // 2 - label_width // 2, 0, room_x)
    y = np.clip(shape.top + ys[order] * step + step // 2 - label_height // 2, 0, room_y)
    free = np.ones(len(order), np.bool_)
    for left, top, right, bottom in taken:
        free &= (x >= right) | (x + label_width <= left) | (y >= bottom) | (y + label_height <= top)
    if not free.any():
        return None
    first = int(np.argmax(free))
    return int(x[first]), int(y[first]), int(x[first]) + label_width, int(y[first]) + label_height

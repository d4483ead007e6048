"""Labels of objects, beside or inside them, where they hide little."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from thingstuff.structures.segments import Segments
from thingstuff.visuals.centres import deepest
from thingstuff.visuals.shapes import Rectangle, Shape
from thingstuff.visuals.text import font_of, font_size, shortened, text_size

MAX_LABELS = 40  # more segments than this are drawn without labels
LABELS_SHARE = 0.12  # of the picture that all labels together may cover before none is drawn


def write_labels(picture: np.ndarray, segments: Segments, shapes: Sequence[Shape], every: bool, scores: bool) -> np.ndarray:
    height, width = picture.shape[:2]
    if not every and len(shapes) > MAX_LABELS:
        return picture
    font = font_of(font_size(height, width))
    line, capital = text_size("Ag", font)[1], text_size("A", font)[1]
    margin = max(2, line // 4)
    texts = {}
    for shape in shapes:
        score = float(segments.scores[shape.index])
        text = segments.categories[int(segments.classes[shape.index])].name
        text += f" {score:.2f}" if scores and score < 1 else ""
        texts[shape.index] = shortened(text, font, width // 2 - 2 * margin)
    sizes = {i: (text_size(text, font)[0] + 2 * margin, line + 2 * margin) for i, text in texts.items() if text}
    if not every and sum(w * h for w, h in sizes.values()) > LABELS_SHARE * height * width:
        return picture
    drawn = Image.fromarray(picture)
    draw = ImageDraw.Draw(drawn)
    boxes = np.array([shape.box for shape in shapes])
    taken: list[Rectangle] = []
    for number, shape in reversed(list(enumerate(shapes))):  # the smallest first: it has the fewest places to go
        if shape.index not in sizes:
            continue
        others = np.delete(boxes, number, axis=0)
        place = label_place(shape, sizes[shape.index], np.array(taken).reshape(-1, 4), others, height, width)
        if place is None:
            continue
        taken.append(place)
        left, top, right, bottom = place
        draw.rounded_rectangle((left, top, right - 1, bottom - 1), radius=margin, fill=shape.colour)
        draw.text((left + margin, (top + bottom + capital) // 2), texts[shape.index], fill="black", font=font, anchor="ls")
    return np.asarray(drawn)


def label_place(
    shape: Shape, size: tuple[int, int], taken: np.ndarray, others: np.ndarray, height: int, width: int
) -> Rectangle | None:
    """Where a label of (width, height) `size` goes: inside the picture, on no label taken before, hiding little of other shapes.

    `taken` and `others` are rectangles, n x 4; None when every place is taken.
    """
    label_width, label_height = size
    left, top, right, bottom = shape.box
    inside_x, inside_y = deepest(shape)
    head = left + int(np.flatnonzero(shape.crop[0]).mean()) if shape.crop[0].any() else inside_x
    centred = inside_x - label_width // 2
    corners = np.array(  # left and top of the label, the best first
        [
            (head - label_width // 2, top - label_height),
            (centred, inside_y - label_height // 2),
            (left, top - label_height),
            (right - label_width, top - label_height),
            (centred, bottom),
            (right, inside_y - label_height // 2),
            (left - label_width, inside_y - label_height // 2),
            (head - label_width // 2, top),
            (left, bottom),
            (centred, inside_y + label_height // 2),
            (centred, inside_y - 3 * label_height // 2),
            (right, top - label_height),
            (right, bottom),
            (left - label_width, top - label_height),
            (left - label_width, bottom),
        ]
    )
    room = np.array([width, height]) - size
    if room.min() < 0:
        return None
    corners = np.clip(corners, 0, room)
    places = np.concatenate([corners, corners + size], axis=1)
    sides = others[:, 2:] - others[:, :2]
    hidden = (common(places, others) / (1 + np.minimum(sides.prod(axis=1), label_width * label_height))).sum(axis=1)
    own = common(places, np.array([shape.box]))[:, 0] / shape.crop.size
    costs = np.where(common(places, taken).any(axis=1), np.inf, 0.1 * np.arange(len(places)) + hidden + own)
    best = int(np.argmin(costs))
    if costs[best] == np.inf:
        return None
    x1, y1, x2, y2 = places[best].tolist()
    return x1, y1, x2, y2


def common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pixels that each rectangle of `a` shares with each of `b`, n x m."""
    corner, opposite = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.maximum(opposite - corner, 0).prod(axis=-1)

"""Fills and outlines of shapes that may cover each other, the smallest on top."""

from collections.abc import Sequence

import numpy as np

from thingstuff.visuals.shapes import Shape


def filled(background: np.ndarray, shapes: Sequence[Shape], opacity: float) -> np.ndarray:
    """The picture with every pixel blended once, with the colour of the smallest shape that covers it."""
    owners = np.zeros(background.shape[:2], dtype=np.int32)  # 0: nobody
    for number, shape in enumerate(shapes, 1):
        left, top, right, bottom = shape.box
        owners[top:bottom, left:right][shape.crop] = number
    painted = owners > 0
    dimmed = (np.arange(256) * (1 - opacity)).astype(np.uint8)
    added = (np.array([(0, 0, 0), *(shape.colour for shape in shapes)]) * opacity).astype(np.uint8)
    channels = [np.where(painted, dimmed[background[..., c]], background[..., c]) + added[owners, c] for c in range(3)]
    return np.stack(channels, axis=-1)


def paint_outline(picture: np.ndarray, shape: Shape) -> None:
    """Paint the outermost pixels of the shape; where the picture's border cuts it, the outline stays open."""
    left, top, right, bottom = shape.box
    height, width = picture.shape[:2]
    thickness = outline_thickness(height, width)
    if min(shape.crop.shape) < 6 * thickness:
        thickness = 1
    at_border = (top == 0, bottom == height), (left == 0, right == width)
    padded = np.pad(shape.crop, ((thickness, thickness), (thickness, thickness)))
    for axis, (at_start, at_end) in enumerate(at_border):
        rows = np.moveaxis(padded, axis, 0)
        if at_start:
            rows[:thickness] = rows[thickness]
        if at_end:
            rows[-thickness:] = rows[-thickness - 1]
    for step in range(thickness):
        inner = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        if step % 2:  # every other step takes diagonal neighbours too, which keeps the line equally thick all around
            inner &= padded[:-2, :-2] & padded[:-2, 2:] & padded[2:, :-2] & padded[2:, 2:]
        padded = inner
    picture[top:bottom, left:right][shape.crop & ~padded] = shape.colour


def outline_thickness(height: int, width: int) -> int:
    return max(1, round(max(height, width) / 640))

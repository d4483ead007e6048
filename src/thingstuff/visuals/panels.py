"""The image, what was predicted and what is true, side by side."""

from math import ceil

import numpy as np
from PIL import Image, ImageDraw

from thingstuff.structures.segments import Segments
from thingstuff.visuals.overlay import overlay
from thingstuff.visuals.scale import PANEL_SIDE, as_rgb, fitting_scale, scaled_image
from thingstuff.visuals.text import font_of, font_size, plain_name, shortened, text_size


def side_by_side(image: np.ndarray, prediction: Segments, truth: Segments) -> np.ndarray:
    """The image, what was predicted and what is true, as three captioned panels in one row: RGB uint8."""
    image = as_rgb(image)
    scale = fitting_scale(*image.shape[:2], least=PANEL_SIDE)
    panels = {
        "image": scaled_image(image, scale),
        f"prediction: {describe(prediction)}": overlay(image, prediction, scale=scale),
        f"ground truth: {describe(truth)}": overlay(image, truth, scale=scale),
    }
    height, width = panels["image"].shape[:2]
    gap = max(4, height // 100)
    font = font_of(font_size(height, width))
    band = ceil(1.8 * text_size("Ag", font)[1])
    sheet = Image.new("RGB", (3 * width + 2 * gap, height + band), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (caption, panel) in enumerate(panels.items()):
        left = column * (width + gap)
        sheet.paste(Image.fromarray(panel), (left, band))
        draw.text((left + gap, band // 2), shortened(caption, font, width - 2 * gap), fill="black", font=font, anchor="lm")
    return np.asarray(sheet)


def describe(segments: Segments, most: int = 4) -> str:
    """Counts per class in words, the most frequent first: "12 person, 3 dog and 4 more"; "nothing" when empty."""
    classes, counts = np.unique(segments.classes, return_counts=True)
    order = np.lexsort((classes, -counts))
    parts = [f"{counts[i]} {plain_name(segments.categories[int(classes[i])].name)}" for i in order[:most]]
    rest = int(counts[order[most:]].sum())
    return ", ".join(parts) + (f" and {rest} more" if rest else "") if parts else "nothing"

"""Segments drawn on their image."""

from fractions import Fraction

import numpy as np

from thingstuff.errors import ConfigError, SizeError
from thingstuff.structures.segments import Segments
from thingstuff.visuals.colours import colours_of
from thingstuff.visuals.fills import filled, paint_outline
from thingstuff.visuals.labels import write_labels
from thingstuff.visuals.legend import with_legend
from thingstuff.visuals.scale import as_rgb, checked_scale, fitting_scale, scaled_image
from thingstuff.visuals.shapes import shapes_of
from thingstuff.visuals.tiles import label_tiles, paint_tiles

OPACITY = 0.3  # of objects
TILE_OPACITY = 0.55  # of segments that tile the image


def overlay(
    image: np.ndarray,
    segments: Segments,
    *,
    labels: bool | None = None,
    scores: bool = True,
    opacity: float | None = None,
    scale: int | Fraction | None = None,
    legend: bool = False,
) -> np.ndarray:
    """Draw segments on their image: RGB uint8, height x width x 3, at the picture's scale (see the package's first lines).

    Objects get an outline and a light fill. Segments that tile the image (panoptic, semantic) get a fuller one and thin borders.

    Args:
        image: uint8, height x width x 3, or height x width for grey.
        labels: None writes labels while they are few and fit; True writes every one that has room; False none.
        scores: whether a label gives the score; a score of exactly 1, as ground truth has, is left out.
        opacity: of the fill, from 0 to 1; None: OPACITY of objects, TILE_OPACITY of segments that tile the image.
        scale: picture pixels per image pixel, a whole number or one over a whole number; None chooses.
        legend: a strip below the picture says what the colours stand for.

    Raises:
        SizeError: image and segments differ in height or width.
        ConfigError: an opacity or a scale outside what is stated above.
    """
    image = as_rgb(image)
    height, width = image.shape[:2]
    if (height, width) != tuple(segments.size):
        raise SizeError(
            f"the image is {width}x{height} pixels but its segments describe {segments.size[1]}x{segments.size[0]}; "
            "draw segments on the image they were made from"
        )
    if opacity is None:
        opacity = OPACITY if segments.overlapping else TILE_OPACITY
    if not 0 <= opacity <= 1:
        raise ConfigError(f"opacity must lie from 0 to 1, got {opacity}")
    scale = fitting_scale(height, width) if scale is None else checked_scale(scale)
    picture = scaled_image(image, scale)
    colours = colours_of(image, segments)
    shapes = shapes_of(segments, colours, scale)
    if segments.overlapping:
        picture = filled(picture, shapes, opacity)
        for shape in shapes:
            paint_outline(picture, shape)
    else:
        picture = paint_tiles(picture, segments, shapes, scale, opacity)
    if labels is not False and shapes:
        write = write_labels if segments.overlapping else label_tiles
        picture = write(picture, segments, shapes, every=labels is True, scores=scores)
    return with_legend(picture, segments, colours) if legend else picture

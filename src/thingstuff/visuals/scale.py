"""The scale of a picture: small images enlarged, long ones reduced, both by whole factors."""

from fractions import Fraction
from math import ceil

import numpy as np
from PIL import Image

from thingstuff.errors import ConfigError, SizeError
from thingstuff.structures.masks import Mask

MIN_SIDE = 960  # pixels: an image with a shorter long side is enlarged by the smallest whole factor that reaches this
PANEL_SIDE = 512  # pixels: the same for each panel of several side by side
MAX_ENLARGEMENT = 8
MAX_SIDE = 4096  # pixels: a longer image is reduced by the smallest whole factor that brings it within this


def as_rgb(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3))) or 0 in image.shape:
        raise SizeError(
            f"a picture needs an image of uint8, height x width x 3 or height x width, got {image.dtype} of shape {image.shape}"
        )
    return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2) if image.size == image.shape[0] * image.shape[1] else image


def fitting_scale(height: int, width: int, least: int = MIN_SIDE) -> Fraction:
    side = max(height, width)
    if side > MAX_SIDE:
        return Fraction(1, ceil(side / MAX_SIDE))
    return Fraction(min(ceil(least / side), MAX_ENLARGEMENT))


def checked_scale(scale: int | Fraction) -> Fraction:
    if scale <= 0 or 1 not in (Fraction(scale).numerator, Fraction(scale).denominator):
        raise ConfigError(f"scale must be a whole number, or one over a whole number, got {scale}")
    return Fraction(scale)


def scaled_image(image: np.ndarray, scale: Fraction) -> np.ndarray:
    if scale == 1:
        return image
    if scale < 1:
        return np.asarray(Image.fromarray(image).reduce(scale.denominator))
    size = (image.shape[1] * scale.numerator, image.shape[0] * scale.numerator)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def scaled_crop(mask: Mask, scale: Fraction) -> tuple[np.ndarray, int, int]:
    """The mask's crop at the picture's scale, and its left and top there.

    Enlarged outlines are smooth: bilinear, cut at one half, which leaves straight edges where they were and rounds corners.
    Reduced masks keep the cells they cover by half, or, when there is none, every cell they touch, so that no object vanishes.
    """
    crop = mask.crop()
    top, left = mask.corner
    if scale == 1:
        return crop, left, top
    if scale > 1:
        factor = scale.numerator
        padded = Image.fromarray(np.pad(crop, 1).astype(np.uint8) * 255)
        enlarged = np.asarray(padded.resize((padded.width * factor, padded.height * factor), Image.Resampling.BILINEAR))
        return enlarged[factor:-factor, factor:-factor] >= 128, left * factor, top * factor
    factor = scale.denominator
    rest_top, rest_left = top % factor, left % factor
    height, width = crop.shape
    rest_bottom, rest_right = -(rest_top + height) % factor, -(rest_left + width) % factor
    padded = np.pad(crop, ((rest_top, rest_bottom), (rest_left, rest_right)))
    covered = np.asarray(Image.fromarray(padded.astype(np.uint8) * 255).reduce(factor))
    reduced = covered >= 128
    return (reduced if reduced.any() else covered > 0), left // factor, top // factor

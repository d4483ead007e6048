"""Put the small masks of a mask head back at image size (He et al., 2017, arXiv:1703.06870, section 3.1, inference).

Bilinear interpolation separates into rows and columns, so a pasted crop is  down @ mask @ across  with two narrow matrices
whose entries are the bilinear weights. Only the pixels that a mask can reach are computed, one instance at a time.

The implementations differ in where pixels fall on the mask:
- "grid" (detectron2, MMDetection): the image is sampled at pixel centres and the mask fades to zero over half a mask cell
  beyond the box; a pixel is in when its probability is at least the threshold.
- "integer" (torchvision): the mask gets a frame of one zero cell, the box grows by as much and is cut to whole pixels, and
  the mask is resized to it; a pixel is in when its probability is greater than the threshold.
"""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from thingstuff.errors import ConfigError

STRIP_BYTES = 2**20  # float32 rows computed at a time; what fits a processor's cache is also fastest
FARTHEST = 2.0**40  # pixels; boxes are cut there so that whole-pixel arithmetic stays exact

PasteMode = Literal["grid", "integer"]


def paste_crops(
    masks: Float[Tensor, "instances mask_height mask_width"],
    boxes: Float[Tensor, "instances 4"],
    size: tuple[int, int],
    threshold: float = 0.5,
    mode: PasteMode = "grid",
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Each mask of probabilities at the place of its box: (crop of bools, its top left pixel), in order, one by one.

    Outside its crop a mask is false. The crop is made when it is asked for and not kept, so whoever encodes it at once needs
    the memory of one: a byte a pixel, and `STRIP_BYTES` to compute it. A box that is inverted, outside the image or
    not finite has a crop of no pixels, and so has an empty one, except that "integer" paints the one pixel under it.

    Raises:
        ConfigError: the threshold would hold for pixels that the mask does not reach.
    """
    if mode not in ("grid", "integer"):
        raise ConfigError(f'mode is "grid" or "integer", got {mode!r}')
    if threshold < 0 or (mode == "grid" and threshold == 0):
        raise ConfigError(f"a mask threshold must be above 0, got {threshold}: every pixel of the image would be in the mask")
    return _crops(_as_numpy(masks), _as_numpy(boxes), size, threshold, mode)


def paste_soft(
    masks: Float[Tensor, "instances mask_height mask_width"],
    boxes: Float[Tensor, "instances 4"],
    size: tuple[int, int],
    mode: PasteMode = "grid",
) -> Float[Tensor, "instances height width"]:
    """The probabilities before the threshold, at full size: 4 bytes a pixel and instance, for few instances or small images."""
    pasted = np.zeros((len(masks), *size), dtype=np.float32)
    for canvas, mask, box in zip(pasted, _as_numpy(masks), _as_numpy(boxes), strict=True):
        (top, down), (left, across) = _weights_of_box(box, mask.shape, size, mode)
        canvas[top : top + len(down), left : left + len(across)] = down @ mask @ across.T
    return torch.from_numpy(pasted)


def _as_numpy(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


def _crops(
    masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float, mode: PasteMode
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    passes = np.greater_equal if mode == "grid" else np.greater
    for mask, box in zip(masks, boxes, strict=True):
        (top, down), (left, across) = _weights_of_box(box, mask.shape, size, mode)
        columns = mask @ across.T  # mask_height crop_width
        crop = np.empty((len(down), len(across)), dtype=bool)
        strip = max(1, STRIP_BYTES // max(1, 4 * len(across)))  # rows
        soft = np.empty((min(strip, len(down)), len(across)), dtype=np.float32)
        for start in range(0, len(down), strip):
            rows = slice(start, min(start + strip, len(down)))
            passes(np.matmul(down[rows], columns, out=soft[: rows.stop - start]), threshold, out=crop[rows])
        yield crop, (top, left)


def _weights_of_box(
    box: np.ndarray, mask_shape: tuple[int, ...], size: tuple[int, int], mode: PasteMode
) -> tuple[tuple[int, np.ndarray], tuple[int, np.ndarray]]:
    """Of the rows and of the columns: the first pixel that the mask reaches and, per pixel, the weights of the mask's cells."""
    x1, y1, x2, y2 = box.tolist()
    # torchvision paints the pixel under a box of no size
    reaches = x2 >= x1 and y2 >= y1 if mode == "integer" else x2 > x1 and y2 > y1
    if not (reaches and math.isfinite(x1 + y1 + x2 + y2)):
        return (0, np.zeros((0, mask_shape[0]), np.float32)), (0, np.zeros((0, mask_shape[1]), np.float32))
    weights = _grid_weights if mode == "grid" else _integer_weights
    return weights(box[1], box[3], mask_shape[0], size[0]), weights(box[0], box[2], mask_shape[1], size[1])


def _grid_weights(start: np.float32, end: np.float32, cells: int, pixels: int) -> tuple[int, np.ndarray]:
    half_cell = (float(end) - float(start)) / cells / 2
    first = min(max(math.floor(float(start) - half_cell) - 1, 0), pixels)
    last = min(max(math.ceil(float(end) + half_cell) + 1, first), pixels)
    position = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    # rounded like the originals: to -1..1 over the box, then to mask cells
    position -= start
    position /= end - start
    position *= np.float32(2)
    position -= np.float32(1)
    position += np.float32(1)
    position *= np.float32(cells / 2)
    position -= np.float32(0.5)
    return first, _hat(position, np.arange(cells, dtype=np.float32))


def _integer_weights(start: np.float32, end: np.float32, cells: int, pixels: int) -> tuple[int, np.ndarray]:
    centre, half = (end + start) * np.float32(0.5), (end - start) * np.float32(0.5) * np.float32((cells + 2) / cells)
    low, high = (int(min(max(float(edge), -FARTHEST), FARTHEST)) for edge in (centre - half, centre + half))  # towards zero
    first, last = min(max(low, 0), pixels), min(high + 1, pixels)
    position = np.arange(first - low, max(last, first) - low, dtype=np.float32) + np.float32(0.5)
    position *= np.float32((cells + 2) / (high - low + 1))
    position -= np.float32(0.5)
    # cells 0 and cells + 1 are the frame, which is zero: their weights are left out
    return first, _hat(position.clip(0, cells + 1), np.arange(1, cells + 1, dtype=np.float32))


def _hat(position: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Bilinear weights: 1 at the cell, falling to 0 at its neighbours."""
    distance = np.abs(position[:, None] - cells)
    return np.maximum(np.subtract(1, distance, out=distance), 0, out=distance)

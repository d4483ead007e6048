"""Where the visual centre of a shape is: the pixel deepest inside it, its pole of inaccessibility."""

import numpy as np
from jaxtyping import Bool, Float64

from thingstuff.visuals.shapes import Shape

GRID = 64  # cells a side that a shape is looked at with


def deepest(shape: Shape) -> tuple[int, int]:
    """The pixel farthest from the shape's edge, x and y in picture pixels, to the grid's cell; of equals the most central."""
    distance, step = depths(shape)
    if not distance.any():
        ys, xs = np.nonzero(shape.crop)
        return shape.left + int(xs[len(xs) // 2]), shape.top + int(ys[len(ys) // 2])
    ys, xs = np.nonzero(distance >= distance.max() - 1e-9)
    middle = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    return shape.left + int(xs[middle] * step + step // 2), shape.top + int(ys[middle] * step + step // 2)


def depths(shape: Shape) -> tuple[Float64[np.ndarray, "rows columns"], int]:
    """The distance of each grid cell to the nearest cell outside the shape, in cells, and the pixels of a cell."""
    step = max(1, -(-max(shape.crop.shape) // GRID))
    return distances(shape.crop[step // 2 :: step, step // 2 :: step]), step


def distances(inside: Bool[np.ndarray, "rows columns"]) -> Float64[np.ndarray, "rows columns"]:
    """Exact Euclidean distance of each cell to the nearest one outside, 0 there; beyond the array all is outside.

    First along columns, then the lower envelope of the parabolas along each row (Felzenszwalb and Huttenlocher, 2012,
    doi 10.4086/toc.2012.v008a019, section 2), of which a grid has so few that all are compared.
    """
    padded = np.pad(inside, 1)
    rows, columns = padded.shape
    row = np.arange(rows)[:, None]
    above = np.maximum.accumulate(np.where(padded, -1, row), axis=0)
    below = np.minimum.accumulate(np.where(padded, rows, row)[::-1], axis=0)[::-1]
    vertical = np.minimum(row - above, below - row).astype(np.float64)
    column = np.arange(columns)
    apart = (column[:, None] - column[None]) ** 2  # column, column
    squares = (apart[None] + vertical[:, None, :] ** 2).min(axis=2)
    return np.sqrt(squares)[1:-1, 1:-1]

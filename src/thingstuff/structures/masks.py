"""One segment's pixels as run-length code of a tight crop, and its exchange with dense arrays, COCO RLE and polygons.

A 20-pixel object in a 100-megapixel image costs what its crop costs: area, box and full-image RLE are computed on runs.

COCO's RLE counts pixels column by column, background first: [2, 3, 4] is 2 off, 3 on, 4 off. Its compressed form writes each
count (from the fourth on, its difference to the count two places before) in base 32, lowest digit first, and a digit as one
character of code 48 and up.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from hotcoco import mask as coco_rle
from jaxtyping import Bool, Float64, Int64

from thingstuff.errors import MaskError, SizeError

MAX_PIXELS = 2**32 - 1  # COCO's tools hold positions in 32 bits
MAX_OUTLINE = 4_000_000  # pixels of outline that a mask's polygons may have: rasterising takes some 80 bytes for each
_DIGITS = 7  # base-32 digits of a count or difference: 35 bits hold any that is valid


@dataclass(frozen=True, eq=False)
class Polygon:
    """An outline with holes, points as x y in pixels of the image; 0 is the left or top edge of the first pixel."""

    outer: Float64[np.ndarray, "points 2"]
    holes: tuple[Float64[np.ndarray, "_ 2"], ...] = ()


@dataclass(frozen=True)
class Mask:
    """Which pixels of an image belong to one segment. Equal masks are equal values: the crop is tight and the code is unique."""

    size: tuple[int, int]  # (height, width) of the image
    corner: tuple[int, int]  # (top, left) of the crop in the image
    crop_size: tuple[int, int]  # (height, width) of the crop; (0, 0) when no pixel is set
    counts: bytes  # COCO compressed RLE of the crop

    def __post_init__(self) -> None:
        _check_size(self.size)
        (height, width), (top, left), (crop_height, crop_width) = self.size, self.corner, self.crop_size
        if min(top, left, crop_height, crop_width) < 0 or top + crop_height > height or left + crop_width > width:
            raise MaskError(
                f"a crop of {crop_height} x {crop_width} at {self.corner} leaves its image of {height} x {width} pixels"
            )
        # hotcoco trusts the code it is given, so that no Mask may hold one that does not fill its crop
        _check_runs(_decompress(self.counts), crop_height * crop_width)

    @classmethod
    def empty(cls, size: tuple[int, int]) -> "Mask":
        """No pixel set."""
        return cls(size, (0, 0), (0, 0), b"")

    @classmethod
    def from_dense(cls, array: np.ndarray) -> "Mask":
        """From height x width booleans or integers, where all but 0 is set."""
        return cls.from_crop(array, (0, 0), (int(array.shape[0]), int(array.shape[1])) if array.ndim == 2 else (0, 0))

    @classmethod
    def from_crop(cls, crop: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> "Mask":
        """From a dense crop whose (top, left) lies at `corner` of an image of `size`; what sticks out of the image is cut off."""
        if crop.ndim != 2 or not (crop.dtype == np.bool_ or np.issubdtype(crop.dtype, np.integer)):
            raise MaskError(
                f"a mask is a height x width array of booleans or integers, got {crop.dtype} {crop.shape}; threshold it first"
            )
        _check_size(size)
        top, left = max(corner[0], 0), max(corner[1], 0)
        inside = crop[top - corner[0] : max(size[0] - corner[0], 0), left - corner[1] : max(size[1] - corner[1], 0)] != 0
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if len(rows) == 0:
            return cls.empty(size)
        tight = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cls._of_own_code(
            size=size,
            corner=(top + int(rows[0]), left + int(columns[0])),
            crop_size=(int(tight.shape[0]), int(tight.shape[1])),
            counts=coco_rle.encode(tight)["counts"],
        )

    @classmethod
    def from_coco(cls, rle: Any) -> "Mask":
        """From COCO's {"size": [height, width], "counts": ...} of the whole image, compressed (str or bytes) or not (list).

        Raises:
            MaskError: the code is broken, or its counts do not add up to the image.
        """
        size = _size_of(rle)
        runs = _runs_of(rle["counts"])
        _check_runs(runs, size[0] * size[1])
        return cls._from_intervals(*_intervals(runs), size)

    @classmethod
    def from_polygons(cls, polygons: Iterable[Any], size: tuple[int, int]) -> "Mask":
        """The union of outlines: COCO's flat lists x1 y1 x2 y2 ..., or `Polygon` values with holes.

        Flat lists follow COCO's own rasteriser, pixel for pixel; its outlines are thickened by about half a pixel. A `Polygon`
        sets the pixels whose centre lies inside by the even-odd rule, so that outlines from `to_polygons` give back their mask
        exactly.

        Raises:
            MaskError: an outline has fewer than three points, an odd number of values, or a value that is no finite number.
        """
        _check_size(size)
        flat: list[list[float]] = []
        codes: list[dict[str, Any]] = []
        for polygon in polygons:
            if isinstance(polygon, Polygon):
                rings = [_check_ring(ring, size) for ring in (polygon.outer, *polygon.holes)]
                codes.append(cls._from_intervals(*_fill(rings, size), size).to_coco())
            else:
                flat.append(_check_ring(polygon, size).ravel().tolist())
        if size[0] == 0 or size[1] == 0 or not (flat or codes):
            return cls.empty(size)
        if flat:
            codes += coco_rle.frPyObjects(flat, *size)
        return cls.from_coco(coco_rle.merge(codes) if len(codes) > 1 else codes[0])

    @classmethod
    def union(cls, masks: "Sequence[Mask]") -> "Mask":
        """The pixels that any of these masks, one at least, sets; computed on runs.

        Raises:
            SizeError: the masks are not all of one image size.
        """
        sizes = {mask.size for mask in masks}
        if len(sizes) != 1:
            raise SizeError(f"a union needs masks of one image size, got {sorted(sizes) or 'none'}")
        if len(masks) == 1:
            return masks[0]
        filled = [mask.to_coco() for mask in masks if mask.area]
        return cls.from_coco(coco_rle.merge(filled)) if filled else masks[0]

    def dense(self) -> Bool[np.ndarray, "height width"]:
        """The whole image as booleans."""
        image = np.zeros(self.size, np.bool_)
        top, left = self.corner
        image[top : top + self.crop_size[0], left : left + self.crop_size[1]] = self.crop()
        return image

    def crop(self) -> Bool[np.ndarray, "height width"]:
        """The tight crop as booleans; its (top, left) in the image is `corner`."""
        if self.crop_size == (0, 0):
            return np.zeros((0, 0), np.bool_)
        return coco_rle.decode({"size": list(self.crop_size), "counts": self.counts}).astype(np.bool_)

    @cached_property
    def area(self) -> int:
        """Number of pixels set."""
        return int(_decompress(self.counts)[1::2].sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight x1 y1 x2 y2 in pixels, right and bottom exclusive; zeros when no pixel is set."""
        (top, left), (height, width) = self.corner, self.crop_size
        return left, top, left + width, top + height

    def to_coco(self) -> dict[str, Any]:
        """COCO's compressed RLE of the whole image, ready for JSON."""
        return {"size": list(self.size), "counts": _compress(self._image_runs(), self.size).decode("ascii")}

    def to_coco_uncompressed(self) -> dict[str, Any]:
        """COCO's RLE of the whole image as a list of counts."""
        return {"size": list(self.size), "counts": self._image_runs().tolist()}

    def to_polygons(self) -> list[Polygon]:
        """Outlines along pixel edges, without loss: `Mask.from_polygons(mask.to_polygons(), mask.size) == mask`.

        Pixels that touch only at a corner belong to different outlines, background that touches at a corner to the same hole.
        """
        top, left = self.corner
        offset = np.array([left, top], np.float64)
        return [Polygon(p.outer + offset, tuple(hole + offset for hole in p.holes)) for p in _trace(self.crop())]

    def to_coco_polygons(self, fill_holes: bool = False) -> list[list[float]]:
        """COCO's list of flat outlines x1 y1 x2 y2 ..., which has no way to say "hole".

        Raises:
            MaskError: the mask has holes and `fill_holes` is off.
        """
        polygons = self.to_polygons()
        holes = sum(len(polygon.holes) for polygon in polygons)
        if holes and not fill_holes:
            raise MaskError(
                f"a COCO polygon list can't express the {holes} hole(s) of this mask; write RLE instead (to_coco()), "
                "or fill them (fill_holes=True)"
            )
        return [polygon.outer.ravel().tolist() for polygon in polygons]

    def iou(self, other: "Mask") -> float:
        """Intersection over union of the pixels; 0 when neither has any."""
        return float(mask_ious([self], [other])[0, 0])

    def __repr__(self) -> str:
        return f"Mask({self.size[0]}x{self.size[1]}, area={self.area}, box={self.box})"

    @classmethod
    def _of_own_code(cls, size: tuple[int, int], corner: tuple[int, int], crop_size: tuple[int, int], counts: bytes) -> "Mask":
        """A mask whose code was made here and needs no check, which would take as long as all the rest."""
        mask = cls.__new__(cls)
        mask.__dict__.update(size=size, corner=corner, crop_size=crop_size, counts=counts)
        return mask

    @classmethod
    def _from_intervals(cls, starts: np.ndarray, ends: np.ndarray, size: tuple[int, int]) -> "Mask":
        """From the set pixels of the whole image as sorted intervals [start, end) of column-major positions."""
        if len(starts) == 0:
            return cls.empty(size)
        height = size[0]
        first_column, last_column = starts // height, (ends - 1) // height
        left, right = int(first_column[0]), int(last_column[-1]) + 1
        if np.any(first_column != last_column):  # what runs on into the next column touches the bottom and the top
            top, bottom = 0, height
        else:
            top, bottom = int((starts % height).min()), int(((ends - 1) % height).max()) + 1
        begins = (first_column - left) * (bottom - top) + starts % height - top
        runs = _runs(*_join(begins, begins + (ends - starts)), (bottom - top) * (right - left))
        crop_size = bottom - top, right - left
        return cls._of_own_code(size, (top, left), crop_size, _compress(runs, crop_size))

    def _image_runs(self) -> Int64[np.ndarray, " runs"]:
        """The counts of the whole image, from those of the crop: in time and memory of the runs and the crop's width."""
        (height, width), (top, left), (crop_height, _) = self.size, self.corner, self.crop_size
        starts, ends = _intervals(_decompress(self.counts))
        if crop_height < height:
            # a run through several columns of the crop leaves it in between: one piece for each column
            crop_height = max(crop_height, 1)  # an empty crop has no runs to divide
            pieces = (ends - 1) // crop_height - starts // crop_height + 1
            run = np.repeat(np.arange(len(starts)), pieces)
            column = starts[run] // crop_height + _count_up(pieces)
            starts, ends = np.maximum(starts[run], column * crop_height), np.minimum(ends[run], (column + 1) * crop_height)
            shift = (left + column) * height + top - column * crop_height
        else:
            shift = np.int64(left * height)
        return _runs(*_join(starts + shift, ends + shift), height * width)


def mask_ious(first: Sequence[Mask], second: Sequence[Mask]) -> Float64[np.ndarray, "first second"]:
    """Intersection over union of every pair; 0 for a pair without any pixel.

    Raises:
        SizeError: the masks are not all of one image size.
    """
    sizes = {mask.size for mask in (*first, *second)}
    if len(sizes) > 1:
        raise SizeError(f"masks of different image sizes have no overlap: {', '.join(f'{h} x {w}' for h, w in sorted(sizes))}")
    ious = np.zeros((len(first), len(second)))
    # pairs without any pixel would be 0/0
    rows, columns = ([i for i, mask in enumerate(masks) if mask.area] for masks in (first, second))
    if rows and columns:
        codes = [first[row].to_coco() for row in rows], [second[column].to_coco() for column in columns]
        ious[np.ix_(rows, columns)] = coco_rle.iou(*codes, [False] * len(columns))
    return ious


def _check_size(size: tuple[int, int]) -> None:
    height, width = size
    if height < 0 or width < 0 or height * width > MAX_PIXELS:
        raise MaskError(f"an image of {height} x {width} pixels is outside what masks can hold (at most {MAX_PIXELS:,} pixels)")


# --- run-length code ---


def _size_of(rle: Any) -> tuple[int, int]:
    if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
        raise MaskError('run-length code is an object with "size" ([height, width]) and "counts"')
    size = rle["size"]
    if (
        not isinstance(size, (list, tuple, np.ndarray))
        or len(size) != 2
        or not all(isinstance(side, (int, np.integer)) and not isinstance(side, bool) for side in size)
    ):
        raise MaskError(f'the "size" of run-length code is [height, width] in pixels, got {size!r:.80}')
    checked = int(size[0]), int(size[1])
    _check_size(checked)
    return checked


def _runs_of(counts: Any) -> Int64[np.ndarray, " runs"]:
    """The counts of compressed (str, bytes) or uncompressed (list) code; not yet checked against a size."""
    if isinstance(counts, str):
        try:
            counts = counts.encode("ascii")
        except UnicodeEncodeError:
            raise MaskError(
                "compressed run-length code holds a character that is no base-32 digit; the file is damaged"
            ) from None
    if isinstance(counts, bytes):
        return _decompress(counts)
    if not isinstance(counts, (list, tuple, np.ndarray)):
        raise MaskError(f'the "counts" of run-length code are a text or a list of integers, got {type(counts).__name__}')
    try:
        runs = np.asarray(counts) if len(counts) else np.zeros(0, np.int64)
    except ValueError:  # lists of several lengths
        runs = np.zeros((0, 0))
    if runs.ndim != 1 or runs.dtype == np.bool_ or not np.issubdtype(runs.dtype, np.integer):
        raise MaskError(f'the "counts" of uncompressed run-length code must be integers that fit 32 bits, got {counts!r:.80}')
    if len(runs) and (runs.min() < 0 or runs.max() > MAX_PIXELS):
        raise MaskError(f"run-length counts must be 0 to {MAX_PIXELS}, got {runs.min()} to {runs.max()}")
    return runs.astype(np.int64)


def _check_runs(runs: Int64[np.ndarray, " runs"], pixels: int) -> None:
    if len(runs) and int(runs.min()) < 0:
        raise MaskError(f"run-length code holds the negative count {int(runs.min())}; the file is damaged")
    longest = int(runs.max(initial=0))
    total = longest if longest > pixels else int(runs.sum())  # the sum of counts beyond the image could overflow
    if total != pixels:
        raise MaskError(
            f"run-length counts add up to {total:,} pixels where {pixels:,} are declared; the code or its size is wrong"
        )


def _decompress(text: bytes) -> Int64[np.ndarray, " runs"]:
    """The counts of COCO's compressed code. Checks the spelling alone: counts may be negative or of any sum."""
    if not text:
        return np.zeros(0, np.int64)
    digits = np.frombuffer(text, np.uint8) - np.uint8(48)  # codes below 48 wrap around to more than 63
    if digits.max() > 63:
        position = int(np.argmax(digits > 63))
        raise MaskError(
            f"compressed run-length code holds {text[position : position + 1]!r} at position {position}, no base-32 digit; "
            "the file is damaged"
        )
    is_last = digits < 32  # bit 5: more digits follow
    if not is_last[-1]:
        raise MaskError("compressed run-length code ends within a count; the file is truncated")
    last = np.flatnonzero(is_last)
    first = np.concatenate(([0], last[:-1] + 1))
    lengths = last - first + 1
    if lengths.max() > _DIGITS:
        raise MaskError("compressed run-length code holds a count of more than 32 bits; the file is damaged")
    values = np.add.reduceat((digits & 31).astype(np.int64) << (5 * _count_up(lengths)), first)
    values -= np.where(digits[last] & 16, np.int64(1) << (5 * lengths), 0)  # bit 4 of the last digit: negative
    values[1::2].cumsum(out=values[1::2])
    values[2::2].cumsum(out=values[2::2])
    return values


def _compress(runs: Int64[np.ndarray, " runs"], size: tuple[int, int]) -> bytes:
    """COCO's compressed code of counts that fill an image or crop of this size."""
    return coco_rle.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)["counts"]


def _intervals(runs: Int64[np.ndarray, " runs"]) -> tuple[Int64[np.ndarray, " intervals"], Int64[np.ndarray, " intervals"]]:
    """Set pixels as sorted, separate, non-empty intervals [start, end)."""
    edges = np.cumsum(runs)
    ends = edges[1::2]
    return _join(ends - runs[1::2], ends)


def _join(starts: np.ndarray, ends: np.ndarray) -> tuple[Int64[np.ndarray, " intervals"], Int64[np.ndarray, " intervals"]]:
    """Sorted disjoint intervals with empty ones dropped and neighbours that touch made one."""
    filled = ends > starts
    if not filled.all():
        starts, ends = starts[filled], ends[filled]
    if len(starts) == 0:
        return starts.astype(np.int64), ends.astype(np.int64)
    apart = starts[1:] > ends[:-1]
    if apart.all():
        return starts, ends
    return starts[np.append(True, apart)], ends[np.append(apart, True)]


def _runs(starts: np.ndarray, ends: np.ndarray, pixels: int) -> Int64[np.ndarray, " runs"]:
    """The counts of sorted, separate intervals; a last count of 0 is left out, as COCO's encoder does."""
    edges = np.zeros(2 * len(starts) + 2, np.int64)
    edges[1:-1:2], edges[2:-1:2], edges[-1] = starts, ends, pixels
    runs = edges[1:] - edges[:-1]
    return runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs


def _count_up(lengths: np.ndarray) -> Int64[np.ndarray, " total"]:
    """0, 1, ... up to each length, one after the other: [2, 3] gives 0 1 0 1 2."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


# --- outlines ---


def _check_ring(points: Any, size: tuple[int, int]) -> Float64[np.ndarray, "points 2"]:
    try:
        ring = np.asarray(points)
    except ValueError:  # lists of several lengths
        ring = np.zeros(0, np.object_)
    if ring.dtype.kind not in "iuf":
        raise MaskError(f"a polygon is a list of numbers x1 y1 x2 y2 ..., got {points!r:.80}")
    if ring.size < 6 or ring.size % 2 or ring.ndim > 2:
        raise MaskError(f"a polygon needs three points or more, x and y each, got {ring.size} values; drop it or repair it")
    if not np.isfinite(ring).all():
        raise MaskError("a polygon holds a coordinate that is no finite number; drop it or repair it")
    ring = ring.reshape(-1, 2).astype(np.float64)
    outline = np.abs(ring - ring[np.arange(-1, len(ring) - 1)]).max(axis=1).sum()
    if outline > MAX_OUTLINE:
        raise MaskError(
            f"a polygon of {len(ring)} points has an outline of {outline:,.0f} pixels in an image of {size[0]} x {size[1]}, "
            f"over the limit of {MAX_OUTLINE:,}; its coordinates are not pixels of this image"
        )
    return ring


def _fill(
    rings: Sequence[np.ndarray], size: tuple[int, int]
) -> tuple[Int64[np.ndarray, " intervals"], Int64[np.ndarray, " intervals"]]:
    """Pixels whose centre is inside by the even-odd rule: on each column's centre line, between crossings with edges."""
    height, width = size
    begin = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    low, high = np.minimum(begin[:, 0], end[:, 0]), np.maximum(begin[:, 0], end[:, 0])
    # columns whose centre lies in [low, high): half open, so that a vertex on a centre line counts once
    first, last = (np.ceil(x - 0.5).clip(0, width).astype(np.int64) for x in (low, high))
    columns = last - first
    edge = np.repeat(np.arange(len(begin)), columns)
    column = first[edge] + _count_up(columns)
    slope = (end[edge, 1] - begin[edge, 1]) / (end[edge, 0] - begin[edge, 0])
    crossing = begin[edge, 1] + (column + 0.5 - begin[edge, 0]) * slope
    row = np.ceil(crossing - 0.5).clip(0, height).astype(np.int64)
    toggles = np.sort(column * height + row)
    return _join(toggles[0::2], toggles[1::2])


def _trace(mask: Bool[np.ndarray, "height width"]) -> list[Polygon]:
    """Outlines along pixel edges: outer rings run clockwise on the screen, holes the other way.

    Every corner of the outline ends one horizontal and one vertical side, so that corners sorted along rows and along columns
    pair up into sides. Where pixels touch only diagonally two corners share a point, one for each of the two pixels.
    """
    padded = np.pad(mask, 1)
    above_left, above_right = padded[:-1, :-1], padded[:-1, 1:]
    below_left, below_right = padded[1:, :-1], padded[1:, 1:]
    single = above_left ^ above_right ^ below_left ^ below_right  # 1 or 3 of the 4 pixels around a point
    falling = above_left & below_right & ~above_right & ~below_left  # two pixels, diagonal
    rising = above_right & below_left & ~above_left & ~below_right
    (y1, x1), (y2, x2), (y3, x3) = np.nonzero(single), np.nonzero(falling), np.nonzero(rising)
    y, x = np.concatenate((y1, y2, y2, y3, y3)), np.concatenate((x1, x2, x2, x3, x3))
    # the corner of the pixel on the left ends the side that comes from the left; likewise the pixel above
    zeros, ones = np.zeros_like, np.ones_like
    is_right = np.concatenate((zeros(x1), zeros(x2), ones(x2), zeros(x3), ones(x3)))
    is_below = np.concatenate((zeros(x1), zeros(x2), ones(x2), ones(x3), zeros(x3)))

    left, right = np.lexsort((is_right, x, y)).reshape(-1, 2).T  # horizontal sides
    upper, lower = np.lexsort((is_below, y, x)).reshape(-1, 2).T  # vertical sides
    following = np.empty(len(x), np.int64)  # the corner reached next, with set pixels on the right hand
    to_right = padded[y[left] + 1, x[left] + 1]  # set below the side
    following[np.where(to_right, left, right)] = np.where(to_right, right, left)
    to_below = padded[y[upper] + 1, x[upper]]  # set on the left of the side
    following[np.where(to_below, upper, lower)] = np.where(to_below, lower, upper)

    if len(x) == 0:
        return []
    order, begins = _cycles(following)
    ring_of = np.empty(len(x), np.int64)
    ring_of[order] = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(order)))
    points = np.stack((x, y), axis=1).astype(np.float64)
    ahead = points[following[order]]
    crossed = points[order, 0] * ahead[:, 1] - points[order, 1] * ahead[:, 0]
    # twice the signed area: positive when the ring runs clockwise, since y grows downwards
    is_hole = np.add.reduceat(crossed, begins) < 0
    rings = np.split(points[order], begins[1:])

    # a hole belongs to what comes before it on the row of one of its leftmost sides: its outer ring, or a hole further left
    lengths = y[lower] - y[upper]
    side = np.repeat(np.arange(len(upper)), lengths)
    side_x, side_row, side_ring = x[upper][side], y[upper][side] + _count_up(lengths), ring_of[upper][side]
    along_rows = np.lexsort((side_x, side_row))
    side_x, side_ring = side_x[along_rows], side_ring[along_rows]
    from_left = np.argsort(side_x, kind="stable")
    found, first = np.unique(side_ring[from_left], return_index=True)  # every ring, and its leftmost side
    leftmost = from_left[first]
    neighbour, owner, hole = side_ring[leftmost - 1].tolist(), found.tolist(), is_hole.tolist()
    holes: list[list[np.ndarray]] = [[] for _ in rings]
    for ring in np.argsort(side_x[leftmost], kind="stable").tolist():
        if hole[ring]:
            owner[ring] = owner[neighbour[ring]]
            holes[owner[ring]].append(rings[ring])
    return [Polygon(outer, tuple(holes[ring])) for ring, outer in enumerate(rings) if not hole[ring]]


def _cycles(following: Int64[np.ndarray, " corners"]) -> tuple[Int64[np.ndarray, " corners"], Int64[np.ndarray, " rings"]]:
    """The rings of a permutation: its corners ring by ring, and where in that order each ring begins."""
    steps = following.tolist()
    seen = bytearray(len(steps))
    order: list[int] = []
    begins: list[int] = []
    for corner in range(len(steps)):
        if not seen[corner]:
            begins.append(len(order))
        while not seen[corner]:
            seen[corner] = 1
            order.append(corner)
            corner = steps[corner]
    return np.array(order, np.int64), np.array(begins, np.int64)

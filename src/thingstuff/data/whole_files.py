"""Truncated images are found before training begins, not hours into it when they are first drawn.

What a format puts at a file's end, or says of its length, is compared with the file; only where that is not as it should be, or
the format says nothing, is the image decoded. So thousands of images take seconds.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from PIL.TiffImagePlugin import TiffImageFile

from thingstuff.data.coco_json import ImageFolder, Problem, Problems
from thingstuff.data.layouts import in_threads
from thingstuff.data.panoptic import PanopticRecord
from thingstuff.data.records import InstanceDataset, Record
from thingstuff.errors import ThingstuffError
from thingstuff.structures.images import DEFAULT_MAX_PIXELS, deep_samples, read_image

_START = 34  # bytes of a file that tell what it is, and of a BMP how large
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = b"!", b",", b";"  # what a block begins with
_BMP_PLAIN = (0, 3, 6)  # kinds of compression that are none
_TIFF_STARTS = (b"II*\0", b"MM\0*")
_TIFF_PLACES = ((273, 279), (324, 325))  # offsets and lengths of strips, of tiles


def check_whole(datasets: Iterable[InstanceDataset]) -> None:
    """Ask that the photo of every record is whole.

    Raises:
        AnnotationError: names all that aren't.
    """
    for dataset in datasets:
        problems = Problems(dataset.source or Path("the data set"), limit=None)
        report_broken(dataset, problems)
        problems.raise_if_any()


def report_broken(
    records: Iterable[Record | PanopticRecord],
    problems: Problems,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> None:
    """Tell of the photos that aren't whole; records without a photo are passed over."""
    paths = list(dict.fromkeys(record.path for record in records if record.path is not None))

    def broken(path: Path) -> str | None:
        return None if ends_as_it_should(path) else _reason(path, max_pixels)

    for reason in in_threads(broken, paths, "check images"):
        if reason is not None:
            problems.add(reason)


def report_photo(record: Record | PanopticRecord, problems: Problems, max_pixels: int = DEFAULT_MAX_PIXELS) -> bool:
    """Whether a photo exists and has its record's size, by its header; if not, `problems` are told."""
    try:
        if record.path is None or not record.path.is_file():
            raise Problem(f"the photo of image {record.image_id} isn't there; put it in images/, or name the photos' folder")
        if record.size is not None:
            ImageFolder(record.path.parent, True, max_pixels).check_size(record.path, record.size, f"image {record.image_id}")
    except Problem as problem:
        problems.add(str(problem))
        return False
    return True


def ends_as_it_should(path: Path) -> bool:
    """Whether the file has the end, or the length, that its format asks for; False also where that can't be told."""
    try:
        with path.open("rb") as file:
            start = file.read(_START)
            length = file.seek(0, os.SEEK_END)
            file.seek(max(length - len(_PNG_END), 0))
            end = file.read()
    except OSError:
        return False
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return end == _PNG_END
    if start.startswith(b"\xff\xd8\xff"):
        return end.endswith(_JPEG_END)
    if start.startswith(b"GIF8"):
        return _has_its_blocks(path)
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return 8 + int.from_bytes(start[4:8], "little") <= length
    if start.startswith(b"BM"):
        return _holds_its_rows(start, length)
    return start.startswith(_TIFF_STARTS) and _holds_its_strips(path, length)


def _has_its_blocks(path: Path) -> bool:
    """Whether the blocks of a GIF lead to its end. What begins one may be any byte of an image, so they are gone through."""
    with path.open("rb") as file:
        header = file.read(13)
        if len(header) < 13:
            return False
        file.seek(_colours(header[10]), os.SEEK_CUR)
        while (kind := file.read(1)) in (_GIF_EXTENSION, _GIF_IMAGE):
            if kind == _GIF_IMAGE:
                descriptor = file.read(9)
                if len(descriptor) < 9:
                    return False
                file.seek(_colours(descriptor[-1]), os.SEEK_CUR)
            file.seek(1, os.SEEK_CUR)  # the label of an extension, the code size of an image
            while length := file.read(1):
                if length == b"\0":
                    break
                file.seek(length[0], os.SEEK_CUR)
        return kind == _GIF_END


def _colours(flags: int) -> int:
    """Bytes of the table of colours that follows."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _holds_its_rows(header: bytes, length: int) -> bool:
    """Whether the rows of a BMP without compression lie within the file, whose own statement of its length is often wrong."""
    offset, kind = int.from_bytes(header[10:14], "little"), int.from_bytes(header[14:18], "little")
    if len(header) < _START or kind < 40 or int.from_bytes(header[30:34], "little") not in _BMP_PLAIN:
        return False
    width, height = (int.from_bytes(header[place : place + 4], "little", signed=True) for place in (18, 22))
    row = (width * int.from_bytes(header[28:30], "little") + 31) // 32 * 4  # bytes; whole groups of four
    return offset >= 14 + kind and offset + row * abs(height) <= length  # from the top where the height is negative


def _holds_its_strips(path: Path, length: int) -> bool:
    """Whether all that the first page of a TIFF points to lies within the file."""
    try:
        with path.open("rb") as file:
            tags = TiffImageFile(file, str(path)).tag_v2
            for places, lengths in _TIFF_PLACES:
                if places in tags:
                    return all(place + size <= length for place, size in zip(tags[places], tags[lengths], strict=True))
    except Exception:  # Pillow's readers raise many kinds on broken headers
        return False
    return False


def _reason(path: Path, max_pixels: int) -> str | None:
    """What is wrong with an image, by decoding it."""
    try:
        if deep_samples(path, max_pixels) is None:  # whose depth nobody need guess yet
            read_image(path, max_pixels)
    except ThingstuffError as error:
        return f"{error}; replace it, or remove it from the annotations"
    return None

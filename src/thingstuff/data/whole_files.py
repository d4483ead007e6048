"""Truncated images are found before training begins, not hours into it when they are first drawn.

What a format puts at a file's end, or says of its length, is compared with the file; only where that is not as it should be, or
the format says nothing, is the image decoded. So thousands of images take seconds.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL.TiffImagePlugin import TiffImageFile
from tqdm import tqdm

from thingstuff.data.coco_json import Problems
from thingstuff.data.records import InstanceDataset
from thingstuff.errors import ThingstuffError
from thingstuff.structures.images import read_image

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
_GIF_END = b";"
_TIFF_STARTS = (b"II*\0", b"MM\0*")
_TIFF_PLACES = ((273, 279), (324, 325))  # offsets and lengths of strips, of tiles


def check_whole(datasets: Iterable[InstanceDataset], bit_depth: int | None = None) -> None:
    """Ask that the photo of every record is whole.

    Raises:
        AnnotationError: names all that aren't.
    """
    for dataset in datasets:
        paths = list(dict.fromkeys(record.path for record in dataset if record.path is not None))
        problems = Problems(dataset.source or Path("the data set"), limit=None)

        def broken(path: Path) -> str | None:
            return None if ends_as_it_should(path) else _reason(path, bit_depth)

        with ThreadPoolExecutor() as readers:  # most of the time is the disk's
            # the bar is for files that must be decoded: others are done before it shows
            for reason in tqdm(
                readers.map(broken, paths), total=len(paths), desc="check images", delay=2, leave=False, disable=None
            ):
                if reason is not None:
                    problems.add(reason)
        problems.raise_if_any()


def ends_as_it_should(path: Path) -> bool:
    """Whether the file has the end, or the length, that its format asks for; False also where that can't be told."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
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
        return end.endswith(_GIF_END)
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return 8 + int.from_bytes(start[4:8], "little") <= length
    if start.startswith(b"BM"):
        return 0 < int.from_bytes(start[2:6], "little") <= length
    return start.startswith(_TIFF_STARTS) and _holds_its_strips(path, length)


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


def _reason(path: Path, bit_depth: int | None) -> str | None:
    """What is wrong with an image, by decoding it."""
    try:
        read_image(path, bit_depth=bit_depth)
    except ThingstuffError as error:
        return f"{error}; replace it, or remove it from the annotations"
    return None

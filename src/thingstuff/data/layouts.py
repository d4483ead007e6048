"""What readers of layouts without a JSON file share: records read in threads, all problems in one error."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from thingstuff.data.coco_json import Problems
from thingstuff.data.panoptic import NO_BOX, PanopticRecord
from thingstuff.errors import AnnotationError

THREADS = 4  # disks and Pillow's decoders leave Python's lock; kornia, which decodes PNGs of ids, holds it
MANY = 500  # images from which on a bar shows how far the reading is

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
    """The result for each item, in order; with a bar where there are many."""
    with ThreadPoolExecutor(THREADS) as threads:
        bar = tqdm(total=len(items), desc=what, unit="image", disable=None if len(items) >= MANY else True)
        with bar:
            results = []
            for result in threads.map(work, items):
                results.append(result)
                bar.update()
    return results


def read_records(
    source: Path, readers: Sequence[Callable[[], PanopticRecord]], problems: Problems | None = None
) -> tuple[PanopticRecord, ...]:
    """The records that these functions read.

    Args:
        problems: is told what those say that failed, which are left out.

    Raises:
        AnnotationError: what each of those that failed says, where no `problems` are given.
    """

    def attempt(read: Callable[[], PanopticRecord]) -> PanopticRecord | AnnotationError:
        try:
            return read()
        except AnnotationError as error:
            return error

    told, records = Problems(source) if problems is None else problems, []
    for result in in_threads(attempt, readers, "read annotations"):
        if isinstance(result, AnnotationError):
            told.add(str(result))
        else:
            records.append(result)
    if problems is None:
        told.raise_if_any()
    return tuple(records)


def segment_lists(ids: list[int], classes: list[int], crowd: list[bool]) -> tuple[np.ndarray, ...]:
    """segment_ids, classes, crowd, areas and boxes of a `PanopticRecord` whose source states no area and no box."""
    return (
        np.array(ids, np.int64),
        np.array(classes, np.int64),
        np.array(crowd, np.bool_),
        np.full(len(ids), -1, np.int64),
        np.array([NO_BOX] * len(ids), np.float64).reshape(-1, 4),
    )

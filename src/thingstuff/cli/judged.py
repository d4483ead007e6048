"""What `thingstuff evaluate` knows once predictions were compared with the truth, whatever they are of."""

import argparse
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thingstuff import __version__
from thingstuff.cli.arguments import shown

if TYPE_CHECKING:
    from thingstuff.evaluation.report import Picture

PICTURES = 12  # worst images that a report shows


@dataclass(frozen=True)
class Judged:
    """The figures, and how to have the report, which takes longer."""

    result: dict[str, Any]  # what --json prints
    table: str  # what is printed otherwise
    report: Callable[[], "tuple[dict[str, Any], list[Picture]]"]
    failed: int = 0  # images that could not be read


def about(arguments: argparse.Namespace, images: int, failed: int) -> dict[str, Any]:
    """The first lines of report.json: what was judged on what."""
    judged = {"model": arguments.model} if arguments.model else {"predictions": shown(Path(arguments.predictions).absolute())}
    return {
        "format": 1,
        "version": __version__,
        **judged,
        "data": shown(Path(arguments.data).absolute()),
        "split": arguments.split,
        "images": images,
        "failed": failed,
    }


def worst(qualities: dict[Any, float | None], mistakes: dict[Any, int], most: int) -> list[Any]:
    """The image ids of the lowest quality, the worst first; of equal ones those with more mistakes."""
    stated = {image_id: quality for image_id, quality in qualities.items() if quality is not None}
    return sorted(stated, key=lambda image_id: (stated[image_id], -mistakes[image_id]))[:most]


@dataclass
class Worst:
    """The images of the lowest quality so far, with what their pictures show, which takes memory: only `most` are kept."""

    most: int
    images: list[tuple[float, int, Any, Any]] = field(default_factory=list)  # quality, - mistakes, image id, shown

    def offer(self, image_id: Any, quality: float | None, mistakes: int, shown: Any) -> None:
        """Keep an image if it is one of the worst, in the order of `worst`; without a quality it is none."""
        if quality is not None:
            insort(self.images, (quality, -mistakes, image_id, shown), key=lambda image: image[:2])
            del self.images[self.most :]

    def shown(self) -> dict[Any, Any]:
        """What was given of each image, the worst first."""
        return {image_id: shown for _, _, image_id, shown in self.images}


def pictures_wanted(arguments: argparse.Namespace) -> int:
    return PICTURES if arguments.pictures is None else arguments.pictures


def photo_path(arguments: argparse.Namespace, own: Path | None) -> Path | None:
    """Where an image's photo is: in the folder of --images by the last part of its name, else where the data has it."""
    if arguments.images is not None and own is not None:
        return arguments.images / own.name
    return own

"""Semantic segmentation: mean and frequency-weighted IoU, and pixel accuracy (Long et al., 2015, arXiv:1411.4038, section 5).

class maps of prediction and truth -> pixels of each pair of classes, added up over images -> ratios of rows and columns
"""

from typing import Any

import numpy as np
from jaxtyping import Int64, Integer

from thingstuff.errors import ConfigError, EvaluationError
from thingstuff.structures.categories import Categories
from thingstuff.structures.segments import Segments

VOID = -1  # as `Segments.semantic_map` has it


class SemanticQuality:
    """Counts pixels by true and predicted class; the counts are all it holds, so that shards add up to the same digits.

    Pixels that are void in the truth are left out, whatever was predicted there. Pixels predicted as void count as missed: they
    are in the union of their true class and of no other.

    Args:
        void: how maps say that a pixel has no class; 255 in files of many data sets.
    """

    def __init__(self, categories: Categories, *, void: int = VOID):
        if 0 <= void < len(categories):
            raise ConfigError(f"void can't be {void}, which is the class {categories.names[void]!r}")
        self.categories = categories
        self.void = void
        self.reset()

    def reset(self) -> None:
        """Forget every image."""
        self._pixels = np.zeros((len(self.categories), len(self.categories) + 1), np.int64)  # truth, prediction; void is last
        self._is_total = False

    def update(
        self,
        prediction: Segments | Integer[Any, "..."],
        truth: Segments | Integer[Any, "..."],
        image_id: int | str | None = None,
    ) -> Int64[np.ndarray, "truth found_and_void"]:
        """Add an image, or a batch of them: maps of classes as arrays or tensors (counted where they lie), or `Segments`.

        Gives their own counts, as `confusion` has those of all.

        Raises:
            EvaluationError: the maps differ in size, or hold a class that does not exist; or this is the total already.
        """
        self._refuse_when_total()
        where = "the image" if image_id is None else f"image {image_id}"
        found, wanted = (
            self._class_map(given, f"{where}: {side}") for given, side in ((prediction, "the prediction"), (truth, "the truth"))
        )
        if tuple(found.shape) != tuple(wanted.shape):
            raise EvaluationError(
                f"{where}: the prediction has shape {tuple(found.shape)}, the truth {tuple(wanted.shape)}; "
                "resize the prediction to the image, to the nearest pixel"
            )
        counted = self._count(found, wanted, where)
        self._pixels += counted
        return counted

    def merge(self, other: "SemanticQuality") -> None:
        """Add what another accumulator gathered, of other images.

        Raises:
            EvaluationError: it counts other categories.
        """
        self._refuse_when_total()
        if other.categories != self.categories:
            raise EvaluationError("pixel counts of other categories can't be added up; make both of the same categories")
        self._pixels += other._pixels

    def synchronize(self) -> None:
        """Add up over the processes of torch.distributed, in every one of them; nothing where there is one process alone.

        After it this holds the total, to be computed or reset, so that no image is added or counted twice.
        """
        import torch
        import torch.distributed as distributed

        self._refuse_when_total()
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return
        device = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else torch.device("cpu")
        pixels = torch.from_numpy(self._pixels).to(device)
        distributed.all_reduce(pixels)
        self._pixels = pixels.cpu().numpy()
        self._is_total = True

    def confusion(self) -> Int64[np.ndarray, "truth found_and_void"]:
        """Pixels of each true class (row) by what was predicted there (column); the last column is void."""
        return self._pixels.copy()

    def compute(self) -> dict[str, Any]:
        """`{"mIoU", "fwIoU", "pixel_accuracy", "mean_accuracy", "n", "per_class": {name: {"iou", "accuracy", "pixels"}}}`.

        All are fractions from 0 to 1. A class in neither truth nor prediction has no IoU (None) and no part in mIoU, which is
        over the other `n`; fwIoU weighs each class by its true pixels. Accuracy is the share of a class's true pixels that was
        found, None where it has none, and mean_accuracy is over the rest. Without any true pixel all of them are None.
        """
        hits = self._pixels.diagonal()
        true, predicted = self._pixels.sum(axis=1), self._pixels[:, :-1].sum(axis=0)
        union = true + predicted - hits
        ious = [int(hit) / int(of) if of else None for hit, of in zip(hits, union, strict=True)]
        accuracies = [int(hit) / int(of) if of else None for hit, of in zip(hits, true, strict=True)]
        total = int(true.sum())
        weighted = sum(int(pixels) * (iou or 0.0) for pixels, iou in zip(true, ious, strict=True))
        return {
            "mIoU": _mean(ious),
            "fwIoU": weighted / total if total else None,
            "pixel_accuracy": int(hits.sum()) / total if total else None,
            "mean_accuracy": _mean(accuracies),
            "n": sum(iou is not None for iou in ious),
            "per_class": {
                name: {"iou": iou, "accuracy": accuracy, "pixels": int(pixels)}
                for name, iou, accuracy, pixels in zip(self.categories.distinct_names, ious, accuracies, true, strict=True)
            },
        }

    def _class_map(self, given: Any, what: str) -> Any:
        if not isinstance(given, Segments) and "int" not in str(given.dtype):
            raise EvaluationError(f"{what} is a map of {given.dtype}; give the class of each pixel as an integer")
        if isinstance(given, Segments):
            if given.categories != self.categories:
                raise EvaluationError(f"{what} has other categories than those that are counted")
            given = (
                given.semantic_map() if self.void == VOID else np.where(given.semantic_map() < 0, self.void, given.semantic_map())
            )
        return given

    def _count(self, found: Any, wanted: Any, where: str) -> Int64[np.ndarray, "truth found_and_void"]:
        classes = len(self.categories)
        if hasattr(found, "is_cuda") or hasattr(wanted, "is_cuda"):
            import torch

            found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
            device = found.device if found.is_cuda else wanted.device
            found, wanted = found.to(device).flatten().long(), wanted.to(device).flatten().long()
            where_found, count = torch.where, lambda codes, cells: torch.bincount(codes, minlength=cells).cpu().numpy()
        else:
            found, wanted = np.asarray(found).ravel().astype(np.int64), np.asarray(wanted).ravel().astype(np.int64)
            where_found, count = np.where, lambda codes, cells: np.bincount(codes, minlength=cells)
        for classes_of, side in ((found, "prediction"), (wanted, "truth")):
            wrong = ((classes_of < 0) | (classes_of >= classes)) & (classes_of != self.void)
            if wrong.any():
                raise EvaluationError(
                    f"{where}: the {side} holds class {int(classes_of[wrong][0])}; classes are 0 to {classes - 1}, and void is "
                    f"{self.void} (void=255 counts files that have it so)"
                )
        found = where_found(found == self.void, classes, found)
        stated = wanted != self.void
        codes = wanted[stated] * (classes + 1) + found[stated]
        return count(codes, classes * (classes + 1)).reshape(classes, classes + 1)

    def _refuse_when_total(self) -> None:
        if self._is_total:
            raise EvaluationError("this holds the total over all processes; compute it, and reset before adding more")


def _mean(values: list[float | None]) -> float | None:
    stated = [value for value in values if value is not None]
    return sum(stated) / len(stated) if stated else None

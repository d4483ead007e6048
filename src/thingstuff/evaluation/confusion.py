"""Which class is taken for which: objects in rows, detections in columns, background last in both."""

import numpy as np
from jaxtyping import Bool, Float64, Int64


def empty_confusion(classes: int) -> Int64[np.ndarray, "truth_and_background found_and_background"]:
    return np.zeros((classes + 1, classes + 1), np.int64)


def add_confusion(
    matrix: Int64[np.ndarray, "truth_and_background found_and_background"],
    ious: Float64[np.ndarray, "found objects"],
    found_classes: Int64[np.ndarray, " found"],
    object_classes: Int64[np.ndarray, " objects"],
    is_crowd: Bool[np.ndarray, " objects"],
    threshold: float = 0.5,
) -> None:
    """Add one image to the matrix, in place. Detections come by descending score; the IoU with a crowd is the share inside it.

    Each detection takes the free object of highest IoU from the threshold up, whatever its class, so that an object found
    under a wrong name stands in one cell. What takes none is found in background, unless a crowd of any class holds that much
    of it. Objects that stay free are found as background; crowds are counted nowhere.
    """
    background = len(matrix) - 1
    free = ~is_crowd
    for found_class, row in zip(found_classes.tolist(), ious, strict=True):
        reached = row >= threshold
        if (reached & free).any():
            best = int(np.where(free, row, -1.0).argmax())
            free[best] = False
            matrix[object_classes[best], found_class] += 1
        elif not (reached & is_crowd).any():
            matrix[background, found_class] += 1
    matrix[:-1, background] += np.bincount(object_classes[free], minlength=background)

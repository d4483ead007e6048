"""IoU of detections with objects by box, mask or boundary, as COCO counts it: with a crowd, the share of what was found in it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hotcoco import mask as coco_rle
from jaxtyping import Bool, Float64

from thingstuff.ops.boundary import boundary_width, inner_boundary
from thingstuff.structures.masks import Mask

Code = Any  # COCO's run-length code of a whole image


def box_overlaps(
    found: Sequence[Sequence[float]], objects: Sequence[Sequence[float]], is_crowd: Bool[np.ndarray, " objects"]
) -> Float64[np.ndarray, "found objects"]:
    """IoU of boxes x y width height."""
    if not found or not objects:
        return np.zeros((len(found), len(objects)))
    return coco_rle.bbox_iou(list(found), list(objects), is_crowd.tolist())


def mask_overlaps(
    found: Sequence[Code], objects: Sequence[Code], is_crowd: Bool[np.ndarray, " objects"]
) -> Float64[np.ndarray, "found objects"]:
    """IoU of masks; a pair without any pixel has none."""
    if not found or not objects:
        return np.zeros((len(found), len(objects)))
    return np.nan_to_num(coco_rle.iou(list(found), list(objects), is_crowd.tolist()))  # pyright: ignore[reportArgumentType]


def boundary_overlaps(
    found: Sequence[Mask],
    objects: Sequence[Mask],
    is_crowd: Bool[np.ndarray, " objects"],
    mask_ious: Float64[np.ndarray, "found objects"],
    share: float,
    at_least: float = 0.5,
) -> Float64[np.ndarray, "found objects"]:
    """The lesser of mask IoU and boundary IoU (Cheng et al., 2021, arXiv:2103.16562, section 5.1).

    Pairs whose mask IoU is below `at_least` keep it: they match at no threshold, and their boundaries are not looked at.
    """
    near = mask_ious >= at_least
    rows, columns = np.flatnonzero(near.any(axis=1)).tolist(), np.flatnonzero(near.any(axis=0)).tolist()
    ious = mask_ious.copy()
    if rows:
        codes = [boundary_mask(found[row], share).to_coco() for row in rows]
        object_codes = [boundary_mask(objects[column], share).to_coco() for column in columns]
        block = np.ix_(rows, columns)
        boundary_ious = mask_overlaps(codes, object_codes, is_crowd[columns])
        ious[block] = np.where(near[block], np.minimum(ious[block], boundary_ious), ious[block])
    return ious


def boundary_mask(mask: Mask, share: float) -> Mask:
    """The pixels of a mask near its outline, as `thingstuff.ops.boundary` says."""
    return Mask.from_crop(inner_boundary(mask.crop(), boundary_width(mask.size, share)), mask.corner, mask.size)

"""Drawn scenes for the tests of networks: rectangles as training targets, and the sizes of tiny inputs."""

import math

import torch

from thingstuff.structures.preprocessing import ImageSize, Targets


def rectangles(
    boxes: list[list[float]], classes: list[int], crowd: list[bool] | None = None, size: tuple[int, int] = (64, 96)
) -> Targets:
    """Objects whose masks fill their boxes."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : math.ceil(y2), int(x1) : math.ceil(x2)] = True
    return Targets(
        image_id=1,
        size=size,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        classes=torch.tensor(classes, dtype=torch.int64),
        masks=masks,
        is_crowd=torch.tensor(crowd or [False] * len(boxes), dtype=torch.bool),
    )


def image_sizes(count: int = 1, input_: tuple[int, int] = (64, 96), original: tuple[int, int] = (64, 96)) -> list[ImageSize]:
    return [ImageSize(input=input_, original=original)] * count

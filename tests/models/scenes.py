"""Drawn scenes for the tests of networks: rectangles as training targets, and the sizes of tiny inputs."""

import math

import numpy as np
import torch

from thingstuff.models.contract import Model
from thingstuff.models.mask2former import Mask2Former
from thingstuff.models.mask_classification import Thresholds
from thingstuff.models.maskformer import MaskFormer
from thingstuff.structures.categories import Categories
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


def bright_and_dark() -> torch.Tensor:
    """A batch of one image with a bright rectangle, 10 10 40 40, and a dark one, 50 20 90 60."""
    image = torch.zeros(1, 3, 64, 96)
    image[:, :, 10:40, 10:40], image[:, :, 20:60, 50:90] = 2.0, -2.0
    return image


def learn_by_heart(
    model: Model, image: torch.Tensor, target: Targets, steps: int, learning_rate: float, largest_gradient: float
) -> None:
    """Train on one image; then the model is in evaluation but for its batch norms, whose running statistics need more steps."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        losses = model.losses(image, [target])
        torch.stack([model.loss_weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), largest_gradient)
        optimizer.step()
    model.eval()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.train()


def assert_two_at_once_are_as_each_alone(model: Mask2Former | MaskFormer, categories: Categories, limits: Thresholds) -> None:
    """Of a network of queries, in float64, in which no decision hangs on rounding, whatever the weights."""
    model = model.eval().double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        model.decoder.classes.bias[-1] = -20.0  # every query is something
        predictions = model(images)
        first, second = predictions.class_logits.unbind(1)
        assert (first - second).abs().max() > 1e-3  # what the one image says of the other is far from rounding
        together = model.segments(predictions, image_sizes(2), categories, limits)
        for number, (image, expected) in enumerate(zip(images, together, strict=True)):
            said = model(image[None])
            torch.testing.assert_close(said.class_logits[:, 0], predictions.class_logits[:, number], atol=1e-9, rtol=0)
            (alone,) = model.segments(said, image_sizes(), categories, limits)
            assert len(expected) > 0
            np.testing.assert_array_equal(alone.masks(), expected.masks())
            np.testing.assert_allclose(alone.scores, expected.scores, atol=1e-6)

"""Odd scenes through the losses of every family that finds instances: nothing in the data makes a training infinite."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from thingstuff.models.catalog import CATALOG, YOLACT_TINY
from thingstuff.models.contract import Task
from thingstuff.models.yolact import Yolact
from thingstuff.structures.preprocessing import Targets

from .scenes import rectangles

MODELS = {
    **{
        name: (kind, config)
        for name, (kind, config, _) in CATALOG.items()
        if name.endswith("-tiny") and kind.tasks == (Task.INSTANCE,)
    },
    "yolact-plus-tiny": (Yolact, replace(YOLACT_TINY, mask_rating_channels=(4,))),
}


def _many() -> Targets:
    corners = np.random.default_rng(0).uniform(0, 1, (500, 2)) * (90, 58)
    return rectangles([[x, y, x + 4, y + 4] for x, y in corners.tolist()], [number % 3 for number in range(500)])


def _without_pixels() -> Targets:
    targets = rectangles([[10, 10, 40, 40], [50, 10, 80, 40]], [0, 1])
    targets.masks[0] = False
    return targets


SCENES = {
    "no objects": rectangles([], []),
    "a crowd alone": rectangles([[0, 0, 96, 64]], [1], crowd=[True]),
    "a crowd with an object in it": rectangles([[0, 0, 96, 64], [20, 20, 40, 40]], [1, 1], crowd=[True, False]),
    "an object of one pixel": rectangles([[30, 30, 31, 31]], [1]),
    "an object smaller than a pixel": rectangles([[30.2, 30.2, 30.4, 30.3]], [1]),
    "two objects in one place": rectangles([[30, 30, 50, 50]] * 2, [0, 2]),
    "two objects in one cell": rectangles([[30, 30, 34, 34], [33, 32, 37, 36]], [0, 0]),
    "boxes without area": rectangles([[10, 10, 10, 30], [20, 20, 20, 20], [50, 10, 80, 10]], [0, 1, 2]),
    "a box without area beside an object": rectangles([[10, 10, 10, 30], [50, 10, 80, 40]], [0, 1]),
    "a box without pixels": _without_pixels(),
    "an object as large as the image": rectangles([[0, 0, 96, 64]], [2]),
    "500 objects": _many(),
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_finite(name: str, scene: str) -> None:
    torch.manual_seed(0)
    kind, config = MODELS[name]
    model = kind(config).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images, targets = torch.randn(2, 3, 64, 96), [SCENES[scene], rectangles([[8, 8, 40, 40]], [1])]
    for batch in (1, 2):  # alone, and beside an ordinary image
        losses = model.losses(images[:batch], targets[:batch])
        assert losses.keys() == model.loss_weights.keys()
        assert all(loss.isfinite() for loss in losses.values()), losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

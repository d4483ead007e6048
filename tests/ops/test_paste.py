"""Pasting masks: by hand, against dense sampling and against torchvision, and within its memory."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchvision.models.detection.roi_heads import paste_masks_in_image

from thingstuff.errors import ConfigError
from thingstuff.ops import paste
from thingstuff.ops.paste import PasteMode, paste_crops, paste_soft


def random_masks(count: int, seed: int = 0, cells: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and boxes around an image of 60 x 80 pixels, some of them partly or fully outside."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=random) * torch.tensor([100.0, 80.0]) - 15
    sides = torch.rand(count, 2, generator=random) ** 2 * 90
    return torch.rand(count, cells, cells, generator=random), torch.cat((corners, corners + sides), dim=1)


def dense(masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What detectron2 and MMDetection compute for the whole image."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    y = (torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack((x[:, None, :].expand(-1, *size), y[:, :, None].expand(-1, *size)), dim=-1)
    return torch.nn.functional.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def on_canvas(crop: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros(size, dtype=bool)
    canvas[corner[0] : corner[0] + crop.shape[0], corner[1] : corner[1] + crop.shape[1]] = crop
    return canvas


def test_a_full_mask_fills_its_box_to_the_edge():
    # pixel centres 2.5 and 5.5 lie on the edges of the box, where the probability has fallen to exactly one half
    boxes = torch.tensor([[2.5, 2.5, 5.5, 5.5]])
    ((crop, corner),) = paste_crops(torch.ones(1, 28, 28), boxes, (10, 10))
    assert np.argwhere(on_canvas(crop, corner, (10, 10))).min(axis=0).tolist() == [2, 2]
    assert np.argwhere(on_canvas(crop, corner, (10, 10))).max(axis=0).tolist() == [5, 5]
    corner_value = paste_soft(torch.ones(1, 28, 28), boxes, (10, 10))[0, 2, 4].item()
    assert corner_value == 0.5


def test_grid_by_hand():
    # 2 x 2 cells over 4 x 4 pixels: pixel centres at cells -0.25, 0.25, 0.75, 1.25; beyond the cells is zero
    mask = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    row = torch.tensor([0.0, 0.25, 0.75, 0.75])  # 0.25 of 1, 0.75 of 1, 0.75 of 1 and 0.25 of nothing
    expected = torch.tensor([0.75, 1.0, 1.0, 0.75])[:, None] * row
    assert_close(paste_soft(mask, torch.tensor([[0.0, 0.0, 4.0, 4.0]]), (4, 4)), expected[None])


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_crops_equal_the_dense_grid_at_every_pixel(threshold: float):
    masks, boxes = random_masks(80)
    expected = dense(masks, boxes, (60, 80))
    assert_close(paste_soft(masks, boxes, (60, 80)), expected, atol=1e-5, rtol=0)
    borderline = (expected - threshold).abs() < 1e-5  # rounding decides there
    for (crop, corner), soft, unsure in zip(paste_crops(masks, boxes, (60, 80), threshold), expected, borderline, strict=True):
        differs = on_canvas(crop, corner, (60, 80)) != (soft >= threshold).numpy()
        assert not (differs & ~unsure.numpy()).any()


@pytest.mark.parametrize("cells", [14, 28])
def test_integer_mode_equals_torchvision(cells: int):
    masks, boxes = random_masks(80, seed=1, cells=cells)
    boxes[3] = torch.tensor([10.0, 10.0, 10.0, 10.0])  # an empty box is one pixel
    touches = (boxes[:, 2:] > 1).all(dim=1) & (boxes[:, 0] < 79) & (boxes[:, 1] < 59)  # torchvision fails on boxes far outside
    masks, boxes = masks[touches], boxes[touches]
    expected = paste_masks_in_image(masks[:, None], boxes, (60, 80))[:, 0]
    assert_close(paste_soft(masks, boxes, (60, 80), "integer"), expected, atol=1e-6, rtol=1e-5)
    for (crop, corner), soft in zip(paste_crops(masks, boxes, (60, 80), 0.5, "integer"), expected, strict=True):
        differs = on_canvas(crop, corner, (60, 80)) != (soft > 0.5).numpy()
        assert not (differs & ((soft - 0.5).abs() > 1e-5).numpy()).any()


@pytest.mark.parametrize("mode", ["grid", "integer"])
def test_boxes_that_show_nothing_have_crops_of_no_pixels(mode: PasteMode):
    nothing = [
        (5.0, 5, 2, 9),  # inverted
        (-50, -50, -20, -20),  # outside
        (100, 5, 120, 20),
        (0, 0, math.inf, 10),
        (math.nan, 0, 10, 10),
        (-math.inf, -math.inf, math.inf, math.inf),
    ]
    crops = list(paste_crops(torch.ones(len(nothing), 28, 28), torch.tensor(nothing), (30, 40), mode=mode))
    assert len(crops) == len(nothing)
    for crop, (top, left) in crops:
        assert not crop.any()
        assert 0 <= top <= 30
        assert 0 <= left <= 40
    assert list(paste_crops(torch.zeros(0, 28, 28), torch.zeros(0, 4), (30, 40), mode=mode)) == []


@pytest.mark.parametrize("mode", ["grid", "integer"])
def test_a_box_of_absurd_size_covers_the_image_and_no_more(mode: PasteMode):
    boxes = torch.tensor([[-1e9, -1e9, 1e9, 1e9], [-1e30, -1e30, 1e30, 1e30]])
    for crop, corner in paste_crops(torch.ones(2, 28, 28), boxes, (30, 40), mode=mode):
        assert corner == (0, 0)
        assert crop.shape == (30, 40)
        assert crop.all()


def test_crops_lie_within_the_image():
    masks, boxes = random_masks(200, seed=2)
    for mode in ("grid", "integer"):
        for crop, (top, left) in paste_crops(masks, boxes, (60, 80), mode=mode):
            assert crop.dtype == bool
            assert 0 <= top <= top + crop.shape[0] <= 60
            assert 0 <= left <= left + crop.shape[1] <= 80


def test_narrow_strips_change_nothing(monkeypatch: pytest.MonkeyPatch):
    masks, boxes = random_masks(20, seed=3)
    whole = list(paste_crops(masks, boxes, (60, 80)))
    monkeypatch.setattr(paste, "STRIP_BYTES", 1)
    parts = list(paste_crops(masks, boxes, (60, 80)))
    for (crop, corner), (other, other_corner) in zip(whole, parts, strict=True):
        assert corner == other_corner
        assert np.array_equal(crop, other)


def test_full_size_instances_are_made_one_at_a_time():
    # 300 crops of 12 megapixels are 3.6 GB; each is a byte a pixel and gone when the next is made
    boxes = torch.tensor([[0.0, 0.0, 4000.0, 3000.0]]).repeat(300, 1)
    crops = paste_crops(torch.ones(300, 28, 28), boxes, (3000, 4000))
    tracemalloc.start()
    for _ in range(4):
        crop, corner = next(crops)
        assert crop.shape == (3000, 4000)
        assert corner == (0, 0)
        del crop
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6


def test_half_precision_masks():
    masks, boxes = random_masks(5)
    assert_close(paste_soft(masks.bfloat16(), boxes, (60, 80)), paste_soft(masks.bfloat16().float(), boxes, (60, 80)))


def test_a_threshold_that_holds_everywhere_is_refused():
    masks, boxes = random_masks(1)
    for mode, threshold in (("grid", 0.0), ("integer", -0.5)):
        with pytest.raises(ConfigError, match="above 0"):
            paste_crops(masks, boxes, (60, 80), threshold, mode)

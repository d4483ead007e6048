"""Crops at image size against torch's own resizing of whole masks."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from thingstuff.ops import upsample
from thingstuff.ops.upsample import resize_soft, tiles, upsample_crops, upsample_labels, upsample_logits


def _blobs(count: int, height: int, width: int) -> torch.Tensor:
    """Soft discs of probabilities, one of them nowhere above one half."""
    random = torch.Generator().manual_seed(height * width)
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    centres = torch.rand(count, 2, generator=random) * torch.tensor([height, width])
    distances = (y - centres[:, 0, None, None]).square() + (x - centres[:, 1, None, None]).square()
    masks = torch.sigmoid(3 - distances.sqrt())
    masks[-1] *= 0.4
    return masks


def _dense(masks: torch.Tensor, size: tuple[int, int], threshold: float, *steps: tuple) -> list[np.ndarray]:
    result = []
    for crop, (top, left) in upsample_crops(masks, steps, threshold):
        canvas = np.zeros(size, bool)
        canvas[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        result.append(canvas)
    return result


@pytest.mark.parametrize(
    ("padded", "kept", "original"),
    [
        ((64, 96), (64, 96), (64, 96)),
        ((64, 96), (50, 70), (173, 211)),
        ((64, 96), (50, 70), (31, 45)),
        ((64, 96), (1, 1), (3, 5)),
        ((64, 96), (64, 3), (1, 1)),
    ],
)
@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_like_resizing_whole_masks(padded: tuple, kept: tuple, original: tuple, threshold: float) -> None:
    masks = _blobs(12, 16, 24)
    soft = functional.interpolate(masks[None], size=padded, mode="bilinear", align_corners=False)[:, :, : kept[0], : kept[1]]
    soft = functional.interpolate(soft, size=original, mode="bilinear", align_corners=False)[0]
    found = _dense(masks, original, threshold, (padded, kept), (original, original))
    clear = (soft - threshold).abs() > 1e-6  # the two round differently where a pixel is at the threshold
    assert (torch.from_numpy(np.stack(found)) == (soft > threshold))[clear].all()


def test_a_crop_holds_little_but_the_mask() -> None:
    mask = torch.zeros(1, 50, 50)
    mask[0, 20:23, 30:34] = 0.9
    ((crop, corner),) = upsample_crops(mask, [((200, 200), (200, 200))])
    assert corner == (78, 118)  # two pixels around the first cell's, where its weight ends
    assert crop.shape == (16, 20)


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = _blobs(3, 16, 24)
    steps = (((64, 96), (64, 96)), ((130, 190), (130, 190)))
    whole = _dense(masks, (130, 190), 0.5, *steps)
    monkeypatch.setattr("thingstuff.ops.upsample.STRIP_BYTES", 7 * 4 * 190)
    assert np.array_equal(np.stack(_dense(masks, (130, 190), 0.5, *steps)), np.stack(whole))


def test_masks_of_16_bits_are_enlarged_in_32() -> None:
    masks, steps = _blobs(2, 12, 16).bfloat16(), [((48, 64), (48, 64))]
    for half, single in zip(upsample_crops(masks, steps), upsample_crops(masks.float(), steps), strict=True):
        assert (half[0] == single[0]).all()


def test_no_masks_give_no_crops() -> None:
    assert list(upsample_crops(torch.zeros(0, 4, 4), [((16, 16), (16, 16))])) == []


def test_a_mask_in_the_padding_alone_is_empty() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[0, :, 6:] = 1.0
    ((crop, _),) = upsample_crops(mask, [((32, 32), (32, 16)), ((40, 20), (40, 20))])
    assert crop.sum() == 0


def test_soft_resizing_keeps_what_has_the_size_already() -> None:
    masks = _blobs(2, 8, 9)
    assert resize_soft(masks, (8, 9)) is masks
    assert resize_soft(masks[:0], (16, 18)).shape == (0, 16, 18)
    expected = functional.interpolate(masks[None], size=(16, 18), mode="bilinear", align_corners=False)[0]
    assert resize_soft(masks, (16, 18)).equal(expected)


@pytest.mark.parametrize("steps", [(((64, 96), (50, 90)), ((131, 217), (131, 217))), (((40, 33), (40, 33)),)])
def test_tiles_make_up_what_torch_gives_for_the_whole(monkeypatch, steps) -> None:
    monkeypatch.setattr(upsample, "TILE_BYTES", 4 * 5 * 64 * 10)  # ten rows
    monkeypatch.setattr(upsample, "TILE_WIDTH", 64)
    logits = torch.randn(5, 16, 24)
    expected = logits
    for size, (height, width) in steps:
        expected = functional.interpolate(expected[None], size=size, mode="bilinear", align_corners=False)[0, :, :height, :width]
    found, times = torch.zeros_like(expected), torch.zeros(expected.shape[1:])
    for tile in tiles(logits, steps):
        cells = tile.below(logits)
        enlarged = tile.enlarge(cells)
        found[:, tile.rows, tile.columns] = enlarged
        times[tile.rows, tile.columns] += 1
        assert enlarged[0].numel() <= 640
        assert (enlarged.amax(dim=(1, 2)) <= cells.amax(dim=(1, 2)) + 1e-5).all()
    assert (times == 1).all()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_crops_of_logits_come_with_the_mean_probability_inside() -> None:
    logits = torch.full((3, 8, 8), -2.0)
    logits[0, 2:4, 3:5] = 2.0
    logits[1] = torch.linspace(-1, 1, 8)
    steps = [((32, 32), (30, 31)), ((61, 47), (61, 47))]
    whole = functional.interpolate(logits[None], size=(32, 32), mode="bilinear")[..., :30, :31]
    whole = functional.interpolate(whole, size=(61, 47), mode="bilinear")[0]
    for expected, (crop, (top, left), mean) in zip(whole, upsample_logits(logits, steps), strict=True):
        dense = np.zeros((61, 47), bool)
        dense[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        inside = expected > 0
        assert (dense == inside.numpy()).all()
        assert mean == pytest.approx(float(expected[inside].sigmoid().mean()) if inside.any() else 0.0, abs=1e-5)


@pytest.mark.parametrize("at_a_time", [2**27, 4 * 173 * 211 * 5])
@pytest.mark.parametrize(("threshold", "measured"), [(0.5, False), (0.2, False), (0.0, True)])
def test_the_way_of_a_gpu_gives_the_same_masks(
    threshold: float, measured: bool, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upsample, "GPU_BYTES", at_a_time)
    masks = torch.cat([_blobs(12, 16, 24), torch.zeros(1, 16, 24), torch.ones(1, 16, 24)])
    masks = masks.logit().clamp(-9, 9) if measured else masks
    (down, across) = (
        upsample._weights(cells, steps) for cells, steps in ((16, [(64, 50), (173, 173)]), (24, [(96, 70), (211, 211)]))
    )
    soft = _full(masks, (64, 96), (50, 70), (173, 211))
    found = list(upsample._crops_of_many(masks, down, across, threshold, measured))
    expected = list(upsample._crops(masks, [((64, 96), (50, 70)), ((173, 211), (173, 211))], threshold, measured))
    for values, (crop, (top, left), mean), (other, corner, other_mean) in zip(soft, found, expected, strict=True):
        dense, dense_expected = np.zeros((2, 173, 211), bool)
        dense[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        dense_expected[corner[0] : corner[0] + other.shape[0], corner[1] : corner[1] + other.shape[1]] = other
        clear = ((values - threshold).abs() > 1e-5).numpy()  # the two round differently where a pixel is at the threshold
        assert (dense == dense_expected)[clear].all()
        assert mean == pytest.approx(other_mean, abs=1e-4)
        assert not crop.size or (crop[[0, -1]].any(axis=1).all() and crop[:, [0, -1]].any(axis=0).all())  # as small as can be
    assert found[12][0].size == 0
    assert found[13][0].shape == (173, 211)


def _full(logits: torch.Tensor, padded: tuple, kept: tuple, original: tuple) -> torch.Tensor:
    soft = functional.interpolate(logits[None], size=padded, mode="bilinear", align_corners=False)[:, :, : kept[0], : kept[1]]
    return functional.interpolate(soft, size=original, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize(
    ("padded", "kept", "original"),
    [
        ((64, 96), (64, 96), (64, 96)),
        ((64, 96), (50, 70), (173, 211)),
        ((64, 96), (50, 70), (31, 45)),
        ((64, 96), (1, 1), (3, 5)),
        ((64, 96), (64, 3), (1, 1)),
    ],
)
def test_labels_like_resizing_all_logits(padded: tuple, kept: tuple, original: tuple) -> None:
    logits = torch.randn(7, 16, 24, generator=torch.Generator().manual_seed(0))
    full = _full(logits, padded, kept, original)
    labels = upsample_labels(logits, [(padded, kept), (original, original)])
    assert labels.dtype == torch.int16
    best, second = full.topk(2, dim=0).values
    clear = best - second > 1e-5  # the two round differently where two classes are equal
    assert (labels == full.argmax(dim=0))[clear].all()
    assert clear.float().mean() > 0.99


def test_of_equal_logits_the_first_is_the_label() -> None:
    assert upsample_labels(torch.zeros(3, 2, 2), [((4, 4), (4, 4))]).tolist() == [[0] * 4] * 4


def test_logits_in_16_bits_are_resized_in_32() -> None:
    logits = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(2)).half()
    steps = [((32, 32), (32, 32))]
    assert upsample_labels(logits, steps).equal(upsample_labels(logits.float(), steps))

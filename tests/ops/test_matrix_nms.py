"""Matrix NMS: numbers small enough to check by hand, and the paper's algorithm written as loops."""

import math

import pytest
import torch

from thingstuff.ops.matrix_nms import mask_ious, matrix_nms


def _rows(*spans: tuple[int, int]) -> torch.Tensor:
    """Masks of one row of 12 pixels, each true from its first number to before its second."""
    masks = torch.zeros(len(spans), 1, 12, dtype=torch.bool)
    for mask, (start, end) in zip(masks, spans, strict=True):
        mask[0, start:end] = True
    return masks


def _one_class(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def test_ious_of_masks() -> None:
    # 4 shared of 8, and of 4 + 8 - 0
    ious = mask_ious(_rows((0, 8), (4, 8), (8, 12), (5, 5)))
    expected = [[1, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(ious, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(("tile", "together"), [(32, 128), (8, 128), (8, 1), (100, 1)])
def test_ious_do_not_depend_on_tiles(monkeypatch: pytest.MonkeyPatch, tile: int, together: int) -> None:
    masks = torch.rand(7, 9, 11, generator=torch.Generator().manual_seed(0)) > 0.5
    masks[2, 3:] = False
    classes = torch.tensor([0, 0, 0, 2, 2, 5, 5])
    flat = masks.flatten(1).int()
    shared, areas = flat @ flat.T, flat.sum(dim=1)
    expected = shared / (areas[:, None] + areas - shared)
    monkeypatch.setattr("thingstuff.ops.matrix_nms.TILE", tile)
    monkeypatch.setattr("thingstuff.ops.matrix_nms.TOGETHER", together)
    monkeypatch.setattr("thingstuff.ops.matrix_nms.FULL", 1.0)
    torch.testing.assert_close(mask_ious(masks), expected)
    torch.testing.assert_close(mask_ious(masks, classes), expected * (classes[:, None] == classes))


@pytest.mark.parametrize("at_once", [1, 40, 2**22])
@pytest.mark.parametrize("full", [0.0, 1.0])  # by class, by tile
def test_ious_do_not_depend_on_how_masks_fill_the_image(monkeypatch: pytest.MonkeyPatch, at_once: int, full: float) -> None:
    monkeypatch.setattr("thingstuff.ops.matrix_nms.AT_ONCE", at_once)
    monkeypatch.setattr("thingstuff.ops.matrix_nms.FULL", full)
    masks = torch.rand(300, 9, 11, generator=torch.Generator().manual_seed(0)) > 0.2
    classes = torch.arange(300) // 7
    flat = masks.flatten(1).int()
    shared, areas = flat @ flat.T, flat.sum(dim=1)
    expected = shared / (areas[:, None] + areas - shared)
    torch.testing.assert_close(mask_ious(masks), expected)
    torch.testing.assert_close(mask_ious(masks, classes), expected * (classes[:, None] == classes))


def test_linear_decay_by_hand() -> None:
    # the second has IoU 1/2 with the first: 1 - 1/2. The third has 2/10 with the first: 1 - 1/5; its 1/3 with the second, which
    # itself is covered by 1/2, is no punishment: (1 - 1/3) / (1 - 1/2) = 4/3
    scores = matrix_nms(_rows((0, 8), (4, 8), (6, 10)), torch.tensor([0.9, 0.8, 0.7]), _one_class(3), "linear")
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.4, 0.7 * 0.8]))


def test_gaussian_decay_by_hand() -> None:
    scores = matrix_nms(_rows((0, 8), (4, 8)), torch.tensor([0.9, 0.8]), _one_class(2), "gaussian", sigma=2.0)
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.8 * math.exp(-2 * 0.5**2)]))


def test_other_classes_are_not_seen() -> None:
    scores = matrix_nms(_rows((0, 8), (0, 8)), torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), "linear")
    assert scores.tolist() == pytest.approx([0.9, 0.8])


def test_an_exact_repetition_scores_nothing_with_the_linear_kernel_even_twice() -> None:
    scores = matrix_nms(_rows((0, 8), (0, 8), (0, 8)), torch.tensor([0.7, 0.9, 0.8]), _one_class(3), "linear")
    assert scores.tolist() == pytest.approx([0.0, 0.9, 0.0])


def test_the_order_of_the_masks_is_kept() -> None:
    scores = matrix_nms(_rows((4, 8), (0, 8)), torch.tensor([0.8, 0.9]), _one_class(2), "linear")
    assert scores.tolist() == pytest.approx([0.4, 0.9])


def test_of_equal_scores_the_earlier_is_the_better() -> None:
    scores = matrix_nms(_rows((0, 8), (4, 8)), torch.tensor([0.8, 0.8]), _one_class(2), "linear")
    assert scores.tolist() == pytest.approx([0.8, 0.4])


def test_no_masks_and_one_mask_are_ordinary() -> None:
    assert matrix_nms(_rows(), torch.zeros(0), _one_class(0)).tolist() == []
    assert matrix_nms(_rows((0, 3)), torch.tensor([0.5]), _one_class(1)).tolist() == [0.5]


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_like_the_papers_algorithm_written_as_loops(kernel: str) -> None:
    random = torch.Generator().manual_seed(1)
    corners = torch.randint(0, 20, (60, 2), generator=random)
    masks = torch.zeros(60, 32, 32, dtype=torch.bool)
    for mask, (y, x) in zip(masks, corners.tolist(), strict=True):
        mask[y : y + 12, x : x + 12] = True
    scores, classes = torch.rand(60, generator=random), torch.randint(0, 3, (60,), generator=random)
    ious, order = mask_ious(masks).tolist(), scores.argsort(descending=True).tolist()

    def factor(iou: float) -> float:
        return math.exp(-2.0 * iou**2) if kernel == "gaussian" else 1 - iou

    expected = scores.tolist()
    for rank, j in enumerate(order):
        for i in (i for i in order[:rank] if classes[i] == classes[j]):
            better = [ious[k][i] for k in order[: order.index(i)] if classes[k] == classes[i]]
            ratio = factor(ious[i][j]) / max(factor(max(better, default=0.0)), 1e-7)
            expected[j] = min(expected[j], scores[j].item() * ratio)
    torch.testing.assert_close(matrix_nms(masks, scores, classes, kernel), torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("filling", [True, False])
def test_pixels_are_counted_exactly_under_autocast(filling: bool) -> None:
    masks = torch.zeros(2, 90, 90, dtype=torch.bool)
    masks[0, :, : 89 if filling else 37], masks[1, :, 1 : 90 if filling else 38] = True, True
    expected = mask_ious(masks)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mask_ious(masks), expected)
    assert expected[0, 1] == pytest.approx(88 / 90 if filling else 36 / 38)

"""What a GPU computes against what the processor does, from single operators to a training run: `pytest -m gpu`.

Each check takes the device that it holds against the processor. `THINGSTUFF_CHECK_DEVICE=cpu pytest -m gpu tests/gpu` holds the
processor against itself with other kernels, which tells what rounding alone may do; a few such checks run without a mark.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import thingstuff
from thingstuff.demo import images as demo_images
from thingstuff.models.backbone import Backbone, BackboneConfig
from thingstuff.models.catalog import CATALOG
from thingstuff.models.contract import Model, Task
from thingstuff.models.deformable import Deformable, DeformableConv
from thingstuff.ops import boxes
from thingstuff.ops.boundary import boundary_of_segments
from thingstuff.ops.deformable_attention import deformable_attention
from thingstuff.ops.matching import match_hungarian
from thingstuff.ops.matrix_nms import mask_ious, matrix_nms
from thingstuff.ops.nms import batched_nms, fast_nms, nms
from thingstuff.ops.paste import paste_crops, paste_soft
from thingstuff.ops.points import sample_points
from thingstuff.ops.roi_align import multilevel_roi_align, roi_pool
from thingstuff.ops.shrink import shrink_masks
from thingstuff.ops.upsample import upsample_crops, upsample_labels
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.preprocessing import ImageSize, Targets
from thingstuff.structures.segments import Segments
from thingstuff.training import Recipe, train

DEVICE = os.environ.get("THINGSTUFF_CHECK_DEVICE", "cuda")
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICES = [pytest.param(DEVICE, marks=needs_gpu)]
WITH_CPU = [pytest.param("cpu", id="cpu-itself"), *DEVICES]
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # workers of the training run
    pytest.mark.filterwarnings("ignore:Please use the new API settings to control TF32"),  # some versions of torch
]

TINY = [
    *("mask-rcnn-tiny", "yolact-tiny", "solo-tiny", "decoupled-solo-tiny", "solov2-tiny"),
    *("panoptic-fpn-tiny", "mask2former-tiny", "maskformer-tiny"),
]
THREE = Categories(tuple(Category(number, name, name != "grass") for number, name in enumerate(("cat", "grass", "dog"), start=1)))
SIZE = (64, 96)


@contextmanager
def _computing_on(device: str) -> Iterator[None]:
    """For a processor held against itself: other kernels, which round elsewhere."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and device != "cpu"
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


@contextmanager
def _same_draws() -> Iterator[None]:
    """Random choices are drawn by the processor for all devices: generators of different devices differ."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        for name in ("rand", "randperm"):
            patch.setattr(torch, name, _drawn_by_the_processor(getattr(torch, name)))
        torch.manual_seed(0)
        yield


def _drawn_by_the_processor(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *size, device=None, **options: draw(*size, **options).to(device)


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in a result, whatever holds them, on the processor."""
    if isinstance(value, Tensor):
        return [value.detach().cpu()]
    if is_dataclass(value):
        return _tensors([getattr(value, field.name) for field in fields(value)])
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []


def _assert_alike(there: Any, here: Any, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    ours, theirs = _tensors(there), _tensors(here)
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def _random_boxes(count: int, seed: int = 0, side: float = 60.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=draw) * side
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=draw) * side / 2], dim=1)


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Operators. RoI Align has more in tests/ops/test_roi_align.py, panoptic quality in tests/evaluation/test_panoptic_quality.py.


def _with_gradients(function: Callable[..., Tensor], inputs: list[Tensor], device: str) -> list[Tensor]:
    """The result on a device, and the gradient of the sum of its squares by each of the inputs."""
    leaves = [value.to(device).requires_grad_() for value in inputs]
    out = function(*leaves)
    assert out.device.type == device
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


def _check_gradients(function: Callable[..., Tensor], inputs: list[Tensor], device: str) -> None:
    here = _with_gradients(function, inputs, "cpu")
    with _computing_on(device):
        _assert_alike(_with_gradients(function, inputs, device), here, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", WITH_CPU)
def test_roi_pool(device: str) -> None:
    rois = torch.cat([torch.tensor([[0.0], [1.0]]).repeat(10, 1), _random_boxes(20)], dim=1)
    _check_gradients(lambda features: roi_pool(features, rois.to(features.device), 7, 0.25), [_drawn(2, 8, 16, 20)], device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("last", [False, True])
def test_roi_align_from_several_levels(device: str, sampling_ratio: int, last: bool) -> None:
    rois = torch.cat([torch.tensor([[0.0], [1.0]]).repeat(10, 1), _random_boxes(20)], dim=1)
    level_of_roi = torch.arange(20) % 2
    memory = torch.channels_last if last else torch.contiguous_format

    def pooled(fine: Tensor, coarse: Tensor) -> Tensor:
        levels = [level.contiguous(memory_format=memory) for level in (fine, coarse)]
        placed, which = rois.to(fine.device), level_of_roi.to(fine.device)
        return multilevel_roi_align(levels, placed, which, [0.25, 0.125], (7, 5), sampling_ratio, aligned=True)

    _check_gradients(pooled, [_drawn(2, 8, 16, 20), _drawn(2, 8, 8, 10, seed=1)], device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampling_ratio", [-1, 2, 3])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [3, 80, 256, 300])
def test_kernels_of_roi_align(dtype: torch.dtype, sampling_ratio: int, last: bool, channels: int) -> None:
    pytest.importorskip("triton")
    boxes = torch.cat([_random_boxes(60), _random_boxes(60, side=300) - 60])
    boxes[::2] = (boxes[::2] / 4).round() * 4  # bins of whole cells
    rois = torch.cat([torch.tensor([[0.0], [1.0]]).repeat(60, 1), boxes], dim=1)
    memory = torch.channels_last if last else torch.contiguous_format

    def pooled(device: str) -> list[Tensor]:
        levels = [_drawn(2, channels, 40 >> level, 52 >> level, seed=level).to(device, dtype) for level in range(3)]
        levels = [level.contiguous(memory_format=memory).requires_grad_() for level in levels]
        level_of_roi = (torch.arange(120) % 3).to(device)
        out = multilevel_roi_align(levels, rois.to(device), level_of_roi, [0.25, 0.125, 0.0625], 7, sampling_ratio, not last)
        assert out.grad_fn is not None
        assert device == "cpu" or out.grad_fn.name() == "_AlignBackward"  # of the kernels
        gradients = torch.autograd.grad(out, levels, _drawn(*out.shape, seed=9).to(device, dtype))
        assert all(gradient.stride() == level.stride() for gradient, level in zip(gradients, levels, strict=True))
        return [out, *gradients]

    tolerance = 1e-4 if dtype == torch.float32 else 2e-2  # two halves apart at the most, of sums of some size
    _assert_alike(pooled("cuda"), pooled("cpu"), rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_of_roi_align_never_wait_for_the_gpu() -> None:
    pytest.importorskip("triton")
    rois = torch.cat([torch.zeros(20, 1), _random_boxes(20)], dim=1).cuda()
    features = _drawn(1, 8, 16, 20).cuda().requires_grad_()
    level_of_roi = torch.zeros(20, dtype=torch.long, device="cuda")

    def run() -> None:
        multilevel_roi_align([features], rois, level_of_roi, [0.25], 7, 0, True).sum().backward()

    run()  # builds the kernels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_roi_align_is_equal_to_the_bit_where_that_is_asked_for() -> None:
    rois = torch.cat([torch.zeros(200, 1), _random_boxes(200)], dim=1).cuda()
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            features = _drawn(1, 8, 16, 20).cuda().requires_grad_()
            level_of_roi = torch.zeros(200, dtype=torch.long, device="cuda")
            multilevel_roi_align([features], rois, level_of_roi, [0.25], 7, 0, True).square().sum().backward()
            gradients.append(features.grad)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("device", WITH_CPU)
def test_deformable_attention(device: str) -> None:
    sizes = [(8, 10), (4, 5)]
    places = torch.rand(2, 30, 4, 2, 3, 2, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.1  # some outside
    _check_gradients(
        lambda values, places, weights: deformable_attention(values, sizes, places, weights),
        [_drawn(2, 100, 4, 8), places, _drawn(2, 30, 4, 2, 3, seed=2)],
        device,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [Deformable.V1, Deformable.V2])
def test_deformable_convolution(device: str, kind: Deformable) -> None:
    torch.manual_seed(0)
    conv = DeformableConv(8, 6, kind=kind, bias=True, groups=2, offset_groups=2)
    torch.nn.init.normal_(conv.offset.weight, std=0.2)

    def convolved(x: Tensor) -> Tensor:
        return conv.to(x.device)(x)

    _check_gradients(convolved, [_drawn(2, 8, 12, 15)], device)


@pytest.mark.parametrize("device", WITH_CPU)
def test_points_of_masks(device: str) -> None:
    points = torch.rand(3, 50, 2, generator=torch.Generator().manual_seed(0))
    _check_gradients(lambda maps: sample_points(maps, points.to(maps.device), (12, 12)), [_drawn(3, 10, 12)], device)


def _results_of_nms(device: str) -> list[Tensor]:
    many, scores = _random_boxes(2000).to(device), torch.rand(2000, generator=torch.Generator().manual_seed(1)).to(device)
    groups = (torch.arange(2000) % 7 % 3).to(device)  # one group is large, two are larger
    of_classes = torch.rand(2000, 5, generator=torch.Generator().manual_seed(2)).to(device)
    results = [nms(many, scores, 0.5), batched_nms(many, scores, groups, 0.5), nms(many[:0], scores[:0], 0.5)]
    results += fast_nms(many, of_classes, 0.5, 200, min_score=0.1)
    results += fast_nms(many, of_classes, 0.5, 200, min_score=0.1, cross_class=True)
    corners = _random_boxes(70, side=100)
    y, x = torch.arange(90)[:, None], torch.arange(140)
    x1, y1, x2, y2 = corners[:, :, None, None].unbind(1)
    masks = ((x >= x1) & (x < x2) & (y >= y1) & (y < y2)).to(device)
    results += [matrix_nms(masks, scores[:70], groups[:70], kernel) for kernel in ("gaussian", "linear")]
    return [*results, mask_ious(masks)]


@pytest.mark.parametrize("device", DEVICES)
def test_all_kinds_of_nms(device: str) -> None:
    there = _results_of_nms(device)
    assert {tensor.device.type for tensor in there} == {device}
    _assert_alike(there, _results_of_nms("cpu"), rtol=1e-5, atol=1e-6)  # indices are whole numbers, and so the same


def _results_of_boxes(device: str) -> list[Tensor]:
    one, other = _random_boxes(50).to(device), _random_boxes(50, seed=1).to(device)
    deltas = boxes.encode_deltas(one, other, (10.0, 10.0, 5.0, 5.0))
    anchors = boxes.make_anchors([(4, 5), (2, 3)], [(8, 8), (16, 16)], [(16.0,), (32.0,)], (0.5, 1.0, 2.0), device=device)
    return [
        boxes.box_areas(one),
        boxes.pairwise_iou(one, other),
        boxes.pairwise_ioa(one, other),
        boxes.clip_boxes(one, (40, 30)),
        deltas,
        boxes.decode_deltas(deltas, other, (10.0, 10.0, 5.0, 5.0)),
        boxes.assign_levels(one * 20, 2, 5),
        *anchors,
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_boxes(device: str) -> None:
    _assert_alike(_results_of_boxes(device), _results_of_boxes("cpu"), rtol=1e-5, atol=1e-4)


def _masks_at_image_size(device: str) -> list[Any]:
    small, where = _drawn(6, 28, 28).sigmoid().to(device), _random_boxes(6, side=80).to(device)
    logits = _drawn(6, 24, 32, seed=1).to(device)
    steps = [((96, 128), (90, 128)), ((180, 250), (180, 250))]
    crops: list[tuple[np.ndarray, tuple[int, int]]] = [
        crop for mode in ("grid", "integer") for crop in paste_crops(small, where, (100, 120), 0.5, mode)
    ]
    crops += list(upsample_crops(logits.sigmoid(), steps))
    labels = upsample_labels(logits, steps)
    ids = labels.int()
    return [
        *(torch.from_numpy(crop) for crop, _ in crops),
        torch.tensor([corner for _, corner in crops]),
        paste_soft(small, where, (100, 120)),
        torch.as_tensor(boundary_of_segments(ids)),
        shrink_masks(logits > 0, (6, 8), 4),
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_masks_at_image_size(device: str) -> None:
    _assert_alike(_masks_at_image_size(device), _masks_at_image_size("cpu"))


@pytest.mark.parametrize("device", DEVICES)
def test_labels_at_image_size_but_for_ties(device: str) -> None:
    logits, steps = _drawn(6, 24, 32), [((96, 128), (90, 128)), ((180, 250), (180, 250))]
    there, here = upsample_labels(logits.to(device), steps), upsample_labels(logits, steps)
    assert there.device.type == device
    assert (there.cpu() == here).float().mean() > 0.999


@pytest.mark.parametrize("device", DEVICES)
def test_matching(device: str) -> None:
    costs = [_drawn(20, 5), _drawn(20, 0), _drawn(3, 7, seed=1)]
    there = match_hungarian([cost.to(device) for cost in costs])
    assert {part.device.type for pair in there for part in pair} == {device}
    _assert_alike(there, match_hungarian(costs))


# Networks


def _targets() -> list[Targets]:
    """Two images: things and stuff with a crowd, and one object."""

    def drawn(corners: list[list[int]], classes: list[int], crowds: int = 0) -> Targets:
        masks = torch.zeros(len(corners), *SIZE, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, corners, strict=True):
            mask[y1:y2, x1:x2] = True
        is_crowd = torch.arange(len(corners)) >= len(corners) - crowds
        return Targets(1, SIZE, torch.tensor(corners).float(), torch.tensor(classes), masks, is_crowd)

    return [
        drawn([[8, 8, 40, 40], [50, 20, 80, 44], [0, 48, 96, 64], [84, 4, 94, 14]], [0, 2, 1, 0], 1),
        drawn([[20, 10, 60, 50]], [2]),
    ]


def _model(name: str) -> Model:
    """A tiny network that trains on all it could choose from, without dropout."""
    kind, config, _ = CATALOG[name]
    if hasattr(config, "dropout"):
        config = replace(config, dropout=0.0)
    torch.manual_seed(0)
    return kind(config)


def _images() -> Tensor:
    return _drawn(2, 3, *SIZE, seed=5)


def _total(model: Model, losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([model.loss_weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()


def _losses(model: Model, device: str, last: bool = False) -> dict[str, Tensor]:
    """On a device, where the network already is; `last`: with the channels of the images next to each other."""
    images = _images().to(device, memory_format=torch.channels_last if last else torch.contiguous_format)
    with _same_draws():
        return model.losses(images, [target.to(device) for target in _targets()])


def _step(model: Model, device: str, last: bool = False) -> dict[str, Any]:
    """One step of training, and the losses after it."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = _losses(model, device, last)
    _total(model, losses).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return {"losses": losses, "gradients": gradients, "norm": norm, "after": _losses(model, device, last)}


def _check_step(name: str, device: str, last: bool) -> None:
    """Losses before and after a step, and all gradients together by the length of their difference."""
    model = _model(name)
    other = deepcopy(model).to(device)
    if last:
        other = other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    here = _step(model, "cpu")
    with _computing_on(device):
        there = _step(other, device, last)
    assert all(loss.device.type == device for loss in there["losses"].values())
    for key, loss in here["losses"].items():
        torch.testing.assert_close(
            there["losses"][key].cpu(), loss, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert {key for key, gradient in there["gradients"].items() if gradient is None} == {
        key for key, gradient in here["gradients"].items() if gradient is None
    }
    pairs = [(there["gradients"][key].cpu(), gradient) for key, gradient in here["gradients"].items() if gradient is not None]
    apart = torch.stack([(one - other).square().sum() for one, other in pairs]).sum().sqrt()
    assert apart <= 1e-2 * here["norm"], f"gradients of length {here['norm']} differ by {apart}"
    # AdamW makes as much of a gradient near zero as of any other, so weights may go apart where rounding decides
    _assert_alike(there["after"], here["after"], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
@pytest.mark.parametrize("name", TINY)
def test_a_training_step(name: str, last: bool, device: str) -> None:
    _check_step(name, device, last)


def test_the_step_is_checked_on_any_machine() -> None:
    _check_step("mask-rcnn-tiny", "cpu", last=True)


@pytest.mark.parametrize("device", WITH_CPU)
@pytest.mark.parametrize("name", TINY)
def test_a_training_step_in_bfloat16(name: str, device: str) -> None:
    """Losses are finite and close to those in float32, every gradient is finite, and weights stay in float32."""
    model = _model(name).to(device).train()
    expected = _total(model, _losses(model, device)).item()
    with torch.autocast(device, dtype=torch.bfloat16):
        losses = _losses(model, device, last=True)
    assert all(loss.isfinite() for loss in losses.values()), losses
    assert _total(model, losses).item() == pytest.approx(expected, rel=0.1)
    _total(model, losses).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or (parameter.grad.isfinite().all() and parameter.grad.dtype == torch.float32), key
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    optimizer.step()
    assert all(loss.isfinite() for loss in _losses(model, device).values())


def _all_thresholds(model: Model) -> list[Any]:
    """For each task, limits that let a fresh network find something."""
    limits = model.config.thresholds
    low = {name: 0.0 for name in ("score", "cell_score", "merge_score") if hasattr(limits, name)}
    return [replace(limits, **low, **({"task": task} if hasattr(limits, "task") else {})) for task in type(model).tasks]


def _found(model: Model, device: str, last: bool = False) -> tuple[Any, list[list[Segments]]]:
    """What a network says, and the segments of two images by each of its tasks."""
    images = _images().to(device, memory_format=torch.channels_last if last else torch.contiguous_format)
    with torch.inference_mode():
        predictions = model(images)
        sizes = [ImageSize(input=SIZE, original=(50, 75)), ImageSize(input=(64, 80), original=(128, 160))]
        return predictions, [model.segments(predictions, sizes, THREE, limits) for limits in _all_thresholds(model)]


def _assert_same_segments(there: Segments, here: Segments, iou: float = 0.99) -> None:
    """As many segments, and to each one of the same class whose mask and score are nearly the same: equal scores may swap."""
    assert len(there) == len(here)
    np.testing.assert_allclose(np.sort(there.scores), np.sort(here.scores), atol=2e-3)
    if not len(here):
        return
    a, b = (torch.from_numpy(found.masks()).flatten(1).double() for found in (there, here))
    shared = a @ b.T
    union = a.sum(dim=1)[:, None] + b.sum(dim=1) - shared
    ious = torch.where(union > 0, shared / union, 1.0)
    ious *= torch.from_numpy(there.classes[:, None] == here.classes)
    assert ious.amax(dim=1).min() > iou
    assert ious.amax(dim=0).min() > iou


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
@pytest.mark.parametrize("name", TINY)
def test_predictions_and_segments(name: str, last: bool, device: str) -> None:
    model = _model(name).eval()
    predictions, expected = _found(model, "cpu")
    other = deepcopy(model).to(device)
    if last:
        other = other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with _computing_on(device):
        found, segments = _found(other, device, last)
    _assert_alike(found, predictions, rtol=1e-3, atol=1e-3)
    for of_task, expected_of_task in zip(segments, expected, strict=True):
        for there, here in zip(of_task, expected_of_task, strict=True):
            # a fresh network's masks lie near the threshold everywhere, where rounding decides
            assert abs(len(there) - len(here)) <= max(1, len(here) // 20)
            both = min(len(there), len(here))
            np.testing.assert_allclose(np.sort(there.scores)[::-1][:both], np.sort(here.scores)[::-1][:both], atol=2e-3)


@pytest.mark.parametrize("device", WITH_CPU)
@pytest.mark.parametrize("name", TINY)
def test_segments_in_bfloat16(name: str, device: str) -> None:
    model = _model(name).to(device).eval()
    with torch.autocast(device, dtype=torch.bfloat16):
        _, segments = _found(model, device, last=True)
    assert all(np.isfinite(found.scores).all() for of_task in segments for found in of_task)


@pytest.mark.parametrize("device", DEVICES)
def test_a_backbone_folds_its_norms(device: str) -> None:
    backbone = Backbone(BackboneConfig("tf_efficientnet_lite0")).eval()
    with torch.no_grad():
        expected = backbone(_images())
        other = deepcopy(backbone).to(device)
        _assert_alike(other(_images().to(device)), expected, rtol=1e-3, atol=1e-3)
        assert other._folded_body() is not other.body


# The package as people use it


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "kind"), [("people", "people"), ("nuclei", "nuclei"), ("panoptic", "people")])
def test_bundled_models_find_the_same(name: str, kind: str, device: str) -> None:
    sources = demo_images(kind)[:1]
    here, there = thingstuff.load(name, device="cpu"), thingstuff.load(name, device=device)
    assert there.device.type == device
    found = there.predict(sources, batch_size=1)
    for one, other in zip(found, here.predict(sources, batch_size=1), strict=True):
        assert len(other) > 0
        _assert_same_segments(one, other)
    streamed = [segments for _, segments in there.stream(sources)]
    for one, other in zip(streamed, found, strict=True):
        assert isinstance(one, Segments)
        _assert_same_segments(one, other)


@pytest.mark.parametrize("device", DEVICES)
def test_an_image_may_lie_on_the_device_already(device: str) -> None:
    pixels = torch.from_numpy(np.asarray(Image.open(demo_images("people")[0]).convert("RGB")).copy())
    segmenter = thingstuff.load("people", device=device)
    _assert_same_segments(segmenter.predict(pixels.to(device)), segmenter.predict(pixels))


def _write_scenes(folder: Path) -> Path:
    """Two images for training and one for validation, each with a bright square and a dark one."""
    (folder / "images").mkdir(parents=True)
    for split, numbers in {"train": (1, 2), "val": (3,)}.items():
        images, annotations = [], []
        for number in numbers:
            pixels = np.random.default_rng(number).integers(90, 120, (72, 96, 3), dtype=np.uint8)
            pixels[20:44, 10:34], pixels[30:60, 50:80] = 230, 10
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": 72, "width": 96})
            for category, (x, y, width, height) in enumerate(((10, 20, 24, 24), (50, 30, 30, 30)), start=1):
                outline = [x, y, x + width, y, x + width, y + height, x, y + height]
                annotations.append(
                    {
                        **{"id": 10 * number + category, "image_id": number, "category_id": category, "iscrowd": 0},
                        **{"segmentation": [outline], "area": width * height, "bbox": [x, y, width, height]},
                    }
                )
        categories = [{"id": 1, "name": "bright"}, {"id": 2, "name": "dark"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mask-rcnn-tiny", "solov2-tiny", "mask2former-tiny"])
def test_a_run_in_bfloat16_with_workers_goes_on_where_it_stopped(name: str, tmp_path: Path) -> None:
    data = _write_scenes(tmp_path / "data")
    recipe = Recipe(
        data=str(data),
        model=name,
        out=str(tmp_path / "run"),
        steps=2,
        batch_size=2,
        warmup=1,
        validate_every=2,
        save_every=1,
        pictures=1,
        precision="bf16",
        workers=2,
    )
    train(recipe)
    result = train(replace(recipe, steps=4), resume=True)
    assert result["mask"]["AP"] is not None
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert sorted(losses) == [1, 2, 3, 4]
    assert all(np.isfinite(loss) for loss in losses.values())
    segmenter = thingstuff.load(tmp_path / "run" / "last.safetensors", device=DEVICE)
    segmenter.predict(data / "images" / "3.png")


@pytest.mark.parametrize("device", DEVICES)
def test_weights_saved_from_the_device_load_elsewhere(device: str, tmp_path: Path) -> None:
    segmenter = thingstuff.load("people", device=device)
    segmenter.save(tmp_path / "again.safetensors")
    image = demo_images("people")[0]
    again = thingstuff.load(tmp_path / "again.safetensors", device="cpu")
    _assert_same_segments(segmenter.predict(image), again.predict(image))


def test_every_family_has_a_tiny_network_that_is_checked() -> None:
    assert {CATALOG[name][0] for name in TINY} == {kind for kind, _, _ in CATALOG.values()}
    assert {Task.INSTANCE, Task.PANOPTIC} <= {task for name in TINY for task in CATALOG[name][0].tasks}

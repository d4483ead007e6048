"""RoI Align and RoI Pool: by hand, against torchvision's kernels, and as torch.compile and torch.export see them."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch.testing import assert_close

from thingstuff.ops import roi_align as module
from thingstuff.ops.roi_align import multilevel_roi_align, roi_align, roi_pool


def make_rois(count: int, seed: int = 0, batch: int = 2) -> torch.Tensor:
    """RoIs inside, across and outside a map of 100 x 136 pixels; small, large, inverted, empty."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=random) * torch.tensor([180.0, 150.0]) - 25
    sides = torch.rand(count, 2, generator=random) ** 3 * 150
    rois = torch.cat((torch.randint(batch, (count, 1), generator=random), corners, corners + sides), dim=1)
    rois[::11, 3:] = rois[::11, 1:3]
    rois[5::13, 3:] = rois[5::13, 1:3] - 20  # along both axes: torchvision's kernel breaks at one
    return rois


def make_map(channels: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, channels, 25, 34, generator=torch.Generator().manual_seed(seed))


def test_a_constant_map_gives_the_constant():
    rois = torch.tensor([[0.0, 3.3, 4.4, 20.2, 17.7]])
    assert_close(roi_align(torch.full((1, 2, 30, 30), 7.0), rois, 3), torch.full((1, 2, 3, 3), 7.0))


def test_a_ramp_gives_the_centres_of_bins():
    ramp = torch.arange(10.0).expand(1, 1, 10, 10)  # the value of a cell is its column
    rois = torch.tensor([[0.0, 2.0, 1.0, 6.0, 5.0]])
    # two bins of 2 columns, centres at 3 and 5; aligned: half a cell less, as cell 0 has its centre at 0.5
    for sampling_ratio in (-1, 1, 2, 3):
        assert_close(roi_align(ramp, rois, (1, 2), sampling_ratio=sampling_ratio).flatten(), torch.tensor([3.0, 5.0]))
        aligned = roi_align(ramp, rois, (1, 2), sampling_ratio=sampling_ratio, aligned=True)
        assert_close(aligned.flatten(), torch.tensor([2.5, 4.5]))


def test_one_sample_by_hand():
    features = torch.tensor([[[[0.0, 10.0], [20.0, 30.0]]]])
    # one bin, one sample at (x, y) = (0.25, 0.5): 0.75 * 0.5 * 0 + 0.25 * 0.5 * 10 + 0.75 * 0.5 * 20 + 0.25 * 0.5 * 30
    rois = torch.tensor([[0.0, -0.25, 0.0, 0.75, 1.0]])
    assert roi_align(features, rois, 1, sampling_ratio=1).item() == 12.5


def test_samples_count_up_to_one_cell_outside_and_not_beyond():
    ones = torch.ones(1, 1, 4, 4)
    y = (0.0, 4.0)
    for centre, value in ((-1.0, 1.0), (-1.001, 0.0), (4.0, 1.0), (4.001, 0.0)):
        rois = torch.tensor([[0.0, centre - 2, y[0], centre + 2, y[1]]])
        assert roi_align(ones, rois, 1, sampling_ratio=1).item() == value


def test_a_roi_without_size_is_one_cell_unless_aligned():
    ramp = torch.arange(10.0).expand(1, 1, 10, 10)
    rois = torch.tensor([[0.0, 4.0, 4.0, 4.0, 4.0]])
    assert roi_align(ramp, rois, 1).item() == 4.5  # from 4 to 5
    assert roi_align(ramp, rois, 1, aligned=True).item() == 0  # adaptive: no samples
    assert roi_align(ramp, rois, 1, sampling_ratio=2, aligned=True).item() == 3.5


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("output_size", [(7, 7), (3, 5), (14, 1)])
def test_values_and_gradients_equal_torchvision(aligned: bool, sampling_ratio: int, output_size: tuple[int, int]):
    rois = make_rois(60, seed=sum(output_size))
    ours, theirs = make_map().requires_grad_(), make_map().requires_grad_()
    out = roi_align(ours, rois, output_size, 0.25, sampling_ratio, aligned)
    expected = torchvision.ops.roi_align(theirs, rois, output_size, 0.25, sampling_ratio, aligned)
    assert_close(out, expected, atol=1e-5, rtol=1e-5)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)  # sums of thousands of terms, in another order


def test_both_ways_of_working_agree(monkeypatch: pytest.MonkeyPatch):
    rois, features = make_rois(40), make_map()
    merged = {
        (ratio, aligned): roi_align(features, rois, 7, 0.25, ratio, aligned) for ratio in (0, 2) for aligned in (False, True)
    }
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for (ratio, aligned), expected in merged.items():
        assert_close(roi_align(features, rois, 7, 0.25, ratio, aligned), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_few_taps_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch, sampling_ratio: int):
    def run() -> tuple[torch.Tensor, torch.Tensor]:
        features = make_map().requires_grad_()
        out = roi_align(features, make_rois(40), 7, 0.25, sampling_ratio)
        out.square().sum().backward()
        assert features.grad is not None
        return out, features.grad

    whole, whole_gradient = run()
    monkeypatch.setattr(module, "TAPS_FORWARD", 1000)
    monkeypatch.setattr(module, "TAPS_BACKWARD", 1500)
    monkeypatch.setattr(module, "SUM_BYTES", 4000)
    parts, parts_gradient = run()
    assert torch.equal(parts, whole)
    assert_close(parts_gradient, whole_gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_gradient_is_that_of_the_function(sampling_ratio: int):
    features = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.2, 0.7, 4.9, 3.4], [1, -3.0, -2.0, 3.0, 9.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, (2, 3), 0.9, sampling_ratio, True), features)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_equal_to_the_bit_from_run_to_run(sampling_ratio: int):
    rois, results = make_rois(80), []
    for _ in range(3):
        features = make_map(channels=16).requires_grad_()
        out = roi_align(features, rois, 7, 0.25, sampling_ratio)
        out.square().sum().backward()
        results.append((out, features.grad))
    for out, gradient in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype, sampling_ratio: int):
    rois = make_rois(40)
    features = make_map().to(dtype).requires_grad_()
    out = roi_align(features, rois, 7, 0.25, sampling_ratio)
    assert out.dtype == dtype
    # only the input and the result are rounded
    assert torch.equal(out, roi_align(features.detach().float(), rois, 7, 0.25, sampling_ratio).to(dtype))
    out.float().sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == dtype
    assert torch.isfinite(features.grad).all()


def test_no_rois():
    features = make_map().requires_grad_()
    for sampling_ratio in (-1, 2):
        out = roi_align(features, torch.zeros(0, 5), (7, 3), 0.25, sampling_ratio)
        assert out.shape == (0, 5, 7, 3)
        (gradient,) = torch.autograd.grad(out.sum(), features)
        assert torch.equal(gradient, torch.zeros_like(features))
    assert roi_pool(features, torch.zeros(0, 5), 7, 0.25).shape == (0, 5, 7, 7)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_rois_that_are_not_finite_are_zero(sampling_ratio: int):
    broken = [(math.inf, 0, 5, 5), (0, 0, math.inf, 5), (0, math.nan, 5, 5), (-math.inf, -math.inf, math.inf, math.inf)]
    rois = torch.tensor([(0, *box) for box in broken] + [(0, 4, 4, 30, 30)])
    out = roi_align(make_map(), rois, 7, 0.25, sampling_ratio, aligned=True)
    assert (out[:4] == 0).all()
    assert torch.equal(out[4:], roi_align(make_map(), rois[4:], 7, 0.25, sampling_ratio, aligned=True))
    assert (roi_pool(make_map(), rois, 7, 0.25)[:4] == 0).all()


def test_a_roi_of_absurd_size_is_no_more_work_than_the_map():
    # all samples of the middle bin that hit the map average to next to nothing among the 1.4e8 x 1.4e8 of its samples
    rois = torch.tensor([[0, -5e8, -5e8, 5e8, 5e8], [0, -1e30, -1e30, 1e30, 1e30], [1, 0, 0, 3e9, 20]])
    out = roi_align(make_map(), rois, 7, 0.25, aligned=True)
    assert torch.isfinite(out).all()
    assert out[:2].abs().max() < 1e-6
    roi_pool(make_map(), rois, 7, 0.25)


def test_a_roi_much_larger_than_the_map_is_exact():
    # 40 times the map: samples far outside are never made, and the rest weighs the same
    rois = torch.tensor([[0.0, -2600, -1900, 2800, 2100], [1.0, 0, 0, 5440, 4000]])
    for aligned in (False, True):
        expected = torchvision.ops.roi_align(make_map(), rois, 7, 0.25, 0, aligned)
        assert_close(roi_align(make_map(), rois, 7, 0.25, 0, aligned), expected, atol=1e-6, rtol=1e-5)


def test_channels_last_in_channels_last_out():
    features = make_map().contiguous(memory_format=torch.channels_last).requires_grad_()
    plain = make_map().requires_grad_()
    rois = make_rois(30)
    out, expected = (roi_align(x, rois, 7, 0.25, 2) for x in (features, plain))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert expected.is_contiguous()
    assert torch.equal(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert features.grad is not None
    assert features.grad.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(features.grad, plain.grad)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_levels_give_what_each_gives_alone(sampling_ratio: int):
    random = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, 6, 48 >> k, 64 >> k, generator=random).requires_grad_() for k in range(4)]
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    rois = make_rois(50)
    level_of_roi = torch.randint(3, (50,), generator=random)  # none on the last level
    out = multilevel_roi_align(levels, rois, level_of_roi, scales, 7, sampling_ratio)
    for roi, level, result in zip(rois, level_of_roi.tolist(), out, strict=True):
        expected = torchvision.ops.roi_align(levels[level], roi[None], 7, scales[level], sampling_ratio)[0]
        assert_close(result, expected, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(out.square().sum(), levels)
    assert [gradient.shape for gradient in gradients] == [level.shape for level in levels]
    assert all(gradient.abs().max() > 0 for gradient in gradients[:3])
    assert (gradients[3] == 0).all()


def test_a_level_that_needs_no_gradient():
    frozen, trained = make_map(), make_map(seed=1).requires_grad_()
    out = multilevel_roi_align([frozen, trained], make_rois(10), torch.arange(10) % 2, [0.25, 0.25], 7, 2)
    (gradient,) = torch.autograd.grad(out.sum(), trained)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("seed", range(3))
def test_roi_pool_equals_torchvision(seed: int):
    ours, theirs = make_map(seed=seed).relu().requires_grad_(), make_map(seed=seed).relu().requires_grad_()  # many equal values
    rois = make_rois(60, seed)
    out, expected = roi_pool(ours, rois, (7, 5), 0.25), torchvision.ops.roi_pool(theirs, rois, (7, 5), 0.25)
    assert torch.equal(out, expected)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


TRACED = """
import torch
from torch.export import Dim, export
from thingstuff.ops.roi_align import multilevel_roi_align, roi_align

class Head(torch.nn.Module):
    def __init__(self, sampling_ratio):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.sampling_ratio = sampling_ratio

    def forward(self, images, rois):
        fine = self.conv(images)
        coarse = fine[:, :, ::2, ::2]
        level = (rois[:, 3] - rois[:, 1] > 30).long()
        return multilevel_roi_align([fine, coarse], rois, level, [0.5, 0.25], 7, self.sampling_ratio, True)

torch.manual_seed(0)
images, rois = torch.rand(2, 3, 40, 60), torch.tensor([[0, 3, 4, 50, 60], [1, -10, 3, 100, 70], [0, 5, 5, 6, 6.5]])
other_images, other_rois = torch.rand(1, 3, 64, 33), torch.tensor([[0, 3, 4, 50, 60], [0, 0, 0, 9, 9], [0, 1, 2, 3, 4.0]])
for sampling_ratio in (2, 0):
    head = Head(sampling_ratio)

    # adaptive sampling has sizes that depend on values, which the compiler takes when told so
    torch._dynamo.config.capture_dynamic_output_shape_ops = sampling_ratio == 0
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(images, rois).square().sum(), head.conv.weight)
    (expected,) = torch.autograd.grad(head(images, rois).square().sum(), head.conv.weight)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)

    sizes = {"images": {0: Dim("batch", min=1), 2: Dim.AUTO, 3: Dim.AUTO}, "rois": {0: Dim("rois")}}
    program = export(head, (images, rois), dynamic_shapes=sizes)
    for some_images, some_rois in ((images, rois), (other_images, other_rois), (images, rois[:0])):
        torch.testing.assert_close(program.module()(some_images, some_rois), head(some_images, some_rois))
"""


def test_compiles_as_one_graph_and_exports_with_any_sizes(tmp_path: Path):
    # in a process of its own: tracing cannot pass through the shape checker that the other tests run under
    script = tmp_path / "traced.py"
    script.write_text(TRACED)
    without_checker = {**os.environ, "JAXTYPING_DISABLE": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=without_checker, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_equal_on_a_gpu(sampling_ratio: int):
    rois = make_rois(60)
    on_cpu, on_gpu = make_map().requires_grad_(), make_map().cuda().requires_grad_()
    expected, out = roi_align(on_cpu, rois, 7, 0.25, sampling_ratio), roi_align(on_gpu, rois.cuda(), 7, 0.25, sampling_ratio)
    assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()
    out.square().sum().backward()
    assert on_gpu.grad is not None
    assert_close(on_gpu.grad.cpu(), on_cpu.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("image", [-1.0, 2.0, float("nan")])
def test_a_roi_of_no_image_is_an_error_and_not_the_next_level(image: float) -> None:
    levels = [torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 4, 4)]
    rois = torch.tensor([[image, 0.0, 0.0, 4.0, 4.0]])
    with pytest.raises(IndexError, match="the batch has 2 images"):
        multilevel_roi_align(levels, rois, torch.zeros(1, dtype=torch.long), [1.0, 0.5], 2)

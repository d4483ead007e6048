"""RoI Align's kernels in Triton's interpreter, which runs them on a processor, against the operators that say what they mean."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton comes with PyTorch's builds for CUDA on Linux alone")

START = """
import math

import torch
import triton
import triton.language as tl
from jaxtyping import install_import_hook
from torch.testing import assert_close

with install_import_hook("thingstuff", "beartype.beartype"):
    from thingstuff.ops import roi_align_triton
    from thingstuff.ops.roi_align import multilevel_roi_align


@triton.jit
def count_up(numbers):
    for _ in range(tl.load(numbers)):
        tl.store(numbers + 1, tl.load(numbers + 1) + 1)


try:
    count_up[(1,)](torch.tensor([3, 0]))
except Exception as error:
    print(f"this Triton's interpreter does not get along with this numpy: {error!r}")
    raise SystemExit(77)

draw = torch.Generator().manual_seed(0)


def make_rois(count, batch=2):
    # inside, across and outside a map of 100 x 136 pixels, some at whole cells, one without size, one inverted
    image = torch.arange(count)[:, None] % batch
    corners = torch.rand(count, 2, generator=draw) * torch.tensor([180.0, 150.0]) - 25
    rois = torch.cat([image, corners, corners + torch.rand(count, 2, generator=draw) ** 2 * 120], 1)
    rois[::2] = (rois[::2] / 4).round() * 4
    rois[::2, 0] = 1
    rois[1, 3:] = rois[1, 1:3]
    rois[2, 3:] = rois[2, 1:3] - 20
    return rois


def check(levels, rois, level_of_roi, scales, bins, sampling_ratio, aligned):
    found = []
    for function in (multilevel_roi_align, roi_align_triton.align):
        leaves = [level.detach().clone().requires_grad_() for level in levels]
        out = function(leaves, rois, level_of_roi, scales, bins, sampling_ratio, aligned)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        found.append((out, torch.autograd.grad(out, leaves, cotangent)))
    (expected, expected_gradients), (out, gradients) = found
    half = levels[0].dtype != torch.float32  # sums of another order are rounded to the next half, or the one after
    tolerance = {"atol": 1e-2 if half else 1e-5, "rtol": 1e-2 if half else 1e-5}
    assert_close(out, expected, **tolerance)
    for gradient, other, level in zip(gradients, expected_gradients, levels):
        assert_close(gradient, other, **tolerance)
        assert gradient.is_contiguous() == other.is_contiguous() == level.is_contiguous()
    assert out.is_contiguous() == expected.is_contiguous()
    return out
"""

SEVERAL_LEVELS = """
# -1: the last level
for (channels, sampling_ratio, aligned, layout), level_of_roi in zip(
    (
        (1, -1, False, torch.contiguous_format),
        (3, 2, True, torch.contiguous_format),
        (80, 2, False, torch.channels_last),
        (300, -1, True, torch.channels_last),
    ),
    ([0, 1, 0, 0], [1, 0, 1, 0], [0, 1, -1, 0], [0, 0, 1, -1]),
):
    levels = [torch.randn(2, channels, *size, generator=draw).contiguous(memory_format=layout) for size in ((25, 34), (1, 40))]
    check(levels, make_rois(4), torch.tensor(level_of_roi), [0.25, 0.3], (2, 1), sampling_ratio, aligned)
"""

SAMPLING = """
for sampling_ratio, aligned, bins in ((0, True, (1, 3)), (1, False, (2, 1)), (3, True, (1, 2))):
    level_of_roi = torch.zeros(5, dtype=torch.long)
    check([torch.randn(2, 5, 25, 34, generator=draw)], make_rois(5), level_of_roi, [0.25], bins, sampling_ratio, aligned)
"""

HALVES = """
for dtype, sampling_ratio in ((torch.bfloat16, 0), (torch.float16, 2)):
    levels = [torch.randn(2, 12, *size, generator=draw).to(dtype) for size in ((25, 34), (13, 17))]
    levels[1] = levels[1].contiguous(memory_format=torch.channels_last)
    check(levels, make_rois(4), torch.arange(4) % 2, [0.25, 0.125], (1, 2), sampling_ratio, True)
"""

WHOLE_CELLS = """
# bins of 1, 2, 3 and 5 whole cells: one sample more in any of them would give other sums
for cells in (1, 2, 3, 5):
    side = cells * 7 * 4
    rois = torch.tensor([[1.0, 12, -20, 12 + side, side - 20]])
    check([torch.randn(2, 2, 25, 34, generator=draw)], rois, torch.zeros(1, dtype=torch.long), [0.25], (7, 1), 0, cells % 2 == 0)
"""

FAR_AND_BROKEN = """
inf, nan = math.inf, math.nan
features = torch.randn(2, 5, 25, 34, generator=draw)
# much larger than the map, at its edge, one cell and more outside
boxes = [(-2600, -1900, 2800, 2100), (0, 0, 5440, 4000), (-4, -4, 0, 0), (136, 100, 140, 104), (-40, 0, -4, 40), (141, 0, 190, 9)]
# not finite, absurd
broken = [(inf, 0, 5, 5), (0, 0, inf, 5), (0, nan, 5, 5), (-inf, -inf, inf, inf), (-3e38, 0, 3e38, 9), (-1e30, -1e30, 1e30, 1e30)]
for sampling_ratio, aligned in ((0, False), (0, True), (2, True)):
    rois = torch.tensor([(index % 2, *box) for index, box in enumerate(boxes)], dtype=torch.float32)
    check([features], rois, torch.zeros(len(boxes), dtype=torch.long), [0.25], (1, 2), sampling_ratio, aligned)
    rois = torch.tensor([(1, *box) for box in broken], dtype=torch.float32)
    out = roi_align_triton.align([features], rois, torch.zeros(6, dtype=torch.long), [0.25], (1, 2), sampling_ratio, aligned)
    assert (out[:4] == 0).all()
    assert sampling_ratio > 0 or out[4:].abs().max() < 1e-6  # of more samples than a float can count, few meet the map

# an image that there is not; no RoIs; a level without a gradient
levels = [torch.randn(2, 3, 9, 9, generator=draw, requires_grad=trained) for trained in (False, True)]
rois = torch.tensor([[0.0, 4, 4, 30, 30], [2, 4, 4, 30, 30], [-1, 4, 4, 30, 30], [nan, 4, 4, 30, 30]])
out = roi_align_triton.align(levels, rois, torch.tensor([0, 1, 1, 1]), [0.25, 0.25], (2, 2), 0, True)
assert torch.isfinite(out[0]).all() and torch.isnan(out[1:]).all()
(gradient,) = torch.autograd.grad(out.sum(), levels[1])
assert (gradient == 0).all()
out = roi_align_triton.align(levels, rois[:0], torch.zeros(0, dtype=torch.long), [0.25, 0.25], (2, 3), 2, True)
assert out.shape == (0, 3, 2, 3)
assert (torch.autograd.grad(out.sum(), levels[1])[0] == 0).all()
"""


def test_kernels_equal_the_operators(tmp_path: Path):
    # in a process of its own: Triton decides when it is imported whether it interprets
    script = tmp_path / "interpreted.py"
    script.write_text(START + SEVERAL_LEVELS + SAMPLING + HALVES + WHOLE_CELLS + FAR_AND_BROKEN)
    interpreted = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=interpreted, check=False)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr

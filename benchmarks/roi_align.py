"""RoI Align against torchvision's compiled kernel: medians of interleaved runs, on this processor.

    python benchmarks/roi_align.py > benchmarks/results/roi_align.md

Both get the same map, contiguous NCHW, 256 channels at 200 x 336 cells (a 800 x 1344 image at stride 4), and RoIs whose sides
are spread evenly in logarithm over 16 to 448 pixels. The turn alternates between the two, so that a busy machine slows both
alike. "contiguous" adds the copy that turns our channels-last result into the layout that torchvision returns.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torchvision

from thingstuff.ops.roi_align import roi_align

HEIGHT, WIDTH, CHANNELS, STRIDE = 200, 336, 256, 4


def make_rois(count: int, smallest: float = 16, largest: float = 448) -> torch.Tensor:
    random = torch.Generator().manual_seed(count)
    ratio = largest / smallest
    sides = smallest * ratio ** torch.rand(count, 2, generator=random)
    corners = torch.rand(count, 2, generator=random) * (torch.tensor([WIDTH, HEIGHT]) * STRIDE - sides).clamp(min=0)
    return torch.cat((torch.zeros(count, 1), corners, corners + sides), dim=1)


def forward(operator: Callable, features: torch.Tensor, rois: torch.Tensor, bins: int, samples: int) -> torch.Tensor:
    return operator(features, rois, (bins, bins), 1 / STRIDE, samples, True)


def contiguous(operator: Callable, features: torch.Tensor, rois: torch.Tensor, bins: int, samples: int) -> torch.Tensor:
    return forward(operator, features, rois, bins, samples).contiguous()


def forward_backward(operator: Callable, features: torch.Tensor, rois: torch.Tensor, bins: int, samples: int) -> torch.Tensor:
    features = features.detach().requires_grad_()
    forward(operator, features, rois, bins, samples).sum().backward()
    assert features.grad is not None
    return features.grad


CASES = (
    # what, RoIs, bins, sampling ratio (0: adaptive)
    (forward, 1000, 7, 2),
    (contiguous, 1000, 7, 2),
    (forward, 1000, 14, 2),
    (contiguous, 1000, 14, 2),
    (forward, 1000, 7, 0),
    (contiguous, 1000, 7, 0),
    (forward, 1000, 14, 0),
    (forward, 100, 14, 0),
    (forward_backward, 512, 7, 2),
    (forward_backward, 128, 14, 2),
    (forward_backward, 512, 7, 0),
    (forward_backward, 128, 14, 0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    torch.manual_seed(0)
    features = torch.randn(1, CHANNELS, HEIGHT, WIDTH)
    print("# RoI Align on a CPU, against torchvision's kernel\n")
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"{versions}, {torch.get_num_threads()} threads, {platform.machine()};")
    print(f"medians of {runs} interleaved runs, {CHANNELS} channels on {HEIGHT} x {WIDTH} cells.")
    print("Made by `benchmarks/roi_align.py`.\n")
    print("| what | RoIs | bins | sampling | thingstuff | torchvision | times faster | largest difference |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for what, count, bins, samples in CASES:
        rois = make_rois(count)
        seconds: dict[Callable, list[float]] = {roi_align: [], torchvision.ops.roi_align: []}
        results = {}
        for _ in range(runs + 1):  # the first warms up
            for operator, times in seconds.items():
                begin = time.perf_counter()
                results[operator] = what(operator, features, rois, bins, samples)
                times.append(time.perf_counter() - begin)
        ours, theirs = (statistics.median(times[1:]) for times in seconds.values())
        difference = (results[roi_align] - results[torchvision.ops.roi_align]).abs().max().item()
        sampling = f"{samples}x{samples}" if samples else "adaptive"
        print(
            f"| {what.__name__.replace('_', ' + ')} | {count} | {bins}x{bins} | {sampling} "
            f"| {1000 * ours:.0f} ms | {1000 * theirs:.0f} ms | {theirs / ours:.1f} | {difference:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

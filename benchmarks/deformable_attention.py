"""Multi-scale deformable attention against the formulation with grid_sample: interleaved runs and peak memory, on this processor.

    python benchmarks/deformable_attention.py [--runs 5] > benchmarks/results/deformable_attention.md

Both get what a layer of Mask2Former's pixel decoder gets: every cell of three levels (strides 32, 16, 8) is a query, 8 heads of
32 channels, 4 samples on each level, a few cells away. The turn alternates between the two, so that a busy machine slows both
alike. Memory is the peak above what the process held before, each in a process of its own. Differences are relative to the
largest value of the result and of the gradients of values and weights; the gradient of places jumps where one lies on a line of
centres, and rounding decides on which side (tests/ops/test_deformable_attention.py compares it in double precision).
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

WAYS = ("here", "grid_sample")
SIZES = ((480, 640), (800, 1333))  # of images
HEADS, CHANNELS, POINTS = 8, 32, 4


def arguments_of(height: int, width: int) -> Any:
    """Values, the levels' sizes, places and weights."""
    import torch

    sizes = [(-(-height // stride), -(-width // stride)) for stride in (32, 16, 8)]
    random = torch.Generator().manual_seed(0)
    cells = sum(rows * columns for rows, columns in sizes)
    values = torch.randn(1, cells, HEADS, CHANNELS, generator=random)
    centres = torch.cat(
        [
            torch.stack(
                torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")[::-1],
                dim=-1,
            ).flatten(0, 1)
            for rows, columns in sizes
        ]
    )  # x y
    side = torch.tensor([[columns, rows] for rows, columns in sizes])[:, None]
    offsets = 2 * torch.randn(1, cells, HEADS, len(sizes), POINTS, 2, generator=random) / side
    weights = torch.randn(1, cells, HEADS, len(sizes) * POINTS, generator=random).softmax(dim=-1)
    return values, sizes, centres[None, :, None, None, None] + offsets, weights.unflatten(-1, (len(sizes), POINTS))


def run(way: str, given: Any, backward: bool) -> tuple[Any, float]:
    """The result, with its gradients, and the seconds."""
    import torch

    from thingstuff.ops.deformable_attention import by_grid_sample, deformable_attention

    values, sizes, places, weights = given
    leaves = [tensor.detach().requires_grad_(backward) for tensor in (values, places, weights)]
    operator = deformable_attention if way == "here" else by_grid_sample
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        result = operator(leaves[0], sizes, leaves[1], leaves[2])
        gradients = torch.autograd.grad(result.sum(), leaves) if backward else ()
    return [result.detach(), *gradients], time.perf_counter() - start


def measure(way: str, height: int, width: int, backward: bool) -> None:
    """Megabytes above the start."""
    run(way, arguments_of(64, 64), backward)  # what is loaded only once
    given = arguments_of(height, width)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(way, given, backward)
    print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def peak(way: str, size: tuple[int, int], backward: bool) -> float:
    command = [sys.executable, __file__, "--way", way, "--size", str(size[0]), str(size[1])]
    command += ["--backward"] if backward else []
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # the child's part
    parser.add_argument("--size", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--backward", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        measure(arguments.way, arguments.size[0], arguments.size[1], arguments.backward)
        return

    # first, since a child's peak begins with that of the process it comes from
    memory = {(size, backward, way): peak(way, size, backward) for size in SIZES for backward in (False, True) for way in WAYS}
    import torch

    print("# Multi-scale deformable attention on a CPU, against grid_sample\n")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()};")
    print(
        f"medians of {arguments.runs} interleaved runs, {HEADS} heads of {CHANNELS} channels, 3 levels, {POINTS} samples on each."
    )
    print("Made by `benchmarks/deformable_attention.py`.\n")
    print("| image | what | here | grid_sample | times faster | memory here | memory grid_sample | largest difference |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for height, width in SIZES:
        given = arguments_of(height, width)
        for backward in (False, True):
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            results: dict[str, Any] = {}
            for _ in range(arguments.runs + 1):  # the first warms up
                for way in WAYS:
                    results[way], taken = run(way, given, backward)
                    seconds[way].append(taken)
            ours, theirs = (statistics.median(seconds[way][1:]) for way in WAYS)
            pairs = [pair for number, pair in enumerate(zip(*results.values(), strict=True)) if number != 2]  # 2: places
            difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
            ours_memory, theirs_memory = (memory[(height, width), backward, way] for way in WAYS)
            print(
                f"| {height} x {width} | {'forward + backward' if backward else 'forward'} | {1000 * ours:.0f} ms "
                f"| {1000 * theirs:.0f} ms | {theirs / ours:.1f} "
                f"| {ours_memory:.0f} MB | {theirs_memory:.0f} MB | {difference:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

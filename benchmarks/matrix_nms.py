"""Matrix NMS against sequential NMS of masks: medians of interleaved runs on one thread.

    python benchmarks/matrix_nms.py > benchmarks/results/matrix_nms.md

Both get the same masks at stride 4: discs in clusters of ten that cover each other, as the cells of one object do, with random
scores; then masks that each fill the image, the worst case. Sequential NMS keeps the best mask, drops those of its class with an
IoU above 0.5, and goes on with what is left; it computes an IoU only when it is needed, one row at a time.
"""

import argparse
import platform
import statistics
import time

import torch
from torch import Tensor

from thingstuff.ops.matrix_nms import matrix_nms

SIZES = ((120, 160), (200, 304))  # of 480 x 640 and 800 x 1216 pixels


def make_masks(count: int, height: int, width: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(count + classes)
    objects = max(count // 10, 1)
    centres = torch.rand(objects, 2, generator=random) * torch.tensor([height, width])
    radii = 4 + 0.2 * height * torch.rand(objects, generator=random)
    of = torch.arange(count) % objects
    centres = centres[of] + 0.2 * radii[of, None] * torch.randn(count, 2, generator=random)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    distances = (y - centres[:, 0, None, None]) ** 2 + (x - centres[:, 1, None, None]) ** 2
    masks = distances < radii[of, None, None] ** 2
    return masks, torch.rand(count, generator=random), torch.randint(0, classes, (objects,), generator=random)[of]


def make_full_masks(count: int, height: int, width: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(count + classes)
    masks = torch.rand(count, height, width, generator=random) > 0.3
    return masks, torch.rand(count, generator=random), torch.randint(0, classes, (count,), generator=random)


def sequential_nms(masks: Tensor, scores: Tensor, classes: Tensor, threshold: float = 0.5) -> Tensor:
    order = scores.argsort(descending=True)
    flat, areas = masks.flatten(1)[order].float(), masks.sum(dim=(1, 2))[order]
    classes = classes[order]
    kept = torch.ones(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if not kept[index]:
            continue
        rivals = (kept & (classes == classes[index])).nonzero().squeeze(1)
        rivals = rivals[rivals > index]
        shared = flat[rivals] @ flat[index]
        kept[rivals] = shared / (areas[rivals] + areas[index] - shared) <= threshold
    return order[kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)  # and the processor's time: whatever else runs matters less
    print("# Matrix NMS on a CPU, against sequential NMS of masks\n")
    print(f"torch {torch.__version__}, {platform.machine()}; medians of {runs} interleaved runs, processor's time of one thread.")
    print("Made by `benchmarks/matrix_nms.py`.\n")
    print("| masks | of | size | classes | Matrix NMS, ms | sequential, ms | times faster |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for make, (height, width) in ((make_masks, SIZES[0]), (make_masks, SIZES[1]), (make_full_masks, SIZES[1])):
        for classes in (1, 80):
            for count in (100, 500):
                inputs = make(count, height, width, classes)
                kind = "discs" if make is make_masks else "full"
                seconds: dict[str, list[float]] = {"matrix": [], "sequential": []}
                for _ in range(runs):
                    for name, suppress in (("matrix", matrix_nms), ("sequential", sequential_nms)):
                        start = time.process_time()
                        suppress(*inputs)
                        seconds[name].append(time.process_time() - start)
                fast, slow = (1000 * statistics.median(times) for times in seconds.values())
                print(
                    f"| {count} | {kind} | {height} x {width} | {classes} | {fast:.1f} | {slow:.1f} | {slow / fast:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

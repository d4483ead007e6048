"""Fast NMS against sequential NMS of boxes: medians of interleaved runs on one thread.

    python benchmarks/fast_nms.py > benchmarks/results/fast_nms.md

All get the same boxes, in clusters as the anchors around one object are, with the scores of every class. Sequential NMS takes the
same candidates, the best 200 of each class above 0.05: one box after the other within each class, by this library's exact
`batched_nms`, by torchvision's compiled kernel, and by a plain loop that computes one row of IoUs at a time.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from thingstuff.ops.boxes import pairwise_iou
from thingstuff.ops.nms import batched_nms, fast_nms

THRESHOLD, CANDIDATES, LOWEST = 0.5, 200, 0.05


def make_boxes(count: int, classes: int, size: int = 550) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(count + classes)
    objects = max(count // 25, 1)
    of = torch.arange(count) % objects
    centres = torch.rand(objects, 2, generator=random)[of] * size + 6 * torch.randn(count, 2, generator=random)
    sides = (20 + 150 * torch.rand(objects, 2, generator=random))[of] * (1 + 0.1 * torch.randn(count, 2, generator=random))
    logits = torch.randn(count, classes, generator=random) - 4
    logits[torch.arange(count), of % classes] += 4
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=1), logits.sigmoid()


def candidates(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    best, order = scores.T.topk(min(CANDIDATES, len(boxes)), dim=1)  # classes candidates
    class_, rank = (best > LOWEST).nonzero(as_tuple=True)
    return boxes[order[class_, rank]], best[class_, rank], class_


def loop(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    kept = []
    for class_ in classes.unique():
        members = (classes == class_).nonzero().squeeze(1)
        members = members[scores[members].argsort(descending=True)]
        while len(members):
            kept.append(members[0])
            ious = pairwise_iou(boxes[members[:1]], boxes[members[1:]])[0]
            members = members[1:][ious <= threshold]
    return torch.stack(kept) if kept else classes[:0]


def sequential(suppress: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda boxes, scores: suppress(*candidates(boxes, scores), THRESHOLD)


WAYS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "Fast NMS": lambda boxes, scores: fast_nms(boxes, scores, THRESHOLD, CANDIDATES, LOWEST),
    "exact, thingstuff": sequential(batched_nms),
    "exact, torchvision": sequential(torchvision.ops.batched_nms),
    "plain loop": sequential(loop),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)  # and the processor's time: whatever else runs matters less
    print("# Fast NMS on a CPU, against sequential NMS of boxes\n")
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"{platform.machine()}; medians of {runs} interleaved runs, processor's time of one thread, in milliseconds."
    )
    print("Made by `benchmarks/fast_nms.py`.\n")
    print("| boxes | classes | candidates | " + " | ".join(WAYS) + " |")
    print("| --- " * (3 + len(WAYS)) + "|")
    for classes in (1, 80):
        for count in (100, 1000, 5000):
            boxes, scores = make_boxes(count, classes)
            seconds: dict[str, list[float]] = {name: [] for name in WAYS}
            for _ in range(runs):
                for name, way in WAYS.items():
                    start = time.process_time()
                    way(boxes, scores)
                    seconds[name].append(time.process_time() - start)
            figures = [f"{1000 * statistics.median(times):.2f}" for times in seconds.values()]
            print(f"| {count} | {classes} | {len(candidates(boxes, scores)[0])} | " + " | ".join(figures) + " |", flush=True)


if __name__ == "__main__":
    main()

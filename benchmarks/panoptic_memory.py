"""Peak memory of merging things and stuff in a large image, above what the process held before, and whether the map is right.

    python benchmarks/panoptic_memory.py [--height 3000] [--width 4000] [--things 100]

The logits of 54 classes for 12 megapixels would be 2.6 GB in float32, and the masks of 100 things as a dense stack 1.2 GB. No
network runs: logits at the stride of P2 and boxes are drawn, and `PanopticFPN` merges them. Each way runs in a process of its
own, since a process never gives back its peak. "whole" is how the original repositories do it, on all logits and masks at once;
the share of pixels that get the same segment is that of the two maps.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CLASSES = 54
WAYS = ("here", "whole")


def scene(height: int, width: int, count: int) -> Any:
    """Logits of smooth regions at the stride of P2, boxes of all sizes by descending score, masks that are disks; ImageSize."""
    import torch
    from torch.nn import functional

    from thingstuff.structures.images import ImageSize

    random = torch.Generator().manual_seed(0)
    scale = 800 / min(height, width)  # what most networks shrink images to
    input_ = (round(height * scale), round(width * scale))
    rows, columns = (-(-side // 32) * 8 for side in input_)
    coarse = 3 * torch.randn(1, CLASSES, 12, 16, generator=random)
    logits = functional.interpolate(coarse, size=(rows, columns), mode="bicubic")[0]
    corner, share = torch.rand(count, 2, generator=random), 0.02 + 0.5 * torch.rand(count, 2, generator=random) ** 2
    start = corner * (1 - share)
    boxes = torch.cat([start, start + share], dim=1) * torch.tensor([input_[1], input_[0]] * 2)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    masks = (8 * (1 - x**2 - y**2)).expand(count, 28, 28).contiguous()
    return logits, boxes, torch.linspace(0.99, 0.5, count), masks, ImageSize(input_, (height, width))


def merged_here(height: int, width: int, count: int) -> Any:
    """The library's own merge, from logits to segments; the map is made from them afterwards."""
    import torch

    from thingstuff.models.catalog import CATALOG
    from thingstuff.models.mask_rcnn import Detections
    from thingstuff.structures.categories import COCO_PANOPTIC

    kind, config, _ = CATALOG["panoptic-fpn-lite0"]
    model = kind(config).eval()
    logits, boxes, scores, masks, size = scene(height, width, count)

    def run() -> Any:
        found = Detections(boxes, scores, torch.zeros(count, dtype=torch.int64))
        return model._merged(found, masks, logits, size, COCO_PANOPTIC, config.thresholds)  # type: ignore[operator]

    return run


def merged_whole(height: int, width: int, count: int) -> Any:
    """All logits at the size of the image, all masks as dense arrays, then the rules of the merge on these."""
    import numpy as np
    import torch
    from torch.nn import functional

    from thingstuff.models.catalog import CATALOG
    from thingstuff.ops.paste import paste_crops

    limits = CATALOG["panoptic-fpn-lite0"][1].thresholds
    logits, boxes, scores, masks, size = scene(height, width, count)

    def run() -> Any:
        padded = tuple(4 * side for side in logits.shape[1:])
        full = functional.interpolate(logits[None], size=padded, mode="bilinear")[..., : size.input[0], : size.input[1]]
        stuff = functional.interpolate(full, size=size.original, mode="bilinear")[0].argmax(dim=0).numpy()
        ratio = torch.tensor([width / size.input[1], height / size.input[0]]).repeat(2)
        dense = np.zeros((count, height, width), bool)
        for canvas, (crop, (top, left)) in zip(dense, paste_crops(masks.sigmoid(), boxes * ratio, size.original), strict=True):
            canvas[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        ids, number = np.zeros((height, width), np.int32), 0
        for mask, score in zip(dense, scores.tolist(), strict=True):
            taken = (mask & (ids > 0)).sum()
            if score >= limits.merge_score and mask.any() and taken / mask.sum() <= limits.overlap and taken < mask.sum():
                number += 1
                ids[mask & (ids == 0)] = number
        for kind in range(CLASSES - 1):
            rest = (stuff == kind) & (ids == 0)
            if rest.sum() >= limits.stuff_area:
                number += 1
                ids[rest] = number
        return ids

    return run


def measure(way: str, height: int, width: int, count: int, path: Path) -> None:
    """One way: megabytes above the start and seconds as JSON, and the map as a file."""
    import numpy as np

    make = merged_here if way == "here" else merged_whole
    make(64, 96, 2)()  # what is loaded only once
    run = make(height, width, count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.save(path, result if way == "whole" else result.panoptic_map())
    print(json.dumps({"megabytes": (peak - before) / 1024, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--things", type=int, default=100)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # the child's part
    parser.add_argument("--map", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        measure(arguments.way, arguments.height, arguments.width, arguments.things, arguments.map)
        return

    import numpy as np

    print(f"{arguments.things} things and {CLASSES} classes on {arguments.height} x {arguments.width} pixels\n")
    print("| merged | peak above the start, MB | seconds |\n| --- | --- | --- |")
    maps = []
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            path = Path(folder) / f"{way}.npy"
            numbers = [f"--{name}={getattr(arguments, name)}" for name in ("height", "width", "things")]
            command = [sys.executable, __file__, *numbers, "--way", way, "--map", str(path)]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"| {way} | {result['megabytes']:.0f} | {result['seconds']:.2f} |", flush=True)
            maps.append(np.load(path))
    print(f"\nsegments {maps[0].max()} and {maps[1].max()}; {(maps[0] == maps[1]).mean():.6f} of the pixels have the same")


if __name__ == "__main__":
    main()

"""Peak memory of pasting many masks into a large image, above what the process held before.

    python benchmarks/mask_memory.py [--instances 300] [--height 3000] [--width 4000]

300 instances of 12 megapixels as a dense stack would be 3.4 GB of booleans. Each way runs in a process of its own, since a
process never gives back its peak; the boxes are of three kinds, because a crop costs what its box covers.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

KINDS = ("small", "mixed", "whole image")


def boxes_of(kind: str, count: int, height: int, width: int) -> Any:
    """Boxes x1 y1 x2 y2 of one kind, the same in every run."""
    import torch

    random = torch.Generator().manual_seed(0)
    corner, size = torch.rand(count, 2, generator=random), torch.rand(count, 2, generator=random)
    scale = torch.tensor([float(width), float(height)])
    if kind == "small":
        size = (20 + 60 * size) / scale
    elif kind == "mixed":
        size = 0.01 + 0.99 * size
    else:
        corner, size = torch.zeros(count, 2), torch.ones(count, 2)
    start = corner * scale * (1 - size)
    return torch.cat([start, start + size * scale], dim=1)


def paste(kind: str, count: int, height: int, width: int) -> None:
    """Paste with the library and print megabytes above the start, and seconds, as JSON."""
    import torch

    from thingstuff.ops.paste import paste_crops
    from thingstuff.structures.masks import Mask

    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    disk = (4 * (1 - x**2 - y**2)).sigmoid().expand(count, 28, 28).contiguous()
    boxes = boxes_of(kind, count, height, width)
    list(paste_crops(disk[:1], boxes[:1] * 0.01, (height, width), 0.5, "grid"))  # what is loaded only once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    masks = [
        Mask.from_crop(crop, corner, (height, width)) for crop, corner in paste_crops(disk, boxes, (height, width), 0.5, "grid")
    ]
    seconds = time.perf_counter() - start
    assert len(masks) == count
    assert all(mask.area > 0 for mask in masks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"megabytes": (peak - before) / 1024, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=300)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)  # the child's part
    arguments = parser.parse_args()
    if arguments.kind:
        paste(arguments.kind, arguments.instances, arguments.height, arguments.width)
        return
    dense = arguments.instances * arguments.height * arguments.width / 2**20
    print(f"{arguments.instances} instances on {arguments.height} x {arguments.width} pixels; a dense stack: {dense:.0f} MB\n")
    print("| boxes | peak above the start, MB | seconds |\n| --- | --- | --- |")
    numbers = ["--instances", str(arguments.instances), "--height", str(arguments.height), "--width", str(arguments.width)]
    for kind in KINDS:
        command = [sys.executable, __file__, *numbers, "--kind", kind]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"| {kind} | {result['megabytes']:.0f} | {result['seconds']:.2f} |")


if __name__ == "__main__":
    main()

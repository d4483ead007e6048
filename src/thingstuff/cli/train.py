"""`thingstuff train`: options -> Recipe -> a run's folder."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from thingstuff.cli.arguments import fraction, number_in, positive

_above_0 = number_in(lambda number: 0 < number < float("inf"), "a number above 0")
_at_least_0 = number_in(lambda number: 0 <= number < float("inf"), "a number from 0")


def _count(text: str) -> int:
    return 0 if text == "0" else positive(text)


@dataclass(frozen=True)
class _Option:
    """A number or name of the recipe that the command line can set; the recipe holds its default."""

    name: str  # of the recipe's field; the option is the same with dashes
    parse: Callable[[str], Any]
    help: str


OPTIONS = (
    _Option("split", str, 'split of the folder to train on ("train" where there is one)'),
    _Option("validation_split", str, 'split of the folder to validate on ("val" where there is one)'),
    _Option("validation_data", str, "another data set to validate on, a folder or a COCO file"),
    _Option("short_side", positive, "pixels of the short side that images are resized to"),
    _Option("long_side", positive, "pixels that the long side may then have"),
    _Option("backbone_weights", str, 'pretrained backbone: a file, or "imagenet" for what timm publishes'),
    _Option("steps", positive, "updates of the weights"),
    _Option("batch_size", positive, "images in a step and process"),
    _Option("accumulate", positive, "batches whose gradients are summed before the weights move"),
    _Option("learning_rate", _above_0, "learning rate at 16 images an update; the run's own follows from the real number"),
    _Option("warmup", _count, "steps in which the learning rate rises"),
    _Option("weight_decay", _at_least_0, "weight decay of AdamW"),
    _Option("clip_gradient", _above_0, "largest norm of all gradients together"),
    _Option("ema", fraction, "decay of the averaged weights, which are the ones validated and kept"),
    _Option("precision", str, '"no" (float32), "bf16" or "fp16"'),
    _Option("validate_every", positive, "steps between validations"),
    _Option("save_every", positive, "steps between saves; what a killed run loses at most"),
    _Option("max_detections", positive, "objects an image, in validation"),
    _Option("validation_images", positive, "validate on the first so many images"),
    _Option("pictures", _count, "pictures drawn at each validation"),
    _Option("seed", _count, "everything random follows from it"),
    _Option("workers", _count, "processes that prepare batches"),
    _Option("cache_megabytes", _count, "decoded images that each worker keeps, in megabytes"),
)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="DIR|JSON", required=True, help="folder with images/ and instances.json, or a COCO file"
    )
    parser.add_argument(
        "--model",
        metavar="NAME|FILE",
        required=True,
        help="an architecture, such as mask-rcnn-lite0, or a checkpoint to go on from",
    )
    parser.add_argument("--out", metavar="RUN", required=True, help="folder of the run: weights, log, pictures")
    parser.add_argument("--resume", action="store_true", help="go on with the run in this folder where it stopped")
    parser.add_argument("--json", action="store_true", help="print the last validation as one JSON object")
    recipe = parser.add_argument_group(
        "numbers of the recipe", "what is not given keeps the recipe's own value; all are in RUN/recipe.json"
    )
    for option in OPTIONS:
        recipe.add_argument(
            "--" + option.name.replace("_", "-"), type=option.parse, metavar="X", default=argparse.SUPPRESS, help=option.help
        )


def run_train(arguments: argparse.Namespace) -> int:
    from thingstuff import training

    chosen = {option.name: getattr(arguments, option.name) for option in OPTIONS if hasattr(arguments, option.name)}
    recipe = training.Recipe(data=arguments.data, model=arguments.model, out=arguments.out, **chosen)
    with contextlib.redirect_stdout(sys.stderr):  # what a run tells on its way is progress; its result alone goes to stdout
        result = training.train(recipe, resume=arguments.resume)
    if arguments.json:
        print(json.dumps(result))
    elif result:
        from thingstuff.evaluation.average_precision import format_table

        print(f"{format_table(result)}\n\nbest weights: {recipe.folder / 'best.safetensors'}")
    else:
        print(f"weights, not validated: {recipe.folder / 'last.safetensors'}")
    return 0

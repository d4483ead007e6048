"""`thingstuff train`: options -> Recipe -> a run's folder."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any, cast

from thingstuff.cli.arguments import (
    BIT_DEPTH_HELP,
    LARGEST_SIDE,
    TASKS,
    batch_size,
    bits,
    fraction,
    natural,
    not_empty,
    number_in,
    positive,
    side,
)
from thingstuff.errors import ConfigError

_above_0 = number_in(lambda number: 0 < number < float("inf"), "a number above 0")
_at_least_0 = number_in(lambda number: 0 <= number < float("inf"), "a number from 0")


def _task(text: str) -> str:
    if text not in TASKS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(TASKS)}")
    return text


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return text == "yes"


def _weights(text: str) -> tuple[tuple[str, float], ...]:
    pairs = [part.partition("=") for part in text.split(",")]
    names = [name.strip() for name, _, _ in pairs]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different names and weights such as mask=2,rpn_box=0.5")
    if bare := [name for name, equals, _ in pairs if not equals]:
        raise argparse.ArgumentTypeError(f"{bare[0].strip()!r} has no weight; give it one, such as {bare[0].strip()}=2")
    return tuple((name, _at_least_0(value)) for name, (_, _, value) in zip(names, pairs, strict=True))


@dataclass(frozen=True)
class _Option:
    """A number or name of the recipe that the command line can set."""

    name: str  # of the recipe's field; the option is the same with dashes
    parse: Callable[[str], Any]
    metavar: str
    help: str
    default: Any = None  # as the recipe has it, which takes torch to import, and a test compares; None: `help` says what it means


OPTIONS = (
    _Option("split", str, "NAME", 'split of the folder to train on ("train" where there is one)'),
    _Option("validation_split", str, "NAME", 'split of the folder to validate on ("val" where there is one)'),
    _Option("validation_data", str, "DIR|JSON", "another data set to validate on, a folder or a COCO file"),
    _Option("task", _task, "TASK", "instance, panoptic or semantic (what the model gives, where the data has it)"),
    _Option("image_dir", str, "DIR", "folder of the photos, where the data doesn't lead to them"),
    _Option("validation_image_dir", str, "DIR", "the same of the validation data (--image-dir)"),
    _Option("bit_depth", bits, "N", BIT_DEPTH_HELP),
    _Option(
        "short_side",
        side,
        "PIXELS",
        f"pixels of the short side that images are resized to, at most {LARGEST_SIDE} (as the model says)",
    ),
    _Option("long_side", side, "PIXELS", f"pixels that the long side may then have, at most {LARGEST_SIDE} (as the model says)"),
    _Option(
        "shrink",
        _yes_or_no,
        "yes|no",
        "whether larger images are made smaller, too; no where objects do not grow with them (as the model says)",
    ),
    _Option(
        "square",
        _yes_or_no,
        "yes|no",
        "whether images are stretched to short_side x short_side, so that all batches are alike (as the model says)",
    ),
    _Option(
        "backbone_weights", str, "FILE|imagenet", 'pretrained backbone: a file, or "imagenet" for what timm publishes (none)'
    ),
    _Option("steps", positive, "N", "updates of the weights", 10_000),
    _Option("batch_size", batch_size, "N", "images in a step and process", 4),
    _Option("accumulate", positive, "N", "batches whose gradients are summed before the weights move", 1),
    _Option(
        "optimizer",
        str,
        "adamw|muon",
        "what moves the weights; muon takes fewer steps, each of them longer",
        "adamw",
    ),
    _Option(
        "learning_rate",
        _above_0,
        "RATE",
        "learning rate at 16 images an update; the run's own follows from the real number",
        1e-3,
    ),
    _Option(
        "backbone_rate",
        _above_0,
        "FACTOR",
        "factor on the learning rate for the backbone; 0.1 where it is pretrained is usual",
        1.0,
    ),
    _Option(
        "freeze_levels",
        natural,
        "N",
        "first levels of a pretrained backbone that stay as they are, at most 4; 1 (C2) is usual, and faster",
        0,
    ),
    _Option("final_learning_rate", fraction, "SHARE", "share of it that the cosine ends at", 0.01),
    _Option("warmup", natural, "N", "steps in which the learning rate rises", 300),
    _Option("weight_decay", _at_least_0, "DECAY", "weight decay of kernels and matrices", 0.05),
    _Option("clip_gradient", _above_0, "NORM", "largest norm of all gradients together", 5.0),
    _Option("ema", fraction, "DECAY", "decay of the averaged weights, which are the ones validated and kept", 0.999),
    _Option(
        "loss_weights", _weights, "NAME=WEIGHT,...", "weights of losses by name, the paper's where not named: mask=2,rpn_box=0.5"
    ),
    _Option("precision", str, "no|bf16|fp16", "of the numbers: no is float32", "no"),
    _Option("validate_every", positive, "N", "steps between validations", 1000),
    _Option("save_every", positive, "N", "steps between saves; what a killed run loses at most", 200),
    _Option("max_detections", positive, "N", "objects an image, in validation", 100),
    _Option("validation_images", positive, "N", "validate on the first so many images (all)"),
    _Option("pictures", natural, "N", "pictures drawn at each validation", 3),
    _Option("seed", natural, "N", "everything random follows from it", 0),
    _Option("workers", natural, "N", "processes that prepare batches", 0),
    _Option("cache_megabytes", natural, "MB", "decoded images that each worker keeps, in megabytes", 512),
)

AUGMENTATION = (
    _Option("crop", positive, "PIXELS", "side of the square cut from the resized image (none is cut)"),
    _Option("scale_low", _above_0, "FACTOR", "images are resized by a factor drawn between this ..., 0.01 at least", 1.0),
    _Option("scale_high", _above_0, "FACTOR", "... and this, on top of the size that the model expects; 100 at most", 1.0),
    _Option("horizontal_flip", fraction, "P", "probability of being mirrored", 0.5),
    _Option(
        "vertical_flip",
        fraction,
        "P",
        "probability of being turned over; for images without an up, as from a microscope or from above",
        0.0,
    ),
    _Option("quarter_turn", fraction, "P", "probability of a rotation by 90, 180 or 270 degrees", 0.0),
    _Option("brightness", fraction, "AMOUNT", "largest relative change", 0.0),
    _Option("contrast", fraction, "AMOUNT", "largest relative change", 0.0),
    _Option("saturation", fraction, "AMOUNT", "largest relative change", 0.0),
    _Option("hue", fraction, "TURNS", "largest shift, in turns of the colour circle", 0.0),
    _Option("greyscale", fraction, "P", "probability of losing colour", 0.0),
    _Option("invert", fraction, "P", "probability of the negative", 0.0),
    _Option("copy_paste", fraction, "P", "probability that objects of another image are pasted onto it", 0.0),
    _Option("min_pixels", positive, "N", "objects of which fewer pixels are seen are left out", 1),
)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="DIR|JSON",
        type=not_empty,
        required=True,
        help="folder with images/ and instances.json or panoptic.json, such a file, or a folder of Cityscapes or VOC",
    )
    parser.add_argument(
        "--model",
        metavar="NAME|FILE",
        type=not_empty,
        required=True,
        help="an architecture, such as mask-rcnn-lite0, or a checkpoint to go on from",
    )
    parser.add_argument("--out", metavar="RUN", type=not_empty, required=True, help="folder of the run: weights, log, pictures")
    parser.add_argument("--resume", action="store_true", help="go on with the run in this folder where it stopped")
    parser.add_argument("--json", action="store_true", help="print the last validation as one JSON object")
    recipe = parser.add_argument_group(
        "numbers of the recipe", "what is not given keeps the recipe's own value; all are in RUN/recipe.json"
    )
    augmentation = parser.add_argument_group("augmentation", "what may happen to a training image; horizontal flips are on")
    for group, options in ((recipe, OPTIONS), (augmentation, AUGMENTATION)):
        for option in options:
            name = "--" + option.name.replace("_", "-")
            shown = option.help if option.default is None else f"{option.help} ({option.default})"
            group.add_argument(name, type=option.parse, metavar=option.metavar, default=argparse.SUPPRESS, help=shown)


def run_train(arguments: argparse.Namespace) -> int:
    try:
        from thingstuff import training
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise ConfigError('training needs accelerate; install it with: pip install "thingstuff[train]"') from error

    chosen = {option.name: getattr(arguments, option.name) for option in OPTIONS if hasattr(arguments, option.name)}
    recipe = training.Recipe(data=arguments.data, model=arguments.model, out=arguments.out, **chosen)
    recipe = replace(recipe, augmentation=_augmentation(arguments, recipe.augmentation))
    told = cast(IO[str], _Progress(sys.stderr))
    # what a run tells on its way is progress; its result alone goes to stdout
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        result = training.train(recipe, resume=arguments.resume)
    if not training.is_main_process():
        return 0
    if arguments.json:
        print(json.dumps(result))
    elif result:
        print(f"{training.table(result)}\n\nbest weights: {recipe.folder / 'best.safetensors'}")
    else:
        print(f"weights, not validated: {recipe.folder / 'last.safetensors'}")
    return 0


class _Progress:
    """stderr, as long as somebody reads it; a run goes on without.

    A terminal sends Ctrl-C to what reads a pipe, too: `tee` ends at once, while the run has a step to finish and to save.
    """

    def __init__(self, stream: Any):  # of text
        self._stream = stream

    def write(self, text: str) -> int:
        with self._to_nobody():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._to_nobody():
            self._stream.flush()

    @contextlib.contextmanager
    def _to_nobody(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # the stream keeps what it could not write and would fail with it at its end
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _augmentation(arguments: argparse.Namespace, default: Any) -> Any:
    chosen = {option.name: getattr(arguments, option.name) for option in AUGMENTATION if hasattr(arguments, option.name)}
    low, high = default.scale
    scale = (chosen.pop("scale_low", low), chosen.pop("scale_high", high))
    if crop := chosen.pop("crop", None):
        chosen["crop"] = (crop, crop)
    return replace(default, scale=scale, **chosen)

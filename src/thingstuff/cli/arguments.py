"""What several commands accept, and how a command line's words become numbers."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASKS = ("instance", "panoptic", "semantic")  # as models.contract.Task has them, which takes torch to import


def positive(text: str) -> int:
    """A whole number from 1."""
    try:
        number = int(text.replace("_", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie from 0 to 1")
    return number


def bits(text: str) -> int:
    """A bit depth of 16-bit samples."""
    if text not in map(str, range(8, 17)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 8 to 16")
    return int(text)


BIT_DEPTH_HELP = "bits of 16-bit images that are in use, from 8 to 16 (as the file says, else by its largest value)"


def number_in(check: Callable[[float], bool], words: str) -> Callable[[str], float]:
    """A number for which `check` holds; `words` say what that is."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not check(number):
            raise argparse.ArgumentTypeError(f"{text} is not {words}")
        return number

    return parse


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", metavar="N", type=positive, default=1, help="images that run through the network together (1)"
    )
    parser.add_argument(
        "--device", metavar="D", help='where the network runs, such as "cpu" or "cuda:1" (the GPU if there is one)'
    )
    parser.add_argument(
        "--max-pixels",
        metavar="N",
        type=positive,
        help="refuse images of more pixels; raise it for large scans you trust (200 million)",
    )
    parser.add_argument("--bit-depth", metavar="N", type=bits, help=BIT_DEPTH_HELP)


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said of how images are read."""
    return given(max_pixels=arguments.max_pixels, bit_depth=arguments.bit_depth)


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, so that the others keep the callee's own values."""
    return {name: value for name, value in options.items() if value is not None}


def shown(path: Path) -> str:
    """A path as a person would type it: relative where it lies below the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)

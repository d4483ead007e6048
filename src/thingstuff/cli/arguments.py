"""What several commands accept, and how a command line's words become numbers."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

# as models.contract.Task, segmenter and preprocessing have them, which take torch to import
TASKS = ("instance", "panoptic", "semantic")
LARGEST_BATCH = 1024
LARGEST_SIDE = 8192


def positive(text: str) -> int:
    """A whole number from 1."""
    return _whole_number(text, 1)


def natural(text: str) -> int:
    """A whole number from 0."""
    return _whole_number(text, 0)


def batch_size(text: str) -> int:
    """Images that run through a network together."""
    return _whole_number(text, 1, LARGEST_BATCH)


def side(text: str) -> int:
    """Pixels of a side of a network's input."""
    return _whole_number(text, 1, LARGEST_SIDE)


def _whole_number(text: str, lowest: int, highest: int | None = None) -> int:
    try:
        number = int(text.replace("_", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < lowest:
        raise argparse.ArgumentTypeError(f"{text} is below {lowest}")
    if highest is not None and number > highest:
        raise argparse.ArgumentTypeError(f"{text} is above {highest}")
    return number


def not_empty(text: str) -> str:
    """A path: an empty one, as of a variable that was never set, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError('is empty; name a file or folder ("." is the current folder)')
    return text


def named_path(text: str) -> Path:
    return Path(not_empty(text))


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


BIT_DEPTH_HELP = "bits of 16-bit images that are in use, from 8 to 16 (as the model or the file says, else by the largest value)"


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
        "--batch-size", metavar="N", type=batch_size, default=1, help="images that run through the network together (1)"
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

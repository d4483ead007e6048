"""`thingstuff data make-shapes`: a data set of drawn scenes, for a first training run and for tests."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from thingstuff.cli.arguments import named_path, natural, positive
from thingstuff.errors import ConfigError

if TYPE_CHECKING:
    from thingstuff.structures.panoptic import PanopticMap

IMAGES = 100
SIZE = (240, 320)  # (height, width)
SPLITS = {"train": 4.0, "val": 1.0}
JPEG_QUALITY = 92


def add_make_shapes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="DIR", type=named_path, help="the new folder")
    parser.add_argument("--images", metavar="N", type=positive, help=f"pictures in all ({IMAGES})")
    parser.add_argument("--size", metavar="WxH", type=_size, default=SIZE, help=f"of a picture, in pixels ({SIZE[1]}x{SIZE[0]})")
    parser.add_argument("--seed", metavar="S", type=natural, default=0, help="the same seed draws the same pictures (0)")
    parser.add_argument(
        "--splits",
        metavar="NAME=N,...",
        type=_splits,
        help='splits and what each gets of the pictures, as numbers or shares (train=4,val=1); "none" leaves them undivided',
    )
    parser.epilog = (
        "The folder gets images/, and for each split instances_<split>.json (things), panoptic_<split>.json and its PNGs "
        "(things and stuff). Whole numbers in --splits are numbers of pictures where --images is not given."
    )


def run_make_shapes(arguments: argparse.Namespace) -> int:
    from PIL import Image
    from tqdm import tqdm

    from thingstuff.cli.data import new_folder
    from thingstuff.cli.data_files import write_panoptic_split
    from thingstuff.data.shapes import CATEGORIES, scenes

    counts = split_counts(arguments.splits, arguments.images)
    total = sum(counts.values())
    drawn = scenes(total, arguments.size, arguments.seed)
    out: Path = arguments.out
    bar = tqdm(total=total, desc="draw", unit="image", disable=None)

    def saved(first: int, count: int) -> "Iterator[tuple[int, str, PanopticMap]]":
        for number in range(first, first + count):
            scene = next(drawn)
            name = f"scene-{number:06d}.jpg"
            Image.fromarray(scene.image).save(out / "images" / name, quality=JPEG_QUALITY)
            bar.update()
            yield number, name, scene.panoptic

    first, lines = 1, []
    with new_folder(out, "DIR"), bar:
        (out / "images").mkdir()
        for split, count in counts.items():
            written = write_panoptic_split(out, split, saved(first, count), CATEGORIES)
            first += count
            segments = [CATEGORIES[found.class_].is_thing for record in written for found in record.objects]
            where = out if split is None else f"{out}, split {split}"
            lines.append(f"{where}: {count} images, {sum(segments)} things, {len(segments) - sum(segments)} regions of stuff")
    print("\n".join(lines))
    return 0


def split_counts(splits: Mapping[str, int | float] | None, images: int | None) -> dict[str | None, int]:
    """Pictures of each split: its part of `images`, largest remainders rounded up, one at least; None is the undivided set.

    Raises:
        ConfigError: there are more splits than pictures.
    """
    if splits == {}:
        return {None: images or IMAGES}
    if images is None:
        whole = splits is not None and all(part == int(part) for part in splits.values())
        images = int(sum(splits.values())) if splits is not None and whole else IMAGES
    parts = splits or SPLITS
    exact = {name: images * part / sum(parts.values()) for name, part in parts.items()}
    counts: dict[str | None, int] = {name: int(number) for name, number in exact.items()}
    for name in sorted(exact, key=lambda name: int(exact[name]) - exact[name])[: images - sum(counts.values())]:
        counts[name] += 1
    if images < len(counts):
        raise ConfigError(f"{images} images can't be divided into {len(counts)} splits; raise --images, or change --splits")
    for name in [name for name, count in counts.items() if not count]:
        counts[max(counts, key=lambda each: counts[each])] -= 1
        counts[name] = 1
    return counts


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    try:
        return positive(height), positive(width)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and a height such as 320x240") from None


def _splits(text: str) -> dict[str, float]:
    if text == "none":
        return {}
    splits: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (word.strip() for word in part.partition("="))
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not (name.isidentifier() and 0 < share < float("inf")) or name in splits:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of different names and numbers such as train=80,val=20")
        splits[name] = share
    return splits

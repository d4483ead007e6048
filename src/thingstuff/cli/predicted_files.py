"""What `thingstuff predict` writes: for each image a picture and its segments, and all of them in COCO's formats."""

import glob
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thingstuff.cli.arguments import shown
from thingstuff.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from thingstuff.structures.categories import Categories
    from thingstuff.structures.segments import Segments

RESULTS = "predictions.json"  # COCO results
PANOPTIC = "panoptic.json"  # COCO panoptic, where segments tile the image; the PNGs lie in the folder named like it
MAP = ".panoptic"  # what the name of an image's own map has behind its stem
INFO = {"description": "predictions of thingstuff"}  # tells the file from somebody's truth
WRITERS = 2  # threads that draw and save while the network goes on
WAITING = 8  # images predicted and not yet saved, at most: each holds its pixels


@dataclass(frozen=True)
class Input:
    """One image to predict, and what its outputs are called."""

    path: Path
    file_name: str  # as the results call it: relative to the folder that holds all inputs
    image_id: int  # in the results
    stem: str  # of its outputs


@dataclass(frozen=True)
class Written:
    """What was written for one image, and what the files of all images say of it."""

    rows: list[dict[str, Any]]  # of COCO results
    counts: Counter[str]  # of each category's name
    panoptic: tuple[dict[str, Any], dict[str, Any]] | None  # image and annotation of COCO panoptic


def refuse_among_inputs(words: Sequence[str], inputs: Sequence[Input], out: Path) -> None:
    """Make sure that pictures don't come among images that a folder or a pattern stands for: the next time they would be inputs.

    Raises:
        ConfigError: they would; files that were named one by one may lie where they like.
    """
    named = {Path(word) for word in words}
    for each in inputs:
        if each.path not in named and os.path.dirname(os.path.realpath(each.path)) == os.path.realpath(out):
            raise ConfigError(
                f"{shown(out)} is the folder of {each.path.name}; the pictures would lie among the images and be taken for some "
                "the next time; give another folder to --out"
            )
    for word in words:
        if glob.has_magic(word) and not Path(word).exists() and any(_finds(word, out, f"{each.stem}.png") for each in inputs):
            raise ConfigError(
                f"{word} would find the pictures in {shown(out)} and take them for images the next time; give another folder to "
                "--out, or a narrower pattern"
            )


def _finds(pattern: str, folder: Path, name: str) -> bool:
    """Whether a pattern would find a file once it is in the folder."""
    parts = Path(os.path.expanduser(pattern)).absolute().parts
    plain = list(takewhile(lambda part: not glob.has_magic(part), parts))
    root, path = Path(*plain).resolve(), folder.resolve() / name
    return path.is_relative_to(root) and _match(parts[len(plain) :], path.relative_to(root).parts)


def _match(wanted: Sequence[str], parts: Sequence[str]) -> bool:
    """As glob does it: "**" is any number of folders, and what is hidden is not found unless the pattern says so."""
    if not wanted or not parts:
        return not parts and all(part == "**" for part in wanted)
    first = parts[0]
    if wanted[0] == "**":
        return _match(wanted[1:], parts) or (not first.startswith(".") and _match(wanted, parts[1:]))
    hidden = first.startswith(".") and not wanted[0].startswith(".")
    return not hidden and fnmatch(first, wanted[0]) and _match(wanted[1:], parts[1:])


def refuse_overwriting(inputs: Sequence[Input], out: Path, tiles: bool) -> None:
    """Make sure that no output takes the place of an input, or of a file that is not ours.

    Args:
        tiles: whether panoptic maps are written.

    Raises:
        ConfigError: the picture of an image would be written over an image, or its segments over somebody's JSON or PNG.
    """
    real = {os.path.realpath(each.path) for each in inputs}  # resolve fails on links in a circle
    for each in inputs:
        for name in (f"{each.stem}.png", f"{each.stem}{MAP}.png"):
            if os.path.realpath(out / name) in real:
                raise ConfigError(
                    f"{shown(out / name)} would be overwritten with a picture of itself; give another folder to --out"
                )
            # beside each picture of ours lies its JSON, whose origin is looked at below
            if (out / name).is_file() and not (out / f"{each.stem}.json").is_file():
                raise ConfigError(f"{shown(out / name)} is there and was not written by predict; give another folder to --out")
    for written in (*(out / f"{each.stem}.json" for each in inputs), out / RESULTS, *([out / PANOPTIC] if tiles else [])):
        if written.is_file() and not _is_ours(written):
            raise ConfigError(f"{shown(written)} is there and was not written by predict; give another folder to --out")
    pngs = out / Path(PANOPTIC).stem
    if tiles and not (out / PANOPTIC).is_file() and pngs.is_dir() and any(pngs.iterdir()):
        raise ConfigError(f"{shown(pngs)} is there and was not written by predict; give another folder to --out")


def _is_ours(path: Path) -> bool:
    """Whether a JSON file is a result of an earlier run, or empty."""
    try:
        content = json.loads(path.read_bytes() or b"[]")
    except (OSError, ValueError, RecursionError):
        return False
    if isinstance(content, list):
        return all(isinstance(row, dict) and {"image_id", "score", "segmentation"} <= row.keys() for row in content)
    return isinstance(content, dict) and (content.keys() == {"image", "segments"} or content.get("info") == INFO)


def make_folders(out: Path, tiles: bool) -> None:
    try:
        (out / Path(PANOPTIC).stem if tiles else out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: can't be made a folder for the results ({error.strerror or error})") from error


def written_files(
    found: Iterator[tuple[Input, "Segments | ImageError"]], total: int, out: Path
) -> Iterator[tuple[Input, "Written | ImageError"]]:
    """Each input with what was written for it, in order; a bar shows how far the work is, complaints stand above it."""
    from tqdm import tqdm

    with ThreadPoolExecutor(WRITERS) as writers, tqdm(total=total, desc="predict", unit="image", disable=None) as bar:
        waiting: deque[tuple[Input, Future[Written] | ImageError]] = deque()

        def next_done() -> tuple[Input, Written | ImageError]:
            each, outcome = waiting.popleft()
            if isinstance(outcome, ImageError):
                bar.write(f"thingstuff: {outcome}", file=sys.stderr)
            bar.update()
            return each, outcome if isinstance(outcome, ImageError) else outcome.result()

        try:
            for each, answer in found:
                waiting.append((each, answer if isinstance(answer, ImageError) else writers.submit(_write, each, answer, out)))
                if len(waiting) >= WAITING:
                    yield next_done()
            while waiting:
                yield next_done()
        finally:
            writers.shutdown(wait=False, cancel_futures=True)  # after an error or Ctrl-C, what waits is not written any more


def _write(each: Input, segments: "Segments", out: Path) -> Written:
    from thingstuff import visuals
    from thingstuff.formats import coco, coco_panoptic
    from thingstuff.structures.panoptic import PanopticMap

    assert segments.image is not None
    tiles = not segments.overlapping
    visuals.save(out / f"{each.stem}.png", visuals.overlay(segments.image, segments, legend=tiles))
    coco.write_json(out / f"{each.stem}.json", coco.document(segments, each.file_name))
    entries = None
    if tiles:
        panoptic = PanopticMap.from_segments(segments)
        png = coco_panoptic.png_of(panoptic)
        name = f"{each.stem}.png"
        for path in (out / f"{each.stem}{MAP}.png", out / Path(PANOPTIC).stem / name):
            path.write_bytes(png)
        entries = coco_panoptic.entries(each.image_id, each.file_name, name, panoptic)
    counts = Counter(one.category.name for one in segments)
    return Written(coco.results(segments, each.image_id, each.file_name), counts, entries)


def write_whole(out: Path, written: Sequence[Written], categories: "Categories", tiles: bool) -> None:
    """The files that tell of all images."""
    from thingstuff.formats.coco import write_json

    write_json(out / RESULTS, [row for each in written for row in each.rows])
    if tiles:
        entries = [each.panoptic for each in written if each.panoptic is not None]
        images, annotations = [image for image, _ in entries], [annotation for _, annotation in entries]
        content = {"info": INFO, "images": images, "annotations": annotations, "categories": categories.to_coco()}
        write_json(out / PANOPTIC, content)

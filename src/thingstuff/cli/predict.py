"""`thingstuff predict`: files -> images -> Segmenter -> Segments -> pictures and JSON in one folder."""

import argparse
import glob
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thingstuff.cli.arguments import TASKS, add_inference_arguments, fraction, named_path, not_empty, positive, reading
from thingstuff.cli.predicted_files import (
    MAP,
    PANOPTIC,
    RESULTS,
    Input,
    Written,
    make_folders,
    refuse_among_inputs,
    refuse_overwriting,
    write_whole,
    written_files,
)
from thingstuff.errors import ConfigError, ImageError

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".avif", ".jp2", ".j2k"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".sgi", ".dds", ".qoi"),
)


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IMAGE",
        type=not_empty,
        help="image files, folders of images, or patterns such as 'scans/**/*.tif'",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=named_path, required=True, help="folder for the results; made when it is missing"
    )
    parser.add_argument(
        "--model",
        metavar="NAME|FILE",
        type=not_empty,
        default="people",
        help='a bundled model\'s name or a checkpoint file ("people")',
    )
    parser.add_argument(
        "--score", metavar="S", type=fraction, help="keep objects scored higher, from 0 to 1 (0.5; panoptic: as the model says)"
    )
    parser.add_argument(
        "--max-detections", metavar="N", type=positive, help="at most so many objects an image (as the model says)"
    )
    parser.add_argument("--task", choices=TASKS, help="what to ask for, of what the model knows (as the model says)")
    add_inference_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.epilog = (
        "For each image the folder gets <stem>.png, the picture with its objects, and <stem>.json, the objects with their masks "
        f"(COCO RLE); {RESULTS} holds all of them as COCO results. Panoptic and semantic models also write <stem>{MAP}.png, the "
        f"map of segment ids (R + 256 G + 65536 B), and {PANOPTIC} with its folder of PNGs, for evaluate. Of a folder the "
        "images directly in it are taken."
    )


def run_predict(arguments: argparse.Namespace) -> int:
    inputs, missing = find_inputs(arguments.inputs)
    refuse_among_inputs(arguments.inputs, inputs, arguments.out)
    refuse_overwriting(inputs, arguments.out, tiles=False)  # before a model is loaded for nothing

    from thingstuff.models.contract import Task
    from thingstuff.segmenter import load

    segmenter = load(arguments.model, device=arguments.device)
    task = segmenter.task if arguments.task is None else Task(arguments.task)
    segmenter.thresholds(task=task)  # says what the model does not know before anything is written
    tiles = task is not Task.INSTANCE
    found = segmenter.stream(
        [each.path for each in inputs],
        score_threshold=arguments.score,
        max_detections=arguments.max_detections,
        batch_size=arguments.batch_size,
        task=task,
        **reading(arguments),
    )
    refuse_overwriting(inputs, arguments.out, tiles)
    make_folders(arguments.out, tiles)
    failed = [{"image": word, "error": f"{word}: {reason}"} for word, reason in missing]
    for failure in failed:
        _complain(failure["error"])

    started = time.perf_counter()
    counts: Counter[str] = Counter()
    written: list[Written] = []
    answers = zip(inputs, (answer for _, answer in found), strict=True)
    for each, result in written_files(answers, len(inputs), arguments.out):
        if isinstance(result, ImageError):
            failed.append({"image": str(each.path), "error": str(result)})
        else:
            written.append(result)
            counts.update(result.counts)
    seconds = time.perf_counter() - started
    write_whole(arguments.out, written, segmenter.categories, tiles)

    done = len(inputs) + len(missing) - len(failed)
    summary = {
        "images": done,
        "segments": sum(counts.values()),
        "counts": dict(counts.most_common()),
        "failed": failed,
        "seconds": round(seconds, 3),
        "images_per_second": round(done / seconds, 3),
        "out": str(arguments.out),
    }
    print(json.dumps(summary, ensure_ascii=False) if arguments.json else _in_words(summary))
    return 1 if failed else 0


# Inputs ---------------------------------------------------------------------------------------------------------------


def find_inputs(words: Sequence[str]) -> tuple[list[Input], list[tuple[str, str]]]:
    """The images that files, folders and patterns stand for, each once, and the words that stand for none, with the reason.

    A file is taken whatever its name; from folders and patterns, what is named like an image and not hidden.

    Raises:
        ConfigError: there is no image at all.
    """
    paths: dict[Path, Path] = {}  # by the real path, so that an image named twice is taken once
    missing: list[tuple[str, str]] = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            matches, reason = _images_among(path.iterdir()), "no images in this folder (folders below it are not searched)"
        elif path.exists() or not glob.has_magic(word):
            matches, reason = [path] if path.exists() else [], "no such file or folder"
        else:
            matches = _images_among(Path(match) for match in glob.glob(os.path.expanduser(word), recursive=True))
            reason = "no image matches this pattern"
        if not matches:
            missing.append((word, reason))
        for match in matches:
            paths.setdefault(match.resolve() if match.exists() else match.absolute(), match)
    if not paths:
        raise ConfigError("no image found: " + "; ".join(f"{word}: {reason}" for word, reason in missing))
    return named(list(paths.values())), missing


def _images_among(paths: Any) -> list[Path]:
    """Files named like images; links that lead nowhere, too, so that reading them tells of it."""
    named_so = (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in named_so if path.is_file() or (path.is_symlink() and not path.exists()))


def named(paths: Sequence[Path]) -> list[Input]:
    """Give each image a stem of its own, on file systems that ignore case too: a.png, a.jpg, b/a.png become a, a-2, a-3.

    No stem is another one with what the names of maps have behind it.
    """
    from thingstuff.formats.coco import image_ids

    home = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    file_names = [path.absolute().relative_to(home).as_posix() for path in paths]
    own_stems = {path.stem.casefold() for path in paths}
    taken = {Path(RESULTS).stem, Path(PANOPTIC).stem}
    inputs = []
    for path, file_name, image_id in zip(paths, file_names, image_ids(file_names), strict=True):
        stem, number = path.stem, 1
        while not taken.isdisjoint(_names(stem)) or (number > 1 and stem.casefold() in own_stems):
            number += 1
            stem = f"{path.stem}-{number}"
        taken.update(_names(stem))
        inputs.append(Input(path, file_name, image_id, stem))
    return inputs


def _names(stem: str) -> set[str]:
    """What outputs are called, without endings."""
    return {stem.casefold(), f"{stem}{MAP}".casefold()}


# What is told ------------------------------------------------------------------------------------------------------


def _complain(text: str) -> None:
    print(f"thingstuff: {text}", file=sys.stderr)


def _in_words(summary: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in summary["counts"].items()) or "nothing found"
    images = f"{summary['images']} image{'' if summary['images'] == 1 else 's'}"
    failures = f", {len(summary['failed'])} failed" if summary["failed"] else ""
    return f"{images}: {counts} ({summary['images_per_second']:.2f} images/s{failures}) -> {summary['out']}"

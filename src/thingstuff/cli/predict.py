"""`thingstuff predict`: files -> images -> Segmenter -> Segments -> pictures and JSON in one folder."""

import argparse
import glob
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thingstuff.cli.arguments import add_inference_arguments, fraction, given, positive, shown
from thingstuff.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from thingstuff.structures.segments import Segments

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".avif", ".jp2", ".j2k"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".pcx", ".sgi", ".dds", ".qoi"),
)
RESULTS = "predictions.json"
WRITERS = 2  # threads that draw and save while the network goes on
WAITING = 8  # images predicted and not yet saved, at most: each holds its pixels


@dataclass(frozen=True)
class Input:
    """One image to predict, and what its outputs are called."""

    path: Path
    file_name: str  # as the results call it: relative to the folder that holds all inputs
    image_id: int  # in the results
    stem: str  # of its outputs


def add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="IMAGE", help="image files, folders of images, or patterns such as 'scans/**/*.tif'"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the results; made when it is missing")
    parser.add_argument(
        "--model", metavar="NAME|FILE", default="nuclei", help='a bundled model\'s name or a checkpoint file ("nuclei")'
    )
    parser.add_argument(
        "--score", metavar="S", type=fraction, help="keep objects scored higher, from 0 to 1 (0.5; panoptic: as the model says)"
    )
    parser.add_argument(
        "--max-detections", metavar="N", type=positive, help="at most so many objects an image (as the model says)"
    )
    add_inference_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.epilog = (
        "For each image the folder gets <stem>.png, the picture with its objects, and <stem>.json, the objects with their masks "
        f"(COCO RLE); {RESULTS} holds all of them as COCO results. Of a folder the images directly in it are taken."
    )


def run_predict(arguments: argparse.Namespace) -> int:
    inputs, missing = find_inputs(arguments.inputs)
    inputs = without_overwriting(inputs, arguments.out)

    from thingstuff.formats.coco import write_json
    from thingstuff.segmenter import load

    segmenter = load(arguments.model, device=arguments.device)
    _make_folder(arguments.out)
    failed = [{"image": word, "error": f"{word}: {reason}"} for word, reason in missing]
    for failure in failed:
        _complain(failure["error"])

    started = time.perf_counter()
    counts: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    found = segmenter.stream(
        [each.path for each in inputs],
        score_threshold=arguments.score,
        max_detections=arguments.max_detections,
        batch_size=arguments.batch_size,
        **given(max_pixels=arguments.max_pixels),
    )
    for each, result in _written(zip(inputs, (answer for _, answer in found), strict=True), len(inputs), arguments.out):
        if isinstance(result, ImageError):
            failed.append({"image": str(each.path), "error": str(result)})
        else:
            rows += result.rows
            counts.update(result.counts)
    seconds = time.perf_counter() - started
    write_json(arguments.out / RESULTS, rows)

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
            paths.setdefault(match.resolve(), match)
    if not paths:
        raise ConfigError("no image found: " + "; ".join(f"{word}: {reason}" for word, reason in missing))
    return named(list(paths.values())), missing


def _images_among(paths: Any) -> list[Path]:
    return sorted(
        path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def named(paths: Sequence[Path]) -> list[Input]:
    """Give each image a stem of its own, on file systems that ignore case too: a.png, a.jpg, b/a.png become a, a-2, a-3."""
    from thingstuff.formats.coco import image_ids

    home = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    file_names = [path.absolute().relative_to(home).as_posix() for path in paths]
    own_stems = {path.stem.casefold() for path in paths}
    taken = {Path(RESULTS).stem}
    inputs = []
    for path, file_name, image_id in zip(paths, file_names, image_ids(file_names), strict=True):
        stem, number = path.stem, 1
        while stem.casefold() in taken or (number > 1 and stem.casefold() in own_stems):
            number += 1
            stem = f"{path.stem}-{number}"
        taken.add(stem.casefold())
        inputs.append(Input(path, file_name, image_id, stem))
    return inputs


def without_overwriting(inputs: Sequence[Input], out: Path) -> list[Input]:
    """The inputs again, once it is sure that no output takes the place of one.

    Raises:
        ConfigError: the picture of an image would be written over an image, or its segments over somebody's JSON.
    """
    real = {each.path.resolve() for each in inputs}
    for each in inputs:
        if (out / f"{each.stem}.png").resolve() in real:
            raise ConfigError(
                f"{shown(out / each.stem)}.png would be overwritten with a picture of itself; give another folder to --out"
            )
    for written in (*(out / f"{each.stem}.json" for each in inputs), out / RESULTS):
        if written.is_file() and not _is_ours(written):
            raise ConfigError(f"{shown(written)} is there and was not written by predict; give another folder to --out")
    return list(inputs)


def _is_ours(path: Path) -> bool:
    """Whether a JSON file is a result of an earlier run, or empty."""
    try:
        content = json.loads(path.read_bytes() or b"[]")
    except (OSError, ValueError, RecursionError):
        return False
    if isinstance(content, list):
        return all(isinstance(row, dict) and {"image_id", "score", "segmentation"} <= row.keys() for row in content)
    return isinstance(content, dict) and content.keys() == {"image", "segments"}


# Outputs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Written:
    rows: list[dict[str, Any]]  # COCO results
    counts: Counter[str]  # of each category's name


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: can't be made a folder for the results ({error.strerror or error})") from error


def _written(
    found: Iterator[tuple[Input, "Segments | ImageError"]], total: int, out: Path
) -> Iterator[tuple[Input, "_Written | ImageError"]]:
    """Each input with what was written for it, in order; a bar shows how far the work is, complaints stand above it."""
    from tqdm import tqdm

    with ThreadPoolExecutor(WRITERS) as writers, tqdm(total=total, desc="predict", unit="image", disable=None) as bar:
        waiting: deque[tuple[Input, Future[_Written] | ImageError]] = deque()

        def next_done() -> tuple[Input, _Written | ImageError]:
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


def _write(each: Input, segments: "Segments", out: Path) -> _Written:
    from thingstuff import visuals
    from thingstuff.formats import coco

    assert segments.image is not None
    visuals.save(out / f"{each.stem}.png", visuals.overlay(segments.image, segments))
    coco.write_json(out / f"{each.stem}.json", coco.document(segments, each.file_name))
    return _Written(coco.results(segments, each.image_id, each.file_name), Counter(one.category.name for one in segments))


def _complain(text: str) -> None:
    print(f"thingstuff: {text}", file=sys.stderr)


def _in_words(summary: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in summary["counts"].items()) or "nothing found"
    images = f"{summary['images']} image{'' if summary['images'] == 1 else 's'}"
    failures = f", {len(summary['failed'])} failed" if summary["failed"] else ""
    return f"{images}: {counts} ({summary['images_per_second']:.2f} images/s{failures}) -> {summary['out']}"

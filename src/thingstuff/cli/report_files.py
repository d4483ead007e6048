"""The folder of a report: report.json with every number, report.html to look at."""

import json
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thingstuff.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from thingstuff.evaluation.report import Picture

REPORT, PAGE = "report.json", "report.html"
LONG_SIDE = 900  # pixels of a photo in the page
QUALITY = 80  # of its JPEG


def make_folder(out: Path) -> None:
    """Make the folder now, so that hours of work don't end in a name that can't be written.

    Raises:
        ConfigError: it can't be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: can't be made a folder for the report ({error.strerror or error})") from error


def write_report(out: Path, report: dict[str, Any], pictures: "Sequence[Picture]") -> Path:
    """Write both files, and give the path of the page."""
    from thingstuff.evaluation.report import render

    # ASCII, since names may hold half characters that UTF-8 has no place for
    write_text(out / REPORT, json.dumps(report, allow_nan=False, separators=(",", ":")) + "\n")
    write_text(out / PAGE, render(report, pictures))
    return out / PAGE


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ConfigError(f"{path}: can't be written ({error.strerror or error})") from error


def photo(path: Path | None, size: tuple[int, int], **limits: Any) -> bytes | None:
    """A small JPEG of an image; None where there is no image of this (height, width)."""
    from PIL import Image

    from thingstuff.structures.images import read_image

    if path is None or not path.is_file():
        return None
    try:
        pixels = read_image(path, **limits)
    except ImageError:
        return None
    if pixels.shape[:2] != tuple(size):
        return None
    grey = bool((pixels[..., :1] == pixels).all())
    picture = Image.fromarray(pixels[..., 0] if grey else pixels)
    picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=QUALITY, optimize=True)
    return encoded.getvalue()


def legible(name: str) -> str:
    """A file name as text that can be written: names may hold bytes that are no text."""
    return name.encode("utf-8", "replace").decode("utf-8")

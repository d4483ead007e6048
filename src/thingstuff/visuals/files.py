"""Pictures to files."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thingstuff.errors import ConfigError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def save(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture; its suffix says how. The folder is made when it is missing.

    Raises:
        ConfigError: the suffix is not one of SUFFIXES, or the file can't be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: can't tell the picture's format from its name; end it with one of {', '.join(SUFFIXES)}")
    options: dict[str, Any] = {".png": {"compress_level": 4}, ".jpg": {"quality": 92}, ".jpeg": {"quality": 92}}.get(
        path.suffix.lower(), {}
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, **options)
    except OSError as error:
        raise ConfigError(f"{path}: the picture can't be written there ({error.strerror or error})") from error

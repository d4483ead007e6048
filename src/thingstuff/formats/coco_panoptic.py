"""Segments and panoptic maps to COCO's panoptic format (https://cocodataset.org/#format-data, part 4).

A JSON file lists the segments of each image; a PNG per image, in the folder named like the JSON file without its ending, paints
their ids: R + 256 G + 65536 B, 0 for void. Ground truth and predictions have one form here; panopticapi reads both.
"""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from thingstuff.errors import AnnotationError, ConfigError, MaskError
from thingstuff.formats.coco import ImageId, write_json
from thingstuff.structures.categories import Categories
from thingstuff.structures.panoptic import LARGEST_ID, PanopticMap, tight_boxes
from thingstuff.structures.segments import Segments


def colours_of(ids: Integer[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """The RGB picture that paints these ids.

    Raises:
        MaskError: an id has no colour.
    """
    if ids.size and not (ids.min() >= 0 and ids.max() <= LARGEST_ID):
        raise MaskError(
            f"ids {ids.min()} to {ids.max()} do not fit the colours of a PNG, 0 to {LARGEST_ID}; number segments from 1"
        )
    return np.ascontiguousarray(ids.astype("<u4")).view(np.uint8).reshape(*ids.shape, 4)[..., :3]


def segments_info(panoptic: PanopticMap) -> list[dict[str, Any]]:
    """What the JSON file lists of one image: id, category_id, iscrowd, area in pixels, bbox (x y width height).

    Areas and boxes are those painted; a segment without a pixel is left out, since the format has no place for it.

    Raises:
        AnnotationError: the map paints an id that belongs to no segment.
    """
    index = panoptic.index_map()
    areas = np.bincount(index.ravel(), minlength=len(panoptic) + 2)
    if areas[-1]:
        raise AnnotationError(f"segment {panoptic.unlisted()[0]} is painted but not listed; list it, or paint it void (0)")
    boxes = tight_boxes(index, len(panoptic))
    return [
        {
            "id": segment_id,
            "category_id": panoptic.categories.ids[class_],
            "iscrowd": int(crowd),
            "area": area,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
        }
        for segment_id, class_, crowd, area, (x1, y1, x2, y2) in zip(
            panoptic.segment_ids.tolist(),
            panoptic.classes.tolist(),
            panoptic.crowd.tolist(),
            areas[1:-1].tolist(),
            boxes.tolist(),
            strict=True,
        )
        if area
    ]


def entries(image_id: ImageId, file_name: str, png_name: str, panoptic: PanopticMap) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the lists "images" and "annotations" of the JSON file say of one image.

    Raises:
        AnnotationError: the map paints an id that belongs to no segment.
    """
    height, width = panoptic.size
    image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
    return image, {"image_id": image_id, "file_name": png_name, "segments_info": segments_info(panoptic)}


def png_of(panoptic: PanopticMap) -> bytes:
    """The PNG that paints a map's ids.

    Raises:
        MaskError: an id has no colour.
    """
    encoded = BytesIO()
    Image.fromarray(colours_of(np.asarray(panoptic.numpy().ids))).save(encoded, "PNG")
    return encoded.getvalue()


def write_panoptic(
    path: str | Path, images: Iterable[tuple[ImageId, str, PanopticMap | Segments]], categories: Categories
) -> None:
    """Write a set of images: `path` (JSON) and the folder of PNGs named like it. One image is held at a time.

    Args:
        images: image id, file name of the photo (its stem names the PNG), and its segments; Segments that overlap are painted by
            score, as in `Segments.panoptic_map`.
        categories: of the file. Every image's segments must be of them.

    Raises:
        AnnotationError: an id or a name comes twice, a category is not in the file, or a map contradicts its segments.
        MaskError: a segment id is larger than a colour.
        ConfigError: the files can't be written.
    """
    path = Path(path)
    folder = path.with_suffix("")
    if folder == path:
        raise ConfigError(f"{path}: needs an ending such as .json; its PNGs go to the folder named like it without the ending")
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    taken: set[ImageId] = set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for image_id, file_name, segments in images:
            name = f"{_stem(file_name)}.png"
            if image_id in taken or name.lower() in taken:
                raise AnnotationError(f"image {image_id} ({file_name}): the id, or the name {name}, is an earlier image's")
            taken |= {image_id, name.lower()}
            panoptic = segments if isinstance(segments, PanopticMap) else PanopticMap.from_segments(segments)
            try:
                image, annotation = entries(image_id, file_name, name, panoptic)
                for row in annotation["segments_info"]:
                    categories.class_of(row["category_id"])
                png = png_of(panoptic)
            except (AnnotationError, MaskError) as error:
                raise type(error)(f"image {image_id} ({file_name}): {error}") from error
            (folder / name).write_bytes(png)
            listed.append(image)
            annotations.append(annotation)
    except OSError as error:
        raise ConfigError(f"{folder}: can't be written ({error.strerror or error})") from error
    write_json(path, {"images": listed, "annotations": annotations, "categories": categories.to_coco()})


def _stem(file_name: str) -> str:
    """The photo's name without folders and ending: a name from elsewhere never leads out of the folder."""
    stem = PurePath(PureWindowsPath(file_name).name).stem
    if stem in ("", ".", "..") or "\0" in stem:
        raise AnnotationError(f"file name {file_name!r} names no file; give the photo's name")
    return stem

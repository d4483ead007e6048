"""What commands work on: a tiny model with random weights, and a data set of two drawn images per split."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in a folder of their own, where what they write by default stays."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint file. Its weights are random, so it finds nonsense, but always the same nonsense."""
    import torch

    from thingstuff.models.catalog import CATALOG
    from thingstuff.segmenter import Segmenter
    from thingstuff.structures.categories import Categories, Category

    model_class, config, preprocessing = CATALOG["mask-rcnn-tiny"]
    categories = Categories(tuple(Category(number, name) for number, name in ((4, "disk"), (7, "square"), (9, "bird"))))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        segmenter = Segmenter(model_class(config), categories, preprocessing)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    segmenter.save(path)
    return path


def drawn(seed: int, height: int = 72, width: int = 96) -> np.ndarray:
    """A grey image with a bright square and a bright disk."""
    image = np.random.default_rng(seed).integers(30, 60, (height, width, 3), dtype=np.uint8)
    image[20:44, 10:34] = (200, 180, 90)
    y, x = np.ogrid[:height, :width]
    image[(y - 40) ** 2 + (x - 70) ** 2 < 200] = (90, 120, 220)
    return image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with what people's folders hold: two images, one of a single pixel, two broken ones, a hidden one and a text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(drawn(1)).save(folder / "b.png")
    Image.fromarray(drawn(2)).convert("L").save(folder / "a.JPG")
    Image.new("RGB", (1, 1), "red").save(folder / "dot.png")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:2000])
    (folder / ".hidden.png").write_bytes((folder / "b.png").read_bytes())
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A data set folder with the splits train and val: squares as polygons, disks as uncompressed run-length code."""
    folder = tmp_path / "my-data"
    (folder / "images").mkdir(parents=True)
    y, x = np.ogrid[:72, :96]
    disk = (y - 40) ** 2 + (x - 70) ** 2 < 200
    changes = np.flatnonzero(np.diff(disk.ravel(order="F"), prepend=False, append=False))
    counts = np.diff(changes, prepend=0, append=disk.size if changes[-1] < disk.size else changes[-1]).tolist()
    for split, seeds in {"train": (1, 2), "val": (3, 4)}.items():
        images, annotations = [], []
        for seed in seeds:
            Image.fromarray(drawn(seed)).save(folder / "images" / f"shape-{seed}.png")
            images.append({"id": 10 * seed, "file_name": f"shape-{seed}.png", "height": 72, "width": 96})
            square = {"category_id": 7, "segmentation": [[10, 20, 34, 20, 34, 44, 10, 44]], "area": 576, "bbox": [10, 20, 24, 24]}
            round_ = {"category_id": 4, "segmentation": {"size": [72, 96], "counts": counts}, "area": int(disk.sum())}
            for number, annotation in enumerate((square, {**round_, "bbox": [56, 26, 29, 29]})):
                annotations.append({"id": 10 * seed + number, "image_id": 10 * seed, "iscrowd": 0, **annotation})
        categories = [{"id": 4, "name": "disk"}, {"id": 7, "name": "square"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder

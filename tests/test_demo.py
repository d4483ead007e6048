"""The demo images that come with the package."""

import hashlib
import json
from pathlib import Path

import pytest

from thingstuff import demo
from thingstuff.structures.images import read_image

KINDS = {"people": 2, "nuclei": 5}
ROWS = [
    [cell.strip() for cell in line.split("|")]
    for line in Path(demo.__file__).with_name("README.md").read_text().splitlines()
    if ".png" in line
]


def test_small_images_of_every_kind_can_be_read():
    assert {kind: len(demo.images(kind)) for kind in KINDS} == KINDS
    found = [path for kind in KINDS for path in demo.images(kind)]
    assert sum(path.stat().st_size for path in found) < 2_000_000
    for path in found:
        assert read_image(path).shape[2] == 3


def test_the_readme_names_every_image_with_its_size():
    listed = {row[1]: row[3] for row in ROWS}
    sizes = {path.name: read_image(path).shape[:2] for kind in KINDS for path in demo.images(kind)}
    assert listed == {name: f"{width} x {height}" for name, (height, width) in sizes.items()}


@pytest.mark.parametrize("path", demo.images("nuclei"), ids=lambda path: path.stem)
def test_an_image_of_nuclei_is_of_the_validation_split_byte_for_byte(path: Path, shared_data: Path):
    [row] = [row for row in ROWS if row[1] == path.name]
    assert len(row[5]) == 64
    original = f"{row[5][:16]}.png"
    validation = json.loads((shared_data / "nuclei" / "instances_val.json").read_text())
    assert original in {image["file_name"] for image in validation["images"]}
    digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, shared_data / "nuclei" / "images" / original)}
    assert len(digests) == 1

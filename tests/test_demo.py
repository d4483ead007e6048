"""The demo images that come with the package."""

import hashlib
import json
from pathlib import Path

import pytest

from thingstuff import demo
from thingstuff.structures.images import read_image


def test_five_small_images_can_be_read():
    found = demo.images()
    assert len(found) == 5
    assert sum(path.stat().st_size for path in found) < 1_500_000
    for path in found:
        assert read_image(path).shape[2] == 3


def test_the_readme_names_every_image_with_its_origin():
    rows = [line for line in Path(demo.__file__).with_name("README.md").read_text().splitlines() if ".png" in line]
    assert {row.split("|")[1].strip() for row in rows} == {path.name for path in demo.images()}
    assert all(len(row.split("|")[5].strip()) == 64 for row in rows)


@pytest.mark.parametrize("path", demo.images(), ids=lambda path: path.stem)
def test_an_image_is_of_the_validation_split_byte_for_byte(path: Path, shared_data: Path):
    row = next(line for line in Path(demo.__file__).with_name("README.md").read_text().splitlines() if path.name in line)
    original = f"{row.split('|')[5].strip()[:16]}.png"
    validation = json.loads((shared_data / "nuclei" / "instances_val.json").read_text())
    assert original in {image["file_name"] for image in validation["images"]}
    digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, shared_data / "nuclei" / "images" / original)}
    assert len(digests) == 1

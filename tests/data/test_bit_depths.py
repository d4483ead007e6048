from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thingstuff.data.bit_depths import common_bit_depth
from thingstuff.data.records import InstanceDataset, Record
from thingstuff.errors import AnnotationError, BitDepthWarning, ConfigError
from thingstuff.structures.categories import Categories


def data_of(*paths: Path) -> InstanceDataset:
    records = tuple(Record(number, path, (2, 2), ()) for number, path in enumerate(paths))
    return InstanceDataset(records, Categories.numbered(1), Path("data.json"))


def grey(path: Path, value: int, **options: object) -> Path:
    Image.fromarray(np.full((2, 2), value, np.uint16)).save(path, **options)
    return path


def test_the_deepest_image_of_all_data_sets_says_the_depth_of_all_of_them(tmp_path: Path):
    dim, bright, black = grey(tmp_path / "a.png", 1000), grey(tmp_path / "b.png", 1030), grey(tmp_path / "c.png", 0)
    with pytest.warns(BitDepthWarning, match=r"b\.png: no 16-bit sample of the data exceeds its 1030, so all .* as 12-bit data"):
        assert common_bit_depth([data_of(dim, black), data_of(bright)]) == 12
    full = grey(tmp_path / "d.png", 16384)
    assert common_bit_depth([data_of(dim, full)]) == 16  # no guess, no warning


def test_images_of_8_bits_black_ones_and_those_that_say_their_depth_need_none(tmp_path: Path):
    Image.new("RGB", (2, 2), "red").save(tmp_path / "a.jpg")
    said = grey(tmp_path / "b.tif", 100, tiffinfo={281: 4095}), grey(tmp_path / "c.pgm", 100)
    assert common_bit_depth([data_of(tmp_path / "a.jpg", grey(tmp_path / "d.png", 0), *said)]) is None


def test_one_depth_is_not_made_of_what_some_files_say_and_others_need(tmp_path: Path):
    mute, said = grey(tmp_path / "a.png", 1000), grey(tmp_path / "b.tif", 100, tiffinfo={281: 4095})
    with pytest.raises(ConfigError, match=r"a\.png has 16-bit samples up to 1000 .*b\.tif says 12 bits; give the depth of all"):
        common_bit_depth([data_of(mute, said)])
    assert common_bit_depth([data_of(mute, said)], 12) == 12
    with pytest.warns(BitDepthWarning, match="12-bit"):  # both the same
        assert common_bit_depth([data_of(grey(tmp_path / "c.png", 4000), said)]) == 12


def test_all_images_with_samples_beyond_the_depth_given_are_named(tmp_path: Path):
    paths = [grey(tmp_path / f"{number}.png", value) for number, value in enumerate((1023, 1024, 4095))]
    with pytest.raises(AnnotationError, match=r"2 problems") as error:
        common_bit_depth([data_of(*paths)], 10)
    assert "1.png: has 16-bit samples up to 1024" in str(error.value)
    assert "2.png: has 16-bit samples up to 4095" in str(error.value)
    assert common_bit_depth([data_of(*paths)], 16) == 16

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thingstuff.data import whole_files
from thingstuff.data.records import InstanceDataset, Record
from thingstuff.data.whole_files import check_whole, ends_as_it_should
from thingstuff.errors import AnnotationError
from thingstuff.structures.categories import Categories

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")


def written(path: Path, format_: str, **options: object) -> Path:
    noise = np.random.default_rng(3).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(path, format_, **options)
    return path


def data_of(*paths: Path) -> InstanceDataset:
    records = tuple(Record(number, path, (40, 60), ()) for number, path in enumerate(paths))
    return InstanceDataset(records, Categories.numbered(1), Path("data.json"))


@pytest.mark.parametrize("format_", FORMATS)
def test_a_whole_file_is_told_by_its_end_and_a_truncated_one_named(tmp_path: Path, monkeypatch, format_: str):
    path = written(tmp_path / "a.img", format_)
    check_whole([data_of(path)])
    if format_ != "PPM":  # whose header does not say where it ends
        monkeypatch.setattr(whole_files, "read_image", lambda *_, **__: pytest.fail("was decoded"))
        check_whole([data_of(path)])
        monkeypatch.undo()
    content = path.read_bytes()
    for kept in (len(content) - 3, len(content) // 2, 20, 0):
        path.write_bytes(content[:kept])
        assert not ends_as_it_should(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AnnotationError, match=r"data\.json: .*a\.img: .*; replace it, or remove it from"):
        check_whole([data_of(path)])


def test_a_compressed_and_a_tiled_tiff_are_told_by_what_they_point_to(tmp_path: Path):
    assert ends_as_it_should(written(tmp_path / "a.tif", "TIFF", compression="tiff_lzw"))
    assert ends_as_it_should(
        written(tmp_path / "b.tif", "TIFF", compression="tiff_deflate", tiffinfo={278: 7})
    )  # strips of 7 rows


def test_a_gif_cut_behind_any_byte_is_named_also_where_the_byte_ends_gifs(tmp_path: Path):
    path = written(tmp_path / "a.gif", "GIF")
    content = path.read_bytes()
    ends = [place for place, byte in enumerate(content[:-1], start=1) if byte == ord(";")]
    assert len(ends) > 3  # in noise of 2,400 pixels every value is found some ten times
    for kept in ends:
        path.write_bytes(content[:kept])
        assert not ends_as_it_should(path)
    with pytest.raises(AnnotationError, match=r"a\.gif: "):
        check_whole([data_of(path)])


def test_animations_are_whole_when_all_their_frames_are_there(tmp_path: Path):
    frames = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)) for seed in range(3)]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], comment=b"three; of them")
    assert ends_as_it_should(path)
    path.write_bytes(path.read_bytes()[:-2])
    assert not ends_as_it_should(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_a_bmp_is_told_by_its_rows_whatever_it_says_of_its_length(tmp_path: Path, mode: str):
    path = tmp_path / "a.bmp"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (41, 61, 3), np.uint8)).convert(mode).save(path)
    content = path.read_bytes()
    for stated in (0, 54, len(content), 2**32 - 1):
        stating = content[:2] + stated.to_bytes(4, "little") + content[6:]
        path.write_bytes(stating)
        assert ends_as_it_should(path)
        path.write_bytes(stating[:-1])
        assert not ends_as_it_should(path)
    path.write_bytes(content[:2] + (54).to_bytes(4, "little") + content[6 : len(content) // 2])
    with pytest.raises(AnnotationError, match=r"a\.bmp: "):
        check_whole([data_of(path)])


def test_few_images_are_decoded_at_once(tmp_path: Path, monkeypatch):
    paths = [written(tmp_path / f"{number:02}.ppm", "PPM") for number in range(30)]
    lock, now, most = threading.Lock(), 0, 0

    def read_image(*_: object) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    monkeypatch.setattr(whole_files, "read_image", read_image)
    monkeypatch.setattr("os.cpu_count", lambda: 32)
    check_whole([data_of(*paths)])
    assert most <= 4  # each holds its pixels


def test_bytes_behind_the_end_of_an_image_do_no_harm(tmp_path: Path):
    paths = [written(tmp_path / f"a.{format_}", format_) for format_ in FORMATS]
    for path in paths:
        path.write_bytes(path.read_bytes() + bytes(100))  # as some cameras do
    check_whole([data_of(*paths)])


def test_all_broken_files_are_named_each_once(tmp_path: Path):
    paths = [written(tmp_path / f"{number:02}.jpg", "JPEG") for number in range(30)]
    for path in paths[5:]:
        path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(AnnotationError) as error:
        check_whole([data_of(*paths, *paths)])
    assert str(error.value).startswith("data.json: 25 problems")
    assert all(str(error.value).count(f"{number:02}.jpg: ") == (number >= 5) for number in range(30))


def test_an_image_that_cannot_be_opened_is_named(tmp_path: Path):
    with pytest.raises(AnnotationError, match=r"gone\.png: no such file"):
        check_whole([data_of(tmp_path / "gone.png")])
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "TIFF")
    (tmp_path / "header.tif").write_bytes(stream.getvalue()[:8])
    with pytest.raises(AnnotationError, match=r"header\.tif: "):
        check_whole([data_of(tmp_path / "header.tif")])

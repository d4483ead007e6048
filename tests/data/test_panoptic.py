"""Panoptic files: what is read, what is refused, and what the validator names."""

import gc
import json
import platform
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thingstuff.data.folders import open_panoptic
from thingstuff.data.id_png import read_id_png, read_number_png
from thingstuff.data.panoptic import pairs, read_panoptic, read_panoptic_predictions
from thingstuff.data.panoptic_check import check_panoptic
from thingstuff.errors import AnnotationError, SizeError

IDS = [[7, 7, 0], [7, 300, 70000]]


def paint(path: Path, ids: Any) -> None:
    array = np.array(ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack((array % 256, array // 256 % 256, array // 65536), axis=-1).astype(np.uint8)).save(path)


@pytest.fixture
def content() -> dict[str, Any]:
    return {
        "images": [{"id": 4, "file_name": "a.jpg", "height": 2, "width": 3}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 5, "name": "sky", "isthing": 0}],
        "annotations": [
            {
                "image_id": 4,
                "file_name": "a.png",
                "segments_info": [
                    {"id": 7, "category_id": 1, "iscrowd": 0, "area": 3, "bbox": [0, 0, 2, 2]},
                    {"id": 70000, "category_id": 5, "iscrowd": 0, "area": 1, "bbox": [2, 1, 1, 1]},
                    {"id": 300, "category_id": 1, "iscrowd": 1, "area": 1, "bbox": [1, 1, 1, 1]},
                ],
            }
        ],
    }


def write(folder: Path, content: Any, ids: Any = IDS, name: str = "panoptic") -> Path:
    paint(folder / name / "a.png", ids)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json"


def test_segments_are_read_in_the_order_of_the_file(tmp_path, content):
    data = read_panoptic(write(tmp_path, content))
    (record,) = data
    assert (record.image_id, record.size, record.path) == (4, (2, 3), None)
    panoptic = record.panoptic_map()
    assert panoptic.ids.tolist() == IDS
    assert panoptic.segment_ids.tolist() == [7, 70000, 300]
    assert panoptic.classes.tolist() == [0, 1, 0]
    assert panoptic.crowd.tolist() == [False, False, True]
    assert panoptic.areas is not None
    assert panoptic.areas.tolist() == [3, 1, 1]


def test_garbage_is_collected_after_reading_as_before(tmp_path, content):
    read_panoptic(write(tmp_path, content))
    assert gc.isenabled()
    with pytest.raises(AnnotationError):
        read_panoptic(tmp_path / "none.json")
    assert gc.isenabled()


def test_numbers_are_read_however_they_are_written(tmp_path, content):
    plain = read_panoptic(write(tmp_path, content))[0]
    first, second, third = content["annotations"][0]["segments_info"]
    first.update(id="7", area=3.0, iscrowd=None)
    second.update(category_id="5", bbox=[2.0, 1, 1, 1])
    third.update(iscrowd=1.0)
    other = read_panoptic(write(tmp_path, content))[0]
    for name in ("segment_ids", "classes", "crowd", "areas", "boxes"):
        assert getattr(other, name).tolist() == getattr(plain, name).tolist()
        assert getattr(other, name).dtype == getattr(plain, name).dtype


def test_an_image_without_segments_is_read(tmp_path, content):
    content["annotations"][0]["segments_info"] = []
    record = read_panoptic(write(tmp_path, content, ids=[[0, 0, 0], [0, 0, 0]]))[0]
    assert len(record.panoptic_map()) == 0
    assert record.boxes.shape == (0, 4)


def test_a_sound_file_has_nothing_to_report(tmp_path, content):
    assert check_panoptic(write(tmp_path, content)) == []


def test_photos_are_found_where_they_lie(tmp_path, content):
    path = write(tmp_path, content)
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg")
    assert read_panoptic(path, image_dir=tmp_path)[0].path == tmp_path / "a.jpg"
    assert read_panoptic(path)[0].path is None


def test_predictions_need_annotations_alone(tmp_path, content):
    path = write(tmp_path, content)
    categories = read_panoptic(path).categories
    rows = [{"id": row["id"], "category_id": row["category_id"]} for row in content["annotations"][0]["segments_info"]]
    found = write(tmp_path, {"annotations": [{"image_id": 4, "file_name": "a.png", "segments_info": rows}]}, name="found")
    data = read_panoptic_predictions(found, categories)
    assert data[0].size == (2, 3)  # the PNG's own
    assert data[0].areas.tolist() == [-1, -1, -1]
    assert [image_id for image_id, _, _ in pairs(data, read_panoptic(path))] == [4]


def test_a_prediction_of_another_size_is_refused_before_it_is_decoded(tmp_path, content):
    truth = read_panoptic(write(tmp_path, content))
    annotation = {"image_id": 4, "file_name": "a.png", "segments_info": []}
    found = write(tmp_path, {"annotations": [annotation]}, name="found")
    header = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "found" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)  # nothing to decode
    data = read_panoptic_predictions(found, truth.categories)
    with pytest.raises(SizeError, match=r"image 4: .*a\.png has 13000 x 13000 pixels .*, the image 3 x 2 pixels"):
        pairs(data, truth)


def test_an_image_without_a_prediction_is_named(tmp_path, content):
    truth = read_panoptic(write(tmp_path, content))
    (tmp_path / "found").mkdir()
    (tmp_path / "found.json").write_text('{"annotations": []}')
    with pytest.raises(AnnotationError, match=r"found\.json: has no prediction for image 4"):
        pairs(read_panoptic_predictions(tmp_path / "found.json", truth.categories), truth)


def test_a_folder_has_splits_that_share_their_pngs(tmp_path, content):
    write(tmp_path, content)
    (tmp_path / "panoptic_val.json").write_text(json.dumps(content))
    assert open_panoptic(tmp_path).source.name == "panoptic.json"
    assert open_panoptic(tmp_path, "val")[0].png == tmp_path / "panoptic" / "a.png"
    with pytest.raises(AnnotationError, match=r"has no panoptic_test\.json; its splits are val"):
        open_panoptic(tmp_path, "test")
    with pytest.raises(AnnotationError, match="is one file and has no split 'val'"):
        open_panoptic(tmp_path / "panoptic.json", "val")
    with pytest.raises(AnnotationError, match="does not exist"):
        open_panoptic(tmp_path / "nowhere")


def test_a_missing_folder_of_pngs_is_named(tmp_path, content):
    (tmp_path / "truth.json").write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=r"the folder .*truth does not exist"):
        read_panoptic(tmp_path / "truth.json")


def test_the_real_set_has_nothing_to_report(shared_data):
    data = open_panoptic(shared_data / "panoptic-sample", "val", image_dir=shared_data / "coco-mini" / "images")
    assert len(data) == 67
    assert all(record.path is not None for record in data)
    assert check_panoptic(shared_data / "panoptic-sample" / "panoptic_val.json") == []


# What the validator names ----------------------------------------------------------------------------------------------


def changed(content: dict[str, Any], segment: int, **values: Any) -> dict[str, Any]:
    content["annotations"][0]["segments_info"][segment].update(values)
    return content


def test_an_id_painted_but_not_listed_is_named(tmp_path, content):
    path = write(tmp_path, content, [[7, 7, 9], [7, 300, 70000]])
    assert check_panoptic(path) == ["image 4: segment 9 is painted in a.png but not in segments_info; add it or paint it void"]


def test_an_id_listed_but_not_painted_is_named(tmp_path, content):
    path = write(tmp_path, content, [[7, 7, 0], [7, 300, 0]])
    assert check_panoptic(path) == ["image 4: segment 70000 is in segments_info but not painted in a.png; paint or remove it"]


def test_a_wrong_area_is_named(tmp_path, content):
    assert check_panoptic(write(tmp_path, changed(content, 0, area=5))) == [
        "image 4: segment 7 states an area of 5 pixels, 3 are painted"
    ]


def test_a_wrong_box_is_named(tmp_path, content):
    assert check_panoptic(write(tmp_path, changed(content, 0, bbox=[0, 0, 2.5, 2]))) == [
        "image 4: segment 7 states the bbox [0, 0, 2.5, 2], what is painted has [0, 0, 2, 2]"
    ]


def test_an_unknown_category_is_named_once(tmp_path, content):
    (problem,) = check_panoptic(write(tmp_path, changed(content, 1, category_id=99)))
    assert problem.startswith("image 4: segment 70000: category id 99 is not among these 2 categories")


def test_a_png_of_another_size_is_named(tmp_path, content):
    (problem,) = check_panoptic(write(tmp_path, content, [[7, 7], [7, 300]]))
    assert problem.startswith("image 4: ")
    assert "a.png has 2 x 2 pixels (width x height), the image 3 x 2 pixels" in problem


def test_a_missing_png_is_named(tmp_path, content):
    path = write(tmp_path, content)
    (tmp_path / "panoptic" / "a.png").unlink()
    (problem,) = check_panoptic(path)
    assert problem.startswith("image 4: ")
    assert "does not exist" in problem


def test_a_png_that_no_annotation_names_is_named(tmp_path, content):
    path = write(tmp_path, content)
    paint(tmp_path / "panoptic" / "b.png", IDS)
    assert check_panoptic(path) == [f"{tmp_path / 'panoptic' / 'b.png'}: no annotation names it"]


def test_an_image_without_annotation_is_named(tmp_path, content):
    content["images"].append({"id": 5, "file_name": "b.jpg", "height": 2, "width": 3})
    assert check_panoptic(write(tmp_path, content)) == [
        "image 5: has no annotation; add one, with no segments if nothing is there"
    ]


def test_every_problem_is_named_in_one_go(tmp_path, content):
    changed(content, 0, area=5)
    changed(content, 1, category_id=99)
    content["annotations"].append({"image_id": 8, "file_name": "b.png", "segments_info": []})
    assert len(check_panoptic(write(tmp_path, content))) == 3


# What is refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": 0}, "its id must be from 1 to 16777215; 0 is void"),
        ({"id": 2**24}, "its id must be from 1 to 16777215"),
        ({"id": 300}, "segment 300: is listed twice"),
        ({"id": "seven"}, "'id' is 'seven', must be a whole number"),
        ({"category_id": None}, "'category_id' is None"),
        ({"category_id": 2}, "category id 2 is not among"),
        ({"iscrowd": 2}, "'iscrowd' is 2, must be 0 or 1"),
        ({"area": -1}, "'area' is -1"),
        ({"area": 1.5}, "'area' is 1.5"),
        ({"bbox": [0, 0, 1]}, "'bbox' is [0, 0, 1]"),
        ({"bbox": [0, 0, 1, float("nan")]}, "'bbox' is"),
    ],
)
def test_a_broken_segment_is_refused(tmp_path, content, change, said):
    with pytest.raises(AnnotationError) as error:
        read_panoptic(write(tmp_path, changed(content, 0, **change)))
    assert "image 4" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("images", None, "'images' is missing"),
        ("images", [3], "images[0]: is 3, not an object"),
        (
            "images",
            [{"id": 4, "height": 10**6, "width": 10**6, "file_name": "a.jpg"}],
            "more than the limit of 200,000,000 pixels",
        ),
        ("images", [{"id": 4, "height": 2, "width": 3, "file_name": "../a.jpg"}], "leads out of the image folder"),
        ("images", 2 * [{"id": 4, "height": 2, "width": 3, "file_name": "a.jpg"}], "id 4 is taken"),
        ("categories", [], "'categories' is missing or empty"),
        ("annotations", {}, "'annotations' is missing or isn't a list"),
        ("annotations", [7], "annotations[0]: is 7, not an object"),
        ("annotations", [{"image_id": True}], "'image_id' is True"),
        ("annotations", [{"image_id": 9, "file_name": "a.png", "segments_info": []}], "image_id 9 is no image of this file"),
        ("annotations", [{"image_id": 4, "file_name": "../../a.png", "segments_info": []}], "leads out of"),
        ("annotations", [{"image_id": 4, "file_name": "/etc/passwd", "segments_info": []}], "leads out of"),
        ("annotations", [{"image_id": 4, "file_name": "a.png", "segments_info": {}}], "'segments_info' is {}"),
        ("annotations", 2 * [{"image_id": 4, "file_name": "a.png", "segments_info": []}], "image 4 has an earlier annotation"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, content, key, value, said):
    content[key] = value
    with pytest.raises(AnnotationError) as error:
        read_panoptic(write(tmp_path, content))
    assert said in str(error.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path, content):
    path = write(tmp_path, content)
    png = tmp_path / "panoptic" / "a.png"
    png.rename(tmp_path / "secret.png")
    png.symlink_to(tmp_path / "secret.png")
    with pytest.raises(AnnotationError, match="is a link out of"):
        read_panoptic(path)


def test_a_png_is_read_with_its_alpha_left_aside(tmp_path):
    colours = np.array([[[1, 2, 3, 0], [255, 255, 255, 9]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert read_id_png(tmp_path / "a.png").tolist() == [[1 + 2 * 256 + 3 * 65536, 2**24 - 1]]


@pytest.mark.parametrize("mode", ["L", "P", "LA", "1", "I;16"])
def test_a_png_without_three_colours_is_refused(tmp_path, mode):
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match="segment ids need RGB with 8 bits each"):
        read_id_png(tmp_path / "a.png")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_maps_that_come_and_go_take_no_new_pages(tmp_path):
    Image.new("RGB", (1000, 1000)).save(tmp_path / "a.png")
    script = f"""
import resource
from pathlib import Path
from thingstuff.data.id_png import read_id_png

path = Path({str(tmp_path / "a.png")!r})
pages = []
for _ in range(10):
    maps = [read_id_png(path) for _ in range(4)]
    del maps
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(pages[-1] - pages[-6])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2000  # 4 MB for each of 20 maps are 20,000 pages of 4 KiB


def test_another_format_is_refused(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(AnnotationError, match="is no PNG"):
        read_id_png(tmp_path / "a.png")


def test_a_png_larger_than_the_limit_is_refused_by_its_header(tmp_path):
    paint(tmp_path / "a.png", IDS)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(AnnotationError, match="more than the limit of 200,000,000 pixels"):
        read_id_png(tmp_path / "a.png")


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(colours: np.ndarray, *extra: bytes, interlaced: bool = False) -> bytes:
    """A PNG as other programs write them: rows without filter; interlaced, its pixels in seven passes (Adam7)."""
    height, width, channels = colours.shape
    bits = 8 * colours.itemsize
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [
        row for top, left, down, right in (passes if interlaced else [(0, 0, 1, 1)]) for row in colours[top::down, left::right]
    ]
    pixels = b"".join(b"\0" + row.tobytes() for row in rows if row.size)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, {1: 0, 3: 2, 4: 6}[channels], 0, 0, interlaced])
    end = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + end


TRANSPARENT_BLACK = chunk(b"tRNS", bytes(6))


@pytest.mark.parametrize(
    ("channels", "extra"), [(3, ()), (4, ()), (3, (TRANSPARENT_BLACK,)), (4, (chunk(b"gAMA", bytes([0, 0, 1, 0])),))]
)
@pytest.mark.parametrize("interlaced", [False, True])
def test_pngs_of_other_programs_are_read_to_the_bit(tmp_path, channels, interlaced, extra):
    colours = np.random.default_rng(0).integers(0, 256, (11, 13, channels), np.uint8)
    (tmp_path / "a.png").write_bytes(png(colours, *extra, interlaced=interlaced))
    ids = colours[..., :3].astype(np.int64) @ [1, 256, 256**2]
    assert read_id_png(tmp_path / "a.png").tolist() == ids.tolist()


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("extra", [(), (chunk(b"tRNS", bytes(2)),)])
@pytest.mark.parametrize("dtype", ["u1", ">u2"])
def test_numbers_written_by_other_programs_are_read_to_the_bit(tmp_path, dtype, extra, interlaced):
    numbers = np.random.default_rng(0).integers(0, 256 ** np.dtype(dtype).itemsize, (11, 13, 1)).astype(dtype)
    (tmp_path / "a.png").write_bytes(png(numbers, *extra, interlaced=interlaced))
    assert read_number_png(tmp_path / "a.png").tolist() == numbers[..., 0].tolist()


def test_numbers_of_a_palette_are_places_in_it(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([9, 9, 9, 200, 0, 0, 9, 9, 9])  # two places of one colour
    image.putdata([2, 0, 1])
    image.save(tmp_path / "a.png")
    assert read_number_png(tmp_path / "a.png").tolist() == [[2, 0, 1]]


def test_a_single_pixel_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.array([[[1, 2, 3]]], np.uint8)))
    assert read_id_png(tmp_path / "a.png").tolist() == [[1 + 2 * 256 + 3 * 65536]]


def test_a_changed_byte_is_noticed_or_changes_no_id(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    data, expected = png(colours), colours.astype(np.int64) @ [1, 256, 256**2]
    noticed = 0
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 0x10
        (tmp_path / "a.png").write_bytes(broken)
        try:
            assert (read_id_png(tmp_path / "a.png") == expected).all()
        except AnnotationError:
            noticed += 1
    assert noticed >= len(data) - 12  # the last chunk, which holds nothing, may go unread


def test_data_beyond_the_last_pixel_is_left_alone(tmp_path):
    # a hundred million zeros in a hundred thousand bytes, for an image of six pixels
    stated = png(np.zeros((2, 3, 3), np.uint8))
    place = stated.index(b"IDAT")
    flood = chunk(b"IDAT", zlib.compress(bytes(100_000_000)))
    (tmp_path / "a.png").write_bytes(stated[: place - 4] + flood + chunk(b"IEND", b""))
    assert read_id_png(tmp_path / "a.png").tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("kept", [0, 20, 40, 60])
def test_a_truncated_png_is_named(tmp_path, kept):
    random = np.random.default_rng(0)
    paint(tmp_path / "a.png", random.integers(0, 2**24, (20, 20)))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:kept])
    with pytest.raises(AnnotationError, match=r"a\.png: "):
        read_id_png(tmp_path / "a.png")


@pytest.fixture
def crossed(tmp_path: Path, content: dict[str, Any]) -> Path:
    """A truth of two images whose ids and photos' numbers are crossed: 1 is 000002.jpg, 2 is 000001.jpg."""
    rows = content["annotations"][0]["segments_info"]
    truth = content | {
        "images": [{"id": id_, "file_name": f"00000{3 - id_}.jpg", "height": 2, "width": 3} for id_ in (1, 2)],
        "annotations": [{"image_id": id_, "file_name": f"00000{3 - id_}.png", "segments_info": rows} for id_ in (1, 2)],
    }
    for id_ in (1, 2):
        paint(tmp_path / "truth" / f"00000{id_}.png", IDS)
        paint(tmp_path / "found" / f"00000{id_}.png", IDS)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return tmp_path / "truth.json"


def predicted(crossed: Path, content: dict[str, Any], **more: Any) -> dict[Any, Any]:
    """Which prediction's id each image of the truth gets, of predictions whose PNGs are named by their ids."""
    rows = content["annotations"][0]["segments_info"]
    found = {"annotations": [{"image_id": id_, "file_name": f"00000{id_}.png", "segments_info": rows} for id_ in (1, 2)]}
    (crossed.parent / "found.json").write_text(json.dumps(found | more))
    truth = read_panoptic(crossed)
    data = read_panoptic_predictions(crossed.parent / "found.json", truth.categories)
    of_loader = {record.panoptic_map: record.image_id for record in data}
    return {image_id: of_loader[loader] for image_id, loader, _ in pairs(data, truth)}  # type: ignore[index]


def test_predictions_are_paired_by_image_id_whatever_their_pngs_are_called(crossed, content):
    assert predicted(crossed, content) == {1: 1, 2: 2}


def test_predictions_that_say_their_photos_are_paired_by_them(crossed, content):
    images = [{"id": id_, "file_name": f"photos/00000{id_}.jpg"} for id_ in (1, 2)]
    assert predicted(crossed, content, images=images) == {1: 2, 2: 1}
    assert predicted(crossed, content, images=[{"id": 1}, "nonsense"]) == {1: 1, 2: 2}


def test_predictions_of_other_ids_are_paired_by_the_names_of_their_pngs(crossed, content):
    truth = json.loads(crossed.read_text())
    for image, annotation in zip(truth["images"], truth["annotations"], strict=True):
        image["id"] = annotation["image_id"] = image["id"] + 10
    crossed.write_text(json.dumps(truth))
    assert predicted(crossed, content) == {11: 2, 12: 1}

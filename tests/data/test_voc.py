"""PASCAL VOC's folders, drawn small and real: objects, their classes, the void outline, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thingstuff.data.coco import read_coco
from thingstuff.data.folders import open_dataset, open_panoptic, splits_of
from thingstuff.data.panoptic_check import check_record
from thingstuff.data.voc import VOC
from thingstuff.errors import AnnotationError

OBJECTS = np.array([[1, 1, 255, 2], [0, 0, 255, 2]], np.uint8)
CLASSES = np.array([[8, 8, 255, 15], [0, 0, 255, 15]], np.uint8)  # a cat and a person


def save_palette(path: Path, numbers: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers)
    image.putpalette(list(range(256)) * 3)
    image.save(path)


@pytest.fixture
def year(tmp_path: Path) -> Path:
    root = tmp_path / "VOC2012"
    for name in ("2007_000032", "2007_000033"):
        save_palette(root / "SegmentationObject" / f"{name}.png", OBJECTS)
        save_palette(root / "SegmentationClass" / f"{name}.png", CLASSES)
        (root / "JPEGImages").mkdir(exist_ok=True)
        Image.new("RGB", (4, 2)).save(root / "JPEGImages" / f"{name}.jpg")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n")
    (lists / "val.txt").write_text("2007_000033\n")
    return root


def test_objects_have_their_class_the_outline_is_void_and_background_is_stuff(year: Path):
    (record,) = open_panoptic(year, "val")
    assert (record.image_id, record.size, record.path) == (2007000033, (2, 4), year / "JPEGImages" / "2007_000033.jpg")
    panoptic = record.panoptic_map()
    assert panoptic.ids.tolist() == [[1, 1, 0, 2], [256, 256, 0, 2]]
    assert [VOC.names[class_] for class_ in panoptic.classes.tolist()] == ["cat", "person", "background"]
    assert not panoptic.crowd.any()
    assert list(check_record(record)) == []


def test_the_folder_opens_by_split_whole_and_from_above(year: Path):
    assert splits_of(year) == ["train", "val"]
    assert [record.image_id for record in open_panoptic(year.parent)] == [2007000032, 2007000033]
    assert [record.image_id for record in open_dataset(year, "train")] == [2007000032]
    save_palette(year.parent / "VOC2007" / "SegmentationObject" / "a.png", OBJECTS)
    with pytest.raises(AnnotationError, match="holds VOC2007, VOC2012; name one of these folders"):
        open_panoptic(year.parent)


def test_its_objects_are_the_twenty_classes_without_background(year: Path):
    data = open_dataset(year, "val")
    assert data.categories.ids == tuple(range(1, 21))
    assert [(data.categories[found.class_].name, found.box, found.area) for found in data[0].objects] == [
        ("cat", (0, 0, 2, 1), 2),
        ("person", (3, 0, 4, 2), 2),
    ]


@pytest.mark.parametrize(
    ("file", "write", "words"),
    [
        ("SegmentationObject/2007_000033.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "is no PNG"),
        ("SegmentationObject/2007_000033.png", lambda path: path.write_bytes(path.read_bytes()[:-30]), "can't be read"),
        ("SegmentationClass/2007_000033.png", lambda path: path.unlink(), "does not exist"),
        ("SegmentationClass/2007_000033.png", lambda path: Image.new("RGB", (4, 2)).save(path), "numbers need grey of 8 or 16"),
        ("SegmentationClass/2007_000033.png", lambda path: save_palette(path, CLASSES[:1]), "has another size than"),
        ("SegmentationClass/2007_000033.png", lambda path: save_palette(path, CLASSES * 0), "has no class where 2007_000033.png"),
        (
            "SegmentationClass/2007_000033.png",
            lambda path: save_palette(path, CLASSES * 0 + 21),
            "paints 21; classes are 1 to 20",
        ),
        ("ImageSets/Segmentation/val.txt", lambda path: path.write_text("../../etc/passwd"), "is no name of an image"),
        ("ImageSets/Segmentation/val.txt", lambda path: path.write_text("a b a"), "lists a twice"),
        ("ImageSets/Segmentation/val.txt", lambda path: path.write_bytes(b"\xff"), "can't be read"),
    ],
)
def test_files_that_do_not_fit_are_named(year: Path, file: str, write, words: str):
    write(year / file)
    with pytest.raises(AnnotationError, match=f"{Path(file).name}: .*{words}"):
        open_panoptic(year, "val")


def test_an_empty_split_is_named(year: Path):
    (year / "ImageSets" / "Segmentation" / "val.txt").write_text("")
    with pytest.raises(AnnotationError, match="has no image of the split val"):
        open_panoptic(year, "val")


def test_the_sample_equals_its_instances_file(shared_data: Path):
    root = shared_data / "voc2007-sample"
    expected = read_coco(root / "instances.json", root / "VOC2007" / "JPEGImages")
    found = {record.path.name: record for record in open_dataset(root) if record.path}
    assert len(found) == len(expected) == 44
    assert open_dataset(root).categories == expected.categories
    for record in expected:
        assert record.path is not None
        own = found[record.path.name]
        assert [(o.class_, o.mask, o.box, o.area, o.is_crowd) for o in own.objects] == [
            (o.class_, o.mask, o.box, o.area, o.is_crowd) for o in record.objects
        ]
    for split in ("train", "val"):
        names = (root / f"{split}.txt").read_text().split()
        assert [record.path.name for record in open_dataset(root, split) if record.path] == names

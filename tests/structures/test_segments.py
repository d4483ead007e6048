import dataclasses
import json

import numpy as np
import pytest

from thingstuff.errors import AnnotationError, ImageError, MaskError, SizeError
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segment, Segments

CATEGORIES = Categories((Category(17, "cat"), Category(18, "dog"), Category(99, "sky", is_thing=False)))
SIZE = (2, 4)
LEFT = Mask.from_dense(np.array([[1, 1, 0, 0], [1, 1, 0, 0]], np.bool_))
MIDDLE = Mask.from_dense(np.array([[0, 1, 1, 0], [0, 1, 1, 0]], np.bool_))
TOP = Mask.from_dense(np.array([[1, 1, 1, 1], [0, 0, 0, 0]], np.bool_))


def three() -> Segments:
    """A cat on the left, a surer dog in the middle, an unsure sky on top."""
    return Segments(
        size=SIZE,
        categories=CATEGORIES,
        classes=np.array([0, 1, 2], np.int64),
        scores=np.array([0.5, 0.75, 0.25], np.float32),
        boxes=np.array([LEFT.box, MIDDLE.box, TOP.box], np.float32),
        rles=(LEFT, MIDDLE, TOP),
    )


def test_segments_are_iterated_one_at_a_time():
    cat, dog, sky = three()
    assert cat == Segment(CATEGORIES[0], 0.5, (0.0, 0.0, 2.0, 2.0), LEFT)
    assert (dog.category.name, dog.score, dog.area, dog.is_thing) == ("dog", 0.75, 4, True)
    assert (sky.box, sky.is_thing) == ((0, 0, 4, 1), False)
    assert len(three()) == 3
    assert repr(three()) == "Segments(2x4: 1 cat, 1 dog, 1 sky)"


def test_areas_and_things_are_arrays():
    assert three().areas.tolist() == [4, 4, 4]
    assert three().is_thing.tolist() == [True, True, False]


@pytest.mark.parametrize("index", [slice(1, None), [1, 2], np.array([1, 2]), np.array([False, True, True]), [False, True, True]])
def test_slices_positions_and_booleans_choose_segments(index: object):
    chosen = three()[index]  # type: ignore[call-overload]
    assert [segment.category.name for segment in chosen] == ["dog", "sky"]
    assert chosen.scores.tolist() == [0.75, 0.25]
    assert chosen.boxes.shape == (2, 4)


def test_a_single_position_counts_from_the_end_when_negative():
    assert three()[-1].category.name == "sky"
    assert three()[np.int64(1)].category.name == "dog"
    with pytest.raises(IndexError):
        three()[3]


def test_choosing_nothing_leaves_an_ordinary_empty_value():
    for chosen in (three()[[]], three()[:0], three().above(0.9), three()[np.zeros(3, np.bool_)]):
        assert len(chosen) == 0
        assert chosen.size == SIZE


def test_choosing_keeps_the_picture_and_whether_segments_overlap():
    picture = np.zeros((2, 4, 3), np.uint8)
    chosen = dataclasses.replace(three(), overlapping=False, image=picture)[1:]
    assert chosen.image is picture
    assert chosen.overlapping is False


@pytest.mark.parametrize("index", [np.zeros(2, np.bool_), np.zeros((1, 3), np.int64), np.zeros(3, np.float32), "cat"])
def test_an_index_that_fits_no_segments_is_refused(index: object):
    with pytest.raises(SizeError, match="segments"):
        three()[index]  # type: ignore[call-overload]


def test_above_is_strict():
    assert [segment.score for segment in three().above(0.25)] == [0.5, 0.75]
    assert len(three().above(0.75)) == 0


def test_nothing_found_has_every_view():
    empty = Segments.empty(SIZE, CATEGORIES)
    assert list(empty) == []
    assert empty.areas.shape == empty.is_thing.shape == (0,)
    assert (empty.panoptic_map() == 0).all()
    assert (empty.semantic_map() == -1).all()
    assert empty.masks().shape == (0, 2, 4)
    assert empty.to_coco(1) == []
    assert len(Segments.from_coco([], SIZE, CATEGORIES)) == 0
    assert repr(empty) == "Segments(2x4: none)"
    assert Segments.empty(SIZE, Categories(())).is_thing.shape == (0,)


def test_in_the_panoptic_map_the_higher_score_wins():
    # the dog (0.75) over the cat (0.5) over the sky (0.25); ids are positions from 1
    assert three().panoptic_map().tolist() == [[1, 2, 2, 3], [1, 2, 2, 0]]
    assert three().panoptic_map().dtype == np.int32


def test_in_the_semantic_map_void_is_minus_one():
    assert three().semantic_map().tolist() == [[0, 1, 1, 2], [0, 1, 1, -1]]
    assert three().semantic_map().dtype == np.int64


def test_of_two_equal_scores_the_earlier_segment_wins():
    level = dataclasses.replace(three(), scores=np.ones(3, np.float32))
    assert level.panoptic_map().tolist() == [[1, 1, 2, 3], [1, 1, 2, 0]]


def test_masks_are_stacked():
    np.testing.assert_array_equal(three().masks(), np.stack([LEFT.dense(), MIDDLE.dense(), TOP.dense()]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": np.zeros(2, np.int64)}, r"3 masks need classes of type int64 and shape \(3,\), got int64 and \(2,\)"),
        ({"classes": np.zeros(3, np.int32)}, "need classes of type int64"),
        ({"scores": np.zeros((3, 1), np.float32)}, "need scores"),
        ({"scores": np.zeros(3, np.float64)}, "need scores of type float32"),
        ({"boxes": np.zeros((3, 5), np.float32)}, r"need boxes of type float32 and shape \(3, 4\)"),
        ({"rles": (LEFT,)}, "1 masks need classes"),
        ({"classes": np.array([0, 1, 3], np.int64)}, "classes 0 to 3 do not fit 3 categories"),
        ({"classes": np.array([0, 1, -1], np.int64)}, "classes -1 to 1 do not fit"),
        ({"rles": (LEFT, MIDDLE, Mask.empty((4, 2)))}, r"mask 2 belongs to an image of size \(4, 2\)"),
        ({"image": np.zeros((4, 2, 3), np.uint8)}, r"the picture has shape \(4, 2, 3\)"),
    ],
)
def test_parts_that_disagree_are_refused(change: dict[str, object], message: str):
    with pytest.raises(SizeError, match=message):
        dataclasses.replace(three(), **change)  # type: ignore[arg-type]


def test_coco_results_come_back_as_they_went():
    results = json.loads(json.dumps(three().to_coco(image_id=42)))
    assert results[1] == {
        "image_id": 42,
        "category_id": 18,
        "score": 0.75,
        "bbox": [1, 0, 2, 2],
        "segmentation": MIDDLE.to_coco(),
    }
    back = Segments.from_coco(results, SIZE, CATEGORIES)
    assert list(back) == list(three())


def test_annotations_without_score_and_box_are_sure_and_tight():
    entry = {"category_id": 17, "segmentation": [[1, 0, 3, 0, 3, 2, 1, 2]]}
    (segment,) = Segments.from_coco([entry], SIZE, CATEGORIES)
    assert segment == Segment(CATEGORIES[0], 1.0, (1.0, 0.0, 3.0, 2.0), MIDDLE)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"category_id": 5}, AnnotationError, "category id 5 is not among"),
        ({"category_id": None}, AnnotationError, "category id None is not among"),
        ({"category_id": [17]}, AnnotationError, r"category id \[17\] is not among"),
        ({"score": "high"}, AnnotationError, r"results\[1\]: \"score\" must be a finite number"),
        ({"score": float("nan")}, AnnotationError, "finite number"),
        ({"bbox": [1, 2, 3]}, AnnotationError, r"results\[1\]: \"bbox\" must be"),
        ({"bbox": [1, 2, 3, "4"]}, AnnotationError, '"bbox" must be a finite number'),
        ({"segmentation": {"size": [2, 4], "counts": [3]}}, MaskError, r"results\[1\]: run-length counts add up to 3"),
        ({"segmentation": {"size": [4, 2], "counts": [8]}}, SizeError, r"results\[1\]: the mask belongs to an image of size"),
        ({"segmentation": None}, MaskError, r"results\[1\]"),
    ],
)
def test_a_broken_coco_result_is_named_by_its_position(change: dict[str, object], error: type[Exception], message: str):
    good = three().to_coco(1)[0]
    with pytest.raises(error, match=message):
        Segments.from_coco([good, {**good, **change}], SIZE, CATEGORIES)


@pytest.mark.parametrize("key", ["category_id", "segmentation"])
def test_a_coco_result_without_category_or_mask_is_refused(key: str):
    entry = three().to_coco(1)[0]
    del entry[key]
    with pytest.raises(AnnotationError, match=rf'results\[0\] has no "{key}"'):
        Segments.from_coco([entry], SIZE, CATEGORIES)


def test_drawing_without_a_picture_says_how_to_set_one(tmp_path):
    pytest.importorskip("thingstuff.visuals")
    with pytest.raises(ImageError, match=r"carry no picture.*dataclasses\.replace"):
        three().save(tmp_path / "out.png")


def test_saving_draws_the_segments_on_the_picture(tmp_path):
    pytest.importorskip("thingstuff.visuals")
    from PIL import Image

    segments = dataclasses.replace(three(), image=np.zeros((2, 4, 3), np.uint8))
    segments.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size[0] >= 4
    with pytest.raises(ImageError, match="can't be written"):
        segments.save(tmp_path / "out.unknown")


def test_showing_opens_what_saving_would_write(monkeypatch: pytest.MonkeyPatch, tmp_path):
    pytest.importorskip("thingstuff.visuals")
    from PIL import Image

    shown: list[np.ndarray] = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(np.asarray(image)))
    segments = dataclasses.replace(three(), image=np.zeros((2, 4, 3), np.uint8))
    segments.show()
    segments.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), shown[0])

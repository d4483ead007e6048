import json
import pickle
from pathlib import Path

import pytest

from thingstuff.errors import AnnotationError, ConfigError
from thingstuff.structures.categories import COCO_PANOPTIC, COCO_THINGS, COCO_THINGS_WITH_GAPS, Categories, Category

CAT, DOG, SKY = Category(17, "cat", supercategory="animal"), Category(18, "dog"), Category(99, "sky", is_thing=False)


def test_a_class_is_the_position_and_a_category_id_is_the_data_sets_number():
    categories = Categories((CAT, DOG, SKY))
    assert len(categories) == 3
    assert list(categories) == [CAT, DOG, SKY]
    assert categories[1] is DOG
    assert categories.class_of(99) == 2
    assert categories.names == ("cat", "dog", "sky")
    assert categories.ids == (17, 18, 99)


def test_categories_with_the_same_entries_are_equal_and_survive_pickling():
    assert Categories((CAT, SKY)) == Categories((CAT, SKY))
    assert Categories((CAT, SKY)) != Categories((SKY, CAT))  # another order is another meaning of class 0
    categories = Categories((CAT, SKY))
    assert categories.class_of(17) == 0  # the look-up table is made on first use
    assert pickle.loads(pickle.dumps(categories)) == categories


def test_an_unknown_category_id_is_named_with_the_known_ones():
    with pytest.raises(AnnotationError, match=r"category id 12 is not among these 2 categories \(ids 17, 99\)"):
        Categories((CAT, SKY)).class_of(12)
    with pytest.raises(AnnotationError, match="none"):
        Categories(()).class_of(1)


@pytest.mark.parametrize("class_", [-1, 3])
def test_a_class_outside_the_categories_is_an_error_and_minus_one_is_not_the_last(class_: int):
    with pytest.raises(AnnotationError, match=f"class {class_} does not exist"):
        Categories((CAT, DOG, SKY))[class_]


def test_two_categories_of_one_id_are_refused_by_both_names():
    with pytest.raises(AnnotationError, match="category id 17 is given to both 'cat' and 'lion'"):
        Categories((CAT, Category(17, "lion")))


def test_two_categories_of_one_name_are_allowed_since_ids_tell_them_apart():
    assert len(Categories((Category(1, "N/A"), Category(2, "N/A")))) == 2


def test_results_name_classes_of_one_name_with_their_category_ids():
    categories = Categories((Category(1, "bat"), Category(7, "bat"), Category(2, "cat")))
    assert categories.distinct_names == ("bat (1)", "bat (7)", "cat")


def test_numbered_categories_stand_in_for_unknown_names():
    categories = Categories.numbered(2)
    assert list(categories) == [Category(1, "class 0"), Category(2, "class 1")]
    assert len(Categories.numbered(0)) == 0
    with pytest.raises(ConfigError, match="0 or more, got -1"):
        Categories.numbered(-1)


def test_coco_entries_come_back_as_they_went():
    categories = Categories((CAT, DOG, SKY))
    assert Categories.from_coco(categories.to_coco()) == categories
    assert categories.to_coco()[2] == {"id": 99, "name": "sky", "supercategory": "", "isthing": 0}


def test_an_instance_file_without_isthing_holds_things():
    assert Categories.from_coco([{"id": 0, "name": "cell"}]).items == (Category(0, "cell", is_thing=True),)
    assert Categories.from_coco([{"id": 0, "name": "cell", "supercategory": None}])[0].supercategory == ""


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("cat", "must be an object"),
        ({"name": "cat"}, 'has no "id"'),
        ({"id": 1}, 'has no "name"'),
        ({"id": "1", "name": "cat"}, '"id" must be an integer'),
        ({"id": True, "name": "cat"}, '"id" must be an integer'),
        ({"id": 1, "name": None}, '"name" must be a text'),
        ({"id": 1, "name": "cat", "isthing": "yes"}, '"isthing" must be 0 or 1'),
    ],
)
def test_a_broken_coco_entry_is_named_by_its_position(entry: object, message: str):
    with pytest.raises(AnnotationError, match=r"categories\[1\].*" + message):
        Categories.from_coco([{"id": 7, "name": "dog"}, entry])


def test_the_coco_things_are_80_with_ids_up_to_90():
    assert len(COCO_THINGS) == 80
    assert all(category.is_thing for category in COCO_THINGS)
    assert (COCO_THINGS[0].name, COCO_THINGS[79].name) == ("person", "toothbrush")
    assert (min(COCO_THINGS.ids), max(COCO_THINGS.ids)) == (1, 90)
    assert COCO_THINGS.ids == tuple(sorted(COCO_THINGS.ids))
    assert len(set(COCO_THINGS.names)) == 80
    assert {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}.isdisjoint(COCO_THINGS.ids)  # the ten gaps


def test_the_coco_things_with_gaps_put_category_id_n_at_class_n_minus_1():
    assert len(COCO_THINGS_WITH_GAPS) == 90
    assert COCO_THINGS_WITH_GAPS.ids == tuple(range(1, 91))
    assert COCO_THINGS_WITH_GAPS.names.count("N/A") == 10
    assert [c for c in COCO_THINGS_WITH_GAPS if c.name != "N/A"] == list(COCO_THINGS)


def test_the_coco_panoptic_categories_are_the_things_and_then_53_kinds_of_stuff():
    assert len(COCO_PANOPTIC) == 133
    assert COCO_PANOPTIC.items[:80] == COCO_THINGS.items
    stuff = COCO_PANOPTIC.items[80:]
    assert not any(category.is_thing for category in stuff)
    assert [category.id for category in stuff] == sorted(category.id for category in stuff)
    assert (stuff[0].id, stuff[0].name, stuff[0].supercategory) == (92, "banner", "textile")
    assert (stuff[-1].id, stuff[-1].name, stuff[-1].supercategory) == (200, "rug-merged", "textile")


def test_the_coco_panoptic_categories_are_those_of_a_file(shared_data: Path):
    entries = json.loads((shared_data / "panoptic-sample" / "panoptic.json").read_text())["categories"]
    assert Categories.from_coco(entries) == COCO_PANOPTIC


def test_stand_ins_for_stuff_follow_those_for_things():
    assert [(c.id, c.name, c.is_thing) for c in Categories.numbered(2, 1)] == [
        (1, "class 0", True),
        (2, "class 1", True),
        (3, "class 2", False),
    ]

"""The tables of ADE20K and Mapillary Vistas at places that a shifted or a missing row would move."""

import pytest

from thingstuff.structures.categories import Categories
from thingstuff.structures.scenes import ADE20K, ADE20K_THINGS, MAPILLARY_VISTAS


@pytest.mark.parametrize(
    ("categories", "things", "stuff"), [(ADE20K, 100, 50), (ADE20K_THINGS, 100, 0), (MAPILLARY_VISTAS, 37, 28)]
)
def test_so_many_are_things_and_names_differ(categories: Categories, things: int, stuff: int):
    kinds = [category.is_thing for category in categories]
    assert (kinds.count(True), kinds.count(False)) == (things, stuff)
    assert len(set(categories.names)) == len(categories)


@pytest.mark.parametrize(
    ("categories", "class_", "id_", "name", "is_thing"),
    [
        (ADE20K, 0, 0, "wall", False),
        (ADE20K, 12, 12, "person", True),
        (ADE20K, 48, 48, "skyscraper", False),
        (ADE20K, 83, 83, "truck", True),
        (ADE20K, 109, 109, "pool", False),
        (ADE20K, 127, 127, "bicycle", True),
        (ADE20K, 145, 145, "shower", False),
        (ADE20K, 149, 149, "flag", True),
        (ADE20K_THINGS, 0, 7, "bed", True),
        (ADE20K_THINGS, 3, 12, "person", True),
        (ADE20K_THINGS, 99, 149, "flag", True),
        (MAPILLARY_VISTAS, 0, 1, "Bird", True),
        (MAPILLARY_VISTAS, 13, 14, "Road", False),
        (MAPILLARY_VISTAS, 19, 20, "Person", True),
        (MAPILLARY_VISTAS, 27, 28, "Sky", False),
        (MAPILLARY_VISTAS, 43, 44, "Pothole", False),
        (MAPILLARY_VISTAS, 55, 56, "Car", True),
        (MAPILLARY_VISTAS, 64, 65, "Ego Vehicle", False),
    ],
)
def test_a_class_has_its_name_and_kind(categories: Categories, class_: int, id_: int, name: str, is_thing: bool):
    category = categories[class_]
    assert (category.id, category.name, category.is_thing) == (id_, name, is_thing)

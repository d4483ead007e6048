"""Configs as JSON: what is written is what is read, and anything else is an error that says where."""

import dataclasses
import json
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import pytest

from thingstuff.checkpoints.plain import from_plain, to_plain
from thingstuff.errors import CheckpointError
from thingstuff.models.catalog import CATALOG
from thingstuff.structures.categories import COCO_THINGS, Categories
from thingstuff.structures.preprocessing import Preprocessing, Resize


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    colour: Colour = Colour.RED


@dataclass(frozen=True)
class Outer:
    inner: Inner
    rate: float = 0.5
    flag: bool = False
    limit: float | None = None
    mode: Literal["grid", "integer"] = "grid"
    options: tuple[tuple[str, object], ...] = ()


def through_json(kind, value):
    return from_plain(kind, json.loads(json.dumps(to_plain(value))), "file")


@pytest.mark.parametrize("name", CATALOG)
def test_every_config_of_the_catalog_survives_json(name):
    _, config, preprocessing = CATALOG[name]
    assert through_json(type(config), config) == config
    assert through_json(Preprocessing, preprocessing) == preprocessing


def test_categories_and_enums_survive_json():
    assert through_json(Categories, COCO_THINGS) == COCO_THINGS
    resize = Preprocessing(resize=Resize.OPENCV, short_side=0)
    assert through_json(Preprocessing, resize) == resize
    deep = Preprocessing(bit_depth=12)
    assert through_json(Preprocessing, deep) == deep
    older = {name: value for name, value in to_plain(deep).items() if name != "bit_depth"}
    assert from_plain(Preprocessing, older, "file").bit_depth is None


def test_nested_values_unions_and_options_survive_json():
    value = Outer(Inner((1, 2)), 1.0, True, 2.5, "integer", (("layers", (3, 4)), ("name", "x"), ("flag", None)))
    assert through_json(Outer, value) == value
    assert through_json(Outer, dataclasses.replace(value, limit=None)).limit is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, r"unknown to this version: \['colour'\]"),
        ({"rate": None}, r"file\.rate: expected float, got None"),
        ({"flag": 1}, r"file\.flag: expected bool, got 1"),
        ({"inner": 3}, r"file\.inner: expected the fields of Inner"),
        ({"inner": {"size": [1, 2, 3], "colour": "red"}}, r"file\.inner\.size: expected 2 values, got 3"),
        ({"inner": {"size": [1, True], "colour": "red"}}, r"file\.inner\.size\[1\]: expected int, got True"),
        ({"inner": {"size": 1, "colour": "red"}}, r"file\.inner\.size: expected a list"),
        ({"inner": {"size": [1, 2], "colour": "blue"}}, r"'blue' is none of \['red'\]"),
        ({"mode": "best"}, r"file\.mode: 'best' is none of \['grid', 'integer'\]"),
        ({"limit": "high"}, r"file\.limit: expected float, got 'high'"),
        ({"options": [["a", {}]]}, r"can't be part of a configuration"),
    ],
)
def test_a_value_of_another_type_is_named(change, message):
    plain = to_plain(Outer(Inner((1, 2)))) | change
    with pytest.raises(CheckpointError, match=message):
        from_plain(Outer, plain, "file")


def test_a_missing_field_takes_its_default_as_in_files_older_than_the_field():
    plain = to_plain(Outer(Inner((1, 2)), rate=0.7, flag=True))
    del plain["rate"], plain["inner"]["colour"]
    assert from_plain(Outer, plain, "file") == Outer(Inner((1, 2)), rate=0.5, flag=True)


def test_a_missing_field_without_a_default_is_named():
    plain = to_plain(Outer(Inner((1, 2))))
    del plain["inner"]["size"]
    with pytest.raises(CheckpointError, match=r"file\.inner: .* missing: \['size'\]"):
        from_plain(Outer, plain, "file")


def test_a_whole_number_is_read_as_a_float_where_one_is_wanted():
    plain = to_plain(Outer(Inner((1, 2)))) | {"rate": 1}
    assert type(from_plain(Outer, plain, "file").rate) is float


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(CheckpointError, match="a set can't be written"):
        to_plain(Outer(Inner((1, 2)), options=(("a", {1}),)))

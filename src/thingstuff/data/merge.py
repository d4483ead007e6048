"""Categories merged into broader ones: a panoptic data set of 133 kinds becomes one of a dozen.

A mapping is a JSON object: the new name, and the old names that go into it.

    {"animal": ["cat", "dog"], "sky": ["sky-other-merged"], "other": {"isthing": 0, "from": ["*"]}, "void": ["paper-merged"]}

"*" stands for all that no other line names; what goes to "void" is left unlabelled. A new category is a thing where all its old
ones are, stuff where none is, and otherwise as its "isthing" says.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thingstuff.data.coco_json import read_json, shown
from thingstuff.errors import AnnotationError
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.panoptic import PanopticMap

VOID, REST = "void", "*"
COCO_BROAD = Path(__file__).with_name("coco-broad.json")  # COCO's 133 categories in a dozen


@dataclass(frozen=True)
class Merging:
    """Which new category each old one goes to."""

    categories: Categories  # the new ones, with ids from 1
    classes: tuple[int, ...]  # the new class of each old class, -1 for void
    from_stuff: tuple[bool, ...]  # whether each old class is stuff


def read_merging(path: str | Path, categories: Categories) -> Merging:
    """Read a mapping for these categories.

    Raises:
        AnnotationError: it isn't such a mapping, names a category that there isn't, or one twice, or leaves one out.
    """
    path = Path(path)
    content = read_json(path, 'a mapping such as {"new name": ["old name", ...]}')
    sources: dict[str, list[str]] = {}
    stated: dict[str, bool | None] = {}
    for name, value in content.items():
        sources[name], stated[name] = _line(name, value, path)
    named = [old for olds in sources.values() for old in olds if old != REST]
    if unknown := [old for old in named if old not in categories.names]:
        raise AnnotationError(f"{path}: {unknown[0]!r} is no category of the data; it has {_some(list(categories.names))}")
    if twice := [old for old in named if named.count(old) > 1]:
        raise AnnotationError(f"{path}: {twice[0]!r} is named twice; a category goes to one place")
    rest = [name for name in categories.names if name not in named]
    takers = [name for name, olds in sources.items() if REST in olds]
    if len(takers) > 1:
        raise AnnotationError(f'{path}: {takers[0]!r} and {takers[1]!r} both have "{REST}"; one can take the rest')
    if rest and not takers:
        raise AnnotationError(
            f'{path}: does not say where {_some(rest)} go; name them, also under "{VOID}", or give one "{REST}"'
        )
    goes_to = {old: name for name, olds in sources.items() for old in olds}
    goes_to |= dict.fromkeys(rest, takers[0] if takers else VOID)
    kept = [name for name in sources if name != VOID]
    news = Categories(
        tuple(
            Category(number, name, _is_thing(name, stated[name], goes_to, categories, path))
            for number, name in enumerate(kept, 1)
        )
    )
    classes = tuple(-1 if goes_to[name] == VOID else kept.index(goes_to[name]) for name in categories.names)
    return Merging(news, classes, tuple(not category.is_thing for category in categories))


def merged(panoptic: PanopticMap, merging: Merging) -> PanopticMap:
    """A map in the new categories, its segments numbered from 1 in their old order.

    Things that become things of another name stay apart, and crowds crowds. All that becomes stuff of one class is one segment.
    Stuff that becomes a thing class is one crowd of it: nobody has said where one thing ends and the next begins.
    """
    index = panoptic.index_map()
    numbers = np.zeros(len(panoptic) + 2, np.int32)  # of the new segment, for void, each old segment, and ids that are not listed
    classes: list[int] = []
    crowd: list[bool] = []
    joined: dict[int, int] = {}  # new class -> number of the segment that takes all its regions
    for place, (class_, is_crowd) in enumerate(zip(panoptic.classes.tolist(), panoptic.crowd.tolist(), strict=True), start=1):
        new = merging.classes[class_]
        if new < 0:
            continue
        is_thing, was_stuff = merging.categories[new].is_thing, merging.from_stuff[class_]
        if (was_stuff or not is_thing) and new in joined:
            numbers[place] = joined[new]
            continue
        classes.append(new)
        crowd.append(is_thing and (is_crowd or was_stuff))
        numbers[place] = len(classes)
        if was_stuff or not is_thing:
            joined[new] = len(classes)
    ids = np.arange(1, len(classes) + 1)
    return PanopticMap(numbers[index], ids, np.array(classes, np.int64), np.array(crowd, np.bool_), merging.categories)


def _line(name: str, value: Any, path: Path) -> tuple[list[str], bool | None]:
    """The old names of one line, and whether it says that they become things."""
    is_thing = None
    if isinstance(value, dict):
        is_thing, value = value.get("isthing"), value.get("from")
        if is_thing not in (None, 0, 1):
            raise AnnotationError(f'{path}: {name!r}: "isthing" must be 0 or 1, got {shown(is_thing)}')
    if not name or not isinstance(value, list) or not all(isinstance(old, str) for old in value):
        raise AnnotationError(
            f'{path}: {name!r} has {shown(value)}; give a list of old names, or {{"isthing": 0, "from": [...]}}'
        )
    return value, None if is_thing is None else bool(is_thing)


def _is_thing(name: str, stated: bool | None, goes_to: dict[str, str], categories: Categories, path: Path) -> bool:
    if stated is not None:
        return stated
    kinds = {category.is_thing for category in categories if goes_to[category.name] == name}
    if len(kinds) > 1:
        raise AnnotationError(f'{path}: {name!r} takes things and stuff; say what it is: {{"isthing": 0, "from": [...]}}')
    return kinds.pop() if kinds else True


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

"""What a segment can be: the categories of a data set as one value that is passed along, never a global catalog.

Two numbers name a category. Its *category id* is the data set's own (COCO counts 1..90 with gaps); its *class* is ours, the index
into `Categories`, contiguous from 0, and the channel of a network's output.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from thingstuff.errors import AnnotationError, ConfigError


@dataclass(frozen=True)
class Category:
    """One kind of thing (countable: car) or stuff (amorphous: sky)."""

    id: int  # the data set's number, any integer
    name: str
    is_thing: bool = True
    supercategory: str = ""


@dataclass(frozen=True)
class Categories:
    """The categories of a data set or a model, in the order of the model's classes; equal when all entries are equal."""

    items: tuple[Category, ...]

    def __post_init__(self) -> None:
        seen: dict[int, Category] = {}
        for category in self.items:
            if category.id in seen:
                raise AnnotationError(
                    f"category id {category.id} is given to both {seen[category.id].name!r} and {category.name!r}; "
                    "give every category an id of its own"
                )
            seen[category.id] = category

    @classmethod
    def numbered(cls, things: int, stuff: int = 0) -> "Categories":
        """Stand-ins for a model whose file names none, things first: "class 0", "class 1" ... with category ids 1, 2 ..."""
        if min(things, stuff) < 0:
            raise ConfigError(f"the number of categories must be 0 or more, got {min(things, stuff)}")
        return cls(tuple(Category(number + 1, f"class {number}", is_thing=number < things) for number in range(things + stuff)))

    @classmethod
    def from_coco(cls, entries: Iterable[Any]) -> "Categories":
        """The `categories` list of a COCO file, in the file's order; "isthing" is read where a panoptic file gives it.

        Raises:
            AnnotationError: an entry is no object, lacks "id" or "name", holds another type there, or repeats an id.
        """
        return cls(tuple(_category_from_coco(position, entry) for position, entry in enumerate(entries)))

    def to_coco(self) -> list[dict[str, Any]]:
        """The `categories` list of a COCO file, with "isthing" as the panoptic format has it."""
        return [{"id": c.id, "name": c.name, "supercategory": c.supercategory, "isthing": int(c.is_thing)} for c in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Category]:
        return iter(self.items)

    def __getitem__(self, class_: int) -> Category:
        # a negative class is a mistake (void is -1 in semantic maps), never a count from the end
        if not 0 <= class_ < len(self.items):
            raise AnnotationError(f"class {class_} does not exist: these {len(self.items)} categories are classes 0 and up")
        return self.items[class_]

    def class_of(self, category_id: object) -> int:
        """The class (index from 0) of a data set's category id."""
        try:
            return self._class_of_id[category_id]  # type: ignore[index]
        except (KeyError, TypeError):  # TypeError: a list or an object where a file should have a number
            known = ", ".join(str(id_) for id_ in self.ids[:10]) + (", ..." if len(self.items) > 10 else "")
            raise AnnotationError(
                f"category id {category_id} is not among these {len(self.items)} categories (ids {known or 'none'}); "
                "add it to the categories or correct the annotation"
            ) from None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.items)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(category.id for category in self.items)

    @cached_property
    def distinct_names(self) -> tuple[str, ...]:
        """The name of each class, with its category id where several share a name: keys of results."""
        times = Counter(self.names)
        return tuple(f"{item.name} ({item.id})" if times[item.name] > 1 else item.name for item in self.items)

    @cached_property
    def _class_of_id(self) -> dict[int, int]:
        return {category.id: class_ for class_, category in enumerate(self.items)}


def _category_from_coco(position: int, entry: Any) -> Category:
    if not isinstance(entry, Mapping):
        raise AnnotationError(f"categories[{position}] must be an object with an id and a name, got {entry!r}")
    for key, kind, wanted in (("id", int, "an integer"), ("name", str, "a text")):
        if key not in entry:
            raise AnnotationError(f'categories[{position}] has no "{key}"; every category needs an id and a name')
        if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
            raise AnnotationError(f'categories[{position}]: "{key}" must be {wanted}, got {entry[key]!r}')
    is_thing = entry.get("isthing", 1)
    if is_thing not in (0, 1):
        raise AnnotationError(f'categories[{position}] ({entry["name"]}): "isthing" must be 0 or 1, got {is_thing!r}')
    return Category(int(entry["id"]), entry["name"], bool(is_thing), str(entry.get("supercategory") or ""))


# The names of COCO (Lin et al., 2014, arXiv:1405.0312, appendix II) less those never annotated: 80 in use, ids 1 to 90.
_COCO_THINGS_BY_SUPERCATEGORY = {
    "person": {1: "person"},
    "vehicle": {2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat"},
    "outdoor": {10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench"},
    "animal": {
        **{16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow"},
        **{22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe"},
    },
    "accessory": {27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase"},
    "sports": {
        **{34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat"},
        **{40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket"},
    },
    "kitchen": {44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl"},
    "food": {
        **{52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli"},
        **{57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut", 61: "cake"},
    },
    "furniture": {62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet"},
    "electronic": {72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone"},
    "appliance": {78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator"},
    "indoor": {
        **{84: "book", 85: "clock", 86: "vase", 87: "scissors"},
        **{88: "teddy bear", 89: "hair drier", 90: "toothbrush"},
    },
}

COCO_THINGS = Categories(
    tuple(
        Category(id_, name, supercategory=supercategory)
        for supercategory, names in _COCO_THINGS_BY_SUPERCATEGORY.items()
        for id_, name in names.items()
    )
)
"""The 80 things of COCO: class 0 is "person" (category id 1), class 79 is "toothbrush" (category id 90)."""

COCO_THINGS_WITH_GAPS = Categories(
    tuple(COCO_THINGS[COCO_THINGS.class_of(id_)] if id_ in COCO_THINGS.ids else Category(id_, "N/A") for id_ in range(1, 91))
)
"""Category ids 1 to 90 as 90 classes, "N/A" where COCO has no such id: the outputs of torchvision's networks."""

_COCO_STUFF_BY_SUPERCATEGORY: dict[str, dict[int, str]] = {
    "textile": {92: "banner", 93: "blanket", 109: "curtain", 141: "pillow", 168: "towel", 200: "rug-merged"},
    "building": {95: "bridge", 128: "house", 151: "roof", 166: "tent", 197: "building-other-merged"},
    "raw-material": {100: "cardboard", 195: "paper-merged"},
    "furniture-stuff": {
        **{107: "counter", 112: "door-stuff", 130: "light", 133: "mirror-stuff", 156: "shelf", 161: "stairs"},
        **{188: "cabinet-merged", 189: "table-merged"},
    },
    "floor": {118: "floor-wood", 190: "floor-other-merged"},
    "plant": {119: "flower", 184: "tree-merged", 193: "grass-merged"},
    "food-stuff": {122: "fruit", 196: "food-other-merged"},
    "ground": {
        **{125: "gravel", 144: "platform", 145: "playingfield", 147: "railroad", 149: "road", 154: "sand"},
        **{159: "snow", 191: "pavement-merged", 194: "dirt-merged"},
    },
    "structural": {138: "net", 185: "fence-merged"},
    "water": {148: "river", 155: "sea", 178: "water-other"},
    "wall": {171: "wall-brick", 175: "wall-stone", 176: "wall-tile", 177: "wall-wood", 199: "wall-other-merged"},
    "window": {180: "window-blind", 181: "window-other"},
    "ceiling": {186: "ceiling-merged"},
    "sky": {187: "sky-other-merged"},
    "solid": {192: "mountain-merged", 198: "rock-merged"},
}

COCO_PANOPTIC = Categories(
    (
        *COCO_THINGS,
        *sorted(
            (
                Category(id_, name, is_thing=False, supercategory=supercategory)
                for supercategory, names in _COCO_STUFF_BY_SUPERCATEGORY.items()
                for id_, name in names.items()
            ),
            key=lambda category: category.id,
        ),
    )
)
"""The 133 categories of COCO panoptic: the 80 things, then 53 kinds of stuff by category id; class 80 is "banner" (92)."""

_CITYSCAPES_STUFF = {
    "flat": {7: "road", 8: "sidewalk"},
    "construction": {11: "building", 12: "wall", 13: "fence"},
    "object": {17: "pole", 19: "traffic light", 20: "traffic sign"},
    "nature": {21: "vegetation", 22: "terrain"},
    "sky": {23: "sky"},
}
_CITYSCAPES_THINGS = {
    "human": {24: "person", 25: "rider"},
    "vehicle": {26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"},
}
CITYSCAPES = Categories(
    tuple(
        Category(label, name, is_thing, group)
        for is_thing, groups in ((False, _CITYSCAPES_STUFF), (True, _CITYSCAPES_THINGS))
        for group, names in groups.items()
        for label, name in names.items()
    )
)
"""The 19 classes that Cityscapes (arXiv:1604.01685) evaluates: class 0 is "road" (label 7), class 18 is "bicycle" (label 33)."""

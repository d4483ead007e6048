"""Panoptic annotations as objects and back: what training, and tools that know instances or class maps alone, ask for.

Panoptic map  <->  things as objects + a map of classes;  panoptic map -> every segment, thing or stuff, as an object
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Integer

from thingstuff.data.layouts import in_threads
from thingstuff.data.panoptic import PanopticDataset, PanopticRecord
from thingstuff.data.records import InstanceDataset, Object, Record
from thingstuff.errors import AnnotationError, SizeError
from thingstuff.structures.categories import Categories
from thingstuff.structures.masks import Mask
from thingstuff.structures.panoptic import PanopticMap


def panoptic_as_objects(dataset: PanopticDataset) -> InstanceDataset:
    """Every segment, thing or stuff, as an object of its image: what training on panoptic data takes.

    Objects of an image share no pixel, and a pixel of none of them is void. Order, classes and crowds are the file's. Every map
    is decoded here, once, and held as run-length code. Images named by texts, as Cityscapes', are numbered from 1.

    Raises:
        AnnotationError: a PNG can't be read, or paints what its file does not list, or the other way round; image and segment
            are named.
    """
    numbered = not all(isinstance(record.image_id, int) for record in dataset)

    def read(place_and_record: tuple[int, PanopticRecord]) -> Record:
        place, record = place_and_record
        panoptic = record.panoptic_map()
        found = objects_of(panoptic, where=f"{dataset.source}: image {record.image_id}")
        image_id = place if numbered else record.image_id
        assert isinstance(image_id, int)
        return Record(image_id, record.path, panoptic.size, found)

    records = number_annotations(in_threads(read, list(enumerate(dataset, start=1)), "read maps"))
    return InstanceDataset(records, dataset.categories, dataset.source)


def number_annotations(records: Sequence[Record]) -> tuple[Record, ...]:
    """The records with annotation ids 1, 2 ... through all of them, since segment ids differ within one image alone."""
    numbered, next_id = [], 1
    for record in records:
        objects = tuple(replace(found, annotation_id=next_id + place) for place, found in enumerate(record.objects))
        next_id += len(objects)
        numbered.append(replace(record, objects=objects))
    return tuple(numbered)


def things_alone(dataset: InstanceDataset) -> InstanceDataset:
    """The objects that are things, and the categories that are: instance annotations of a panoptic data set."""
    kept = [class_ for class_, category in enumerate(dataset.categories) if category.is_thing]
    categories = Categories(tuple(dataset.categories[class_] for class_ in kept))
    records = tuple(
        replace(
            record,
            objects=tuple(
                replace(found, class_=kept.index(found.class_))
                for found in record.objects
                if dataset.categories[found.class_].is_thing
            ),
        )
        for record in dataset
    )
    return InstanceDataset(records, categories, dataset.source)


def merged_by_class(dataset: InstanceDataset) -> InstanceDataset:
    """One object for each class of an image, the union of all that there were, crowds too: what semantic training takes."""
    records = []
    for record in dataset:
        of_class: dict[int, list[Object]] = {}
        for found in record.objects:
            of_class.setdefault(found.class_, []).append(found)
        objects = []
        for class_, parts in sorted(of_class.items()):
            mask = Mask.union([part.mask for part in parts])
            box = tuple(map(float, mask.box))
            objects.append(Object(class_, box, mask, False, float(mask.area), parts[0].annotation_id))  # type: ignore[arg-type]
        records.append(replace(record, objects=tuple(objects)))
    return InstanceDataset(tuple(records), dataset.categories, dataset.source)


def objects_of(panoptic: PanopticMap, where: str = "the map") -> tuple[Object, ...]:
    """The segments of one map as objects, in its order, with the ids of the segments.

    Raises:
        AnnotationError: the map paints an id that it does not list, or lists one that it does not paint.
    """
    segments = panoptic.to_segments()
    areas = segments.areas
    if np.count_nonzero(np.asarray(panoptic.numpy().ids)) > areas.sum():  # a search for ids takes longer than all the rest
        unlisted = panoptic.unlisted()[0]
        raise AnnotationError(f"{where}: segment {unlisted} is painted but not listed; list it, or paint it void (0)")
    if not areas.all():
        absent = panoptic.segment_ids[areas == 0][0]
        raise AnnotationError(f"{where}: segment {absent} is listed but not painted; paint or remove it")
    return tuple(
        Object(class_, tuple(map(float, mask.box)), mask, crowd, float(mask.area), segment_id)  # type: ignore[arg-type]
        for class_, mask, crowd, segment_id in zip(
            panoptic.classes.tolist(), segments.rles, panoptic.crowd.tolist(), panoptic.segment_ids.tolist(), strict=True
        )
    )


def map_of(record: Record, categories: Categories) -> PanopticMap:
    """The map that a record's objects paint, ids from 1 in their order: the way back from `panoptic_as_objects`.

    Objects of panoptic data share no pixel; of others that do, the later one has it.
    """
    ids = np.zeros(record.size, np.int32)
    for number, found in enumerate(record.objects, start=1):
        (top, left), (height, width) = found.mask.corner, found.mask.crop_size
        ids[top : top + height, left : left + width][found.mask.crop()] = number
    classes = np.array([found.class_ for found in record.objects], np.int64)
    crowd = np.array([found.is_crowd for found in record.objects], np.bool_)
    return _renumbered(ids, classes.tolist(), crowd.tolist(), categories)


def split_panoptic(panoptic: PanopticMap) -> tuple[tuple[Object, ...], Integer[np.ndarray, "height width"]]:
    """The things as objects, and the class of each pixel, -1 for void: instances and a semantic mask."""
    things = tuple(found for found in objects_of(panoptic) if panoptic.categories[found.class_].is_thing)
    return things, panoptic.semantic_map()


def join_panoptic(
    objects: Iterable[Object], semantic: Integer[np.ndarray, "height width"], categories: Categories, void: int = -1
) -> PanopticMap:
    """A panoptic map of things and a semantic mask; segments are numbered from 1, things first.

    A pixel that several objects cover is the smallest one's, and a crowd's only where no object is. Elsewhere it is stuff, if
    the mask says so; where the mask says thing and there is no object, it is void.

    Args:
        objects: things, of these categories.
        semantic: the class of each pixel, or `void`.

    Raises:
        SizeError: an object belongs to an image of another size than the mask.
        AnnotationError: the mask holds a class that does not exist, or an object is stuff.
    """
    size = (int(semantic.shape[0]), int(semantic.shape[1]))
    present = [class_ for class_ in np.unique(semantic).tolist() if class_ != void]
    if wrong := [class_ for class_ in present if not 0 <= class_ < len(categories)]:
        raise AnnotationError(f"the semantic mask holds class {wrong[0]}; classes are 0 to {len(categories) - 1}, void is {void}")
    ids = np.zeros(size, np.int32)
    front_last = sorted(objects, key=lambda found: (not found.is_crowd, -found.mask.area))
    for number, found in enumerate(front_last, start=1):
        if found.mask.size != size:
            raise SizeError(f"an object belongs to an image of size {found.mask.size}, the semantic mask to one of {size}")
        if not categories[found.class_].is_thing:
            raise AnnotationError(f"an object is of the stuff class {categories[found.class_].name!r}; objects are things")
        (top, left), (height, width) = found.mask.corner, found.mask.crop_size
        ids[top : top + height, left : left + width][found.mask.crop()] = number
    classes, crowd = [found.class_ for found in front_last], [found.is_crowd for found in front_last]
    free = ids == 0
    for class_ in present:
        if not categories[class_].is_thing:
            classes.append(class_)
            crowd.append(False)
            ids[free & (semantic == class_)] = len(classes)
    return _renumbered(ids, classes, crowd, categories)


def _renumbered(ids: np.ndarray, classes: Sequence[int], crowd: Sequence[bool], categories: Categories) -> PanopticMap:
    """A map of ids 1, 2 ... without those that are not painted."""
    shown = np.flatnonzero(np.bincount(ids.ravel(), minlength=len(classes) + 1)[1:])
    numbers = np.zeros(len(classes) + 1, np.int32)
    numbers[shown + 1] = np.arange(1, len(shown) + 1)
    return PanopticMap(
        numbers[ids],
        np.arange(1, len(shown) + 1),
        np.array(classes, np.int64)[shown],
        np.array(crowd, np.bool_)[shown],
        categories,
    )

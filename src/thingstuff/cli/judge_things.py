"""Average precision of a panoptic model's things, measured beside its panoptic quality in one run of the network."""

import argparse
from typing import TYPE_CHECKING, Any

from thingstuff.cli.arguments import given
from thingstuff.cli.predictions import in_categories

if TYPE_CHECKING:
    from thingstuff.data.panoptic import ImageId, PanopticDataset
    from thingstuff.data.records import InstanceDataset
    from thingstuff.segmenter import Segmenter
    from thingstuff.structures.segments import Segments

COUNTED = 100  # best-scored objects of an image and class that count, as COCO has it


class ThingsJudge:
    """The objects of `instances.json` where it has every image of the panoptic data, or else the things of the maps."""

    def __init__(self, arguments: argparse.Namespace, data: "PanopticDataset", segmenter: "Segmenter"):
        from thingstuff.evaluation.average_precision import AveragePrecision
        from thingstuff.models.contract import Task

        objects = _objects(arguments, data)
        numbers = [record.image_id for record in objects]
        self._numbers: dict[ImageId, int] = dict(zip((record.image_id for record in data), numbers, strict=True))
        self._categories = objects.categories
        by_name = {name: class_ for class_, name in enumerate(objects.categories.names)}
        self._classes = [by_name.get(name, -1) for name in segmenter.categories.names]
        self.max_detections: int = arguments.max_detections or COUNTED
        self.limits = segmenter.thresholds(task=Task.INSTANCE, max_detections=arguments.max_detections)
        self.precision = AveragePrecision(objects, self.max_detections)

    def update(self, image_id: "ImageId", segments: "Segments") -> None:
        self.precision.update(self._numbers[image_id], in_categories(segments, self._categories, self._classes))

    def add_to(self, result: dict[str, Any], table: str) -> tuple[dict[str, Any], str]:
        """A result and its table with the figures of objects in front."""
        from thingstuff.evaluation.average_precision import format_table

        found = self.precision.compute()
        if found["mask"]["AP"] is None:  # there is no thing to find
            return result, table
        kinds = {kind: found[kind] for kind in ("box", "mask")}
        per_class = {name: {**found["per_class"].get(name, {}), **row} for name, row in result["per_class"].items()}
        overall = format_table({**kinds, "per_class": {}}, self.max_detections).split("\n\n")[0]
        return {**kinds, **result, "per_class": per_class}, f"{table}\n\n{overall}"


def judges_things(arguments: argparse.Namespace, data: "PanopticDataset", segmenter: "Segmenter") -> ThingsJudge | None:
    """A judge where the model finds objects, and things of the data are among them."""
    from thingstuff.models.contract import Task

    things = {category.name for category in data.categories if category.is_thing}
    if Task.INSTANCE not in segmenter.tasks or things.isdisjoint(segmenter.categories.names):
        return None
    return ThingsJudge(arguments, data, segmenter)


def _objects(arguments: argparse.Namespace, data: "PanopticDataset") -> "InstanceDataset":
    """The objects of each image of the data, in its order."""
    from dataclasses import replace

    from thingstuff.data.folders import has_instances, open_dataset
    from thingstuff.data.panoptic_objects import panoptic_as_objects, things_alone

    if has_instances(arguments.data, arguments.split):
        options = {"required_images": False, **given(max_pixels=arguments.max_pixels)}
        objects = open_dataset(arguments.data, arguments.split, **options)
        by_id = {record.image_id: record for record in objects}
        if all(record.image_id in by_id for record in data):
            return replace(objects, records=tuple(by_id[record.image_id] for record in data))  # type: ignore[index]
    return things_alone(panoptic_as_objects(data))

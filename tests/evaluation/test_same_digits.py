"""Ours, hotcoco's and pycocotools' digits on every set in ../shared/data, with predictions made by perturbing its truth.

Sets of objects: AP and AR of boxes and masks, of all three. Sets of panoptic maps: PQ, hotcoco's evaluation and ours; that
panopticapi's are the same is shown on its reference case.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import pytest
from hotcoco.panoptic import PanopticEval
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from thingstuff.data.coco import read_coco
from thingstuff.data.folders import open_dataset, open_panoptic
from thingstuff.data.panoptic import PanopticDataset, pairs, read_panoptic, read_panoptic_predictions
from thingstuff.data.records import InstanceDataset
from thingstuff.evaluation.average_precision import AveragePrecision
from thingstuff.evaluation.matching import AREAS, precision_and_recall, stated_mean
from thingstuff.evaluation.panoptic_quality import PanopticQuality
from thingstuff.formats.coco_panoptic import write_panoptic
from thingstuff.structures.masks import Mask
from thingstuff.structures.panoptic import PanopticMap
from thingstuff.structures.segments import Segments

OBJECTS = {  # set -> images at most, of its validation split where it has one
    "nuclei": 3,  # they hold the most objects, and pycocotools would take minutes for all
    "coco-mini": 36,
    "coco-person": 150,
    "pennfudan": 50,
    "balloon": 13,
    "voc2007-sample": 44,
    "cityscapes-format": 3,
    "labelme-sample": 3,
    "panoptic-sample": 17,  # its things
}
MAPS = {"panoptic-sample": 167, "cityscapes-format": 3, "voc2007-sample": 44}  # set -> images, all of them
ROUNDING = 1e-13  # hotcoco adds IoUs up in floating point; we add exactly


def test_every_set_is_here(shared_data: Path):
    assert {path.name for path in shared_data.iterdir() if path.is_dir()} == OBJECTS.keys() | MAPS.keys()


# Objects --------------------------------------------------------------------------------------------------------------


def truth_of(shared_data: Path, name: str) -> dict[str, Any]:
    """The set in COCO's format: as its file says, polygons and all, or by our readers of other layouts."""
    folder = shared_data / name
    if name == "labelme-sample":
        content = json.loads((folder / "expected" / "coco.json").read_text())  # by LabelMe's own converter
        # which counts from 0, and pycocotools takes a match with object 0 for none
        return {**content, "annotations": [{**row, "id": row["id"] + 1} for row in content["annotations"]]}
    if (file := folder / "instances_val.json").is_file():
        return json.loads(file.read_text())
    split = "val" if name == "panoptic-sample" else None
    data = open_dataset(folder, split, required_images=False)
    rows = []
    for record in data:
        for found in record.objects:
            x1, y1, x2, y2 = found.box
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": record.image_id,
                    "category_id": data.categories[found.class_].id,
                    "segmentation": found.mask.to_coco(),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": found.area,
                    "iscrowd": int(found.is_crowd),
                }
            )
    images = [
        {"id": record.image_id, "file_name": f"{record.image_id}.jpg", "height": record.size[0], "width": record.size[1]}
        for record in data
    ]
    return {"images": images, "annotations": rows, "categories": data.categories.to_coco()}


def some_of(content: dict[str, Any], name: str, images: int) -> dict[str, Any]:
    """Images with few objects to images with many; of nuclei those with 60 to 130, so that 100 and 300 detections differ."""
    objects = Counter(row["image_id"] for row in content["annotations"])
    of_use = [image for image in content["images"] if name != "nuclei" or 60 <= objects[image["id"]] <= 130]
    chosen = sorted(of_use, key=lambda image: objects[image["id"]])[:: -(-len(of_use) // images)]
    ids = {image["id"] for image in chosen}
    return {**content, "images": chosen, "annotations": [row for row in content["annotations"] if row["image_id"] in ids]}


def perturbed_objects(dataset: InstanceDataset, copies: int) -> dict[int, Segments]:
    """Shifted, rescored, some missing, some doubled, some of another class."""
    random = np.random.default_rng(0)
    by_image: dict[int, Segments] = {}
    for record in dataset:
        classes, masks = [], []
        for found in record.objects:
            for _ in range(copies):
                if random.random() < 0.15 or not found.mask.area:
                    continue
                (top, left), crop = found.mask.corner, found.mask.crop()
                shift = random.integers(-3, 4, 2)
                masks.append(Mask.from_crop(crop, (top + int(shift[0]), left + int(shift[1])), record.size))
                wrong = random.random() < 0.1
                classes.append(int(random.integers(len(dataset.categories))) if wrong else found.class_)
        scores = random.random(len(masks)).astype(np.float32)
        boxes = np.array([mask.box for mask in masks], np.float32).reshape(-1, 4)
        boxes += random.uniform(-1, 1, boxes.shape).astype(np.float32)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        by_image[record.image_id] = Segments(
            record.size, dataset.categories, np.array(classes, np.int64), scores, boxes, tuple(masks)
        )
    return by_image


def numbers(precision: np.ndarray, recall: np.ndarray) -> list[float | None]:
    """AP, AP50, AP75, APs, APm, APl, AP of each class by category id, AR1, AR10, AR100 (or as asked), ARs, ARm, ARl.

    Of precision by IoU, recall, class and area, and recall by IoU, class, area and limit.
    """
    parts = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0], *(precision[..., area] for area in (1, 2, 3))]
    parts += [precision[:, :, class_, 0] for class_ in range(precision.shape[2])]
    parts += [recall[:, :, 0, 0], recall[:, :, 0, 1], *(recall[:, :, area, -1] for area in range(4))]
    return [stated_mean(part) for part in parts]


def theirs(truth: Any, found: Any, evaluator: Any, kind: str, limit: int) -> list[float | None]:
    evaluation = evaluator(truth, found, kind)
    evaluation.params.maxDets = [1, 10, limit]
    evaluation.evaluate()
    evaluation.accumulate()
    return numbers(evaluation.eval["precision"][..., -1], evaluation.eval["recall"])


def ours(result: dict[str, Any], dataset: InstanceDataset, kind: str) -> list[float | None]:
    stated, per_class = list(result[kind].values()), list(result["per_class"].values())
    by_id = np.argsort(dataset.categories.ids).tolist()
    return [*stated[:6], *(per_class[class_][kind] for class_ in by_id), *stated[6:]]


def by_our_own_matches(metric: AveragePrecision, dataset: InstanceDataset, kind: str, limit: int) -> list[float | None]:
    """From what became of each prediction, which intervals, curves and costs of mistakes are made of."""
    matches, order = metric.matches(kind), np.argsort(dataset.categories.ids)
    areas = [precision_and_recall(matches, area, limit) for area in range(len(AREAS))]
    fewer = [precision_and_recall(matches, 0, count)[1] for count in (1, 10)]
    recall = np.stack([np.stack([*fewer, recall], axis=-1) for _, recall in areas], axis=-2)
    return numbers(np.stack([precision for precision, _ in areas], axis=-1)[:, :, order], recall[:, order])


@pytest.mark.parametrize(
    ("name", "limit", "copies"),
    [
        ("nuclei", 100, 2),
        ("nuclei", 300, 2),
        *((name, 100, 1 if "coco-mini" in name else 2) for name in OBJECTS if name != "nuclei"),
    ],
)
def test_average_precision(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name, limit, copies):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(some_of(truth_of(shared_data, name), name, OBJECTS[name])))
    dataset = read_coco(path, required_images=False)
    found = perturbed_objects(dataset, copies)
    metric = AveragePrecision(dataset, limit)
    for image_id, segments in found.items():
        metric.update(image_id, segments)
    result = metric.compute()
    assert capsys.readouterr().out == ""
    rows = [row for image_id, segments in found.items() for row in segments.to_coco(image_id)]
    for kind, (ours_of, key) in {"bbox": ("box", "bbox"), "segm": ("mask", "segmentation")}.items():
        given = [{part: row[part] for part in ("image_id", "category_id", "score", key)} for row in rows]
        stated = ours(result, dataset, ours_of)
        assert stated[0] is not None
        assert 0.1 < stated[0] < 0.9
        pycocotools = COCO(str(path))
        assert stated == theirs(pycocotools, pycocotools.loadRes(json.loads(json.dumps(given))), COCOeval, kind, limit)
        hot = hotcoco.COCO(str(path))
        assert stated == theirs(hot, hot.load_res(given), hotcoco.COCOeval, kind, limit)
        assert stated == by_our_own_matches(metric, dataset, ours_of, limit)


def as_lvis(content: dict[str, Any]) -> dict[str, Any]:
    """As if some classes had been looked for in each image, not all of them drawn; without crowds, which LVIS lacks."""
    random = np.random.default_rng(3)
    ids = [category["id"] for category in content["categories"]]
    rows = [row for row in content["annotations"] if not row["iscrowd"]]
    images = []
    for image in content["images"]:
        present = {row["category_id"] for row in rows if row["image_id"] == image["id"]}
        negative = [id_ for id_ in random.choice(ids, len(ids) // 2, replace=False).tolist() if id_ not in present]
        open_ended = [id_ for id_ in sorted(present) if random.random() < 0.4]
        images.append({**image, "neg_category_ids": negative, "not_exhaustive_category_ids": open_ended})
    categories = [{**category, "frequency": "rcf"[place % 3]} for place, category in enumerate(content["categories"])]
    return {"images": images, "annotations": rows, "categories": categories}


NAMES_OF_LVIS = {"AR@300": "AR300", "ARs@300": "ARs", "ARm@300": "ARm", "ARl@300": "ARl"}


def test_average_precision_as_lvis_has_it(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(as_lvis(some_of(truth_of(shared_data, "coco-mini"), "coco-mini", OBJECTS["coco-mini"]))))
    dataset = read_coco(path, required_images=False)
    metric = AveragePrecision(dataset, 300, federated=True)
    rows = []
    for image_id, segments in perturbed_objects(dataset, copies=2).items():
        metric.update(image_id, segments)
        rows += segments.to_coco(image_id)
    result = metric.compute()
    for kind, (ours_of, key) in {"bbox": ("box", "bbox"), "segm": ("mask", "segmentation")}.items():
        hot = hotcoco.COCO(str(path))
        given = hot.load_res([{part: row[part] for part in ("image_id", "category_id", "score", key)} for row in rows])
        evaluation = hotcoco.COCOeval(hot, given, kind, lvis_style=True)
        evaluation.run()
        expected = evaluation.get_results()
        capsys.readouterr()  # its table
        assert len({expected[group] for group in ("AP", "APr", "APc", "APf")}) == 4
        assert result[ours_of] == {NAMES_OF_LVIS.get(name, name): value for name, value in expected.items()}


# Panoptic maps --------------------------------------------------------------------------------------------------------


def perturbed_map(truth: PanopticMap, seed: int) -> PanopticMap:
    """A prediction as a network might make it: moved by a few pixels, segments joined, split, relabelled and left out."""
    random = np.random.default_rng(seed)
    ids = np.roll(truth.ids.astype(np.int64), tuple(random.integers(-4, 5, 2)), (0, 1))
    for segment in truth.segment_ids:
        chance = random.random()
        if chance < 0.1:  # joined with another
            ids[ids == segment] = random.choice(truth.segment_ids)
        elif chance < 0.2:  # split
            half = ids[:, : ids.shape[1] // 2]
            half[half == segment] = random.integers(1, 2**24)
        elif chance < 0.3:
            ids[ids == segment] = 0
    shown = np.unique(ids[ids > 0])
    known = dict(zip(truth.segment_ids.tolist(), truth.classes.tolist(), strict=True))
    classes = np.array([known.get(segment, 0) for segment in shown.tolist()], np.int64)
    wrong = random.random(len(shown)) < 0.1
    classes[wrong] = random.integers(0, len(truth.categories), int(wrong.sum()))
    return PanopticMap(ids, shown, classes, np.zeros(len(shown), np.bool_), truth.categories)


def as_coco_panoptic(data: PanopticDataset, path: Path, seed: int | None) -> None:
    """A set's own maps (no seed), or perturbed ones, as files; images go by number, since hotcoco reads no other ids."""
    maps = ((record.image_id if isinstance(record.image_id, int) else place, record) for place, record in enumerate(data))
    drawn = ((image_id, f"{image_id}.jpg", record.panoptic_map()) for image_id, record in maps)
    if seed is not None:
        drawn = ((image_id, name, perturbed_map(truth, seed + image_id)) for image_id, name, truth in drawn)
    write_panoptic(path, drawn, data.categories)


@pytest.mark.parametrize("name", MAPS)
def test_panoptic_quality(shared_data: Path, tmp_path: Path, name: str):
    data = open_panoptic(shared_data / name)
    truth = shared_data / name / "panoptic.json"
    if not truth.is_file():
        truth = tmp_path / "truth.json"
        as_coco_panoptic(data, truth, None)
    as_coco_panoptic(data, tmp_path / "found.json", seed=0)

    theirs = PanopticEval(truth, tmp_path / "found.json", gt_folder=None if truth.parent == tmp_path else truth.with_suffix(""))
    theirs.evaluate()
    expected = theirs.results()
    read = read_panoptic(truth)
    quality = PanopticQuality(read.categories)
    found = read_panoptic_predictions(tmp_path / "found.json", read.categories)
    assert len(list(quality.update_many(pairs(found, read)))) == MAPS[name]
    ours = quality.compute()
    assert 0.1 < ours["All"]["pq"] < 0.9
    for group in ("All", "Things", "Stuff"):
        assert {key: ours[group][key] for key in expected[group]} == pytest.approx(expected[group], abs=ROUNDING)
    for category in read.categories:
        row, other = ours["per_class"][category.name], expected["per_class"][category.id]
        assert [row["tp"], row["fp"], row["fn"]] == [other["tp"], other["fp"], other["fn"]]
        assert row["iou_sum"] == pytest.approx(other["iou"], abs=ROUNDING)

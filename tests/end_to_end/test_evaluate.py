"""The reports of `thingstuff evaluate`: its files, its panoptic side, its comparison; files that do not fit are in test_cli."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from thingstuff import cli
from thingstuff.cli.judged import Worst, worst
from thingstuff.structures.masks import Mask


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def predictions(shapes: Path, kept: float = 1.0, shift: int = 0) -> list[dict]:
    """The truth of the split val, some pixels to the right, without the last objects."""
    content = json.loads((shapes / "instances_val.json").read_text())
    rows = []
    for annotation in content["annotations"][: round(kept * len(content["annotations"]))]:
        segmentation = annotation["segmentation"]
        mask = Mask.from_polygons(segmentation, (72, 96)) if isinstance(segmentation, list) else Mask.from_coco(segmentation)
        top, left = mask.corner
        moved = Mask.from_crop(mask.crop(), (top, left + shift), mask.size)
        x1, y1, x2, y2 = moved.box
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": moved.to_coco()}
        rows.append({"image_id": annotation["image_id"], "category_id": annotation["category_id"], "score": 0.9, **box})
    return rows


@pytest.fixture
def judged(shapes: Path, tmp_path: Path) -> Path:
    """Two reports of the split val, the second better: folders a and b."""
    for name, rows in (("a", predictions(shapes, kept=0.5, shift=3)), ("b", predictions(shapes, shift=1))):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        words = ("evaluate", "--predictions", tmp_path / f"{name}.json", "--data", shapes, "--split", "val")
        assert run(*words, "--out", tmp_path / name) == 0
    return tmp_path


def test_the_report_is_a_folder_of_two_files(judged: Path):
    assert {path.name for path in (judged / "a").iterdir()} == {"report.json", "report.html"}
    report = json.loads((judged / "a" / "report.json").read_text())
    assert (report["images"], report["objects"], report["split"]) == (2, 4, "val")
    assert report["errors"]["kinds"]["missed"]["count"] == 2
    assert report["confusion"]["counts"] == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
    assert report["mask"]["AP50"] == pytest.approx(report["errors"]["value"])


def test_without_out_the_report_lies_in_the_folder_evaluation(shapes: Path, tmp_path: Path, capsys):
    (tmp_path / "p.json").write_text(json.dumps(predictions(shapes)))
    words = ("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes, "--split", "val")
    assert run(*words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report: evaluation/report.html"
    assert (tmp_path / "evaluation" / "report.html").exists()


def test_json_alone_writes_nothing(shapes: Path, tmp_path: Path):
    (tmp_path / "p.json").write_text(json.dumps(predictions(shapes)))
    before = set(tmp_path.iterdir())
    assert run("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes, "--split", "val", "--json") == 0
    assert set(tmp_path.iterdir()) == before


def test_a_report_shows_as_many_pictures_as_asked_for(shapes: Path, tmp_path: Path):
    (tmp_path / "p.json").write_text(json.dumps(predictions(shapes)))
    words = ("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes, "--split", "val", "--out", tmp_path / "out")
    for pictures in (1, 0):
        assert run(*words, "--pictures", pictures) == 0
        assert (tmp_path / "out" / "report.html").read_text().count("<article") == pictures


def test_compare_prints_differences_with_their_intervals(judged: Path, capsys):
    capsys.readouterr()
    assert run("evaluate", "--compare", judged / "a", judged / "b" / "report.json", "--out", judged / "both") == 0
    told = capsys.readouterr().out
    assert "95 % interval" in told
    assert "mask AP" in told
    assert {path.name for path in (judged / "both").iterdir()} == {"compare.json", "compare.html"}
    comparison = json.loads((judged / "both" / "compare.json").read_text())
    by_name = {row["name"]: row for row in comparison["metrics"]}
    assert by_name["mask AP50"]["b"] == pytest.approx(1)
    row = by_name["mask AP50"]
    assert row["low"] == -1 < row["difference"] < row["high"] == 1  # two images say very little
    assert comparison["errors"]["missed"] == {"a": 2, "b": 0}


def test_a_run_beside_itself_differs_in_nothing(judged: Path, capsys):
    capsys.readouterr()
    assert run("evaluate", "--compare", judged / "a", judged / "a", "--json") == 0
    comparison = json.loads(capsys.readouterr().out)
    assert {(row["difference"], row["low"], row["high"]) for row in comparison["metrics"]} == {(0.0, 0.0, 0.0)}
    assert comparison["changed"] == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda report: report | {"format": 9}, "no report.json of thingstuff evaluate"),
        (lambda report: report | {"per_class": {"sky": {}}}, "different classes"),
        (lambda report: report | {"per_image": {**report["per_image"], "mask": {"image_ids": 3}}}, "can't be read"),
        (lambda report: report | {"per_image": {**report["per_image"], "image_ids": [98, 99]}}, "no image in common"),
        (lambda report: report | {"pq": {}}, "no figure in common"),
    ],
)
def test_reports_that_do_not_fit_are_refused(judged: Path, capsys, spoil, message):
    report = json.loads((judged / "b" / "report.json").read_text())
    (judged / "b" / "report.json").write_text(json.dumps(spoil(report)))
    capsys.readouterr()
    assert run("evaluate", "--compare", judged / "a", judged / "b") == 2
    assert message in capsys.readouterr().err


def test_a_list_is_no_report(judged: Path, capsys):
    (judged / "list.json").write_text("[]")
    assert run("evaluate", "--compare", judged / "a", judged / "list.json") == 2
    assert "list.json: holds a list, not a report, which evaluate writes as report.json" in capsys.readouterr().err


def test_a_report_that_is_not_there_is_named_with_what_to_give(judged: Path, tmp_path: Path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("evaluate", "--compare", judged / "a", "nowhere") == 2
    assert "nowhere: does not exist; --compare takes two folders that evaluate filled (--out)" in capsys.readouterr().err
    Path("empty").mkdir()
    assert run("evaluate", "--compare", "empty", judged / "a") == 2
    assert "empty: has no report.json; --compare takes two folders that evaluate filled" in capsys.readouterr().err
    assert [path.name for path in Path.cwd().iterdir()] == ["empty"]  # no folder was made for what was never compared


def test_a_folder_of_photos_that_is_not_there_is_named(judged: Path, capsys):
    assert run("evaluate", "--predictions", "p.json", "--data", judged, "--images", "nope") == 2
    assert "nope is no folder; name the folder of the photos: --images DIR" in capsys.readouterr().err


def test_truth_without_an_image_is_refused(shapes: Path, rooms: Path, tmp_path: Path, capsys):
    (tmp_path / "p.json").write_text("[]")
    empty = {"images": [], "annotations": [], "categories": [{"id": 4, "name": "disk"}]}
    (shapes / "instances_val.json").write_text(json.dumps(empty))
    assert run("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes, "--split", "val") == 2
    assert "instances_val.json: has no image, so there is nothing to compare with" in capsys.readouterr().err
    truth = rooms / "data" / "panoptic.json"
    truth.write_text(json.dumps({**json.loads(truth.read_text()), "annotations": []}))
    assert run("evaluate", "--predictions", rooms / "found.json", "--data", rooms / "data") == 2
    assert "panoptic.json: has no annotation of any image, so there is nothing to compare with" in capsys.readouterr().err


def test_options_that_do_not_go_with_compare_are_refused(judged: Path, capsys):
    assert run("evaluate", "--compare", judged / "a", judged / "b", "--split", "val") == 2
    assert "--split goes with --model or --predictions" in capsys.readouterr().err


def test_data_must_be_named(tmp_path: Path, capsys):
    assert run("evaluate", "--model", "nuclei") == 2
    assert "name the data" in capsys.readouterr().err


# Panoptic -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    """A panoptic data set of two images, each a wall with a lamp, and predictions: exact in the first, no lamp in the second."""
    categories = [{"id": 3, "name": "lamp", "isthing": 1}, {"id": 8, "name": "wall", "isthing": 0}]
    images = [{"id": number, "file_name": f"{number}.png", "height": 20, "width": 30} for number in (1, 2)]
    for folder in ("data/panoptic", "data/images", "found"):
        (tmp_path / folder).mkdir(parents=True)
    truth, found = [], []
    for number in (1, 2):
        ids = np.ones((20, 30, 3), np.uint8) * np.array([8, 0, 0], np.uint8)
        Image.fromarray(ids * 20).save(tmp_path / "data" / "images" / f"{number}.png")
        if number == 1:
            lamp = ids.copy()
            lamp[5:10, 5:15, 0] = 3
            Image.fromarray(lamp).save(tmp_path / "found" / f"{number}.png")
        else:
            Image.fromarray(ids).save(tmp_path / "found" / f"{number}.png")
        ids[5:10, 5:15, 0] = 3
        Image.fromarray(ids).save(tmp_path / "data" / "panoptic" / f"{number}.png")
        both = [{"id": 3, "category_id": 3, "iscrowd": 0}, {"id": 8, "category_id": 8, "iscrowd": 0}]
        entry = {"image_id": number, "file_name": f"{number}.png"}
        truth.append({**entry, "segments_info": [{**row, "area": 50 if row["id"] == 3 else 550} for row in both]})
        found.append({**entry, "segments_info": both if number == 1 else both[1:]})
    content = {"images": images, "annotations": truth, "categories": categories}
    (tmp_path / "data" / "panoptic.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps({"annotations": found}))
    return tmp_path


def test_panoptic_predictions_are_judged_by_panoptic_quality(rooms: Path, capsys):
    words = ("evaluate", "--predictions", rooms / "found.json", "--data", rooms / "data")
    assert run(*words, "--out", rooms / "out", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"pq", "boundary_pq", "semantic", "per_class"}
    # lamp: 1 / (1 + 1/2); wall: (1 + 550/600) / 2
    assert result["pq"]["Things"]["pq"] == pytest.approx(2 / 3)
    assert result["pq"]["Stuff"]["pq"] == pytest.approx((1 + 550 / 600) / 2)
    assert result["per_class"]["lamp"]["iou"] == pytest.approx(0.5)
    report = json.loads((rooms / "out" / "report.json").read_text())
    assert report["errors"]["kinds"]["missed"]["count"] == 1
    assert (rooms / "out" / "report.html").read_text().count("<article") == 2
    assert run("evaluate", "--compare", rooms / "out", rooms / "out") == 0
    assert "PQ of things" in capsys.readouterr().out


def test_a_panoptic_file_is_data_too_and_the_table_is_printed(rooms: Path, capsys):
    assert run("evaluate", "--predictions", rooms / "found.json", "--data", rooms / "data" / "panoptic.json") == 0
    told = capsys.readouterr().out
    assert told.splitlines()[1].split()[:4] == ["All", "81.25", "97.92", "83.33"]
    assert "mIoU" in told


def test_objects_are_not_compared_with_panoptic_maps(rooms: Path, shapes: Path, capsys):
    (rooms / "p.json").write_text(json.dumps(predictions(shapes)))
    assert run("evaluate", "--predictions", rooms / "p.json", "--data", rooms / "data" / "panoptic.json") == 2
    assert "compare like with like" in capsys.readouterr().err


def test_a_model_of_objects_is_judged_on_the_things_of_panoptic_maps(rooms: Path, tiny_model: Path, capsys):
    content = json.loads((rooms / "data" / "panoptic.json").read_text())
    content["categories"][0]["name"] = "disk"
    (rooms / "data" / "panoptic.json").write_text(json.dumps(content))
    assert run("evaluate", "--model", tiny_model, "--data", rooms / "data", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"box", "mask", "boundary", "per_class"}
    assert set(result["per_class"]) == {"disk"}
    assert run("evaluate", "--model", tiny_model, "--data", rooms / "data", "--task", "panoptic") == 2
    assert "gives instance segments, not 'panoptic'" in capsys.readouterr().err


def test_neither_truth_nor_predictions_are_written_over(shapes: Path, tmp_path: Path, capsys):
    (tmp_path / "p.json").write_text(json.dumps(predictions(shapes)))
    words = ("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes, "--split", "val")
    for file in (tmp_path / "p.json", shapes / "instances_val.json"):
        before = file.read_bytes()
        assert run(*words, "--out", file) == 2
        assert "was not written by evaluate" in capsys.readouterr().err
        assert file.read_bytes() == before
    assert run(*words, "--out", tmp_path / "result.json") == 0
    assert run(*words, "--out", tmp_path / "result.json") == 0, "an earlier result may be replaced"


def test_the_worst_images_are_the_same_when_all_are_asked_and_one_by_one():
    qualities = {"a": 0.5, "b": None, "c": 0.25, "d": 0.5, "e": 1.0, "f": 0.5, "g": 0.0}
    mistakes = {"a": 1, "b": 9, "c": 0, "d": 3, "e": 0, "f": 3, "g": 2}
    for most in range(8):
        lowest = Worst(most)
        for image_id, quality in qualities.items():
            lowest.offer(image_id, quality, mistakes[image_id], image_id.upper())
            assert len(lowest.images) <= most
        assert list(lowest.shown()) == worst(qualities, mistakes, most) == ["g", "c", "d", "f", "a", "e"][:most]
    assert lowest.shown()["d"] == "D"


def test_images_that_predictions_do_not_name_are_counted_aloud(shapes: Path, tmp_path: Path, capsys):
    rows = predictions(shapes)
    words = ("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes, "--split", "val", "--json")
    (tmp_path / "p.json").write_text(json.dumps(rows))
    assert run(*words) == 0
    assert "where nothing was found" not in capsys.readouterr().err
    (tmp_path / "p.json").write_text(json.dumps([row for row in rows if row["image_id"] == 30]))
    assert run(*words) == 0
    told = capsys.readouterr().err
    assert "p.json names 1 of the 2 images of " in told
    assert "the other 1 count as images where nothing was found" in told


def test_predictions_matched_by_ids_though_their_images_have_other_names_are_told_of(shapes: Path, tmp_path: Path, capsys):
    rows = predictions(shapes)
    words = ("evaluate", "--predictions", tmp_path / "p.json", "--data", shapes, "--split", "val", "--json")
    (tmp_path / "p.json").write_text(json.dumps([{**row, "file_name": f"other{row['image_id']}.png"} for row in rows]))
    assert run(*words) == 0
    told = capsys.readouterr().err
    assert "p.json is matched by image ids: 30 is other30.png there and " in told
    assert "make sure that the predictions are of these images" in told


def test_masks_are_small_or_large_by_their_own_area_whatever_box_a_row_states(tmp_path: Path, capsys):
    """pycocotools takes a row's area from "bbox" where there is one: the same digits where masks go without.

    One object of 20 x 20 pixels is found with score 0.5; before it, with 0.9, a mask of 30 x 30 pixels on nothing, whose row
    states a box of 100 x 100. Both masks are small, below 32 x 32, so that precision is 1 / 2 and APs with it. By its box the
    second one is large, does not count among the small, and APs is 1.
    """
    square = Mask.from_crop(np.ones((20, 20), np.bool_), (10, 10), (200, 200))
    nothing = Mask.from_crop(np.ones((30, 30), np.bool_), (100, 100), (200, 200))
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": square.to_coco()}
            | {"area": 400, "bbox": [10, 10, 20, 20]}
        ],
    }
    common = {"image_id": 1, "category_id": 1}
    rows = [
        {**common, "score": 0.5, "bbox": [8, 8, 24, 24], "segmentation": square.to_coco()},
        {**common, "score": 0.9, "bbox": [90, 90, 100, 100], "segmentation": nothing.to_coco()},
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "p.json").write_text(json.dumps(rows))
    assert run("evaluate", "--predictions", tmp_path / "p.json", "--data", tmp_path / "truth.json", "--json") == 0
    ours = list(json.loads(capsys.readouterr().out)["mask"].values())

    def theirs(found: list[dict]) -> list[float | None]:
        loaded = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(loaded, loaded.loadRes(json.loads(json.dumps(found))), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return [None if value == -1 else value for value in evaluation.stats.tolist()]

    without = theirs([{key: value for key, value in row.items() if key != "bbox"} for row in rows])
    assert ours == without
    with_boxes = theirs(rows)
    small = 3  # AP, AP50, AP75, APs
    assert (ours[0], ours[small]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert with_boxes[small] == pytest.approx(1.0)
    assert ours[:small] + ours[small + 1 :] == with_boxes[:small] + with_boxes[small + 1 :]

"""Folders in the layout of Cityscapes or PASCAL VOC go where ours go: training and evaluation, as a user types them."""

import json
from pathlib import Path

import pytest

from thingstuff import cli
from thingstuff.data.folders import open_dataset, open_panoptic
from thingstuff.data.join import coco_content
from thingstuff.formats.coco_panoptic import write_panoptic

FOLDERS = ("cityscapes-format", "voc2007-sample/VOC2007")


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_run_trains_on_the_things_of_a_foreign_layout_and_resumes(shared_data: Path, tmp_path: Path, folder: str, capsys):
    words = ("train", "--data", shared_data / folder, "--split", "val", "--model", "mask-rcnn-tiny", "--out", tmp_path / "run")
    numbers = ("--batch-size", 1, "--validate-every", 10, "--pictures", 0, "--validation-split", "val", "--validation-images", 1)
    assert run(*words, *numbers, "--steps", 1) == 0
    assert run(*words, *numbers, "--steps", 2, "--resume") == 0
    assert "best weights" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["data_digest"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_its_own_objects_and_maps_score_one(shared_data: Path, tmp_path: Path, folder: str, capsys):
    data = shared_data / folder
    objects, maps = open_dataset(data), open_panoptic(data)
    content = coco_content(objects, [str(record.path and record.path.name) for record in objects])
    rows = [
        {**{key: row[key] for key in ("image_id", "category_id", "bbox", "segmentation")}, "score": 1.0}
        for row in content["annotations"]
        if not row["iscrowd"]
    ]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    assert run("evaluate", "--predictions", tmp_path / "found.json", "--data", data, "--json") == 0
    assert json.loads(capsys.readouterr().out)["mask"]["AP"] == pytest.approx(1)

    write_panoptic(
        tmp_path / "maps.json",
        ((record.image_id, f"{record.image_id}.png", record.panoptic_map()) for record in maps),
        maps.categories,
    )
    assert run("evaluate", "--predictions", tmp_path / "maps.json", "--data", data, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pq"]["All"]["pq"] == 1
    assert result["semantic"]["mIoU"] == 1

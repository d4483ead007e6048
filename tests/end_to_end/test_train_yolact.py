"""Training runs of YOLACT on two drawn images, through the same loop and the same files as every other model."""

import csv
from pathlib import Path

import pytest
import torch

import thingstuff
from thingstuff.cli import main


def test_a_run_leaves_weights_that_load_and_a_log_of_weighted_losses(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", "--data", str(shapes), "--model", "yolact-tiny", "--out", str(run), "--steps", "4", "--batch-size", "2"]
    assert main([*command, "--warmup", "1", "--validate-every", "2", "--save-every", "2"]) == 0
    with (run / "log.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["class"]]
    assert len(rows) == 4
    for row in rows:  # the weights of the paper's section 3.1
        total = float(row["class"]) + 1.5 * float(row["box"]) + 6.125 * float(row["mask"]) + float(row["semantic"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-3)
    segmenter = thingstuff.load(run / "last.safetensors", device="cpu")
    assert segmenter.categories.names == ("disk", "square")
    assert segmenter.model.config.classes == 2
    image = shapes / "images" / "shape-1.png"
    again = tmp_path / "again.safetensors"
    segmenter.save(again)
    first, second = segmenter.predict(image, score_threshold=0.0), thingstuff.load(again, device="cpu").predict(image, 0.0)
    assert torch.equal(torch.from_numpy(first.scores), torch.from_numpy(second.scores))

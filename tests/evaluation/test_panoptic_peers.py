"""Panoptic quality beside torchmetrics', and over processes of torch.distributed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from thingstuff.evaluation.panoptic_quality import PanopticQuality
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.panoptic import PanopticMap

CATEGORIES = Categories((Category(1, "cat"), Category(2, "dog"), Category(3, "sky", is_thing=False)))


def blocks(seed: int) -> PanopticMap:
    """Things and one piece of stuff of each class, over void."""
    random = np.random.default_rng(seed)
    ids = np.zeros((40, 50), np.int64)
    for name in range(1, 9):
        top, left = random.integers(0, 35), random.integers(0, 45)
        ids[top : top + random.integers(5, 25), left : left + random.integers(5, 25)] = name
    ids[30:, :20] = 9
    shown = np.unique(ids[ids > 0])
    return PanopticMap(ids, shown, np.where(shown == 9, 2, shown % 2), np.zeros(len(shown), np.bool_), CATEGORIES)


def as_torchmetrics(panoptic: PanopticMap) -> torch.Tensor:
    """height width 2: class and instance; void is a class that the metric isn't told of."""
    index = panoptic.index_map()
    classes = np.concatenate(([len(CATEGORIES)], panoptic.classes))[index]
    return torch.from_numpy(np.stack((classes, index), axis=-1))


def torchmetrics_quality(prediction: PanopticMap, truth: PanopticMap) -> float:
    from torchmetrics.functional.detection import panoptic_quality

    return float(
        panoptic_quality(
            as_torchmetrics(prediction)[None],
            as_torchmetrics(truth)[None],
            things={0, 1},
            stuffs={2},
            allow_unknown_preds_category=True,
        )
    )


@pytest.mark.parametrize("seed", range(4))
def test_torchmetrics_gives_the_same_where_predictions_leave_no_void(seed):
    truth = blocks(seed)
    ids = np.roll(truth.ids, (1, 2), (0, 1))
    ids[ids == 0] = 10  # the prediction's background is a segment
    shown = np.unique(ids)
    prediction = PanopticMap(ids, shown, np.where(shown == 9, 2, shown % 2), np.zeros(len(shown), np.bool_), CATEGORIES)
    quality = PanopticQuality(CATEGORIES)
    quality.update(prediction, truth)
    # it divides pixels in single precision
    assert torchmetrics_quality(prediction, truth) == pytest.approx(quality.compute()["All"]["pq"], abs=1e-6)


def test_torchmetrics_forgives_what_predictions_leave_void():
    # a missed segment under void of the prediction is not counted there: it is a miss in the paper and here
    truth = blocks(0)
    kept = truth.segment_ids != 3
    ids = np.where(truth.ids == 3, 0, truth.ids)
    prediction = PanopticMap(ids, truth.segment_ids[kept], truth.classes[kept], truth.crowd[kept], CATEGORIES)
    quality = PanopticQuality(CATEGORIES)
    image = quality.update(prediction, truth)
    assert len(image.false_negatives) == 1
    assert quality.compute()["All"]["pq"] < 1
    assert torchmetrics_quality(prediction, truth) == 1


PROCESS = """
import sys
import numpy as np
import torch.distributed as distributed
from thingstuff.errors import EvaluationError
from thingstuff.evaluation.panoptic_quality import PanopticQuality
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.panoptic import PanopticMap

rank, file = int(sys.argv[1]), sys.argv[2]
categories = Categories((Category(1, "cat"), Category(5, "sky", is_thing=False)))
distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)

def image(seed):
    random = np.random.default_rng(seed)
    ids = np.kron(random.integers(1, 4, (3, 4)), np.ones((5, 5), np.int64))
    ids[random.integers(0, 10):, random.integers(0, 10):] = 1
    shown = np.unique(ids)
    return PanopticMap(ids, shown, shown % 2, np.zeros(len(shown), np.bool_), categories)

try:
    PanopticQuality(categories, last_crowd_only=rank == 0).synchronize()
except EvaluationError as error:
    print(error)
share, whole = PanopticQuality(categories), PanopticQuality(categories)
for seed in range(0, 20, 2):
    whole.update(image(seed), image(seed + 1))
    if seed // 2 % 2 == rank:
        share.update(image(seed), image(seed + 1))
share.synchronize()
assert share.compute() == whole.compute() and whole.compute()["All"]["tp"] > 5, (share.compute(), whole.compute())
try:
    share.update(image(0), image(1))
except EvaluationError as error:
    print(error)
distributed.destroy_process_group()
"""


def test_two_processes_add_up_to_what_one_counts_and_refuse_to_where_rules_differ(tmp_path: Path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        refused, ended = output.splitlines()
        assert "by other categories or other rules" in refused
        assert "the total over all processes" in ended


def test_one_process_alone_has_nothing_to_synchronize():
    quality = PanopticQuality(CATEGORIES)
    quality.update(blocks(0), blocks(0))
    quality.synchronize()
    quality.update(blocks(1), blocks(1))
    assert quality.compute()["All"]["pq"] == 1

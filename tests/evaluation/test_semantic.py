"""Semantic quality: sums small enough to check by hand, then torchmetrics and hotcoco on the same maps."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as distributed
from hotcoco.semantic import SemanticEval

from thingstuff.errors import ConfigError, EvaluationError
from thingstuff.evaluation.semantic import SemanticQuality
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.masks import Mask
from thingstuff.structures.segments import Segments

CATEGORIES = Categories((Category(7, "sky", is_thing=False), Category(3, "road", is_thing=False), Category(9, "dog")))
TRUTH = np.array([[0, 0, 0, 0], [1, 1, -1, -1]])
FOUND = np.array([[0, 0, 1, -1], [1, 0, 2, 0]])
# sky: 2 hits, 4 true, 3 found outside void (two hits, one on road): IoU 2 / 5; road: 1 hit, 2 true, 2 found: 1 / 3


def computed(found: object, truth: object) -> dict[str, object]:
    quality = SemanticQuality(CATEGORIES)
    quality.update(found, truth)  # pyright: ignore[reportArgumentType]
    return quality.compute()


def test_ratios_of_a_map_of_eight_pixels():
    result = computed(FOUND, TRUTH)
    assert result["mIoU"] == pytest.approx((2 / 5 + 1 / 3) / 2)
    assert result["fwIoU"] == pytest.approx((4 * 2 / 5 + 2 * 1 / 3) / 6)
    assert result["pixel_accuracy"] == pytest.approx(3 / 6)
    assert result["mean_accuracy"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert result["per_class"]["sky"] == {"iou": 2 / 5, "accuracy": 0.5, "pixels": 4}  # pyright: ignore[reportIndexIssue]


def test_a_class_in_neither_map_is_none_and_left_out_of_the_mean():
    result = computed(TRUTH, TRUTH)
    assert result["per_class"]["dog"] == {"iou": None, "accuracy": None, "pixels": 0}  # pyright: ignore[reportIndexIssue]
    assert (result["mIoU"], result["n"]) == (1.0, 2)


def test_a_class_that_was_only_predicted_has_iou_0_and_no_accuracy():
    result = computed(np.where(TRUTH == 0, 2, TRUTH), TRUTH)
    assert result["per_class"]["dog"] == {"iou": 0.0, "accuracy": None, "pixels": 0}  # pyright: ignore[reportIndexIssue]
    assert result["mIoU"] == pytest.approx((0 + 1 + 0) / 3)


def test_what_is_predicted_on_void_does_not_count():
    assert computed(np.where(TRUTH < 0, 2, TRUTH), TRUTH) == computed(TRUTH, TRUTH)


@pytest.mark.parametrize("shape", [(0, 0), (3, 4)])
def test_nothing_but_void_and_an_empty_image_have_no_values(shape: tuple[int, int]):
    result = computed(np.zeros(shape, np.int64), np.full(shape, -1))
    assert [result[key] for key in ("mIoU", "fwIoU", "pixel_accuracy", "mean_accuracy", "n")] == [None, None, None, None, 0]


def test_values_are_json_numbers_and_nulls():
    assert json.loads(json.dumps(computed(FOUND, TRUTH))) == computed(FOUND, TRUTH)


def test_segments_tensors_and_batches_count_as_arrays_do():
    expected = computed(FOUND, TRUTH)
    assert computed(torch.from_numpy(FOUND), TRUTH) == expected
    assert computed(FOUND[None].astype(np.int16), torch.from_numpy(TRUTH)[None]) == expected
    masks = [(class_, Mask.from_dense(class_ == TRUTH)) for class_ in (0, 1)]
    segments = Segments(
        size=(2, 4),
        categories=CATEGORIES,
        classes=np.array([class_ for class_, _ in masks], np.int64),
        scores=np.ones(2, np.float32),
        boxes=np.array([mask.box for _, mask in masks], np.float32),
        rles=tuple(mask for _, mask in masks),
        overlapping=False,
    )
    assert computed(FOUND, segments) == expected


def test_files_that_say_255_for_void():
    quality = SemanticQuality(CATEGORIES, void=255)
    quality.update(np.where(FOUND < 0, 255, FOUND).astype(np.uint8), np.where(TRUTH < 0, 255, TRUTH).astype(np.uint8))
    assert quality.compute() == computed(FOUND, TRUTH)
    with pytest.raises(ConfigError, match="void can't be 2, which is the class 'dog'"):
        SemanticQuality(CATEGORIES, void=2)


def test_shards_merge_to_the_whole_and_reset_forgets():
    whole, first, second = (SemanticQuality(CATEGORIES) for _ in range(3))
    for quality in (whole, first):
        quality.update(FOUND, TRUTH)
    for quality in (whole, second):
        quality.update(TRUTH, TRUTH)
    first.merge(second)
    assert first.compute() == whole.compute()
    assert first.confusion().tolist() == whole.confusion().tolist() == [[6, 1, 0, 1], [1, 3, 0, 0], [0, 0, 0, 0]]
    first.reset()
    assert first.compute()["n"] == 0
    with pytest.raises(EvaluationError, match="other categories"):
        first.merge(SemanticQuality(Categories.numbered(3)))


def test_maps_that_do_not_belong_together_are_refused():
    quality = SemanticQuality(CATEGORIES)
    with pytest.raises(EvaluationError, match=r"image 5: the prediction has shape \(2, 3\), the truth \(2, 4\)"):
        quality.update(FOUND[:, :3], TRUTH, 5)
    with pytest.raises(EvaluationError, match="image a: the prediction holds class 3; classes are 0 to 2, and void is -1"):
        quality.update(FOUND + 1 + (FOUND < 0), TRUTH, "a")
    with pytest.raises(EvaluationError, match="the truth holds class -2"):
        quality.update(torch.from_numpy(FOUND), torch.from_numpy(TRUTH - 1))


def random_maps() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    truth = random.integers(0, 6, (3, 40, 50))  # class 6 is in neither
    found = np.where(random.random(truth.shape) < 0.6, truth, random.integers(0, 6, truth.shape))
    return found, np.where(random.random(truth.shape) < 0.1, 255, truth)


def test_torchmetrics_and_hotcoco_give_the_same_where_every_pixel_is_predicted():
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

    # void in predictions is where they differ: neither knows it
    found, truth = random_maps()
    quality = SemanticQuality(Categories.numbered(7), void=255)
    quality.update(found, truth)
    result = quality.compute()

    found_tensor, truth_tensor = torch.from_numpy(found), torch.from_numpy(truth)
    ious = multiclass_jaccard_index(found_tensor, truth_tensor, 7, average=None, ignore_index=255)
    stated = [row["iou"] or 0.0 for row in result["per_class"].values()]
    assert stated == pytest.approx(ious.tolist(), abs=1e-6)  # torchmetrics divides in float32
    macro = multiclass_jaccard_index(found_tensor, truth_tensor, 7, average="macro", ignore_index=255)
    assert result["mIoU"] == pytest.approx(macro.item(), abs=1e-6)
    accuracy = multiclass_accuracy(found_tensor, truth_tensor, 7, average="micro", ignore_index=255)
    assert result["pixel_accuracy"] == pytest.approx(accuracy.item(), abs=1e-6)

    theirs = SemanticEval(7)
    theirs.update(truth, found)
    report = theirs.report()["metrics"]
    ours = {"mIoU": "mIoU", "fwIoU": "fwIoU", "mAcc": "mean_accuracy", "aAcc": "pixel_accuracy"}
    assert {name: result[key] for name, key in ours.items()} == pytest.approx({name: report[name] for name in ours}, abs=1e-12)


def one_of_two(rank: int, port: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    quality = SemanticQuality(CATEGORIES)
    quality.update([FOUND, TRUTH][rank], TRUTH)
    quality.synchronize()
    with pytest.raises(EvaluationError, match="holds the total over all processes"):
        quality.update(TRUTH, TRUTH)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(quality.confusion().tolist()))
    distributed.destroy_process_group()


def test_two_processes_add_up_in_both_of_them(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=one_of_two, args=(rank, port, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [
        [[6, 1, 0, 1], [1, 3, 0, 0], [0, 0, 0, 0]]
    ] * 2


def test_synchronizing_alone_changes_nothing():
    quality = SemanticQuality(CATEGORIES)
    quality.update(FOUND, TRUTH)
    quality.synchronize()
    quality.update(TRUTH, TRUTH)
    assert quality.confusion().sum() == 12

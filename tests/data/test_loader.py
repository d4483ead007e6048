"""Loaders: the same batches in every run, whatever the workers, interruptions and processes."""

import multiprocessing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from thingstuff.data.loader import ImageCache, TrainingLoader
from thingstuff.data.records import InstanceDataset, Object, Record
from thingstuff.data.transforms import Augmentation, ScaleOf
from thingstuff.errors import AnnotationError, ConfigError, ImageError
from thingstuff.structures.categories import Categories
from thingstuff.structures.masks import Mask
from thingstuff.structures.preprocessing import ImageBatch, Preprocessing, Targets

# Python 3.12 and later warn of what torch's workers do by default on Linux
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

JITTER = Augmentation((0.5, 2.0), ScaleOf.IMAGE, (16, 16), horizontal_flip=0.5, vertical_flip=0.5, brightness=0.2)
PREPROCESSING = Preprocessing(short_side=0, pad_multiple=16)


@pytest.fixture
def dataset(tmp_path: Path) -> InstanceDataset:
    random = np.random.default_rng(0)
    records = []
    for image_id in range(1, 6):
        path = tmp_path / f"{image_id}.png"
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
        mask = Mask.from_dense(random.random((20, 24)) < 0.3)
        records.append(Record(image_id, path, (20, 24), (Object(0, (0.0, 0.0, 24.0, 20.0), mask, False, 1.0, image_id),)))
    return InstanceDataset(tuple(records), Categories.numbered(1))


def fingerprints(batches: list[tuple[ImageBatch, list[Targets]]]) -> list[tuple]:
    return [
        (batch.pixels.numpy().tobytes(), [(one.image_id, one.masks.numpy().tobytes(), one.boxes.tolist()) for one in targets])
        for batch, targets in batches
    ]


def take(loader: TrainingLoader, steps: int, start: int = 0) -> list[tuple]:
    return fingerprints(list(islice(loader.batches(start), steps)))


def test_a_batch_is_a_padded_image_batch_and_one_targets_for_each_image(dataset: InstanceDataset):
    batch, targets = next(TrainingLoader(dataset, JITTER, PREPROCESSING, 3).batches())
    assert batch.pixels.shape == (3, 3, 16, 16)
    assert [size.input for size in batch.sizes] == [one.size for one in targets]
    assert targets[0].masks.dtype == torch.bool


def test_the_order_of_an_epoch_is_made_once_and_steps_may_be_asked_for_in_any_order(dataset: InstanceDataset, monkeypatch):
    loader = TrainingLoader(dataset, JITTER, PREPROCESSING, 2, seed=7)
    made = []
    monkeypatch.setattr(loader, "_order", lambda epoch: made.append(epoch) or TrainingLoader._order(loader, epoch))
    forward = [loader.positions(step) for step in range(10)]  # four epochs of 5
    assert made == [0, 1, 2, 3]
    backward = [loader.positions(step) for step in reversed(range(10))]
    assert backward[::-1] == forward


def test_the_orders_of_epochs_gone_by_are_not_kept(dataset: InstanceDataset):
    loader = TrainingLoader(dataset, JITTER, PREPROCESSING, 2, seed=7)
    orders = []
    for step in range(25):  # ten epochs of 5
        loader.positions(step)
        orders.append(len(loader._orders))
    assert set(orders) == {1, 2}, "a step may lie across two epochs, no more"


def test_every_image_is_shown_once_in_an_epoch_and_epochs_are_shuffled_apart(dataset: InstanceDataset):
    loader = TrainingLoader(dataset, JITTER, PREPROCESSING, 2)
    shown = [position for step in range(5) for position in loader.positions(step)]  # 10 images: two epochs of 5
    epochs = [[image for epoch, image in shown if epoch == wanted] for wanted in (0, 1)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert epochs[0] != epochs[1]


def test_the_same_seed_gives_the_same_batches_and_another_gives_others(dataset: InstanceDataset):
    same, again, other = (take(TrainingLoader(dataset, JITTER, PREPROCESSING, 2, seed=seed), 3) for seed in (1, 1, 2))
    assert same == again
    assert same != other


def test_workers_do_not_change_the_batches(dataset: InstanceDataset):
    none = take(TrainingLoader(dataset, JITTER, PREPROCESSING, 2), 6)
    two = take(TrainingLoader(dataset, JITTER, PREPROCESSING, 2, workers=2), 6)
    assert none == two


def test_resuming_at_a_step_gives_the_batches_that_would_have_come(dataset: InstanceDataset):
    loader = TrainingLoader(dataset, JITTER, PREPROCESSING, 2)
    assert take(loader, 7)[4:] == take(loader, 3, start=4)


def test_a_cache_does_not_change_the_batches(dataset: InstanceDataset):
    plain = TrainingLoader(dataset, JITTER, PREPROCESSING, 2)
    cached = TrainingLoader(dataset, JITTER, PREPROCESSING, 2, cache_bytes=10**6)
    assert take(plain, 6) == take(cached, 6)


def test_processes_share_each_step_and_together_see_what_one_would(dataset: InstanceDataset):
    shares = [TrainingLoader(dataset, JITTER, PREPROCESSING, 2, rank=rank, processes=2) for rank in (0, 1)]
    whole = TrainingLoader(dataset, JITTER, PREPROCESSING, 4)
    for step in range(5):
        assert shares[0].positions(step) + shares[1].positions(step) == whole.positions(step)


def test_batches_larger_than_the_data_set_go_round_it(dataset: InstanceDataset):
    assert [epoch for epoch, _ in TrainingLoader(dataset, JITTER, PREPROCESSING, 12).positions(0)] == [0] * 5 + [1] * 5 + [2] * 2


@pytest.mark.parametrize("processes", [1, 2])
def test_whole_images_come_in_steps_of_upright_or_of_wide_ones(processes: int):
    sizes = [(20, 30), (30, 20), (20, 20)]  # a square one is no wider than high
    records = tuple(Record(image_id, None, sizes[image_id % 3], ()) for image_id in range(23))
    images = InstanceDataset(records, Categories.numbered(1))
    loaders = [
        TrainingLoader(images, Augmentation(), PREPROCESSING, 4 // processes, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    steps = [[position for loader in loaders for position in loader.positions(step)] for step in range(23)]
    epochs = [sorted(image for step in steps for epoch, image in step if epoch == wanted) for wanted in range(4)]
    assert epochs == [list(range(23))] * 4  # nothing is lost or shown twice: 23 steps of 4 are 4 epochs of 23
    kinds = [{records[image].size[1] > records[image].size[0] for _, image in step} for step in steps]
    mixed = [step for step, kind in enumerate(kinds) if len(kind) > 1]
    assert len(mixed) <= 2 * 4  # what is left over at each epoch's end
    assert {len(kinds[step]) for step in range(4)} == {1}
    assert len({True, False} & {next(iter(kinds[step])) for step in range(4)}) == 2  # and the kinds come mixed


def test_crops_and_turned_images_are_shuffled_without_regard_to_their_shape(dataset: InstanceDataset):
    records = tuple(Record(image_id, None, (20, 30) if image_id % 2 else (30, 20), ()) for image_id in range(400))
    images = InstanceDataset(records, Categories.numbered(1))
    for augmentation in (JITTER, Augmentation(quarter_turn=0.5)):
        loader = TrainingLoader(images, augmentation, PREPROCESSING, 4)
        kinds = [{image % 2 for _, image in loader.positions(step)} for step in range(100)]
        assert sum(len(kind) == 2 for kind in kinds) > 70  # 87.5 of 100 by chance


def test_loading_leaves_the_global_random_state_alone(dataset: InstanceDataset):
    before = torch.get_rng_state()
    take(TrainingLoader(dataset, JITTER, PREPROCESSING, 2), 2)
    assert (torch.get_rng_state() == before).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_also_from_a_worker(dataset: InstanceDataset, workers: int):
    path = dataset[2].path
    assert path is not None
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"3\.png") as caught:
        take(TrainingLoader(dataset, JITTER, PREPROCESSING, 2, workers=workers), 3)
    assert "Traceback" not in str(caught.value)


def test_an_image_that_changed_its_size_since_is_named(dataset: InstanceDataset):
    path = dataset[2].path
    assert path is not None
    Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(AnnotationError, match=r"3\.png: has height and width \(9, 9\), its annotations say \(20, 24\)"):
        take(TrainingLoader(dataset, JITTER, PREPROCESSING, 1), 5)


def test_closing_the_iterator_ends_its_workers(dataset: InstanceDataset):
    before = set(multiprocessing.active_children())
    batches = TrainingLoader(dataset, JITTER, PREPROCESSING, 2, workers=1).batches()
    next(batches)
    assert set(multiprocessing.active_children()) - before
    batches.close()
    assert not set(multiprocessing.active_children()) - before


def test_the_cache_holds_images_up_to_its_limit(dataset: InstanceDataset):
    cache = ImageCache(byte_limit=2 * 20 * 24 * 3 + 5)
    images = [cache.image_of(record) for record in dataset]
    assert cache.bytes_held == 2 * 20 * 24 * 3
    assert cache.image_of(dataset[0]) is images[0]
    assert cache.image_of(dataset[4]) is not images[4]


def test_a_record_without_a_file_cannot_be_shown():
    with pytest.raises(AnnotationError, match="image 7: has no file"):
        ImageCache().image_of(Record(7, None, (2, 2)))


def test_a_data_set_without_images_cannot_be_trained_on():
    with pytest.raises(AnnotationError, match="holds no image"):
        TrainingLoader(InstanceDataset((), Categories.numbered(1)), JITTER, PREPROCESSING, 1)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": -1}, {"rank": 1}, {"processes": 0}])
def test_impossible_settings_are_refused(dataset: InstanceDataset, wrong: dict[str, int]):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainingLoader(dataset, JITTER, PREPROCESSING, **{"batch_size": 1, **wrong})  # pyright: ignore[reportArgumentType]


def test_pasted_objects_follow_from_the_seed_too_whatever_the_workers(dataset: InstanceDataset):
    pasting = replace(JITTER, copy_paste=1.0)
    alone, helped = (take(TrainingLoader(dataset, pasting, PREPROCESSING, 2, workers=workers), 3) for workers in (0, 1))
    plain = take(TrainingLoader(dataset, JITTER, PREPROCESSING, 2), 3)
    assert alone == helped
    assert alone != plain

"""What a Segmenter is asked for: the task, and which of the model's numbers a call replaces."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from thingstuff.errors import ConfigError, ImageError, SizeError
from thingstuff.models.catalog import CATALOG
from thingstuff.models.contract import Model, Task
from thingstuff.segmenter import Segmenter
from thingstuff.structures.categories import Categories
from thingstuff.structures.preprocessing import Preprocessing
from thingstuff.structures.segments import Segments


@dataclass(frozen=True)
class Thresholds:
    task: Task = Task.PANOPTIC
    score: float = 0.05
    merge_score: float = 0.4
    detections: int = 100


@dataclass(frozen=True)
class Config:
    classes: int = 2
    thresholds: Thresholds = field(default_factory=Thresholds)


class Asked(Model):
    """Finds nothing and remembers what it was asked for."""

    tasks = (Task.PANOPTIC, Task.INSTANCE)
    score_limits = ("score", "merge_score")

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[Thresholds] = []

    def forward(self, images):
        return images

    def losses(self, images, targets):
        return {}

    def segments(self, predictions, sizes, categories, thresholds=None):
        self.seen.append(thresholds)
        return [Segments.empty(size.original, categories) for size in sizes]


@pytest.fixture
def asked() -> Segmenter:
    return Segmenter(Asked(), Categories.numbered(1, 1), Preprocessing(short_side=32, long_side=32), name="asked")


IMAGE = torch.zeros(3, 8, 8, dtype=torch.uint8)


def test_a_model_of_several_tasks_does_its_own_unless_asked_for_another(asked):
    assert (asked.task, asked.tasks) == (Task.PANOPTIC, (Task.PANOPTIC, Task.INSTANCE))
    asked.predict(IMAGE)
    asked.predict(IMAGE, task="instance")
    asked.predict([IMAGE], task=Task.PANOPTIC)
    list(asked.stream([IMAGE], task="instance"))
    assert [limits.task for limits in asked.model.seen] == [Task.PANOPTIC, Task.INSTANCE, Task.PANOPTIC, Task.INSTANCE]


def test_a_score_replaces_every_limit_of_scores_and_without_one_only_instances_have_a_default(asked):
    assert asked.thresholds() == Thresholds()
    asked.predict(IMAGE)
    asked.predict(IMAGE, score_threshold=0.3)
    asked.predict(IMAGE, task="instance", max_detections=7)
    assert asked.model.seen == [
        Thresholds(),
        Thresholds(score=0.3, merge_score=0.3),
        Thresholds(task=Task.INSTANCE, score=0.5, merge_score=0.5, detections=7),
    ]


def test_a_task_that_the_model_does_not_know_is_refused_and_the_known_ones_are_named(asked):
    for call in (asked.thresholds, lambda task: asked.predict(IMAGE, task=task), lambda task: list(asked.stream([], task=task))):
        with pytest.raises(ConfigError, match="asked gives panoptic or instance segments, not 'semantic'"):
            call(task="semantic")
    with pytest.raises(ConfigError, match="not 'stuff'"):
        asked.predict(IMAGE, task="stuff")


def test_a_model_of_instances_alone_may_be_asked_for_them_and_for_nothing_else():
    model_class, config, preprocessing = CATALOG["yolact-tiny"]
    segmenter = Segmenter(model_class(config), Categories.numbered(3), preprocessing)
    assert segmenter.task is Task.INSTANCE
    assert segmenter.thresholds(task="instance") == config.thresholds
    with pytest.raises(ConfigError, match="Yolact gives instance segments, not 'panoptic'"):
        segmenter.thresholds(task="panoptic")


def test_categories_may_be_replaced_by_as_many_others_and_no_more_or_fewer(asked):
    asked.categories = Categories.numbered(2)
    assert asked.predict(IMAGE).categories == Categories.numbered(2)
    with pytest.raises(SizeError, match="3 categories for the model's 2 classes"):
        asked.categories = Categories.numbered(3)
    assert asked.categories == Categories.numbered(2)
    with pytest.raises(SizeError, match="1 categories"):
        Segmenter(asked.model, Categories.numbered(1), asked.preprocessing)


def test_a_config_for_a_data_sets_categories_has_as_many_classes():
    model_class, config, _ = CATALOG["yolact-tiny"]
    assert model_class.config_for(config, Categories.numbered(5)) == replace(config, classes=5)


def test_a_model_reads_16_bit_images_with_the_depth_that_it_has_learnt_from_unless_another_is_given(asked):
    asked.preprocessing = replace(asked.preprocessing, bit_depth=12)
    series = [np.full((8, 8), value, np.uint16) for value in (1000, 1030)]  # alone they would be read by 10 and by 12 bits

    def seen(bit_depth: int | None) -> list[list[int]]:
        found = (asked.predict(series, bit_depth=bit_depth), [each for _, each in asked.stream(series, bit_depth=bit_depth)])
        return [[int(segments.image[0, 0, 0]) for segments in each] for each in found]

    assert seen(None) == [[62, 64]] * 2  # divided by 16
    assert seen(16) == [[3, 4]] * 2  # by 256
    with pytest.raises(ImageError, match="up to 4096, more than the 4095 of 12 bits; give the bit depth"):
        asked.predict(np.full((8, 8), 4096, np.uint16))

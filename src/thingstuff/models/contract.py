"""What every model answers, and nothing else: the three calls of the architecture, section 3."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from thingstuff.models.backbone import Backbone
from thingstuff.structures.categories import Categories
from thingstuff.structures.preprocessing import ImageSize, Targets
from thingstuff.structures.segments import Segments


class Task(Enum):
    """What a network is asked for (Kirillov et al., 2019, arXiv:1801.00868, section 3)."""

    INSTANCE = "instance"  # things, each with a score; masks may overlap
    PANOPTIC = "panoptic"  # things one by one and stuff, sharing no pixel
    SEMANTIC = "semantic"  # a class for each pixel, one segment a class


class Model(nn.Module, ABC):
    """``model(images)`` gives the model's own ``Predictions``: what the network says, before any threshold.

    ``config`` is the model's frozen dataclass; it has ``classes`` and ``thresholds``, whose ``score`` and ``detections`` bound
    what ``segments`` gives. Where a model knows several tasks, ``thresholds.task`` says which is meant.
    """

    config: Any
    backbone: Backbone
    tasks: ClassVar[tuple[Task, ...]] = (Task.INSTANCE,)
    loss_weights: Mapping[str, float] = {}  # the paper's, of every loss by its name
    divides_images: ClassVar[bool] = False  # into cells: more padding would move them, so images of one size alone run together
    # patterns of the names of layers whose outputs the predictions are made of, and of those that say where a layer looks
    last_layers: ClassVar[tuple[str, ...]] = ()
    score_limits: ClassVar[tuple[str, ...]] = ("score",)  # the thresholds that one lower bound on scores replaces

    @classmethod
    def config_for(cls, config: Any, categories: Categories) -> Any:
        """The config of a network for these categories, all else unchanged.

        Raises:
            ConfigError: a network of this kind can't learn them.
        """
        return replace(config, classes=len(categories))

    @classmethod
    def trained_as(cls, task: Task) -> Task:
        """The form of the data that a network learns a task from; another one where it always learns more than is asked for."""
        return task

    @abstractmethod
    def losses(self, images: Float[Tensor, "batch 3 height width"], targets: Sequence[Targets]) -> dict[str, Float[Tensor, ""]]:
        """Training losses by the names in `loss_weights`, unweighted: those weights are applied later, or the recipe's."""

    @abstractmethod
    def segments(
        self, predictions: Any, sizes: Sequence[ImageSize], categories: Categories, thresholds: Any = None
    ) -> list[Segments]:
        """The segments of each image in pixels of the original; ``thresholds`` replaces the config's."""


def own_task(model_class: type[Model], config: Any) -> Task:
    """What a model of this config gives unless asked for something else."""
    return getattr(config.thresholds, "task", model_class.tasks[0])

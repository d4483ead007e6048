"""What every model answers, and nothing else: the three calls of the architecture, section 3."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from thingstuff.models.backbone import Backbone
from thingstuff.structures.categories import Categories
from thingstuff.structures.images import ImageSize, Targets
from thingstuff.structures.segments import Segments


class Model(nn.Module, ABC):
    """``model(images)`` gives the model's own ``Predictions``: what the network says, before any threshold.

    ``config`` is the model's frozen dataclass; it has ``classes`` and ``thresholds``, whose ``score`` and ``detections`` bound
    what ``segments`` gives.
    """

    config: Any
    backbone: Backbone
    loss_weights: ClassVar[Mapping[str, float]] = {}  # the paper's, by the losses' names; 1 where none is given

    @abstractmethod
    def losses(self, images: Float[Tensor, "batch 3 height width"], targets: Sequence[Targets]) -> dict[str, Float[Tensor, ""]]:
        """Training losses by the paper's names, unweighted: `loss_weights` weights them, and the recipe where it says so."""

    @abstractmethod
    def segments(
        self, predictions: Any, sizes: Sequence[ImageSize], categories: Categories, thresholds: Any = None
    ) -> list[Segments]:
        """The segments of each image in pixels of the original; ``thresholds`` replaces the config's."""

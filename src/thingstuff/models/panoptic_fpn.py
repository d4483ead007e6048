"""Panoptic FPN (Kirillov et al., 2019, arXiv:1901.02446, figure 1): Mask R-CNN with a semantic branch on the same pyramid.

image -> backbone C2..C5 -> FPN P2..P6 -+-> RPN, box head, mask head (mask_rcnn.py): things, one by one -+-> merged: each pixel
                                        +-> semantic branch (figure 3):                                  |   has one segment
                                            P5 -> 3 x (3x3 conv, up 2x) -+                               |
                                            P4 -> 2 x (3x3 conv, up 2x) -+-> sum -> 1x1 conv: stuff and "things"
                                            P3 ->      3x3 conv, up 2x  -+
                                            P2 ->      3x3 conv         -+
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Int16, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from thingstuff.errors import ConfigError
from thingstuff.models import mask_rcnn
from thingstuff.models.contract import Task
from thingstuff.models.fpn import ConvNorm, Norm
from thingstuff.models.mask_rcnn import STRIDES, Detections, MaskRCNN, MaskRCNNConfig, init_kaiming, init_normal
from thingstuff.ops.panoptic_merge import Part, merge_panoptic
from thingstuff.ops.paste import paste_crops
from thingstuff.ops.upsample import upsample_labels
from thingstuff.structures.categories import Categories
from thingstuff.structures.masks import Mask
from thingstuff.structures.preprocessing import ImageSize, Targets
from thingstuff.structures.segments import Segments

VOID = -1  # in maps of classes


@dataclass(frozen=True)
class Thresholds(mask_rcnn.Thresholds):
    """Mask R-CNN's, and how things and stuff are merged (section 3.2, panoptic inference)."""

    task: Task = Task.PANOPTIC
    merge_score: float = 0.5  # things scored lower are left out of the panoptic map
    overlap: float = 0.5  # so are those of which things scored higher have taken more than this share
    stuff_area: int = 4096  # pixels; stuff with fewer of them left is void

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("merge_score", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie from 0 to 1, got {getattr(self, name)}")
        if self.stuff_area < 0:
            raise ConfigError(f"stuff_area must not be negative, got {self.stuff_area}")


@dataclass(frozen=True)
class PanopticFPNConfig(MaskRCNNConfig):
    """Architecture of a Panoptic FPN; the defaults are detectron2's and MMDetection's R50-FPN.

    Raises:
        ConfigError: a value that no network can be built from.
    """

    classes: int = 133  # things and stuff
    is_thing: tuple[bool, ...] = (True,) * 80 + (False,) * 53  # of each class
    semantic_channels: int = 128  # of the semantic branch
    semantic_norm: Norm = Norm.GROUP
    thresholds: Thresholds = Thresholds()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.is_thing) != self.classes:
            raise ConfigError(f"is_thing needs an entry for each of the {self.classes} classes, got {len(self.is_thing)}")
        if self.things == 0 or self.stuff == 0:
            raise ConfigError(
                f"Panoptic FPN needs at least one class of things and one of stuff, got {self.things} and {self.stuff}; "
                "for things alone there is Mask R-CNN"
            )
        if self.semantic_channels < 1 or (self.semantic_norm is Norm.GROUP and self.semantic_channels % 32):
            raise ConfigError(
                f"semantic_channels must be at least 1, and a multiple of 32 for group norm, got {self.semantic_channels}"
            )

    @property
    def things(self) -> int:
        return sum(self.is_thing)

    @property
    def stuff(self) -> int:
        """Classes of stuff; the semantic branch has one more, for all things together, which is its last."""
        return self.classes - self.things

    @property
    def class_of_thing(self) -> tuple[int, ...]:
        """The class of each output of the box head."""
        return tuple(class_ for class_, is_thing in enumerate(self.is_thing) if is_thing)

    @property
    def class_of_stuff(self) -> tuple[int, ...]:
        """The class of each output of the semantic branch but the last."""
        return tuple(class_ for class_, is_thing in enumerate(self.is_thing) if not is_thing)


@dataclass(frozen=True, eq=False)
class Predictions(mask_rcnn.Predictions):
    """Mask R-CNN's maps, and the semantic branch's at the stride of P2; things are its last channel."""

    semantic_logits: Float[Tensor, "batch stuff_and_things p2_height p2_width"]


torch.export.register_dataclass(Predictions)


class SemanticBranch(nn.Module):
    """Each level of the pyramid brought to the size of P2, their sum, and a class for each cell (section 3.1, figure 3)."""

    def __init__(self, config: PanopticFPNConfig):
        super().__init__()
        width = config.semantic_channels

        def of_level(halvings: int) -> nn.ModuleList:
            widths = [config.channels] + [width] * max(halvings, 1)
            return nn.ModuleList(ConvNorm(before, width, 3, config.semantic_norm) for before in widths[:-1])

        self.levels = nn.ModuleList(of_level(halvings) for halvings in range(4))  # P2..P5
        self.logits = nn.Conv2d(width, config.stuff + 1, 1)
        for conv in self.levels.modules():
            if isinstance(conv, ConvNorm):
                init_kaiming(conv.conv)
        init_normal(self.logits, 0.01)

    def forward(
        self, pyramid: Sequence[Float[Tensor, "batch channels _ _"]]
    ) -> Float[Tensor, "batch stuff_and_things p2_height p2_width"]:
        finest, *coarser = pyramid[:4]  # P2, P3..P5
        [conv] = self._convs(0)
        total = functional.relu(conv(finest))
        for halvings, level in enumerate(coarser, start=1):
            x = level
            for conv, finer in zip(self._convs(halvings), pyramid[halvings - 1 :: -1], strict=True):
                x = functional.relu(conv(x))
                x = functional.interpolate(x, size=finer.shape[-2:], mode="bilinear", align_corners=False)
            total = total + x
        return self.logits(total)

    def _convs(self, level: int) -> nn.ModuleList:
        convs = self.levels[level]
        assert isinstance(convs, nn.ModuleList)
        return convs


class PanopticFPN(MaskRCNN):
    """See the module's figure. A Mask R-CNN of the things, whose classes count things alone, with a semantic branch beside it."""

    config: PanopticFPNConfig
    tasks: ClassVar[tuple[Task, ...]] = (Task.PANOPTIC, Task.INSTANCE, Task.SEMANTIC)
    loss_weights: Mapping[str, float] = {**MaskRCNN.loss_weights, "semantic": 0.5}  # for COCO (section 4.2)
    score_limits: ClassVar[tuple[str, ...]] = ("score", "merge_score")
    last_layers = (*MaskRCNN.last_layers, "semantic_branch.logits")

    def __init__(self, config: PanopticFPNConfig):
        super().__init__(config)
        self.semantic_branch = SemanticBranch(config)

    @classmethod
    def config_for(cls, config: Any, categories: Categories) -> Any:
        return replace(config, classes=len(categories), is_thing=tuple(category.is_thing for category in categories))

    @classmethod
    def trained_as(cls, task: Task) -> Task:
        return Task.PANOPTIC  # both branches learn, whatever is asked for

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Predictions:
        found = super().forward(images)
        return Predictions(found.levels, found.objectness, found.anchor_deltas, found.anchors, self.semantic_branch(found.levels))

    # From maps to segments

    @torch.no_grad()
    def segments(
        self,
        predictions: Predictions,
        sizes: Sequence[ImageSize],
        categories: Categories,
        thresholds: Thresholds | None = None,
    ) -> list[Segments]:
        """What ``thresholds.task`` asks for of each image, in pixels of the original image.

        PANOPTIC: things by descending score, then stuff by class; no pixel is in two. INSTANCE: the things as Mask R-CNN finds
        them. SEMANTIC: the map of the semantic branch, one segment a class; what it takes for things has the class of the thing
        that Mask R-CNN finds there, and is void where that finds none.
        """
        limits = thresholds or self.config.thresholds
        if limits.task is Task.INSTANCE:
            classes = np.array(self.config.class_of_thing)
            found = super().segments(predictions, sizes, categories, limits)
            return [replace(segments, classes=classes[segments.classes]) for segments in found]
        detections = self.boxes(predictions, [size.input for size in sizes], limits)
        detections = [found[found.scores >= limits.merge_score] for found in detections]  # no others' masks are needed
        masks = self.mask_logits(predictions.levels, detections)
        return [
            self._merged(found, mask_logits, semantic_logits, size, categories, limits)
            for found, mask_logits, semantic_logits, size in zip(
                detections, masks, predictions.semantic_logits, sizes, strict=True
            )
        ]

    def _merged(
        self,
        found: Detections,
        mask_logits: Float[Tensor, "_ size size"],
        semantic_logits: Float[Tensor, "stuff_and_things p2_height p2_width"],
        size: ImageSize,
        categories: Categories,
        limits: Thresholds,
    ) -> Segments:
        """One image's things with their masks, and what the semantic branch says of it, as segments that share no pixel."""
        config = self.config
        found, mask_logits = self.in_the_original(found, mask_logits, size)
        crops = paste_crops(mask_logits.sigmoid(), found.boxes, size.original, limits.mask, config.paste)
        scores = found.scores.tolist()
        things = [(config.class_of_thing[thing], score) for thing, score in zip(found.classes.tolist(), scores, strict=True)]
        stuff = list(zip(config.class_of_stuff, _stuff_scores(semantic_logits, size).tolist(), strict=False))
        stuff_map = _stuff_map(semantic_logits, size)
        if limits.task is Task.SEMANTIC:
            crops = _without_stuff(crops, stuff_map)
            parts = merge_panoptic(crops, scores, stuff_map, limits.merge_score, overlap=1.0, stuff_area=0)
            return _by_class(_tiling(parts, things, stuff, size.original, categories))
        parts = merge_panoptic(crops, scores, stuff_map, limits.merge_score, limits.overlap, limits.stuff_area)
        return _tiling(parts, things, stuff, size.original, categories)

    # Losses

    def losses(self, images: Float[Tensor, "batch 3 height width"], targets: Sequence[Targets]) -> dict[str, Float[Tensor, ""]]:
        """Mask R-CNN's terms, for the things among the targets, and "semantic": the pixels' cross-entropy (section 3.2).

        Every target is a segment, of things or of stuff; a pixel in none is void, and does not count.
        """
        predictions = self(images)
        things = [self._things(target) for target in targets]
        return self.instance_losses(predictions, things) | {"semantic": self._semantic_loss(predictions, images, targets)}

    def _things(self, target: Targets) -> Targets:
        """The targets that are things, with classes that count things alone."""
        thing_of_class = _positions(self.config.class_of_thing, self.config.classes, VOID, target.classes.device)
        things = thing_of_class[target.classes]
        kept = things != VOID
        return replace(
            target, boxes=target.boxes[kept], classes=things[kept], masks=target.masks[kept], is_crowd=target.is_crowd[kept]
        )

    def _semantic_loss(
        self, predictions: Predictions, images: Float[Tensor, "batch 3 height width"], targets: Sequence[Targets]
    ) -> Float[Tensor, ""]:
        truth = self.semantic_truth(targets, (images.shape[-2], images.shape[-1]))
        loss = upsampled_cross_entropy(predictions.semantic_logits, truth)
        return loss / (truth != VOID).sum().clamp(min=1)

    @torch.no_grad()
    def semantic_truth(self, targets: Sequence[Targets], size: tuple[int, int]) -> Int64[Tensor, "batch height width"]:
        """What the semantic branch should say of each pixel of the padded input; `VOID` where no target is."""
        device = targets[0].masks.device
        # all that is no stuff is the last
        channels = _positions(self.config.class_of_stuff, self.config.classes, self.config.stuff, device)
        truth = torch.full((len(targets), *size), VOID, dtype=torch.int64, device=device)
        for canvas, target in zip(truth, targets, strict=True):
            inside = canvas[: target.size[0], : target.size[1]]
            for mask, channel in zip(target.masks, channels[target.classes], strict=True):
                inside.masked_fill_(mask, channel)
        return truth


def upsampled_cross_entropy(
    logits: Float[Tensor, "batch classes rows columns"], truth: Int64[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """Softmax cross-entropy of logits enlarged bilinearly to the size of the truth: its sum over the pixels that are not `VOID`.

    The gradient is found with the value and in place, a few images at a time: one, and on a processor as many as it has threads,
    which enlarge an image each. So that many maps of all classes live at a time, where autograd would keep three of the whole
    batch. In float32, whatever autocast says; it can't be differentiated twice.
    """
    return _UpsampledCrossEntropy.apply(logits, truth)  # pyright: ignore[reportReturnType]


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, truth: Tensor) -> Tensor:
        at_once = torch.get_num_threads() if logits.device.type == "cpu" else 1
        losses, gradients = [], []
        with torch.autocast(logits.device.type, enabled=False):
            for some, their_truth in zip(logits.split(at_once), truth.split(at_once), strict=True):
                loss, gradient = _loss_and_gradient(some.float(), their_truth, ctx.needs_input_grad[0])
                losses.append(loss)
                gradients.append(gradient)
        ctx.dtype = logits.dtype
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (of_logits,) = ctx.saved_tensors
        return (of_logits * gradient).to(ctx.dtype), None


def _loss_and_gradient(
    logits: Float[Tensor, "batch classes rows columns"], truth: Int64[Tensor, "batch height width"], with_gradient: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch classes rows columns"] | None]:
    with torch.enable_grad():
        # a pixel's classes side by side: softmax over any other axis takes twice the time, on a processor
        cells = logits.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        enlarged = functional.interpolate(cells, size=truth.shape[1:], mode="bilinear", align_corners=False)
    pixels = enlarged.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (batch row column) class, the same memory
    torch.log_softmax(pixels, dim=1, out=pixels)
    is_void = truth.flatten() == VOID
    classes = truth.flatten().masked_fill(is_void, 0)[:, None]
    loss = -pixels.gather(1, classes)[:, 0].masked_fill_(is_void, 0).sum()
    if not with_gradient:
        return loss, None
    # a pixel's: its probabilities, less 1 for its class
    of_pixels = pixels.exp_().scatter_add_(1, classes, pixels.new_full((1, 1), -1).expand_as(classes))
    of_pixels.masked_fill_(is_void[:, None], 0)
    of_enlarged = of_pixels.unflatten(0, truth.shape).permute(0, 3, 1, 2)  # batch class row column
    (gradient,) = torch.autograd.grad(enlarged, cells, of_enlarged)
    return loss, gradient


def _positions(classes: Sequence[int], count: int, other: int, device: torch.device) -> Int[Tensor, " {count}"]:
    """For each class its position among ``classes``, ``other`` for those not there."""
    positions = torch.full((count,), other, dtype=torch.int64, device=device)
    positions[list(classes)] = torch.arange(len(classes), device=device)
    return positions


def _stuff_map(
    logits: Float[Tensor, "stuff_and_things p2_height p2_width"], size: ImageSize
) -> Int16[np.ndarray, "height width"]:
    """The stuff in each pixel of the original image, `VOID` where the branch sees things."""
    padded = (logits.shape[1] * STRIDES[0], logits.shape[2] * STRIDES[0])
    labels = upsample_labels(logits, [(padded, size.input), (size.original, size.original)]).cpu().numpy()
    labels[labels == len(logits) - 1] = VOID
    return labels


def _stuff_scores(
    logits: Float[Tensor, "stuff_and_things p2_height p2_width"], size: ImageSize
) -> Float[Tensor, " stuff_and_things"]:
    """Mean probability of each class over the cells where it is largest; of a class that is so nowhere, its largest.

    At the stride of P2. The paper gives stuff no score; these bound nothing.
    """
    rows, columns = (-(-side // STRIDES[0]) for side in size.input)
    probabilities = logits[:, :rows, :columns].float().softmax(dim=0).flatten(1)  # class (row column)
    best, which = probabilities.max(dim=0)
    cells = torch.bincount(which, minlength=len(logits))
    means = torch.bincount(which, weights=best.double(), minlength=len(logits)).float() / cells
    return torch.where(cells > 0, means, probabilities.amax(dim=1))


def _without_stuff(
    crops: Iterable[tuple[np.ndarray, tuple[int, int]]], stuff: Int16[np.ndarray, "height width"]
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Masks of things less the pixels where there is stuff."""
    for crop, (top, left) in crops:
        yield crop & (stuff[top : top + crop.shape[0], left : left + crop.shape[1]] == VOID), (top, left)


def _tiling(
    parts: Iterable[Part],
    things: Sequence[tuple[int, float]],
    stuff: Sequence[tuple[int, float]],
    size: tuple[int, int],
    categories: Categories,
) -> Segments:
    """Parts as segments, given class and score of each thing and each kind of stuff."""
    masks, classes, scores = [], [], []
    for part in parts:
        class_, score = (things if part.is_thing else stuff)[part.index]
        masks.append(Mask.from_crop(part.crop, part.corner, size))
        classes.append(class_)
        scores.append(score)
    return Segments(
        size=size,
        categories=categories,
        classes=np.array(classes, np.int64),
        scores=np.array(scores, np.float32),
        boxes=np.array([mask.box for mask in masks], np.float32).reshape(-1, 4),
        rles=tuple(masks),
        overlapping=False,
    )


def _by_class(segments: Segments) -> Segments:
    """Segments that share no pixel joined to one a class, scored like the best of it."""
    of_pixels = segments.semantic_map()
    classes = np.unique(segments.classes)
    masks = tuple(Mask.from_dense(of_pixels == class_) for class_ in classes)
    scores = [segments.scores[segments.classes == class_].max() for class_ in classes]
    return replace(
        segments,
        classes=classes,
        scores=np.array(scores, np.float32),
        boxes=np.array([mask.box for mask in masks], np.float32).reshape(-1, 4),
        rles=masks,
    )

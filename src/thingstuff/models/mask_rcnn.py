"""Mask R-CNN (He et al., 2017, arXiv:1703.06870, figures 1 and 4) on Faster R-CNN (Ren et al., 2015) and FPN (Lin et al., 2017).

image -> backbone C2..C5 -> FPN P2..P6 -+-> RPN, shared by all levels: objectness, anchor deltas -> proposals
                                        |
            P2..P5 <-- RoI Align 7x7   <+-- proposals  -> box head:  classes, box deltas -> NMS -> detections
            P2..P5 <-- RoI Align 14x14 <+-- detections -> mask head: a 28x28 mask a class -> pasted into the image
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thingstuff.errors import ConfigError
from thingstuff.models.backbone import Backbone, BackboneConfig
from thingstuff.models.contract import Model
from thingstuff.models.fpn import FPN, ConvNorm, Norm
from thingstuff.ops.boxes import (
    assign_levels,
    clip_boxes,
    decode_deltas,
    encode_deltas,
    make_anchors,
    pairwise_ioa,
    pairwise_iou,
)
from thingstuff.ops.nms import batched_nms
from thingstuff.ops.paste import PasteMode, paste_crops
from thingstuff.ops.roi_align import multilevel_roi_align
from thingstuff.structures.categories import Categories
from thingstuff.structures.masks import Mask
from thingstuff.structures.preprocessing import ImageSize, Targets
from thingstuff.structures.segments import Segments

STRIDES = (4, 8, 16, 32, 64)  # of P2..P6
MOST_SAMPLES = 64  # of RoI Align a bin and axis
MOST_CELLS = 256  # of RoI Align's output a side


def _demand_counts(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}")


def _demand_shares(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name} must lie from 0 to 1, got {getattr(config, name)}")


@dataclass(frozen=True)
class Thresholds:
    """What is kept at test time; every number may be changed for one call without touching the weights."""

    proposals_per_level: int = 1000  # highest objectness, before NMS
    proposals: int = 1000  # an image, after NMS
    proposal_nms: float = 0.7  # IoU
    proposal_min_size: float = 0.0  # pixels; both sides must be longer
    score: float = 0.05  # a detection's class probability must be higher
    nms: float = 0.5  # IoU
    detections: int = 100  # an image
    box_min_size: float = 0.0  # pixels; both sides must be longer
    mask: float = 0.5  # probability from which a pixel belongs to the object
    proposal_score: float = 0.0  # objectness probability that a proposal must reach
    cross_class: bool = False  # NMS of the boxes of all classes together, not within each

    def __post_init__(self) -> None:
        _demand_counts(self, "proposals_per_level", "proposals", "detections")
        _demand_shares(self, "proposal_nms", "score", "nms", "mask", "proposal_score")
        if not (math.isfinite(self.proposal_min_size) and math.isfinite(self.box_min_size)):
            raise ConfigError(f"least sizes must be finite, got {self.proposal_min_size} and {self.box_min_size}")


@dataclass(frozen=True)
class Sampling:
    """How anchors and proposals are picked for the losses (Ren et al., section 3.1.3; Girshick, 2015, section 2.3)."""

    anchors: int = 256  # an image
    anchor_positives: float = 0.5  # at most this share of them
    anchor_iou: tuple[float, float] = (0.3, 0.7)  # negative below, positive from
    proposals_per_level: int = 2000  # before NMS
    proposals: int = 1000  # an image, after NMS
    rois: int = 512  # an image
    roi_positives: float = 0.25  # at most this share of them
    roi_iou: float = 0.5  # positive from
    crowd_ioa: float = 0.5  # what lies in a crowd region by this share of its area is never a negative

    def __post_init__(self) -> None:
        _demand_counts(self, "anchors", "proposals_per_level", "proposals", "rois")
        _demand_shares(self, "anchor_positives", "roi_positives", "roi_iou", "crowd_ioa")
        low, high = self.anchor_iou
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"anchor_iou must be two rising numbers from 0 to 1, got {self.anchor_iou}")


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Architecture of a Mask R-CNN; the defaults are detectron2's and MMDetection's R50-FPN.

    Raises:
        ConfigError: a value that no network can be built from.
    """

    backbone: BackboneConfig = BackboneConfig("resnet50")
    classes: int = 80  # things only; background is the extra last logit
    channels: int = 256  # of every FPN level
    neck_norm: Norm = Norm.NONE
    head_norm: Norm = Norm.NONE  # in the convolutions of the box and mask head
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)  # pixels, one per level P2..P6
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    anchors_rounded: bool = False  # anchor corners to whole pixels
    anchor_stride_from_grid: bool = False  # stride = padded input size // grid size, which is not 64 everywhere at P6
    rpn_convs: int = 1
    rpn_channels: int | None = None  # of those convolutions; None: as every FPN level
    box_convs: int = 0
    box_channels: int = 256  # of those convolutions
    box_fcs: int = 2
    box_width: int = 1024  # of those layers
    mask_convs: int = 4
    mask_channels: int = 256  # of those convolutions
    mask_upsampled_channels: int | None = None  # after the transposed convolution; None: the same
    box_pool: int = 7
    mask_pool: int = 14
    class_agnostic_boxes: bool = False
    class_agnostic_masks: bool = False
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # of the box head's deltas x y w h
    clip_small_deltas: bool = False  # MMDetection also bounds how much a delta may shrink a box
    roi_sampling: int = 0  # samples a bin and axis; 0: as many as the bin has cells
    roi_aligned: bool = True  # half-pixel correct; torchvision's weights were trained without
    level_canonical: tuple[float, int] = (224.0, 4)  # a box of this side is pooled from this level (Lin et al., equation 1)
    level_epsilons: tuple[float, float] = (1e-8, 0.0)  # within the logarithm, and added to it: peers differ at the borders
    paste: PasteMode = "grid"
    min_size_inclusive: bool = False  # torchvision also keeps a box whose side is exactly the least one
    drop_empty_boxes: bool = True  # detectron2 drops what has no area in the original image, the others return it
    thresholds: Thresholds = Thresholds()
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        _demand_counts(self, "classes", "channels", "rpn_convs", "box_channels", "box_fcs", "box_width", "mask_channels")
        _demand_counts(self, "box_pool", "mask_pool")
        for name in ("rpn_channels", "mask_upsampled_channels"):
            if getattr(self, name) is not None:
                _demand_counts(self, name)
        if len(self.anchor_sizes) != len(STRIDES):
            raise ConfigError(f"anchor_sizes needs one size for each of P2..P6, got {self.anchor_sizes}")
        if not self.anchor_ratios:
            raise ConfigError("anchor_ratios needs at least one ratio")
        if min(self.box_convs, self.mask_convs) < 0:
            raise ConfigError(f"box_convs and mask_convs must not be negative, got {self.box_convs} and {self.mask_convs}")
        if self.roi_sampling > MOST_SAMPLES or max(self.box_pool, self.mask_pool) > MOST_CELLS:
            raise ConfigError(
                f"RoI Align takes at most {MOST_SAMPLES} samples an axis and {MOST_CELLS} cells, "
                f"got roi_sampling {self.roi_sampling}, box_pool {self.box_pool} and mask_pool {self.mask_pool}"
            )
        positive = (*self.anchor_sizes, *self.anchor_ratios, *self.box_weights, self.level_canonical[0])
        if not all(math.isfinite(number) and number > 0 for number in positive):
            raise ConfigError(
                "anchor_sizes, anchor_ratios, box_weights and the side in level_canonical must be positive and finite, "
                f"got {self.anchor_sizes}, {self.anchor_ratios}, {self.box_weights} and {self.level_canonical[0]}"
            )
        if not all(math.isfinite(number) and number >= 0 for number in self.level_epsilons):
            raise ConfigError(f"level_epsilons must be finite and not negative, got {self.level_epsilons}")

    @property
    def things(self) -> int:
        """The classes that the heads on boxes tell apart."""
        return self.classes


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the convolutions say, before any box is chosen: the pyramid P2..P6 and the RPN's maps on it.

    The heads that follow run on chosen boxes, so they come after this (``MaskRCNN.segments``), as in the paper.
    """

    levels: tuple[Float[Tensor, "batch channels _ _"], ...]
    objectness: tuple[Float[Tensor, "batch anchors _ _"], ...]  # logits
    anchor_deltas: tuple[Float[Tensor, "batch four_per_anchor _ _"], ...]
    anchors: tuple[Float[Tensor, "_ 4"], ...]  # of one image, row column anchor


torch.export.register_dataclass(Predictions)


class RPN(nn.Module):
    """Region proposal network: for each anchor, is there an object, and how does its box differ (Ren et al., section 3.1)."""

    def __init__(self, config: MaskRCNNConfig):
        super().__init__()
        widths = [config.channels] + [config.rpn_channels or config.channels] * config.rpn_convs
        anchors = len(config.anchor_ratios)
        self.convs = nn.ModuleList(ConvNorm(before, after, 3) for before, after in pairwise(widths))
        self.objectness = nn.Conv2d(widths[-1], anchors, 1)
        self.deltas = nn.Conv2d(widths[-1], 4 * anchors, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                init_normal(layer, 0.01)

    def forward(
        self, level: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch anchors height width"], Float[Tensor, "batch four_per_anchor height width"]]:
        for conv in self.convs:
            level = functional.relu(conv(level))
        return self.objectness(level), self.deltas(level)


class BoxHead(nn.Module):
    """Class and box of a region from its 7x7 features (Lin et al., section 5.2; with convolutions: Wu and He, 2018)."""

    def __init__(self, config: MaskRCNNConfig):
        super().__init__()
        widths = [config.channels] + [config.box_channels] * config.box_convs
        self.convs = nn.ModuleList(ConvNorm(before, after, 3, config.head_norm) for before, after in pairwise(widths))
        widths = [widths[-1] * config.box_pool**2] + [config.box_width] * config.box_fcs
        self.fcs = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.classes = nn.Linear(config.box_width, config.things + 1)
        self.deltas = nn.Linear(config.box_width, 4 if config.class_agnostic_boxes else 4 * config.things)
        for fc in self.fcs:
            assert isinstance(fc, nn.Linear)
            nn.init.kaiming_uniform_(fc.weight, a=1)
            nn.init.zeros_(fc.bias)
        for conv in self.convs:
            init_kaiming(conv.get_submodule("conv"))
        init_normal(self.classes, 0.01)
        init_normal(self.deltas, 0.001)

    def forward(
        self, regions: Float[Tensor, "regions channels pool pool"]
    ) -> tuple[Float[Tensor, "regions classes_and_background"], Float[Tensor, "regions four_per_class"]]:
        for conv in self.convs:
            regions = functional.relu_(conv(regions))
        x = regions.flatten(1)  # regions (channels row column)
        for fc in self.fcs:
            x = functional.relu_(fc(x))
        return self.classes(x), self.deltas(x)


class MaskHead(nn.Module):
    """A small mask for each class from a region's 14x14 features (He et al., figure 4, right)."""

    def __init__(self, config: MaskRCNNConfig):
        super().__init__()
        widths = [config.channels] + [config.mask_channels] * config.mask_convs
        self.convs = nn.ModuleList(ConvNorm(before, after, 3, config.head_norm) for before, after in pairwise(widths))
        upsampled = config.mask_upsampled_channels or config.mask_channels
        self.upsample = nn.ConvTranspose2d(widths[-1], upsampled, 2, stride=2)
        self.logits = nn.Conv2d(upsampled, 1 if config.class_agnostic_masks else config.things, 1)
        for conv in self.convs:
            init_kaiming(conv.get_submodule("conv"))
        init_kaiming(self.upsample)
        init_normal(self.logits, 0.001)

    def forward(self, regions: Float[Tensor, "regions channels pool pool"]) -> Float[Tensor, "regions classes size size"]:
        for conv in self.convs:
            regions = functional.relu_(conv(regions))
        return self.logits(functional.relu_(self.upsample(regions)))


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes kept in one image, by descending score, in pixels of the network input."""

    boxes: Float[Tensor, "detections 4"]
    scores: Float[Tensor, " detections"]
    classes: Int[Tensor, " detections"]

    def __getitem__(self, kept: Bool[Tensor, " detections"]) -> "Detections":
        return Detections(self.boxes[kept], self.scores[kept], self.classes[kept])


class MaskRCNN(Model):
    """See the module's figure. ``model(images)`` runs the convolutions; ``segments`` and ``losses`` run the heads on boxes."""

    # all alike (section 3)
    loss_weights: Mapping[str, float] = {"rpn_objectness": 1.0, "rpn_box": 1.0, "class": 1.0, "box": 1.0, "mask": 1.0}
    last_layers = ("rpn.objectness", "rpn.deltas", "box_head.classes", "box_head.deltas", "mask_head.logits")

    def __init__(self, config: MaskRCNNConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.neck = FPN(self.backbone.channels, config.channels, config.neck_norm)
        self.rpn = RPN(config)
        self.box_head = BoxHead(config)
        self.mask_head = MaskHead(config)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Predictions:
        levels = tuple(self.neck(self.backbone(images)))  # P2..P6, strides 4..64
        objectness, anchor_deltas = zip(*(self.rpn(level) for level in levels), strict=True)  # one head, five resolutions
        return Predictions(levels, objectness, anchor_deltas, self._anchors(images, levels))

    def _anchors(
        self, images: Float[Tensor, "batch 3 height width"], levels: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "_ 4"], ...]:
        config = self.config
        grids = [(level.shape[-2], level.shape[-1]) for level in levels]
        if config.anchor_stride_from_grid:
            strides = [(images.shape[-2] // rows, images.shape[-1] // columns) for rows, columns in grids]
        else:
            strides = [(stride, stride) for stride in STRIDES]
        sizes = [(size,) for size in config.anchor_sizes]
        return tuple(make_anchors(grids, strides, sizes, config.anchor_ratios, config.anchors_rounded, images.device))

    # From maps to boxes to masks

    @torch.no_grad()
    def proposals(
        self,
        predictions: Predictions,
        sizes: Sequence[tuple[int, int]],
        per_level: int,
        keep: int,
        nms: float,
        min_size: float,
        min_score: float = 0.0,
    ) -> list[tuple[Float[Tensor, "_ 4"], Float[Tensor, " _"]]]:
        """Boxes likely to hold an object in each image, with their objectness logits, by descending objectness.

        ``sizes`` are the inputs' heights and widths without padding; boxes are clipped to them (Ren et al., section 3.3).
        """
        batch = len(sizes)
        boxes: list[list[Tensor]] = [[] for _ in range(batch)]
        logits: list[list[Tensor]] = [[] for _ in range(batch)]
        for objectness, deltas, anchors in zip(
            predictions.objectness, predictions.anchor_deltas, predictions.anchors, strict=True
        ):
            scores = objectness.permute(0, 2, 3, 1).flatten(1).float()  # batch (row column anchor)
            deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)  # batch (row column anchor) 4
            best_scores, best = scores.topk(min(per_level, scores.shape[1]), dim=1)
            for image in range(batch):
                chosen = best[image]
                decoded = decode_deltas(
                    deltas[image, chosen].float(), anchors[chosen], (1.0, 1.0, 1.0, 1.0), clip_small=self.config.clip_small_deltas
                )
                boxes[image].append(clip_boxes(decoded, sizes[image]))
                logits[image].append(best_scores[image])
        result = []
        for image_boxes, image_logits in zip(boxes, logits, strict=True):
            level = torch.cat([torch.full_like(part, index, dtype=torch.int64) for index, part in enumerate(image_logits)])
            all_boxes, all_logits = torch.cat(image_boxes), torch.cat(image_logits)
            usable = self._large_enough(all_boxes, min_size) & all_logits.isfinite()
            if min_score > 0:
                usable &= all_logits.sigmoid() >= min_score
            all_boxes, all_logits, level = all_boxes[usable], all_logits[usable], level[usable]
            kept = batched_nms(all_boxes, all_logits, level, nms)[:keep]
            result.append((all_boxes[kept], all_logits[kept]))
        return result

    def _large_enough(self, boxes: Float[Tensor, "boxes 4"], size: float) -> Bool[Tensor, " boxes"]:
        sides = _sides(boxes)
        return (sides >= size if self.config.min_size_inclusive else sides > size).all(dim=1)

    def pool(
        self, levels: Sequence[Tensor], boxes: Sequence[Float[Tensor, "_ 4"]], size: int
    ) -> Float[Tensor, "regions channels {size} {size}"]:
        """RoI Align of each image's boxes from the level that fits each box's size (Lin et al., equation 1)."""
        rois = torch.cat(
            [torch.cat([part.new_full((len(part), 1), image), part], dim=1) for image, part in enumerate(boxes)]
        )  # image x1 y1 x2 y2
        config = self.config
        side, level = config.level_canonical
        inside, outside = config.level_epsilons
        of_box = assign_levels(rois[:, 1:], 2, 5, side, level, inside, outside) - 2
        scales = [1 / stride for stride in STRIDES[:4]]
        return multilevel_roi_align(levels[:4], rois, of_box, scales, (size, size), config.roi_sampling, config.roi_aligned)

    @torch.no_grad()
    def detections(
        self,
        class_logits: Float[Tensor, "regions classes_and_background"],
        box_deltas: Float[Tensor, "regions four_per_class"],
        proposals: Float[Tensor, "regions 4"],
        size: tuple[int, int],
        thresholds: Thresholds,
    ) -> Detections:
        """Decode, clip, threshold, NMS, best ``thresholds.detections``: one image."""
        classes = self.config.things
        probabilities = class_logits.float().softmax(dim=1)[:, :-1]
        boxes = decode_deltas(
            box_deltas.float(), proposals, self.config.box_weights, clip_small=self.config.clip_small_deltas
        )  # regions (class x1 y1 x2 y2)
        boxes = clip_boxes(boxes.unflatten(1, (-1, 4)), size)
        boxes = boxes.expand(-1, classes, 4)  # one box for all classes where the head is class-agnostic
        region, class_ = (probabilities > thresholds.score).nonzero(as_tuple=True)
        scores, boxes = probabilities[region, class_], boxes[region, class_]
        usable = self._large_enough(boxes, thresholds.box_min_size) & boxes.isfinite().all(dim=1)
        scores, boxes, class_ = scores[usable], boxes[usable], class_[usable]
        group = torch.zeros_like(class_) if thresholds.cross_class else class_
        kept = batched_nms(boxes, scores, group, thresholds.nms)[: thresholds.detections]
        return Detections(boxes[kept], scores[kept], class_[kept])

    @torch.no_grad()
    def mask_logits(
        self, levels: Sequence[Tensor], detections: Sequence[Detections], chunk: int = 64
    ) -> list[Float[Tensor, "_ size size"]]:
        """Mask logits of each detection for its own class, ``chunk`` regions at a time."""
        result = []
        for image, found in enumerate(detections):
            own_levels = [level[image : image + 1] for level in levels]
            parts = []
            for start in range(0, len(found.boxes), chunk):
                logits = self.mask_head(self.pool(own_levels, [found.boxes[start : start + chunk]], self.config.mask_pool))
                if not self.config.class_agnostic_masks:
                    logits = logits[torch.arange(len(logits), device=logits.device), found.classes[start : start + chunk]]
                parts.append(logits.reshape(len(logits), *logits.shape[-2:]).float())
            side = 2 * self.config.mask_pool
            result.append(torch.cat(parts) if parts else found.boxes.new_zeros((0, side, side)))
        return result

    @torch.no_grad()
    def segments(
        self,
        predictions: Predictions,
        sizes: Sequence[ImageSize],
        categories: Categories,
        thresholds: Thresholds | None = None,
    ) -> list[Segments]:
        """Instances of each image, by descending score, in pixels of the original image.

        Masks are pasted one crop at a time and stored as run lengths, so memory does not grow with instances times pixels.
        """
        limits = thresholds or self.config.thresholds
        detections = self.boxes(predictions, [size.input for size in sizes], limits)
        masks = self.mask_logits(predictions.levels, detections)
        return [
            self._paste(found, logits, size, categories, limits.mask)
            for found, logits, size in zip(detections, masks, sizes, strict=True)
        ]

    @torch.no_grad()
    def boxes(self, predictions: Predictions, sizes: Sequence[tuple[int, int]], limits: Thresholds) -> list[Detections]:
        """The boxes kept in each image, of which ``sizes`` are the inputs' heights and widths without padding."""
        proposals = self.proposals(
            predictions,
            sizes,
            limits.proposals_per_level,
            limits.proposals,
            limits.proposal_nms,
            limits.proposal_min_size,
            limits.proposal_score,
        )
        boxes = [image_boxes for image_boxes, _ in proposals]
        class_logits, box_deltas = self.box_head(self.pool(predictions.levels, boxes, self.config.box_pool))
        counts = [len(part) for part in boxes]
        return [
            self.detections(logits, deltas, image_boxes, size, limits)
            for logits, deltas, image_boxes, size in zip(
                class_logits.split(counts), box_deltas.split(counts), boxes, sizes, strict=True
            )
        ]

    def in_the_original(
        self, found: Detections, mask_logits: Float[Tensor, "_ size size"], size: ImageSize
    ) -> tuple[Detections, Float[Tensor, "_ size size"]]:
        """Boxes in pixels of the original image, with the masks of those that are kept there."""
        height, width = size.original
        scale = found.boxes.new_tensor([width / size.input[1], height / size.input[0]]).repeat(2)  # x y x y
        found = replace(found, boxes=clip_boxes(found.boxes * scale, size.original))
        if self.config.drop_empty_boxes:
            kept = (_sides(found.boxes) > 0).all(dim=1)
            found, mask_logits = found[kept], mask_logits[kept]
        return found, mask_logits

    def _paste(
        self,
        found: Detections,
        mask_logits: Float[Tensor, "_ size size"],
        size: ImageSize,
        categories: Categories,
        threshold: float,
    ) -> Segments:
        found, mask_logits = self.in_the_original(found, mask_logits, size)
        crops = paste_crops(mask_logits.sigmoid(), found.boxes, size.original, threshold, self.config.paste)
        return Segments(
            size=size.original,
            categories=categories,
            classes=found.classes.cpu().numpy(),
            scores=found.scores.cpu().numpy(),
            boxes=found.boxes.cpu().numpy(),
            rles=tuple(Mask.from_crop(crop, corner, size.original) for crop, corner in crops),
        )

    # Losses

    def losses(self, images: Float[Tensor, "batch 3 height width"], targets: Sequence[Targets]) -> dict[str, Float[Tensor, ""]]:
        """The five terms, unweighted: objectness and box of the RPN; class, box and mask of the heads (He et al., section 3)."""
        return self.instance_losses(self(images), targets)

    def instance_losses(self, predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Float[Tensor, ""]]:
        """The losses of what the network says; classes of the targets count things alone."""
        sampling = self.config.sampling
        losses = self._rpn_losses(predictions, targets)
        proposals = self.proposals(
            predictions,
            [target.size for target in targets],
            sampling.proposals_per_level,
            sampling.proposals,
            self.config.thresholds.proposal_nms,
            self.config.thresholds.proposal_min_size,
            self.config.thresholds.proposal_score,
        )
        rois = [
            _sample_rois(boxes, target, sampling, background=self.config.things)
            for (boxes, _), target in zip(proposals, targets, strict=True)
        ]
        return losses | self._box_losses(predictions.levels, rois, targets) | self._mask_loss(predictions.levels, rois, targets)

    def _rpn_losses(self, predictions: Predictions, targets: Sequence[Targets]) -> dict[str, Float[Tensor, ""]]:
        sampling = self.config.sampling
        logits = torch.cat([part.permute(0, 2, 3, 1).flatten(1) for part in predictions.objectness], dim=1).float()
        deltas = torch.cat(
            [part.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for part in predictions.anchor_deltas], dim=1
        ).float()  # batch (level row column anchor) 4
        anchors = torch.cat(predictions.anchors)
        objectness_loss, box_loss, sampled = logits.sum() * 0, deltas.sum() * 0, 0
        for image, target in enumerate(targets):
            low, high = sampling.anchor_iou
            labels, matched = _match(anchors, target, low, high, sampling.crowd_ioa, keep_best=True)
            positive, negative = _sample(labels, sampling.anchors, sampling.anchor_positives)
            chosen = torch.cat([positive, negative])
            truth = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)]).to(logits.dtype)
            objectness_loss = objectness_loss + functional.binary_cross_entropy_with_logits(
                logits[image, chosen], truth, reduction="sum"
            )
            wanted = encode_deltas(target.boxes[matched[positive]], anchors[positive], (1.0, 1.0, 1.0, 1.0))
            box_loss = box_loss + functional.l1_loss(deltas[image, positive], wanted, reduction="sum")
            sampled += len(chosen)
        return {"rpn_objectness": objectness_loss / max(sampled, 1), "rpn_box": box_loss / max(sampled, 1)}

    def _box_losses(
        self, levels: Sequence[Tensor], rois: Sequence["_RoIs"], targets: Sequence[Targets]
    ) -> dict[str, Float[Tensor, ""]]:
        class_logits, box_deltas = self.box_head(self.pool(levels, [roi.boxes for roi in rois], self.config.box_pool))
        class_logits, box_deltas = class_logits.float(), box_deltas.float()
        classes = torch.cat([roi.classes for roi in rois])
        positive = (classes < self.config.things).nonzero().squeeze(1)
        wanted = torch.cat(
            [
                encode_deltas(target.boxes[roi.matched], roi.boxes[: len(roi.matched)], self.config.box_weights)
                for roi, target in zip(rois, targets, strict=True)
            ]
        )
        of_class = box_deltas.unflatten(1, (-1, 4))  # regions class 4
        column = torch.zeros_like(positive) if self.config.class_agnostic_boxes else classes[positive]
        count = max(len(classes), 1)
        return {
            "class": functional.cross_entropy(class_logits, classes, reduction="sum") / count,
            "box": functional.l1_loss(of_class[positive, column], wanted, reduction="sum") / count,
        }

    def _mask_loss(
        self, levels: Sequence[Tensor], rois: Sequence["_RoIs"], targets: Sequence[Targets]
    ) -> dict[str, Float[Tensor, ""]]:
        positives = [roi.boxes[: len(roi.matched)] for roi in rois]
        logits = self.mask_head(self.pool(levels, positives, self.config.mask_pool)).float()
        classes = torch.cat([roi.classes[: len(roi.matched)] for roi in rois])
        column = torch.zeros_like(classes) if self.config.class_agnostic_masks else classes
        own = logits[torch.arange(len(logits), device=logits.device), column]
        wanted = torch.cat(
            [
                _crop_masks(target.masks, roi.matched, boxes, own.shape[-1])
                for roi, boxes, target in zip(rois, positives, targets, strict=True)
            ]
        )
        loss = functional.binary_cross_entropy_with_logits(own, wanted, reduction="sum") / max(own.numel(), 1)
        return {"mask": loss + logits.sum() * 0}


@dataclass(frozen=True, eq=False)
class _RoIs:
    """Regions of one image that the heads train on: positives first, each with the target it matched."""

    boxes: Float[Tensor, "regions 4"]
    classes: Int[Tensor, " regions"]  # background is the number of classes
    matched: Int[Tensor, " positives"]


@torch.no_grad()
def _match(
    boxes: Float[Tensor, "boxes 4"], target: Targets, low: float, high: float, crowd_ioa: float, keep_best: bool
) -> tuple[Int[Tensor, " boxes"], Int[Tensor, " boxes"]]:
    """Label boxes 1 (IoU with some object >= high), 0 (< low with all) or -1 (neither, or in a crowd), with the object of each.

    ``keep_best`` also makes the best boxes of every object positive, however low their IoU (Ren et al., section 3.1.2).
    """
    labels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    matched = torch.zeros_like(labels)
    objects = (~target.is_crowd).nonzero().squeeze(1)
    if target.is_crowd.any():
        inside = pairwise_ioa(boxes, target.boxes[target.is_crowd]).amax(dim=1)
        labels[inside >= crowd_ioa] = -1
    if len(objects) and len(boxes):
        ious = pairwise_iou(target.boxes[objects], boxes)  # objects boxes
        best, which = ious.max(dim=0)
        labels[(best >= low) & (best < high)] = -1
        labels[best >= high] = 1
        if keep_best:
            best_of_object = ious.amax(dim=1, keepdim=True)
            is_best = (ious == best_of_object) & (best_of_object > 0)
            labels[is_best.to(torch.uint8).amax(dim=0) == 1] = 1  # any() of booleans is far slower on a CPU
        matched = objects[which]
    return labels, matched


def _sample(
    labels: Int[Tensor, " boxes"], count: int, positive_share: float
) -> tuple[Int[Tensor, " positives"], Int[Tensor, " negatives"]]:
    """A random choice of at most ``count`` boxes, positives at most ``positive_share`` of them."""
    positive, negative = (labels == 1).nonzero().squeeze(1), (labels == 0).nonzero().squeeze(1)
    positives = min(len(positive), int(count * positive_share))
    negatives = min(len(negative), count - positives)
    return (
        positive[torch.randperm(len(positive), device=labels.device)[:positives]],
        negative[torch.randperm(len(negative), device=labels.device)[:negatives]],
    )


@torch.no_grad()
def _sample_rois(proposals: Float[Tensor, "proposals 4"], target: Targets, sampling: Sampling, background: int) -> _RoIs:
    """Proposals and the objects' own boxes, matched and sampled (the objects' boxes help while proposals are still poor)."""
    boxes = torch.cat([proposals, target.boxes[~target.is_crowd].to(proposals.dtype)])
    labels, matched = _match(boxes, target, sampling.roi_iou, sampling.roi_iou, sampling.crowd_ioa, keep_best=False)
    positive, negative = _sample(labels, sampling.rois, sampling.roi_positives)
    classes = torch.cat([target.classes[matched[positive]], target.classes.new_full((len(negative),), background)])
    return _RoIs(boxes[torch.cat([positive, negative])], classes, matched[positive])


@torch.no_grad()
def _crop_masks(
    masks: Bool[Tensor, "objects height width"], which: Int[Tensor, " regions"], boxes: Float[Tensor, "regions 4"], size: int
) -> Float[Tensor, "regions {size} {size}"]:
    """Share of each cell of a size x size grid over a box that the box's object covers, from 2x2 points a cell."""
    height, width = masks.shape[-2:]
    if len(which) == 0:
        return boxes.new_zeros((0, size, size))
    steps = (torch.arange(2 * size, device=boxes.device) + 0.5) / (2 * size)
    x = (boxes[:, 0:1] + steps * (boxes[:, 2:3] - boxes[:, 0:1])).floor().long().clamp(0, width - 1)
    y = (boxes[:, 1:2] + steps * (boxes[:, 3:4] - boxes[:, 1:2])).floor().long().clamp(0, height - 1)
    points = masks[which[:, None, None], y[:, :, None], x[:, None, :]].to(boxes.dtype)  # regions 2*size 2*size
    return functional.avg_pool2d(points[:, None], 2)[:, 0]


def _sides(boxes: Float[Tensor, "boxes 4"]) -> Float[Tensor, "boxes 2"]:
    """Width and height."""
    return boxes[:, 2:] - boxes[:, :2]


def init_normal(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_kaiming(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)

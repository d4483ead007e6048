"""YOLACT, real-time instance segmentation (Bolya et al., 2019, arXiv:1904.02689, figures 2 and 4), and YOLACT++ (1912.06218).

image -> backbone C3..C5 -> FPN P3..P7 -+-> head, shared by all levels: classes, boxes, mask coefficients -> Fast NMS -> instances
                                        +-> prototype net, on P3 only:  prototypes
an instance's mask = sigmoid(prototypes @ its coefficients), cropped by its box, brought to the image's size
YOLACT++: a small network rates each mask, and its rating multiplies the score
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thingstuff.errors import ConfigError
from thingstuff.models.backbone import Backbone, BackboneConfig
from thingstuff.models.contract import Model
from thingstuff.models.fpn import FPN, ConvNorm, Extra
from thingstuff.ops.boxes import clip_boxes, decode_deltas, encode_deltas, pairwise_ioa, pairwise_iou
from thingstuff.ops.nms import fast_nms
from thingstuff.ops.upsample import upsample_crops
from thingstuff.structures.categories import Categories
from thingstuff.structures.masks import Mask
from thingstuff.structures.preprocessing import ImageSize, Targets
from thingstuff.structures.segments import Segments

LEVELS = 5  # P3..P7
CHUNK = 64  # masks at prototype resolution handled at a time
RATED_AREA = 25  # prototype cells; ratings are trained on larger objects alone
CROP_PADDING = 1  # prototype cells that a crop reaches beyond its box, as the originals have it


@dataclass(frozen=True)
class Thresholds:
    """What is kept at test time; every number may be changed for one call without touching the weights."""

    score: float = 0.05  # a detection's class probability (YOLACT++: times its mask's rating) must be higher
    anchor_score: float = 0.0  # an anchor takes part when its most probable class is above this
    anchors_per_level: int | None = None  # with the highest class probabilities, before NMS; None: all
    class_candidates: int = 200  # of each class, before NMS
    nms: float = 0.5  # IoU
    cross_class: bool = False  # Fast NMS over all classes at once
    detections: int = 100  # an image
    mask: float = 0.5  # probability that a pixel must exceed to belong to the object
    crop_margin: float = 0.0  # share of a box's sides by which its mask may reach beyond it, on each side; 0 in the paper

    def __post_init__(self) -> None:
        if min(self.class_candidates, self.detections) < 1 or (self.anchors_per_level is not None and self.anchors_per_level < 1):
            raise ConfigError(
                "class_candidates, detections and anchors_per_level must be at least 1, "
                f"got {self.class_candidates}, {self.detections} and {self.anchors_per_level}"
            )
        for name in ("score", "anchor_score", "nms", "mask", "crop_margin"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Sampling:
    """How anchors are matched and picked for the losses (section 3.4 and the original code)."""

    anchor_iou: tuple[float, float] = (0.4, 0.5)  # negative below, positive from
    crowd_ioa: float = 0.7  # an anchor that lies in a crowd region by more than this share of its area is never a negative
    negatives: int = 3  # hardest ones for each positive (Liu et al., 2016, arXiv:1512.02325, section 2.2)
    negatives_alone: int = 32  # hardest ones of an image without positives, which the original leaves out
    masks: int = 100  # positives of an image that train masks, a random choice

    def __post_init__(self) -> None:
        low, high = self.anchor_iou
        if not (0 <= low <= high <= 1 and 0 <= self.crowd_ioa <= 1):
            raise ConfigError(
                f"anchor_iou must be two rising numbers from 0 to 1 and crowd_ioa one, got {self.anchor_iou} and {self.crowd_ioa}"
            )
        if min(self.negatives, self.negatives_alone, self.masks) < 1:
            raise ConfigError(
                "negatives, negatives_alone and masks must be at least 1, "
                f"got {self.negatives}, {self.negatives_alone} and {self.masks}"
            )


@dataclass(frozen=True)
class YolactConfig:
    """Architecture of a YOLACT; the defaults are those of the original repository.

    Raises:
        ConfigError: a value that no network can be built from.
    """

    backbone: BackboneConfig = BackboneConfig("resnet50")
    classes: int = 80  # things only; background is the extra last logit
    channels: int = 256  # of every FPN level
    extra_levels: Extra = Extra.FROM_PYRAMID  # what P6 and P7 are made from
    neck_relu: bool = True  # after the FPN's output convolutions
    prototypes: int = 32  # k in the paper, section 3.1
    prototype_channels: int = 256
    prototype_convs: int = 3  # before the prototypes' grid is doubled
    last_prototype_convs: int = 1  # after that
    head_convs: int = 1
    head_channels: int = 256
    anchor_sizes: tuple[float, ...] = (24.0, 48.0, 96.0, 192.0, 384.0)  # pixels, one per level P3..P7
    anchor_scales: tuple[float, ...] = (1.0,)  # of each size
    anchor_ratios: tuple[float, ...] = (1.0, 2.0, 0.5)  # height / width
    square_anchors: bool = True  # as high as wide whatever the ratio: a bug of the original that its weights were trained with
    anchor_strides: tuple[float, ...] | None = None  # pixels; None: the input's side over the level's
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # of the deltas x y w h
    clip_deltas: bool = False  # MMDetection bounds how much a delta may change a box
    clip_boxes: bool = False  # and clips boxes to the input before NMS; the original does not
    whole_pixel_boxes: bool = False  # the original gives boxes in whole pixels
    mask_rating_channels: tuple[int, ...] = ()  # of the convolutions that rate masks (YOLACT++, section 4.1); none: no rating
    thresholds: Thresholds = Thresholds()
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        for name in ("classes", "channels", "prototypes", "prototype_channels", "head_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.prototype_convs, self.last_prototype_convs, self.head_convs, *self.mask_rating_channels, 0) < 0:
            raise ConfigError("prototype_convs, last_prototype_convs, head_convs and mask_rating_channels must not be negative")
        if self.extra_levels is Extra.POOLED:
            raise ConfigError("extra_levels: YOLACT's P6 and P7 are convolutions, from_pyramid or from_backbone")
        if len(self.anchor_sizes) != LEVELS or (self.anchor_strides is not None and len(self.anchor_strides) != LEVELS):
            raise ConfigError(
                f"anchor_sizes and anchor_strides need one number for each of P3..P7, got {self.anchor_sizes} "
                f"and {self.anchor_strides}"
            )
        if not (self.anchor_scales and self.anchor_ratios):
            raise ConfigError("anchor_scales and anchor_ratios need at least one number each")
        numbers = (*self.anchor_sizes, *self.anchor_scales, *self.anchor_ratios, *self.box_weights, *(self.anchor_strides or ()))
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise ConfigError(
                "anchor_sizes, anchor_scales, anchor_ratios, anchor_strides and box_weights must be positive and finite, "
                f"got {self.anchor_sizes}, {self.anchor_scales}, {self.anchor_ratios}, {self.anchor_strides} "
                f"and {self.box_weights}"
            )


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the network says, before any threshold: one row for each anchor of P3..P7, in the order level, row, column, anchor."""

    class_logits: Float[Tensor, "batch anchors classes_and_background"]
    box_deltas: Float[Tensor, "batch anchors 4"]
    coefficients: Float[Tensor, "batch anchors prototypes"]
    prototypes: Float[Tensor, "batch prototypes p3_height_doubled p3_width_doubled"]
    anchors: tuple[Float[Tensor, "_ 4"], ...]  # of each level of one image, x1 y1 x2 y2 in pixels of the padded input
    padded_size: Int[Tensor, "2"]  # (height, width) of the padded input, which the prototypes cover


torch.export.register_dataclass(Predictions)


class PrototypeNet(nn.Module):
    """k maps of the whole image at twice P3's resolution (figure 3); a ReLU lets none of them be negative (section 3.1)."""

    def __init__(self, config: YolactConfig):
        super().__init__()
        width = config.prototype_channels
        widths = [config.channels] + [width] * config.prototype_convs
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths))
        widths = [widths[-1]] + [width] * config.last_prototype_convs
        self.last_convs = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths))
        self.prototypes = nn.Conv2d(widths[-1], config.prototypes, 1)

    def forward(self, p3: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch prototypes _ _"]:
        x = p3
        for conv in self.convs:
            x = functional.relu(conv(x))
        height, width = x.shape[-2:]
        x = functional.relu(functional.interpolate(x, size=(2 * height, 2 * width), mode="bilinear", align_corners=False))
        for conv in self.last_convs:
            x = functional.relu(conv(x))
        return functional.relu(self.prototypes(x))


class PredictionHead(nn.Module):
    """Classes, box and mask coefficients of each anchor (figure 4, right); coefficients may be subtracted, hence tanh."""

    def __init__(self, config: YolactConfig):
        super().__init__()
        self.anchors = len(config.anchor_scales) * len(config.anchor_ratios)
        widths = [config.channels] + [config.head_channels] * config.head_convs
        self.convs = nn.ModuleList(ConvNorm(before, after, 3) for before, after in pairwise(widths))
        self.classes = nn.Conv2d(widths[-1], self.anchors * (config.classes + 1), 3, padding=1)
        self.deltas = nn.Conv2d(widths[-1], self.anchors * 4, 3, padding=1)
        self.coefficients = nn.Conv2d(widths[-1], self.anchors * config.prototypes, 3, padding=1)

    def forward(self, level: Float[Tensor, "batch channels height width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits, box deltas and coefficients, each batch (row column anchor) numbers."""
        for conv in self.convs:
            level = functional.relu(conv(level))
        classes, deltas, coefficients = (
            # batch (anchor number) row column -> batch (row column anchor) number
            layer(level).unflatten(1, (self.anchors, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            for layer in (self.classes, self.deltas, self.coefficients)
        )
        return classes, deltas, coefficients.tanh()


class MaskRating(nn.Module):
    """How well a mask fits, for each class: its IoU with the object, guessed from the mask alone (YOLACT++, figure 4)."""

    def __init__(self, config: YolactConfig):
        super().__init__()
        widths = [1, *config.mask_rating_channels]
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, stride=2) for before, after in pairwise(widths))
        self.classes = nn.Conv2d(widths[-1], config.classes, 1)

    def forward(self, masks: Float[Tensor, "masks height width"]) -> Float[Tensor, "masks classes"]:
        x = masks[:, None]
        for conv in self.convs:
            # a mask of a small image is no smaller than the kernel
            short = [max(0, 3 - side) for side in x.shape[-2:]]
            x = functional.relu(conv(functional.pad(x, (0, short[1], 0, short[0]))))
        return functional.relu(self.classes(x)).amax(dim=(2, 3))


class Yolact(Model):
    """See the module's figure."""

    config: YolactConfig
    loss_weights: Mapping[str, float] = {"class": 1.0, "box": 1.5, "mask": 6.125, "semantic": 1.0}  # section 3.1
    last_layers = (
        *("head.classes", "head.deltas", "head.coefficients", "prototype_net.prototypes", "semantic"),
        "mask_rating.classes",
    )

    def __init__(self, config: YolactConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.neck = FPN(
            self.backbone.channels[1:], config.channels, extra=config.extra_levels, bilinear=True, relu=config.neck_relu
        )
        self.prototype_net = PrototypeNet(config)
        self.head = PredictionHead(config)
        self.semantic = nn.Conv2d(config.channels, config.classes, 1)  # for the semantic loss alone
        if config.mask_rating_channels:
            self.mask_rating = MaskRating(config)
            self.loss_weights = {**self.loss_weights, "mask_rating": 25.0}
        for part in (self.prototype_net, self.head, self.semantic):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.xavier_uniform_(layer.weight)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Predictions:
        return self._predict(images)[0]

    def _predict(self, images: Float[Tensor, "batch 3 height width"]) -> tuple[Predictions, Float[Tensor, "batch channels _ _"]]:
        """The predictions, and P3 for the semantic loss."""
        levels = self.neck(self.backbone(images)[1:])  # P3..P7, strides 8..128
        by_level = [self.head(level) for level in levels]  # one head, five resolutions
        classes, deltas, coefficients = (torch.cat(parts, dim=1) for parts in zip(*by_level, strict=True))
        predictions = Predictions(
            classes,
            deltas,
            coefficients,
            self.prototype_net(levels[0]),
            self._anchors(images, levels),
            torch.tensor(images.shape[-2:]),
        )
        return predictions, levels[0]

    def _anchors(self, images: Tensor, levels: Sequence[Tensor]) -> tuple[Float[Tensor, "_ 4"], ...]:
        """Anchors of each level, centred on its cells, in the order row, column, scale, ratio."""
        config = self.config
        result = []
        for index, (level, size) in enumerate(zip(levels, config.anchor_sizes, strict=True)):
            rows, columns = level.shape[-2:]
            if config.anchor_strides is None:
                down, across = images.shape[-2] / rows, images.shape[-1] / columns
            else:
                down = across = config.anchor_strides[index]
            shapes = []
            for scale in config.anchor_scales:
                for ratio in config.anchor_ratios:
                    width = size * scale / math.sqrt(ratio)
                    shapes.append((width, width if config.square_anchors else width * ratio))
            around_zero = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in shapes], device=images.device)
            y = (torch.arange(rows, device=images.device).float() + 0.5) * down
            x = (torch.arange(columns, device=images.device).float() + 0.5) * across
            y, x = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack((x, y, x, y), dim=-1)  # row column 4
            result.append((centres[:, :, None] + around_zero).reshape(-1, 4))
        return tuple(result)

    # From anchors to masks

    @torch.no_grad()
    def segments(
        self,
        predictions: Predictions,
        sizes: Sequence[ImageSize],
        categories: Categories,
        thresholds: Thresholds | None = None,
    ) -> list[Segments]:
        """Instances of each image, by descending score, in pixels of the original image.

        Masks are assembled for what Fast NMS keeps alone, and brought to the image's size one at a time within their crops.
        """
        limits = thresholds or self.config.thresholds
        return [self._segments_of(predictions, image, size, categories, limits) for image, size in enumerate(sizes)]

    def _segments_of(
        self, predictions: Predictions, image: int, size: ImageSize, categories: Categories, limits: Thresholds
    ) -> Segments:
        probabilities = predictions.class_logits[image].float().softmax(dim=1)[:, :-1]
        kept = self._anchors_kept(probabilities, [len(level) for level in predictions.anchors], limits)
        boxes = self._decode(predictions.box_deltas[image, kept], torch.cat(predictions.anchors)[kept])
        if self.config.clip_boxes:
            boxes = clip_boxes(boxes, size.input)
        finite = boxes.isfinite().all(dim=1)
        kept, boxes = kept[finite], boxes[finite]
        chosen, classes, scores = fast_nms(
            boxes, probabilities[kept], limits.nms, limits.class_candidates, self._score_before_rating(limits), limits.cross_class
        )
        chosen, classes, scores = chosen[: limits.detections], classes[: limits.detections], scores[: limits.detections]
        boxes, coefficients = boxes[chosen], predictions.coefficients[image, kept[chosen]].float()

        prototypes = predictions.prototypes[image].float()
        height, width = prototypes.shape[-2:]
        padded = int(predictions.padded_size[0]), int(predictions.padded_size[1])
        in_cells = boxes * boxes.new_tensor([width / padded[1], height / padded[0]]).repeat(2)  # x y x y
        margin = limits.crop_margin * (in_cells[:, 2:] - in_cells[:, :2])
        in_cells = in_cells + torch.cat([-margin, margin], dim=1)
        if self.config.mask_rating_channels:
            scores = self._rated(scores, classes, prototypes, coefficients, in_cells)
            order = scores.argsort(descending=True, stable=True)
            order = order[scores[order] > limits.score]
            boxes, classes, scores = boxes[order], classes[order], scores[order]
            coefficients, in_cells = coefficients[order], in_cells[order]
        steps = (
            [(size.original, size.original)] if padded == size.input else [(padded, size.input), (size.original, size.original)]
        )
        rles = tuple(
            Mask.from_crop(crop, corner, size.original)
            for masks in _assembled(prototypes, coefficients, in_cells)
            for crop, corner in upsample_crops(masks, steps, limits.mask)
        )
        scale = boxes.new_tensor([size.original[1] / size.input[1], size.original[0] / size.input[0]]).repeat(2)  # x y x y
        boxes = (
            _whole_pixels(boxes * scale, size.original)
            if self.config.whole_pixel_boxes
            else clip_boxes(boxes * scale, size.original)
        )
        return Segments(
            size=size.original,
            categories=categories,
            classes=classes.cpu().numpy(),
            scores=scores.float().cpu().numpy(),
            boxes=boxes.cpu().numpy(),
            rles=rles,
        )

    def _score_before_rating(self, limits: Thresholds) -> float:
        """The class probability that is too low in any case; a rating may still raise or lower it."""
        return 0.0 if self.config.mask_rating_channels else limits.score

    def _anchors_kept(
        self, probabilities: Float[Tensor, "anchors classes"], levels: Sequence[int], limits: Thresholds
    ) -> Int[Tensor, " kept"]:
        best = probabilities.amax(dim=1)
        if limits.anchors_per_level is not None:
            start = 0
            for count in levels:
                if count > limits.anchors_per_level:
                    of_level = best[start : start + count]
                    lost = torch.ones_like(of_level, dtype=torch.bool)
                    lost[of_level.topk(limits.anchors_per_level).indices] = False
                    of_level[lost] = -1.0
                start += count
        return (best > max(limits.anchor_score, self._score_before_rating(limits))).nonzero().squeeze(1)

    def _decode(self, deltas: Float[Tensor, "anchors 4"], anchors: Float[Tensor, "anchors 4"]) -> Float[Tensor, "anchors 4"]:
        if self.config.clip_deltas:
            return decode_deltas(deltas.float(), anchors, self.config.box_weights, clip_small=True)
        return decode_deltas(deltas.float(), anchors, self.config.box_weights, max_log_ratio=math.inf)

    def _rated(
        self,
        scores: Float[Tensor, " instances"],
        classes: Int[Tensor, " instances"],
        prototypes: Float[Tensor, "prototypes height width"],
        coefficients: Float[Tensor, "instances prototypes"],
        boxes: Float[Tensor, "instances 4"],
    ) -> Float[Tensor, " instances"]:
        """Scores times the rating of each mask for its own class (YOLACT++, section 4.1)."""
        ratings = [self.mask_rating(masks) for masks in _assembled(prototypes, coefficients, boxes)]
        return scores * torch.cat(ratings).gather(1, classes[:, None])[:, 0] if ratings else scores

    # Losses

    def losses(self, images: Float[Tensor, "batch 3 height width"], targets: Sequence[Targets]) -> dict[str, Float[Tensor, ""]]:
        """The terms of section 3.1 and 3.4, unweighted: class, box, mask, semantic; of YOLACT++ mask_rating, too.

        Class, box and mask are sums over positives (and their negatives) divided by the positives of the batch.
        """
        predictions, p3 = self._predict(images)
        anchors = torch.cat(predictions.anchors)
        matches = [_match(anchors, target, self.config.sampling, background=self.config.classes) for target in targets]
        positives = max(sum(int(match.is_positive.sum()) for match in matches), 1)
        terms: dict[str, list[Tensor]] = {name: [] for name in self.loss_weights}
        padded = (int(images.shape[-2]), int(images.shape[-1]))
        semantic_logits = self.semantic(p3).float()
        for image, (match, target) in enumerate(zip(matches, targets, strict=True)):
            logits = predictions.class_logits[image].float()
            terms["class"].append(_class_loss(logits, match, self.config.sampling) / positives)
            deltas = predictions.box_deltas[image].float()[match.is_positive]
            own = match.objects[match.is_positive]
            wanted = encode_deltas(target.boxes[own], anchors[match.is_positive], self.config.box_weights)
            terms["box"].append(functional.smooth_l1_loss(deltas, wanted, reduction="sum") / positives)

            terms["semantic"].append(_semantic_loss(semantic_logits[image], target, padded) / len(targets))

            coefficients = predictions.coefficients[image].float()[match.is_positive]
            prototypes = predictions.prototypes[image].float()
            mask, rating = self._mask_losses(prototypes, coefficients, own, target, padded)
            terms["mask"].append(mask / positives)
            if "mask_rating" in terms:
                terms["mask_rating"].append(rating / positives)
        return {name: torch.stack(parts).sum() for name, parts in terms.items()}

    def _mask_losses(
        self,
        prototypes: Float[Tensor, "prototypes height width"],
        coefficients: Float[Tensor, "positives prototypes"],
        objects: Int[Tensor, " positives"],
        target: Targets,
        padded: tuple[int, int],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The loss of the masks and that of their ratings, each a sum over the positives of one image."""
        count, most = len(objects), self.config.sampling.masks
        if count > most:  # a random choice stands for all
            chosen = torch.randperm(count, device=objects.device)[:most]
            coefficients, objects = coefficients[chosen], objects[chosen]
        height, width = prototypes.shape[-2:]
        of_object, place = objects.unique(return_inverse=True)
        truth = _covered(target.masks, of_object, padded, (int(height), int(width)))[place]
        boxes = target.boxes[objects] * prototypes.new_tensor([width / padded[1], height / padded[0]]).repeat(2)
        crop = _inside(boxes, (int(height), int(width)))
        logits = torch.einsum("phw,np->nhw", prototypes, coefficients)
        # the original rounds the truth to whole cells, and its masks never see an edge within one
        loss = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        # a small object's mask weighs as much as a large one's: the sum over its crop is divided by its box's area (section 3.1)
        areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=1.0)
        total = ((loss * crop).sum(dim=(1, 2)) / areas).sum() * (count / max(len(objects), 1))
        if not self.config.mask_rating_channels:
            return total, total * 0
        return total, self._rating_loss(logits.detach().sigmoid() * crop, truth > 0.5, target.classes[objects])

    def _rating_loss(
        self,
        masks: Float[Tensor, "positives height width"],
        truth: Bool[Tensor, "positives height width"],
        classes: Int[Tensor, " positives"],
    ) -> Float[Tensor, ""]:
        """How far the ratings are from the masks' IoU with their objects; tiny objects are left out (YOLACT++, section 4.1)."""
        large = truth.sum(dim=(1, 2)) > RATED_AREA
        masks, truth, classes = masks[large], truth[large], classes[large]
        if len(masks) == 0:
            masks, truth, classes = (
                masks.new_zeros((1, *masks.shape[1:])),
                truth.new_zeros((1, *truth.shape[1:])),
                classes.new_zeros(1),
            )
            return self.mask_rating(masks).sum() * 0
        found = masks > 0.5
        ious = (found & truth).sum(dim=(1, 2)) / (found | truth).sum(dim=(1, 2))
        return functional.smooth_l1_loss(self.mask_rating(masks).gather(1, classes[:, None])[:, 0], ious, reduction="sum")


def _whole_pixels(boxes: Float[Tensor, "boxes 4"], size: tuple[int, int]) -> Float[Tensor, "boxes 4"]:
    """Boxes as the original gives them: whole pixels, towards zero; one outside the image keeps the edge that is beyond it."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack((x1.clamp(min=0), y1.clamp(min=0), x2.clamp(max=size[1]), y2.clamp(max=size[0])), dim=1).trunc()


def _assembled(
    prototypes: Float[Tensor, "prototypes height width"],
    coefficients: Float[Tensor, "instances prototypes"],
    boxes: Float[Tensor, "instances 4"],
) -> Iterator[Float[Tensor, "_ height width"]]:
    """Masks as probabilities in prototype cells, zero outside their boxes (figure 5), a chunk of instances at a time."""
    size = int(prototypes.shape[1]), int(prototypes.shape[2])
    for some, of in zip(coefficients.split(CHUNK), boxes.split(CHUNK), strict=True):
        yield torch.einsum("phw,np->nhw", prototypes, some).sigmoid() * _inside(of, size)


def _inside(boxes: Float[Tensor, "boxes 4"], size: tuple[int, int]) -> Bool[Tensor, "boxes height width"]:
    """Which cells belong to each box's crop; boxes are in cells."""
    height, width = size
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    columns, rows = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    across = (columns >= (x1 - CROP_PADDING).clamp(min=0)) & (columns < (x2 + CROP_PADDING).clamp(max=width))
    down = (rows >= (y1 - CROP_PADDING).clamp(min=0)) & (rows < (y2 + CROP_PADDING).clamp(max=height))
    return down[:, :, None] & across[:, None, :]


@dataclass(frozen=True, eq=False)
class _Matches:
    """What each anchor of one image should say."""

    classes: Int[Tensor, " anchors"]  # `background`: no object; -1: nobody asks
    objects: Int[Tensor, " anchors"]  # the object of each positive
    background: int

    @property
    def is_positive(self) -> Bool[Tensor, " anchors"]:
        return (self.classes >= 0) & (self.classes < self.background)


@torch.no_grad()
def _match(anchors: Float[Tensor, "anchors 4"], target: Targets, sampling: Sampling, background: int) -> _Matches:
    """Anchors with their objects: those whose IoU is high enough, and for each object its best anchor, an own one.

    As in SSD (Liu et al., 2016, section 2.2); of two objects that have the same best anchor, the one that overlaps it more gets
    it and the other the best of the rest.
    """
    classes = torch.full((len(anchors),), background, device=anchors.device)
    objects = torch.zeros_like(classes)
    # a box without area overlaps no anchor, and the logarithm of its sides would be infinite
    sides = target.boxes[:, 2:] - target.boxes[:, :2]
    real = (~target.is_crowd & (sides > 0).all(dim=1)).nonzero().squeeze(1)
    if len(real) and len(anchors):
        ious = pairwise_iou(target.boxes[real], anchors)  # objects anchors
        best, which = ious.max(dim=0)
        low, high = sampling.anchor_iou
        classes[best >= low] = -1
        objects = real[which]
        positive = best >= high
        classes[positive] = target.classes[objects[positive]]
        anchor, owner = _best_anchors(ious)
        objects[anchor] = real[owner]
        classes[anchor] = target.classes[real[owner]]
    if target.is_crowd.any():
        inside = pairwise_ioa(anchors, target.boxes[target.is_crowd]).amax(dim=1) > sampling.crowd_ioa
        classes[inside & (classes == background)] = -1
    return _Matches(classes, objects, background)


def _best_anchors(ious: Float[Tensor, "objects anchors"]) -> tuple[Int[Tensor, " _"], Int[Tensor, " _"]]:
    """An anchor for each object as long as there are any, highest IoU first, and the object of each."""
    best, which = ious.max(dim=1)
    of_object, overlaps = which.tolist(), best.tolist()
    chosen: dict[int, int] = {}
    for owner in best.argsort(descending=True, stable=True).tolist():
        anchor, overlap = of_object[owner], overlaps[owner]
        if anchor in chosen:
            free = ious[owner].clone()
            free[list(chosen)] = 0.0
            anchor = int(free.argmax())
            overlap = float(free[anchor])
        if overlap > 0:
            chosen[anchor] = owner
    pairs = torch.tensor(list(chosen.items()), dtype=torch.int64, device=ious.device).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _class_loss(
    logits: Float[Tensor, "anchors classes_and_background"], match: _Matches, sampling: Sampling
) -> Float[Tensor, ""]:
    """Cross entropy of the positives and of the hardest negatives, a few for each positive (hard negative mining)."""
    negative = (match.classes == match.background).nonzero().squeeze(1)
    positive = match.is_positive.nonzero().squeeze(1)
    count = min(sampling.negatives * len(positive) if len(positive) else sampling.negatives_alone, len(negative))
    with torch.no_grad():  # hardest: the least background
        hardness = torch.logsumexp(logits[negative], dim=1) - logits[negative, -1]
        negative = negative[hardness.topk(count).indices]
    asked = torch.cat([positive, negative])
    return functional.cross_entropy(logits[asked], match.classes[asked], reduction="sum")


def _semantic_loss(logits: Float[Tensor, "classes height width"], target: Targets, padded: tuple[int, int]) -> Float[Tensor, ""]:
    """Every class's pixels from P3 alone, to train its features (section 3.4): a mean over cells, summed over classes."""
    height, width = int(logits.shape[1]), int(logits.shape[2])
    truth = torch.zeros_like(logits)
    real = (~target.is_crowd).nonzero().squeeze(1)
    for some in real.split(CHUNK):
        masks = (_covered(target.masks, some, padded, (height, width)) > 0.5).to(logits.dtype)
        truth.scatter_reduce_(0, target.classes[some][:, None, None].expand_as(masks), masks, "amax")
    loss = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    for some in target.is_crowd.nonzero().squeeze(1).split(CHUNK):  # what is in a crowd is nobody's negative
        crowd = _covered(target.masks, some, padded, (height, width)) > 0.5
        ignored = torch.zeros_like(truth).scatter_reduce_(
            0, target.classes[some][:, None, None].expand_as(crowd), crowd.to(truth.dtype), "amax"
        )
        loss = loss * ((ignored == 0) | (truth > 0))
    return loss.sum() / (height * width)


@torch.no_grad()
def _covered(
    masks: Bool[Tensor, "objects height width"], which: Int[Tensor, " chosen"], padded: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "chosen rows columns"]:
    """Share of each cell that an object covers, on a map of the padded input; exact where cells are whole pixels."""
    result = torch.zeros(len(which), *size, device=masks.device)
    right, bottom = padded[1] - masks.shape[2], padded[0] - masks.shape[1]
    for start in range(0, len(which), CHUNK):  # float masks of the whole image, so few at a time
        some = functional.pad(masks[which[start : start + CHUNK]].float(), (0, right, 0, bottom))
        result[start : start + CHUNK] = functional.adaptive_avg_pool2d(some, size)
    return result

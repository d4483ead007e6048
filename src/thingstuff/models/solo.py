"""SOLO and Decoupled SOLO (Wang et al., 2020, arXiv:1912.04488, figures 2, 3 and 5): an instance is found where its centre lies.

image -> backbone C2..C5 -> FPN P2..P6 -> one head, shared by five levels, each with its own S x S grid
    level -> resized to S x S ----------> category branch: classes of each grid cell
    level, with coordinates, up 2x -----> mask branch: a mask of the whole image for each grid cell
        SOLO:           one 1x1 kernel a cell
        Decoupled SOLO: one map a column and one a row; a cell's mask is the product of its two

cells above a score, highest among their neighbours -> masks -> Matrix NMS -> instances
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thingstuff.errors import ConfigError
from thingstuff.models.backbone import Backbone, BackboneConfig
from thingstuff.models.contract import Model
from thingstuff.models.deformable import Deformable
from thingstuff.models.fpn import FPN, ConvNorm, Norm
from thingstuff.ops.losses import dice_loss, focal_loss
from thingstuff.ops.matrix_nms import Kernel, matrix_nms
from thingstuff.ops.shrink import shrink_masks
from thingstuff.ops.upsample import resize_soft, upsample_crops
from thingstuff.structures.categories import Categories
from thingstuff.structures.masks import Mask
from thingstuff.structures.preprocessing import ImageSize, Targets, padded_alone
from thingstuff.structures.segments import Segments

STRIDES = (8, 8, 16, 32, 32)  # of the five levels after `level_maps`; P2 is halved, P6 brought to the size of P5
MASK_STRIDE = 4  # of the masks that instances are chosen by
MOST_GRID_CELLS = 256  # a side
CHUNK = 64  # masks measured at a time
PRIOR = 0.01  # probability that a fresh network gives every class of every cell


@dataclass(frozen=True)
class Thresholds:
    """What is kept at test time (section 3.3.2; SOLOv2, arXiv:2003.10152, section 3.3)."""

    score: float = 0.05  # class probability times mean mask probability, decayed by Matrix NMS, must be higher
    detections: int = 100  # an image
    cell_score: float = 0.1  # a cell's class probability must be higher
    mask: float = 0.5  # a pixel's probability must be higher
    candidates: int = 500  # best, before Matrix NMS
    kernel: Kernel = "gaussian"
    sigma: float = 2.0  # of the gaussian kernel

    def __post_init__(self) -> None:
        if min(self.detections, self.candidates) < 1:
            raise ConfigError(f"detections and candidates must be at least 1, got {self.detections} and {self.candidates}")
        for name in ("score", "cell_score", "mask"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie from 0 to 1, got {getattr(self, name)}")
        if self.kernel not in ("gaussian", "linear"):
            raise ConfigError(f'kernel is "gaussian" or "linear", got {self.kernel!r}')
        if not 0 < self.sigma < math.inf:
            raise ConfigError(f"sigma must be positive and finite, got {self.sigma}")


@dataclass(frozen=True)
class GridConfig:
    """What SOLO, Decoupled SOLO and SOLOv2 have in common; the defaults are the papers'.

    Raises:
        ConfigError: a value that no network can be built from.
    """

    backbone: BackboneConfig = BackboneConfig("resnet50")
    classes: int = 80  # things only; a cell without an object has no class
    channels: int = 256  # of every FPN level
    head_channels: int = 256  # of the branches, a multiple of 32
    head_convs: int = 7  # of each branch
    deformable_convs: int = 0  # of each branch, its last so many
    deformable_kind: Deformable = Deformable.V2  # of these
    grids: tuple[int, ...] = (40, 36, 24, 16, 12)  # cells a side, one for each of P2..P6
    scale_ranges: tuple[tuple[float, float], ...] = ((1.0, 96.0), (48.0, 192.0), (96.0, 384.0), (192.0, 768.0), (384.0, 2048.0))
    centre: float = 0.2  # an object's cells lie in the middle of its box, this share of the box's sides
    mask_samples: int = 512  # cells an image whose masks are trained at most, drawn at random: a bound on memory
    drop_empty: bool = True  # instances without a pixel in the image; the peers return them
    thresholds: Thresholds = Thresholds()

    def __post_init__(self) -> None:
        for name in ("classes", "channels", "head_channels", "head_convs", "mask_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        demand_groups(self, "head_channels")
        if not 0 <= self.deformable_convs <= self.head_convs:
            raise ConfigError(f"deformable_convs must lie from 0 to head_convs {self.head_convs}, got {self.deformable_convs}")
        if self.deformable_convs and self.deformable_kind is Deformable.NO:
            raise ConfigError(f'deformable_kind must be "v1" or "v2" for {self.deformable_convs} deformable_convs')
        if len(self.grids) != len(STRIDES) or not all(1 <= cells <= MOST_GRID_CELLS for cells in self.grids):
            raise ConfigError(f"grids needs 1 to {MOST_GRID_CELLS} cells a side for each of P2..P6, got {self.grids}")
        if len(self.scale_ranges) != len(STRIDES) or not all(0 <= low < high for low, high in self.scale_ranges):
            raise ConfigError(f"scale_ranges needs a rising pair of pixels for each of P2..P6, got {self.scale_ranges}")
        if not 0 <= self.centre <= 1:
            raise ConfigError(f"centre must lie from 0 to 1, got {self.centre}")

    @property
    def level_starts(self) -> tuple[int, ...]:
        """The first cell of each level, and the number of all cells, when cells are numbered level by level, row by row."""
        return (0, *accumulate(side * side for side in self.grids))


def demand_groups(config: object, name: str) -> None:
    """Group norms have 32 groups (`fpn.Norm`)."""
    if getattr(config, name) % 32:
        raise ConfigError(
            f"{name} must be a multiple of 32, which is the number of groups that are normed, got {getattr(config, name)}"
        )


@dataclass(frozen=True)
class SOLOConfig(GridConfig):
    """SOLO, figure 3."""


@dataclass(frozen=True)
class DecoupledSOLOConfig(GridConfig):
    """Decoupled SOLO, figure 5."""

    shared_convs: bool = False  # one stack of convolutions for columns and rows; the light networks have it


# Parts


class Tower(nn.Module):
    """Convolutions of one branch, each with group norm and ReLU."""

    def __init__(self, channels_in: int, config: GridConfig):
        super().__init__()
        widths = [channels_in] + [config.head_channels] * config.head_convs
        plain = config.head_convs - config.deformable_convs
        self.convs = nn.ModuleList(
            ConvNorm(before, after, 3, Norm.GROUP, Deformable.NO if position < plain else config.deformable_kind)
            for position, (before, after) in enumerate(pairwise(widths))
        )
        for part in self.modules():
            if isinstance(part, ConvNorm):
                nn.init.normal_(part.conv.weight, std=0.01)

    def forward(self, x: Float[Tensor, "batch _ height width"]) -> Float[Tensor, "batch channels height width"]:
        for conv in self.convs:
            x = functional.relu(conv(x))
        return x


def last_conv(channels_in: int, channels: int, kernel: int, prior: float | None = None) -> nn.Conv2d:
    """The convolution that ends a branch; `prior` is the probability that it gives when fresh (RetinaNet, section 4.1)."""
    conv = nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, 0.0 if prior is None else -math.log((1 - prior) / prior))  # type: ignore[arg-type]
    return conv


def level_maps(pyramid: Sequence[Float[Tensor, "batch channels _ _"]]) -> list[Float[Tensor, "batch channels _ _"]]:
    """P2..P6 with P2 halved and P6 at the size of P5 (`STRIDES`)."""
    finest = resize(pyramid[0], (max(pyramid[0].shape[-2] // 2, 1), max(pyramid[0].shape[-1] // 2, 1)))
    return [finest, *pyramid[1:-1], resize(pyramid[-1], pyramid[-2].shape[-2:])]


def resize(x: Float[Tensor, "batch channels _ _"], size: Sequence[int]) -> Float[Tensor, "batch channels _ _"]:
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def coordinates(x: Float[Tensor, "batch _ height width"]) -> Float[Tensor, "batch 2 height width"]:
    """x and y of each cell from -1 to 1, as channels (CoordConv, Liu et al., 2018, arXiv:1807.03247, figure 3)."""
    batch, _, height, width = x.shape
    across = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype).expand(batch, 1, height, width)
    down = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)[:, None].expand(batch, 1, height, width)
    return torch.cat([across, down], dim=1)


# From an image's objects to the cells of its grids


@dataclass(frozen=True, eq=False)
class CellTargets:
    """Which object each grid cell of one image answers for, level by level, row by row."""

    objects: Int[Tensor, " cells"]  # index into the image's targets, -1 for none
    ignored: Bool[Tensor, " cells"]  # in a crowd region, so neither positive nor negative


@torch.no_grad()
def assign_grid_cells(target: Targets, padded: tuple[int, int], config: GridConfig) -> CellTargets:
    """Cells in the middle of an object are its own, on every level whose range of scales it falls in (section 3.3.1).

    The middle is the mask's centre of mass with `centre` times the box's sides around it, at most one cell beyond the centre's
    own, which always is among them. The scale is the root of the box's area in pixels; the first range reaches down to 0 and the
    last up to any size, so that every object has a level. Two objects in one cell, of which the papers say nothing: the smaller
    one has it. Cells whose middle lies in a crowd region are ignored unless an object has them.

    Args:
        target: the objects.
        padded: (height, width) of the batch's images, which the grids divide.
        config: grids, ranges and the share of the centre.
    """
    device = target.masks.device
    cells = torch.full((config.level_starts[-1],), -1, dtype=torch.int64)
    counts_down = target.masks.sum(dim=2).double()  # objects height
    counts_across = target.masks.sum(dim=1).double()  # objects width
    areas = counts_down.sum(dim=1)
    middles = torch.stack(
        [
            (counts_down @ (torch.arange(target.size[0], device=device).double() + 0.5)) / areas.clamp(min=1),
            (counts_across @ (torch.arange(target.size[1], device=device).double() + 0.5)) / areas.clamp(min=1),
        ],
        dim=1,
    )  # objects (y x)
    sides = (target.boxes[:, 2:] - target.boxes[:, :2]).double().clamp(min=0)  # objects (width height)
    scales = sides.prod(dim=1).sqrt()
    usable = (areas > 0) & ~target.is_crowd
    order = areas.argsort(descending=True, stable=True)
    largest_first = order[usable[order]].tolist()
    middle_list, side_list, scale_list = middles.tolist(), sides.flip(1).tolist(), scales.tolist()
    lows = [0.0, *(low for low, _ in config.scale_ranges[1:])]
    highs = [*(high for _, high in config.scale_ranges[:-1]), math.inf]
    for start, cells_a_side, low, high in zip(config.level_starts, config.grids, lows, highs, strict=False):
        grid = cells[start : start + cells_a_side**2].view(cells_a_side, cells_a_side)
        for index in largest_first:
            if low <= scale_list[index] <= high:
                rows, columns = (
                    _middle_cells(middle, config.centre * side / 2, cells_a_side, pixels)
                    for middle, side, pixels in zip(middle_list[index], side_list[index], padded, strict=True)
                )
                grid[rows, columns] = index
    cells = cells.to(device)
    ignored = torch.cat([_in_crowd(target, padded, cells_a_side) for cells_a_side in config.grids]) & (cells < 0)
    return CellTargets(cells, ignored)


def _middle_cells(middle: float, reach: float, cells: int, pixels: int) -> slice:
    def cell(position: float) -> int:
        return min(max(math.floor(position / pixels * cells), 0), cells - 1)

    own = cell(middle)
    return slice(max(cell(middle - reach), own - 1), min(cell(middle + reach), own + 1) + 1)


def _in_crowd(target: Targets, padded: tuple[int, int], cells: int) -> Bool[Tensor, " cells"]:
    device = target.masks.device
    if not target.is_crowd.any():
        return torch.zeros(cells * cells, dtype=torch.bool, device=device)
    crowd = functional.pad(
        target.masks[target.is_crowd].any(dim=0), (0, padded[1] - target.size[1], 0, padded[0] - target.size[0])
    )
    rows, columns = (((torch.arange(cells, device=device) + 0.5) * pixels / cells).long() for pixels in padded)
    return crowd[rows[:, None], columns].flatten()


# What the three networks do alike


class GridModel(Model):
    """A network whose ``Predictions`` hold ``categories``, logits of each level's grid cells, and something to make masks of."""

    config: Any
    backbone: Backbone
    neck: FPN
    loss_weights: Mapping[str, float] = {"category": 1.0, "mask": 3.0}  # lambda of equation 3
    divides_images = True
    last_layers = ("categories", "kernels", "kernels.*", "columns.*", "rows.*")

    @abstractmethod
    def heads(self, pyramid: Sequence[Float[Tensor, "batch channels _ _"]]) -> Any:
        """What the network says of P2..P6."""

    @abstractmethod
    def mask_size(self, predictions: Any) -> tuple[int, int]:
        """(height, width) of the masks that instances are chosen by: the padded input at `MASK_STRIDE`."""

    @abstractmethod
    def mask_factors(
        self, predictions: Any, image: int, level: int, cells: Int[Tensor, " masks"]
    ) -> tuple[Float[Tensor, "masks height width"], ...]:
        """Logits of the masks of some cells of one level, numbered row by row, at the level's own size.

        Where there are several, a mask is the product of their probabilities.
        """

    def level_masks(
        self, predictions: Any, image: int, level: int, cells: Int[Tensor, " masks"], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "masks _ _"]:
        """Probabilities of the masks of some cells of one level, numbered row by row: at the level's own size, or resized."""
        factors = (logits.float().sigmoid() for logits in self.mask_factors(predictions, image, level, cells))
        return reduce(mul, factors if size is None else (resize_soft(factor, size) for factor in factors))

    @abstractmethod
    def untrained(self, predictions: Any) -> Float[Tensor, ""]:
        """Zero, with a gradient of zero for all that masks are made of: also what an image leaves out has one."""

    def masks_of_cells(self, predictions: Any, image: int, cells: Int[Tensor, " masks"]) -> Float[Tensor, "masks height width"]:
        """Probabilities of the masks of cells of any level at `mask_size`."""
        size = self.mask_size(predictions)
        masks = torch.zeros((len(cells), *size), device=cells.device)
        for level, here, local in self._by_level(cells):
            masks[here] = self.level_masks(predictions, image, level, local, size)
        return masks

    def _by_level(self, cells: Int[Tensor, " cells"]) -> Iterator[tuple[int, Int[Tensor, " _"], Int[Tensor, " _"]]]:
        """Each level that has some of the cells: its number, which of them, and their numbers within the level."""
        for level, (start, end) in enumerate(pairwise(self.config.level_starts)):
            here = ((cells >= start) & (cells < end)).nonzero().squeeze(1)
            if len(here):
                yield level, here, cells[here] - start

    # Instances

    @torch.no_grad()
    def segments(
        self, predictions: Any, sizes: Sequence[ImageSize], categories: Categories, thresholds: Thresholds | None = None
    ) -> list[Segments]:
        """Instances of each image, by descending score, in pixels of the original image.

        Masks are made for cells above the threshold alone, a few at a time, and those kept are resized within their crops one
        by one, so memory does not grow with cells times pixels.
        """
        limits = thresholds or self.config.thresholds
        scores = cell_scores(predictions.categories)
        return [self._instances(predictions, image, scores[image], size, categories, limits) for image, size in enumerate(sizes)]

    def _instances(
        self,
        predictions: Any,
        image: int,
        scores: Float[Tensor, "cells classes"],
        size: ImageSize,
        categories: Categories,
        limits: Thresholds,
    ) -> Segments:
        cells, classes, scores = self._choose(predictions, image, scores, limits)
        height, width = self.mask_size(predictions)
        steps = [((MASK_STRIDE * height, MASK_STRIDE * width), size.input), (size.original, size.original)]
        crops = upsample_crops(self.masks_of_cells(predictions, image, cells), steps, limits.mask)
        masks = [Mask.from_crop(crop, corner, size.original) for crop, corner in crops]
        kept = torch.tensor([not self.config.drop_empty or mask.area > 0 for mask in masks], dtype=torch.bool).numpy()
        masks = [mask for mask, keep in zip(masks, kept, strict=True) if keep]
        return Segments(
            size=size.original,
            categories=categories,
            classes=classes.cpu().numpy()[kept],
            scores=scores.cpu().numpy()[kept],
            boxes=torch.tensor([mask.box for mask in masks], dtype=torch.float32).reshape(-1, 4).numpy(),
            rles=tuple(masks),
        )

    def _choose(
        self, predictions: Any, image: int, scores: Float[Tensor, "cells classes"], limits: Thresholds
    ) -> tuple[Int[Tensor, " instances"], Int[Tensor, " instances"], Float[Tensor, " instances"]]:
        """Cell, class and score of each instance that survives Matrix NMS, best first."""
        # what comes after only lowers a score, and a mask decays by better ones alone: lower cells can't matter
        cell, class_ = (scores > max(limits.cell_score, limits.score)).nonzero(as_tuple=True)
        distinct, which = cell.unique(return_inverse=True)
        keeps = len(distinct) <= limits.candidates
        areas, probabilities, masks = self._measure(predictions, image, distinct, limits.mask, keeps)
        starts = torch.tensor(self.config.level_starts[1:-1], device=cell.device)
        least = torch.tensor(STRIDES, device=cell.device)[torch.bucketize(cell, starts, right=True)]  # pixels
        large = areas[which] > least
        cell, class_, which = cell[large], class_[large], which[large]
        values, best = (scores[cell, class_] * probabilities[which]).sort(descending=True, stable=True)
        values, best = values[: limits.candidates], best[: limits.candidates]
        cell, class_ = cell[best], class_[best]
        if keeps:
            masks = masks[which[best]]
        else:
            masks = torch.cat([self.masks_of_cells(predictions, image, part) > limits.mask for part in cell.split(CHUNK)])
        values = matrix_nms(masks, values, class_, limits.kernel, limits.sigma)
        values, best = values.sort(descending=True, stable=True)
        best = best[values > limits.score][: limits.detections]
        return cell[best], class_[best], values[: len(best)]

    def _measure(
        self, predictions: Any, image: int, cells: Int[Tensor, " cells"], threshold: float, keeps: bool
    ) -> tuple[Int[Tensor, " cells"], Float[Tensor, " cells"], Bool[Tensor, "_ height width"]]:
        """Of each cell's mask the number of pixels above the threshold, their mean probability, and the pixels if kept."""
        areas, sums, kept = [], [], []
        for part in cells.split(CHUNK):
            masks = self.masks_of_cells(predictions, image, part)
            inside = masks > threshold
            areas.append(inside.view(torch.uint8).sum(dim=(1, 2), dtype=torch.int32))
            sums.append(functional.threshold(masks, threshold, 0.0).sum(dim=(1, 2)))
            kept.append(inside if keeps else inside[:0])
        areas = torch.cat(areas)
        return areas, torch.cat(sums) / areas.clamp(min=1), torch.cat(kept)

    # Losses

    def losses(self, images: Float[Tensor, "batch 3 height width"], targets: Sequence[Targets]) -> dict[str, Float[Tensor, ""]]:
        """Focal loss of the categories and dice loss of the positive cells' masks, unweighted (section 3.3.1, equations 3-5).

        Grids divide each image as when it comes alone, not the batch: a cell trained for one place would be asked for another
        where padding differs. The originals divide the batch, which they make of images of like shapes.
        """
        pyramid = self.neck(self.backbone(images))
        extents = [padded_alone(target.size, target.pad_multiple, images.shape[-2:]) for target in targets]
        category, mask, idle, positives = [], [], [], 0
        for extent in dict.fromkeys(extents):
            members = [image for image, other in enumerate(extents) if other == extent]
            predictions = self.heads(_cut(pyramid, members, extent))
            some = [targets[image] for image in members]
            cells = [assign_grid_cells(target, extent, self.config) for target in some]
            positives = positives + torch.stack([(cell.objects >= 0).sum() for cell in cells]).sum()
            category.append(self._category_loss(predictions, cells, some))
            mask += self._mask_losses(predictions, cells, some)
            idle.append(self.untrained(predictions))
        masks = torch.cat([images.new_zeros(0, dtype=torch.float32), *mask])
        return {
            "category": torch.stack(category).sum() / (positives + 1),
            "mask": masks.sum() / max(len(masks), 1) + torch.stack(idle).sum(),
        }

    def _category_loss(self, predictions: Any, cells: Sequence[CellTargets], targets: Sequence[Targets]) -> Float[Tensor, ""]:
        """The sum over cells and classes."""
        logits = by_cell(predictions.categories)  # batch cells classes
        truth = torch.zeros_like(logits)
        for image, (cell, target) in enumerate(zip(cells, targets, strict=True)):
            positive = (cell.objects >= 0).nonzero().squeeze(1)
            truth[image, positive, target.classes[cell.objects[positive]]] = 1.0
        counted = ~torch.stack([cell.ignored for cell in cells])
        return (focal_loss(logits, truth) * counted[..., None]).sum()

    def _mask_losses(
        self, predictions: Any, cells: Sequence[CellTargets], targets: Sequence[Targets]
    ) -> list[Float[Tensor, " _"]]:
        """One of each positive cell."""
        losses = []
        for image, (cell, target) in enumerate(zip(cells, targets, strict=True)):
            positive = (cell.objects >= 0).nonzero().squeeze(1)
            if len(positive) > self.config.mask_samples:
                positive = positive[torch.randperm(len(positive), device=positive.device)[: self.config.mask_samples]]
            for level, here, local in self._by_level(positive):
                masks = self.level_masks(predictions, image, level, local)
                objects, which = cell.objects[positive[here]].unique(return_inverse=True)
                truth = shrink_masks(target.masks[objects], masks.shape[-2:], mask_stride(level, self.coarse_masks))
                losses.append(dice_loss(masks, truth[which]))
        return losses

    coarse_masks = True  # whether coarser levels have masks of coarser stride


def _cut(
    pyramid: Sequence[Float[Tensor, "batch channels _ _"]], images: Sequence[int], extent: tuple[int, int]
) -> list[Float[Tensor, "images channels _ _"]]:
    """P2..P6 of some images of a batch, as far as these reach."""
    rows, columns = (-(-side // 4) for side in extent)
    levels = []
    for level in pyramid:
        levels.append(level[list(images), :, :rows, :columns])
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    return levels


def mask_stride(level: int, coarse: bool) -> int:
    """Input pixels a pixel of a level's own masks, which are twice as fine as the level."""
    return STRIDES[level] // 2 if coarse else MASK_STRIDE


def by_cell(levels: Sequence[Float[Tensor, "batch values _ _"]]) -> Float[Tensor, "batch cells values"]:
    """Grids in one row: level by level, row by row."""
    return torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2).float()


def cell_scores(categories: Sequence[Float[Tensor, "batch classes _ _"]]) -> Float[Tensor, "batch cells classes"]:
    """Class probabilities of the cells, 0 where a neighbour scores higher."""
    return by_cell([local_maxima(level.float().sigmoid()) for level in categories])


def local_maxima(scores: Float[Tensor, "batch classes rows columns"]) -> Float[Tensor, "batch classes rows columns"]:
    """Scores that no neighbour above, to the left, or both, exceeds; 0 for the others. The official code's window of 2 x 2."""
    highest = functional.max_pool2d(scores, 2, stride=1, padding=1)[..., :-1, :-1]
    return scores * (highest == scores)


# The networks


@dataclass(frozen=True, eq=False)
class Predictions:
    """What SOLO says, before any threshold. A cell's mask is its kernel on the level's features (``SOLO.mask_factors``)."""

    categories: tuple[Float[Tensor, "batch classes _ _"], ...]  # logits on each level's grid
    mask_features: tuple[Float[Tensor, "batch channels _ _"], ...]  # strides 4, 4, 8, 16, 16


torch.export.register_dataclass(Predictions)


class SOLO(GridModel):
    """See the module's figure. The last convolution of the mask branch runs for the cells that are asked for."""

    def __init__(self, config: SOLOConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.neck = FPN(self.backbone.channels, config.channels)
        self.category_branch = Tower(config.channels, config)
        self.mask_branch = Tower(config.channels + 2, config)
        self.categories = last_conv(config.head_channels, config.classes, 3, PRIOR)
        self.kernels = nn.ModuleList(last_conv(config.head_channels, side * side, 1) for side in config.grids)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Predictions:
        return self.heads(self.neck(self.backbone(images)))

    def heads(self, pyramid: Sequence[Float[Tensor, "batch channels _ _"]]) -> Predictions:
        levels = level_maps(pyramid)  # strides 8, 8, 16, 32, 32
        grids = [resize(level, (side, side)) for level, side in zip(levels, self.config.grids, strict=True)]
        return Predictions(
            tuple(self.categories(self.category_branch(grid)) for grid in grids),
            tuple(twice(self.mask_branch(torch.cat([level, coordinates(level)], dim=1))) for level in levels),
        )

    def mask_size(self, predictions: Predictions) -> tuple[int, int]:
        height, width = predictions.mask_features[0].shape[-2:]
        return height, width

    def mask_factors(
        self, predictions: Predictions, image: int, level: int, cells: Int[Tensor, " masks"]
    ) -> tuple[Float[Tensor, "masks height width"], ...]:
        kernels = self.kernels[level]
        assert isinstance(kernels, nn.Conv2d)
        assert kernels.bias is not None
        features = predictions.mask_features[level][image : image + 1]
        return (functional.conv2d(features, kernels.weight[cells], kernels.bias[cells])[0],)

    def untrained(self, predictions: Predictions) -> Float[Tensor, ""]:
        parts = [*predictions.mask_features, *self.kernels.parameters()]
        return torch.stack([part.float().sum() * 0 for part in parts]).sum()


@dataclass(frozen=True, eq=False)
class DecoupledPredictions:
    """What Decoupled SOLO says: logits of a map for each column of a level's grid and for each row."""

    categories: tuple[Float[Tensor, "batch classes _ _"], ...]
    columns: tuple[Float[Tensor, "batch _ _ _"], ...]  # strides 4, 4, 8, 16, 16
    rows: tuple[Float[Tensor, "batch _ _ _"], ...]


torch.export.register_dataclass(DecoupledPredictions)


class DecoupledSOLO(GridModel):
    """See the module's figure, last line of the branches."""

    def __init__(self, config: DecoupledSOLOConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.neck = FPN(self.backbone.channels, config.channels)
        width = config.head_channels
        self.category_branch = Tower(config.channels, config)
        if config.shared_convs:
            self.mask_branch = Tower(config.channels + 2, config)
        else:
            self.column_branch = Tower(config.channels + 1, config)
            self.row_branch = Tower(config.channels + 1, config)
        self.categories = last_conv(width, config.classes, 3, PRIOR)
        self.columns = nn.ModuleList(last_conv(width, side, 3) for side in config.grids)
        self.rows = nn.ModuleList(last_conv(width, side, 3) for side in config.grids)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> DecoupledPredictions:
        return self.heads(self.neck(self.backbone(images)))

    def heads(self, pyramid: Sequence[Float[Tensor, "batch channels _ _"]]) -> DecoupledPredictions:
        levels = level_maps(pyramid)  # strides 8, 8, 16, 32, 32
        grids = [resize(level, (side, side)) for level, side in zip(levels, self.config.grids, strict=True)]
        columns, rows = [], []
        for level, column_conv, row_conv in zip(levels, self.columns, self.rows, strict=True):
            across_and_down = coordinates(level)
            if self.config.shared_convs:
                for_columns = for_rows = twice(self.mask_branch(torch.cat([level, across_and_down], dim=1)))
            else:
                for_columns = twice(self.column_branch(torch.cat([level, across_and_down[:, :1]], dim=1)))
                for_rows = twice(self.row_branch(torch.cat([level, across_and_down[:, 1:]], dim=1)))
            columns.append(column_conv(for_columns))
            rows.append(row_conv(for_rows))
        categories = tuple(self.categories(self.category_branch(grid)) for grid in grids)
        return DecoupledPredictions(categories, tuple(columns), tuple(rows))

    def mask_size(self, predictions: DecoupledPredictions) -> tuple[int, int]:
        height, width = predictions.columns[0].shape[-2:]
        return height, width

    def mask_factors(
        self, predictions: DecoupledPredictions, image: int, level: int, cells: Int[Tensor, " masks"]
    ) -> tuple[Float[Tensor, "masks height width"], ...]:
        side = self.config.grids[level]
        return predictions.columns[level][image, cells % side], predictions.rows[level][image, cells // side]

    def untrained(self, predictions: DecoupledPredictions) -> Float[Tensor, ""]:
        return torch.stack([part.float().sum() * 0 for part in (*predictions.columns, *predictions.rows)]).sum()


def twice(x: Float[Tensor, "batch channels _ _"]) -> Float[Tensor, "batch channels _ _"]:
    return resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))

"""Mask classification (Cheng et al., 2021, arXiv:2107.06278, section 3): pairs of a class and a mask, for any task.

queries -> class logits ----------------------------------+-> PANOPTIC: each pixel to the query that claims it most
        -> mask embeddings --+                            +-> SEMANTIC: queries summed by class, the highest in each pixel
image   -> pixel embeddings -+-> product: mask logits ----+-> INSTANCE: pairs of a query and a class, ranked

What MaskFormer and Mask2Former do alike: from queries to segments within memory, and from targets to losses by matching.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from thingstuff.errors import ConfigError
from thingstuff.models.backbone import BackboneConfig
from thingstuff.models.contract import Model, Task
from thingstuff.models.transformer import demand_heads
from thingstuff.ops.matching import match_hungarian
from thingstuff.ops.upsample import GPU_BYTES, SLACK, Step, resize_soft, tiles, upsample_logits
from thingstuff.structures.categories import Categories
from thingstuff.structures.masks import Mask
from thingstuff.structures.panoptic import tight_boxes
from thingstuff.structures.preprocessing import ImageSize, Targets
from thingstuff.structures.segments import Segments

STRIDE = 4  # of the pixel embeddings, and so of the masks
VOID = -1  # in maps of queries and of segments
MOST_MASK_SIDE = 4096  # pixels; masks of all queries are held at this size, and a file says which


class Convention(Enum):
    """Whose way from masks to segments a network was published with; they differ in a few pixels and in what counts."""

    ORIGINAL = "original"  # the authors', detectron2's and MMDetection's: logits to the image's size, then probabilities
    HUGGING_FACE = "hugging_face"  # probabilities to the image's size; areas of score times probability; stuff may be an instance


@dataclass(frozen=True)
class Thresholds:
    """What is kept at test time; every number may be changed for one call without touching the weights."""

    task: Task = Task.PANOPTIC
    score: float = 0.0  # of an instance, class probability times mean mask probability; must be higher
    detections: int = 100  # instances an image
    merge_score: float = 0.8  # class probability that a query must exceed to take part in the panoptic map
    overlap: float = 0.8  # share of its own mask that a query must be left with there
    mask: float = 0.5  # probability from which a pixel is in a query's own mask

    def __post_init__(self) -> None:
        if self.detections < 1:
            raise ConfigError(f"detections must be at least 1, got {self.detections}")
        for name in ("score", "merge_score", "overlap", "mask"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class PostProcessing:
    """The steps from masks to segments that a network was published with."""

    convention: Convention = Convention.ORIGINAL
    mask_side: int | None = None  # pixels; masks are resized to this square first, whatever the image (Hugging Face, Mask2Former)
    only_sure: bool = True  # pixels whose query is below `Thresholds.mask` there stay void (Mask2Former)
    unpadded: bool = False  # images are not padded to multiples of a number, so masks end where the image does (MMDetection)

    def __post_init__(self) -> None:
        if self.mask_side is not None and not 1 <= self.mask_side <= MOST_MASK_SIDE:
            raise ConfigError(f"mask_side must lie from 1 to {MOST_MASK_SIDE}, got {self.mask_side}")


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the network says, before any threshold, after each layer of the decoder; the last one's word counts.

    The mask logits of a layer's query are its embedding times the pixel embeddings (`MaskClassifier.mask_logits`): kept as the
    two factors, they are made for those queries alone that matter.
    """

    class_logits: Float[Tensor, "layers batch queries classes_and_none"]
    mask_embeddings: Float[Tensor, "layers batch queries channels"]
    pixel_embeddings: Float[Tensor, "batch channels height width"]  # stride 4


torch.export.register_dataclass(Predictions)


@dataclass(frozen=True)
class MaskClassifierConfig:
    """What every such network has, with the papers' numbers for COCO panoptic.

    Raises:
        ConfigError: a value that no network can be built from.
    """

    backbone: BackboneConfig = BackboneConfig("resnet50")
    classes: int = 133  # things and stuff; "no object" is the extra last logit
    channels: int = 256  # of the pixel decoder, a multiple of 32
    mask_channels: int = 256  # of mask and pixel embeddings
    query_channels: int = 256
    input_convs: bool = False  # 1x1, on what the queries look at; also where it has their width already
    queries: int = 100
    heads: int = 8  # of every attention
    no_object: float = 0.1  # weight of queries without a target in the class loss
    post_processing: PostProcessing = PostProcessing()
    thresholds: Thresholds = Thresholds()

    def __post_init__(self) -> None:
        self.demand(1, "classes", "mask_channels", "queries", "heads")
        demand_heads(self, "channels", "query_channels")
        if self.channels % 32:
            raise ConfigError(f"channels must be a multiple of 32, the number of groups that are normed, got {self.channels}")
        if not 0 < self.no_object <= 1:
            raise ConfigError(f"no_object must lie above 0 and up to 1, got {self.no_object}")

    def demand(self, least: int, *names: str) -> None:
        """Refuse a number of these that is smaller."""
        for name in names:
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")


class MaskClassifier(Model):
    """A network of queries."""

    config: Any
    tasks: ClassVar[tuple[Task, ...]] = (Task.PANOPTIC, Task.INSTANCE, Task.SEMANTIC)
    score_limits: ClassVar[tuple[str, ...]] = ("score", "merge_score")

    @classmethod
    def config_for(cls, config: Any, categories: Categories) -> Any:
        """Where all categories are things, instances are what the network is asked for; where all are stuff, a semantic map."""
        kinds = {category.is_thing for category in categories}
        task = {frozenset({True}): Task.INSTANCE, frozenset({False}): Task.SEMANTIC}.get(frozenset(kinds), Task.PANOPTIC)
        return replace(config, classes=len(categories), thresholds=replace(config.thresholds, task=task))

    def mask_logits(
        self,
        predictions: Predictions,
        image: int,
        queries: Int[Tensor, " masks"] | None = None,
        layer: Int[Tensor, " masks"] | int = -1,
    ) -> Float[Tensor, "masks height width"]:
        """At the stride of the pixel embeddings; of all queries of a layer, or of those given, each of its own layer."""
        embeddings = predictions.mask_embeddings[layer, image, slice(None) if queries is None else queries].float()
        pixels = predictions.pixel_embeddings[image].float()
        return (embeddings @ pixels.flatten(1)).unflatten(1, pixels.shape[1:])

    # From queries to segments

    @torch.no_grad()
    def segments(
        self,
        predictions: Predictions,
        sizes: Sequence[ImageSize],
        categories: Categories,
        thresholds: Thresholds | None = None,
    ) -> list[Segments]:
        """What ``thresholds.task`` asks for of each image, in pixels of the original image.

        PANOPTIC: queries sure of their class share out the pixels (section 3.4, general inference); those of one kind of stuff
        are one segment. SEMANTIC: one segment a class (semantic inference). INSTANCE: the best pairs of a query and a class, by
        descending score. Nothing is ever held for all queries at image size.
        """
        limits = thresholds or self.config.thresholds
        make = {Task.PANOPTIC: self._panoptic, Task.SEMANTIC: self._semantic, Task.INSTANCE: self._instances}[limits.task]
        return [make(predictions, image, size, categories, limits) for image, size in enumerate(sizes)]

    def _panoptic(
        self, predictions: Predictions, image: int, size: ImageSize, categories: Categories, limits: Thresholds
    ) -> Segments:
        scores, classes = predictions.class_logits[-1, image].float().softmax(dim=1).max(dim=1)
        queries = ((classes < self.config.classes) & (scores > limits.merge_score)).nonzero().squeeze(1)
        scores, classes = scores[queries], classes[queries]
        shared = share_out(
            *self._maps(predictions, image, queries, size), scores, size.original, limits.mask, self.config.post_processing
        )
        kept = shared.kept(limits.overlap, strictly=self._as_hugging_face)
        segment_of_query = np.full(len(queries) + 1, VOID, np.int16)  # one more, for void: at position -1
        segment_of_stuff: dict[int, int] = {}
        own_classes: list[int] = []
        own_scores: list[float] = []
        for query, (class_, score) in enumerate(zip(classes.tolist(), scores.tolist(), strict=True)):
            if not kept[query]:
                continue
            if class_ in segment_of_stuff:
                segment = segment_of_stuff[class_]
                own_scores[segment] = max(own_scores[segment], score)
            else:
                segment = len(own_classes)
                own_classes.append(class_)
                own_scores.append(score)
                if not categories[class_].is_thing:
                    segment_of_stuff[class_] = segment
            segment_of_query[query] = segment
        return _tiling(segment_of_query[shared.queries], own_classes, own_scores, categories)

    def _semantic(
        self, predictions: Predictions, image: int, size: ImageSize, categories: Categories, limits: Thresholds
    ) -> Segments:
        probabilities = predictions.class_logits[-1, image].float().softmax(dim=1)[:, :-1]  # queries classes
        maps, steps = self._maps(predictions, image, None, size)
        if self._as_hugging_face:
            maps = torch.einsum("qc,qhw->chw", probabilities, maps)
        labels = np.empty(size.original, np.int16)
        shares = np.zeros(self.config.classes)
        of_query = probabilities.sum(dim=1)  # all classes together
        for tile in tiles(maps, steps):
            cells = tile.below(maps)
            least, most = cells.flatten(1).aminmax(dim=1)
            if self._as_hugging_face:
                cannot_win = most < least.max() - SLACK
            else:
                least, most = (least - SLACK).sigmoid(), (most + SLACK).sigmoid()
                cannot_win = most @ probabilities < (least @ probabilities).max() - SLACK
            classes = (~cannot_win).nonzero().squeeze(1)
            if self._as_hugging_face:
                sums, total = tile.enlarge(cells[classes]), tile.enlarge(cells.sum(dim=0, keepdim=True))[0]
            else:
                masks = tile.enlarge(cells).sigmoid_()
                sums = torch.einsum("qc,qhw->chw", probabilities[:, classes], masks)
                total = torch.einsum("q,qhw->hw", of_query, masks)
            best, which = sums.max(dim=0)
            which = classes[which]
            labels[tile.rows, tile.columns] = which.cpu().numpy()
            share = (best / total.clamp(min=1e-6)).flatten().double()
            shares += torch.bincount(which.flatten(), weights=share, minlength=len(shares)).cpu().numpy()
        areas = np.bincount(labels.ravel(), minlength=len(shares))
        found = np.flatnonzero(areas)
        segment_of_class = np.zeros(len(shares), np.int16)
        segment_of_class[found] = np.arange(len(found))
        return _tiling(segment_of_class[labels], found.tolist(), (shares[found] / areas[found]).tolist(), categories)

    def _instances(
        self, predictions: Predictions, image: int, size: ImageSize, categories: Categories, limits: Thresholds
    ) -> Segments:
        probabilities = predictions.class_logits[-1, image].float().softmax(dim=1)[:, :-1].flatten()  # (queries classes)
        best, pairs = probabilities.topk(min(limits.detections, len(probabilities)))
        queries, classes = pairs // self.config.classes, pairs % self.config.classes
        may_be = best > limits.score  # the mean mask probability only lowers it
        if not self._as_hugging_face:
            may_be &= torch.tensor([category.is_thing for category in categories], device=classes.device)[classes]
        best, queries, classes = best[may_be], queries[may_be], classes[may_be]
        distinct, which = queries.unique(return_inverse=True)
        logits, steps = self._mask_steps(predictions, image, distinct, size)
        if self._as_hugging_face:
            found = list(_nearest_masks(logits, size.original))
        else:
            found = [(Mask.from_crop(crop, corner, size.original), mean) for crop, corner, mean in upsample_logits(logits, steps)]
        means = np.array([mean for _, mean in found], np.float32)[which.cpu().numpy()]
        scores = best.cpu().numpy() * means
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > limits.score]
        masks = [found[position][0] for position in which.cpu().numpy()[order]]
        filled = np.array([mask.area > 0 for mask in masks], np.bool_)
        masks = [mask for mask in masks if mask.area > 0]
        order = order[filled]
        return Segments(
            size=size.original,
            categories=categories,
            classes=classes.cpu().numpy()[order],
            scores=scores[order],
            boxes=np.array([mask.box for mask in masks], np.float32).reshape(-1, 4),
            rles=tuple(masks),
        )

    @property
    def _as_hugging_face(self) -> bool:
        return self.config.post_processing.convention is Convention.HUGGING_FACE

    def _mask_steps(
        self, predictions: Predictions, image: int, queries: Int[Tensor, " masks"] | None, size: ImageSize
    ) -> tuple[Float[Tensor, "masks _ _"], list[Step]]:
        """Mask logits and the resizes from there to the image: the padded input, cut to what is no padding, the original."""
        logits = self.mask_logits(predictions, image, queries)
        if not self._as_hugging_face:
            whole = (STRIDE * logits.shape[1], STRIDE * logits.shape[2])
            padded = size.input if self.config.post_processing.unpadded else whole
            return logits, [(padded, size.input), (size.original, size.original)]
        rows, columns = (-(-side // STRIDE) for side in size.input)
        logits, side = logits[:, :rows, :columns], self.config.post_processing.mask_side
        return (logits if side is None else resize_soft(logits, (side, side))), [(size.original, size.original)]

    def _maps(
        self, predictions: Predictions, image: int, queries: Int[Tensor, " masks"] | None, size: ImageSize
    ) -> tuple[Float[Tensor, "masks _ _"], list[Step]]:
        """What is brought to the image's size, and how: logits, or with Hugging Face probabilities."""
        logits, steps = self._mask_steps(predictions, image, queries, size)
        return (logits.sigmoid() if self._as_hugging_face else logits), steps

    # Losses

    def losses(self, images: Float[Tensor, "batch 3 height width"], targets: Sequence[Targets]) -> dict[str, Float[Tensor, ""]]:
        """The terms "class", "mask" and "dice", unweighted: of every layer of the decoder, summed (deep supervision).

        Each layer is matched by itself, at the costs that the losses have with their weights. Every target is a segment, of a
        thing or of stuff; crowds, and targets whose mask was cut away, are left out. "mask" and "dice" are means over the masks
        of the batch, with several processes over the mean of theirs: a mask weighs the same in each.
        """
        predictions = self(images)
        present = [_present(target) for target in targets]
        # sums over all pixels of a mask don't fit into 16 bits
        with torch.autocast(images.device.type, enabled=False):
            return self._matched_losses(predictions, present, (images.shape[-2], images.shape[-1]))

    def _matched_losses(
        self, predictions: Predictions, present: Sequence[Targets], padded: tuple[int, int]
    ) -> dict[str, Float[Tensor, ""]]:
        count = _mean_over_processes(sum(len(target) for target in present), predictions.class_logits.device).clamp(min=1)
        layers = len(predictions.class_logits)
        costs = [self._costs(predictions, image, target, padded) for image, target in enumerate(present)]
        pairs = match_hungarian([table for of_image in costs for table in of_image])
        # what no query is matched with has a gradient of zero
        nothing = (predictions.mask_embeddings.float().sum() + predictions.pixel_embeddings.float().sum()) * 0
        classes = torch.full(predictions.class_logits.shape[:3], self.config.classes, device=count.device)
        total = {"class": nothing, "mask": nothing, "dice": nothing}
        for image, target in enumerate(present):
            of_image = pairs[image * layers : (image + 1) * layers]
            queries, matched = (torch.cat(side) for side in zip(*of_image, strict=True))
            layer = torch.arange(layers, device=count.device).repeat_interleave(len(queries) // layers)  # all have as many
            classes[layer, image, queries] = target.classes[matched]
            if len(queries):
                logits = self.mask_logits(predictions, image, queries, layer)
                mask, dice = self.mask_losses(logits, target.masks, matched, padded)
                total["mask"] = total["mask"] + mask.sum() / count
                total["dice"] = total["dice"] + dice.sum() / count
        total["class"] = total["class"] + self._class_loss(predictions.class_logits, classes)
        return total

    @abstractmethod
    def mask_costs(
        self, predictions: Predictions, image: int, masks: Bool[Tensor, "targets _ _"], padded: tuple[int, int]
    ) -> tuple[Float[Tensor, "layers queries targets"], Float[Tensor, "layers queries targets"]]:
        """What "mask" and "dice" would be of each query of a layer with each target's mask.

        `padded` is the size of the batch's images.
        """

    @abstractmethod
    def mask_losses(
        self,
        logits: Float[Tensor, "matched height width"],
        masks: Bool[Tensor, "targets _ _"],
        which: Int[Tensor, " matched"],
        padded: tuple[int, int],
    ) -> tuple[Float[Tensor, " matched"], Float[Tensor, " matched"]]:
        """The terms "mask" and "dice" of each matched query; `which` is its target."""

    @torch.no_grad()
    def _costs(
        self, predictions: Predictions, image: int, target: Targets, padded: tuple[int, int]
    ) -> Float[Tensor, "layers queries targets"]:
        """Section 3.2, the assignment: minus the probability of the target's class, and the two losses of its mask."""
        mask, dice = self.mask_costs(predictions, image, target.masks, padded)
        probabilities = predictions.class_logits[:, image].float().softmax(dim=2)
        weights = self.loss_weights
        return -weights["class"] * probabilities[:, :, target.classes] + weights["mask"] * mask + weights["dice"] * dice

    def _class_loss(
        self, logits: Float[Tensor, "layers batch queries classes_and_none"], truth: Int[Tensor, "layers batch queries"]
    ) -> Float[Tensor, ""]:
        """Each layer's mean over queries by weight, summed."""
        weights = torch.ones(self.config.classes + 1, device=logits.device)
        weights[-1] = self.config.no_object
        of_query = functional.cross_entropy(logits.float().flatten(0, 2), truth.flatten(), weights, reduction="none")
        return (of_query.view(len(logits), -1).sum(dim=1) / weights[truth].flatten(1).sum(dim=1)).sum()


def _present(target: Targets) -> Targets:
    kept = ~target.is_crowd & target.masks.flatten(1).any(dim=1)
    return replace(
        target, boxes=target.boxes[kept], classes=target.classes[kept], masks=target.masks[kept], is_crowd=target.is_crowd[kept]
    )


def _mean_over_processes(count: int, device: torch.device) -> Float[Tensor, ""]:
    """Of the processes of torch.distributed, which all have to ask; of one alone it is the count itself."""
    import torch.distributed as distributed

    mean = torch.tensor(float(count), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean)
        mean /= distributed.get_world_size()
    return mean


# Panoptic maps


@dataclass(frozen=True, eq=False)
class SharedOut:
    """Which query each pixel of the image went to, and what each query had and got."""

    queries: np.ndarray  # int16 (height, width), `VOID` for none
    won: np.ndarray  # int64 (queries,), pixels where the query's claim is the highest, sure or not
    own: np.ndarray  # int64 (queries,), pixels of its own mask

    def kept(self, overlap: float, strictly: bool) -> Bool[np.ndarray, " queries"]:
        """Queries left with enough of their own masks: this share, or more than that."""
        share = self.won / np.maximum(self.own, 1)
        enough = share > overlap if strictly else share >= overlap
        return enough & (self.won > 0) & (self.own > 0)


@torch.no_grad()
def share_out(
    maps: Float[Tensor, "queries _ _"],
    steps: Sequence[Step],
    scores: Float[Tensor, " queries"],
    size: tuple[int, int],
    mask: float,
    how: PostProcessing,
) -> SharedOut:
    """Each pixel to the query whose class probability times mask probability is highest there, a tile of the image at a time.

    `maps` are logits, or with Hugging Face probabilities, and `steps` bring them to the image's `size`.
    """
    count = len(maps)
    claimed = np.full(size, VOID, np.int16)
    won, own = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    as_hugging_face = how.convention is Convention.HUGGING_FACE
    for tile in tiles(maps, steps) if count else ():
        cells = tile.below(maps)
        least, most = cells.flatten(1).aminmax(dim=1)
        if not as_hugging_face:
            least, most = (least - SLACK).sigmoid(), (most + SLACK).sigmoid()
        most_claimed = most * scores
        # the others can't win a pixel here and have none of their own mask
        inside_somewhere = (most_claimed if as_hugging_face else most) >= mask - SLACK
        cannot_win = most_claimed < (least * scores).max() - SLACK
        here = (~cannot_win | inside_somewhere).nonzero().squeeze(1)
        values = tile.enlarge(cells[here])
        probabilities = values if as_hugging_face else values.sigmoid_()
        claims = probabilities * scores[here, None, None]
        which = claims.argmax(dim=0)
        inside = (claims if as_hugging_face else probabilities) >= mask
        queries = here[which]
        own[here.cpu()] += inside.flatten(1).sum(dim=1).cpu()
        won += torch.bincount(queries.flatten(), minlength=count).cpu()
        if how.only_sure and not as_hugging_face:
            queries = torch.where(inside.gather(0, which[None])[0], queries, VOID)
        claimed[tile.rows, tile.columns] = queries.short().cpu().numpy()
    return SharedOut(claimed, won.numpy(), own.numpy())


def _tiling(segment: np.ndarray, classes: Sequence[int], scores: Sequence[float], categories: Categories) -> Segments:
    """Segments that share no pixel, from the number of each pixel's; those that have no pixel are left out."""
    boxes = tight_boxes(segment + np.int16(1), len(classes))
    shown = (boxes[:, 2] > 0).nonzero()[0]
    size = (int(segment.shape[0]), int(segment.shape[1]))
    masks = tuple(
        Mask.from_crop(segment[top:bottom, left:right] == number, (top, left), size)
        for number, (left, top, right, bottom) in zip(shown.tolist(), boxes[shown].tolist(), strict=True)
    )
    return Segments(
        size=size,
        categories=categories,
        classes=np.array(classes, np.int64)[shown],
        scores=np.array(scores, np.float32)[shown],
        boxes=boxes[shown].astype(np.float32),
        rles=masks,
        overlapping=False,
    )


def _nearest_masks(logits: Float[Tensor, "masks _ _"], size: tuple[int, int]) -> Iterator[tuple[Mask, float]]:
    """Where logits are above 0, enlarged by repeating pixels, and the mean probability there before that."""
    rows, columns = (
        np.minimum((np.arange(pixels, dtype=np.float32) * np.float32(cells / pixels)).astype(np.int64), cells - 1)
        for cells, pixels in zip(logits.shape[1:], size, strict=True)
    )
    if logits.device.type != "cpu":
        yield from _nearest_masks_of_many(logits, rows, columns)
        return
    for cells in logits:
        inside = cells > 0
        mean = float(cells[inside].sigmoid().sum() / (inside.sum() + 1e-6))
        yield Mask.from_dense(inside.numpy()[rows[:, None], columns]), mean


def _nearest_masks_of_many(
    logits: Float[Tensor, "masks _ _"], rows: np.ndarray, columns: np.ndarray
) -> Iterator[tuple[Mask, float]]:
    """The way of a GPU: enlarged there, some at a time, and brought to the processor together."""
    rows_there, columns_there = (torch.from_numpy(places).to(logits.device) for places in (rows, columns))
    for some in logits.split(max(1, GPU_BYTES // (len(rows) * len(columns)))):
        inside = some > 0
        means = (some.float().sigmoid() * inside).sum(dim=(1, 2)) / (inside.sum(dim=(1, 2)) + 1e-6)
        enlarged = inside[:, rows_there[:, None], columns_there].cpu().numpy()
        yield from zip(map(Mask.from_dense, enlarged), means.tolist(), strict=True)

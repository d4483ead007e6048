"""Mask2Former (Cheng et al., 2022, arXiv:2112.01527, figures 2 and 4): queries that look only inside the masks they predict.

image -> backbone C2..C5
    C5, C4, C3 -> pixel decoder: multi-scale deformable attention over all three -+-> levels for the decoder, coarse to fine
    C2 ---------> + <- the finest of them, up 2x -> pixel embeddings (stride 4)    |
                                                                                   v
queries -> class, mask -> decoder layer on stride 32: masked attention, self attention, feed-forward
        -> class, mask -> decoder layer on stride 16 ... three levels in turn, nine layers
        -> class, mask; the mask before each layer is where it may look

class logits, mask embeddings x pixel embeddings -> panoptic, instance or semantic segments (mask_classification.py)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thingstuff.errors import ConfigError
from thingstuff.models.backbone import Backbone
from thingstuff.models.fpn import ConvNorm, Norm
from thingstuff.models.mask_classification import MaskClassifier, MaskClassifierConfig, Predictions
from thingstuff.models.transformer import Attention, FeedForward, Perceptron, Residual, sine_positions
from thingstuff.ops.deformable_attention import deformable_attention
from thingstuff.ops.losses import pairwise_cross_entropy, pairwise_plain_dice, plain_dice_loss
from thingstuff.ops.points import sample_points, uncertain_points

SEARCHED = 2**23  # points at a time, for the uncertain ones: what the search holds does not grow with the masks
LEVELS = 3  # strides 32, 16, 8: of the pixel decoder's attention, and of the decoder's in turn


@dataclass(frozen=True)
class Sampling:
    """The points that masks are trained on (section 3.3, after PointRend)."""

    points: int = 112 * 112  # of each mask, and of each image for matching
    oversample: float = 3.0  # so many times the points are drawn to choose the most uncertain from
    importance: float = 0.75  # share of the points that is chosen so

    def __post_init__(self) -> None:
        if self.points < 1 or self.oversample < 1 or not 0 <= self.importance <= 1:
            raise ConfigError(
                "sampling needs points and oversample of at least 1 and an importance from 0 to 1, "
                f"got {self.points}, {self.oversample} and {self.importance}"
            )


@dataclass(frozen=True)
class Mask2FormerConfig(MaskClassifierConfig):
    """Architecture of a Mask2Former; the defaults are the paper's R50 network for COCO panoptic.

    Raises:
        ConfigError: a value that no network can be built from.
    """

    points: int = 4  # samples of each head and level in deformable attention
    encoder_layers: int = 6  # of the pixel decoder
    encoder_width: int = 1024  # of their feed-forward blocks
    decoder_layers: int = 9
    decoder_width: int = 2048
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.demand(1, "points", "encoder_width", "decoder_width")
        self.demand(0, "encoder_layers", "decoder_layers")


# The pixel decoder


class DeformableAttention(nn.Module):
    """Each cell attends to a few places near it on every level; places and weights are predicted from the cell itself."""

    def __init__(self, channels: int, heads: int, points: int):
        super().__init__()
        self.heads, self.points = heads, points
        self.values = nn.Linear(channels, channels)
        self.offsets = nn.Linear(channels, heads * LEVELS * points * 2)  # in cells of the level: x y
        self.weights = nn.Linear(channels, heads * LEVELS * points)
        self.output = nn.Linear(channels, channels)
        for layer in (self.values, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        # each head begins in a direction of its own, its points one cell further each (Zhu et al., appendix A.4)
        angle = torch.arange(heads) * (2 * math.pi / heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)
        direction = direction / direction.abs().amax(dim=1, keepdim=True)
        steps = torch.arange(1, points + 1)
        start = direction[:, None, None] * steps[:, None]  # heads 1 points 2
        with torch.no_grad():
            self.offsets.bias.copy_(start.expand(-1, LEVELS, -1, -1).flatten())

    def forward(
        self,
        x: Float[Tensor, "batch cells channels"],
        positions: Float[Tensor, "1 cells channels"],
        centres: Float[Tensor, "cells 2"],
        sizes: Sequence[tuple[int, int]],
    ) -> Float[Tensor, "batch cells channels"]:
        queries = x + positions
        shape = (self.heads, LEVELS, self.points)
        # torch.full, since a size that is only known when the exported network runs can't be in torch.tensor
        side = [torch.stack([centres.new_full((), width), centres.new_full((), height)]) for height, width in sizes]
        offsets = self.offsets(queries).unflatten(2, (*shape, 2)) / torch.stack(side)[:, None]  # levels 1 (x y)
        weights = self.weights(queries).unflatten(2, (self.heads, -1)).softmax(dim=3).unflatten(3, shape[1:])
        values = self.values(x).unflatten(2, (self.heads, -1))
        sums = deformable_attention(values, sizes, centres[:, None, None, None] + offsets, weights)
        return self.output(sums.flatten(2))


class EncoderLayer(nn.Module):
    def __init__(self, config: Mask2FormerConfig):
        super().__init__()
        self.attention = DeformableAttention(config.channels, config.heads, config.points)
        self.after_attention = Residual(config.channels)
        self.feed_forward = FeedForward(config.channels, config.encoder_width)
        self.after_feed_forward = Residual(config.channels)

    def forward(
        self,
        x: Float[Tensor, "batch cells channels"],
        positions: Float[Tensor, "1 cells channels"],
        centres: Float[Tensor, "cells 2"],
        sizes: Sequence[tuple[int, int]],
    ) -> Float[Tensor, "batch cells channels"]:
        x = self.after_attention(x, self.attention(x, positions, centres, sizes))
        return self.after_feed_forward(x, self.feed_forward(x))


class PixelDecoder(nn.Module):
    """C2..C5 to three levels, coarse to fine, and to pixel embeddings at stride 4 (section 4.1, "pixel decoder")."""

    def __init__(self, channels_in: Sequence[int], config: Mask2FormerConfig):
        super().__init__()
        width = config.channels
        self.inputs = nn.ModuleList(ConvNorm(level, width, 1, Norm.GROUP, bias=True) for level in channels_in[:0:-1])  # C5..C3
        self.level_embeddings = nn.Parameter(torch.randn(LEVELS, width))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.lateral = ConvNorm(channels_in[0], width, 1, Norm.GROUP)
        self.output = ConvNorm(width, width, 3, Norm.GROUP)
        self.pixel_embeddings = nn.Conv2d(width, config.mask_channels, 1)
        for part in self.inputs:
            assert isinstance(part, ConvNorm)
            nn.init.xavier_uniform_(part.conv.weight)
        for conv in (self.lateral.conv, self.output.conv, self.pixel_embeddings):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(
        self, levels: Sequence[Float[Tensor, "batch _ _ _"]]
    ) -> tuple[list[Float[Tensor, "batch channels _ _"]], Float[Tensor, "batch embedding height width"]]:
        finest, *coarser = levels
        maps = [convert(level) for convert, level in zip(self.inputs, coarser[::-1], strict=True)]
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        x = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)  # batch (level row column) channels
        positions = [sine_positions(x, x.shape[1]) for x in maps]
        positions = torch.cat([position + level for position, level in zip(positions, self.level_embeddings, strict=True)], dim=1)
        centres = torch.cat([_cell_centres(x) for x in maps])
        for layer in self.layers:
            x = layer(x, positions, centres, sizes)
        parts = x.split([height * width for height, width in sizes], dim=1)
        mixed = [
            part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes, strict=True)
        ]  # batch channels rows columns
        lateral = self.lateral(finest)
        enlarged = functional.interpolate(mixed[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return mixed, self.pixel_embeddings(functional.relu(self.output(lateral + enlarged)))


def _cell_centres(like: Float[Tensor, "batch _ height width"]) -> Float[Tensor, "cells 2"]:
    """x y of each cell's centre as shares of the map."""
    height, width = like.shape[2:]
    y = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) / width
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=2).flatten(0, 1)


# The decoder


class DecoderLayer(nn.Module):
    """Masked attention comes first, since before it the queries have nothing to tell each other (section 3.2.2, figure 2)."""

    def __init__(self, channels: int, heads: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.cross_attention = Attention(channels, heads, dropout)
        self.after_cross_attention = Residual(channels, dropout)
        self.self_attention = Attention(channels, heads, dropout)
        self.after_self_attention = Residual(channels, dropout)
        self.feed_forward = FeedForward(channels, width, dropout)
        self.after_feed_forward = Residual(channels, dropout)

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        query_positions: Float[Tensor, "queries channels"],
        pixels: Float[Tensor, "batch cells channels"],
        pixel_positions: Float[Tensor, "1 cells channels"],
        seen: Bool[Tensor, "batch queries cells"] | None = None,
    ) -> Float[Tensor, "batch queries channels"]:
        queries = self.look(queries, query_positions, pixels, pixel_positions, seen)
        return self.think(self.talk(queries, query_positions))

    def look(
        self,
        queries: Float[Tensor, "batch queries channels"],
        query_positions: Float[Tensor, "queries channels"],
        pixels: Float[Tensor, "batch cells channels"],
        pixel_positions: Float[Tensor, "1 cells channels"],
        seen: Bool[Tensor, "batch queries cells"] | None,
    ) -> Float[Tensor, "batch queries channels"]:
        """Each query at the pixels."""
        found = self.cross_attention(queries + query_positions, pixels + pixel_positions, pixels, seen)
        return self.after_cross_attention(queries, found)

    def talk(
        self, queries: Float[Tensor, "batch queries channels"], query_positions: Float[Tensor, "queries channels"]
    ) -> Float[Tensor, "batch queries channels"]:
        """The queries to each other."""
        placed = queries + query_positions
        return self.after_self_attention(queries, self.self_attention(placed, placed, queries))

    def think(self, queries: Float[Tensor, "batch queries channels"]) -> Float[Tensor, "batch queries channels"]:
        """Each query by itself."""
        return self.after_feed_forward(queries, self.feed_forward(queries))


class Decoder(nn.Module):
    """Learned queries through the layers; what each layer is given is judged before and after it (section 3.2)."""

    def __init__(self, config: Mask2FormerConfig):
        super().__init__()
        width = config.query_channels
        self.queries = nn.Parameter(torch.randn(config.queries, width))
        self.query_positions = nn.Parameter(torch.randn(config.queries, width))
        self.level_embeddings = nn.Parameter(torch.randn(LEVELS, width))
        self.inputs = nn.ModuleList(
            nn.Identity() if width == config.channels and not config.input_convs else nn.Conv2d(config.channels, width, 1)
            for _ in range(LEVELS)
        )
        self.layers = nn.ModuleList(DecoderLayer(width, config.heads, config.decoder_width) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, config.classes + 1)
        self.masks = Perceptron(width, width, width, config.mask_channels)

    def forward(
        self, levels: Sequence[Float[Tensor, "batch _ _ _"]], pixel_embeddings: Float[Tensor, "batch channels height width"]
    ) -> Predictions:
        maps = [convert(level) for convert, level in zip(self.inputs, levels, strict=True)]
        pixels = [x.flatten(2).transpose(1, 2) + level for x, level in zip(maps, self.level_embeddings, strict=True)]
        positions = [sine_positions(x, x.shape[1]) for x in maps]
        # a resized product is the product with what is resized: once a level, not once a layer
        embeddings = [
            functional.interpolate(pixel_embeddings, size=x.shape[-2:], mode="bilinear", align_corners=False).flatten(2)
            for x in maps
        ]
        queries = self.queries.expand(pixel_embeddings.shape[0], -1, -1)
        class_logits, mask_embeddings = [], []
        for number in range(len(self.layers) + 1):
            normed = self.norm(queries)
            class_logits.append(self.classes(normed))
            mask_embeddings.append(self.masks(normed))
            if number < len(self.layers):
                level = number % LEVELS
                seen = _inside(mask_embeddings[-1], embeddings[level])
                queries = self.layers[number](queries, self.query_positions, pixels[level], positions[level], seen)
        return Predictions(torch.stack(class_logits), torch.stack(mask_embeddings), pixel_embeddings)


@torch.no_grad()
def _inside(
    mask_embeddings: Float[Tensor, "batch queries channels"], pixel_embeddings: Float[Tensor, "batch channels cells"]
) -> Bool[Tensor, "batch queries cells"]:
    """Where each query may look: inside its mask, or everywhere when that is empty (equation 3)."""
    inside = mask_embeddings @ pixel_embeddings >= 0
    return inside | ~inside.any(dim=2, keepdim=True)


class Mask2Former(MaskClassifier):
    """See the module's figure."""

    config: Mask2FormerConfig
    loss_weights: Mapping[str, float] = {"class": 2.0, "mask": 5.0, "dice": 5.0}  # section 4.1, "loss weights"
    last_layers = (
        *("decoder.classes", "decoder.masks.layers.2", "pixel_decoder.pixel_embeddings"),
        *("pixel_decoder.layers.*.attention.offsets", "pixel_decoder.layers.*.attention.weights"),
    )

    def __init__(self, config: Mask2FormerConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.pixel_decoder = PixelDecoder(self.backbone.channels, config)
        self.decoder = Decoder(config)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Predictions:
        return self.decoder(*self.pixel_decoder(self.backbone(images)))

    # Losses, on points (section 3.3): where masks are uncertain in training; in matching the same for all masks of an image, and
    # for all layers, where the authors' code draws them for each

    def mask_costs(
        self, predictions: Predictions, image: int, masks: Bool[Tensor, "targets _ _"], padded: tuple[int, int]
    ) -> tuple[Float[Tensor, "layers queries targets"], Float[Tensor, "layers queries targets"]]:
        pixels = predictions.pixel_embeddings[image].float()
        points = torch.rand(1, self.config.sampling.points, 2, device=pixels.device)
        embeddings = predictions.mask_embeddings[:, image].float()  # layers queries channels
        logits = embeddings.flatten(0, 1) @ sample_points(pixels, points)  # (layers queries) points
        truth = sample_points(masks, points, padded)
        mask, dice = pairwise_cross_entropy(logits, truth), pairwise_plain_dice(logits.sigmoid(), truth)
        return mask.unflatten(0, embeddings.shape[:2]), dice.unflatten(0, embeddings.shape[:2])

    def mask_losses(
        self,
        logits: Float[Tensor, "matched height width"],
        masks: Bool[Tensor, "targets _ _"],
        which: Int[Tensor, " matched"],
        padded: tuple[int, int],
    ) -> tuple[Float[Tensor, " matched"], Float[Tensor, " matched"]]:
        sampling = self.config.sampling
        pieces = logits.split(max(1, int(SEARCHED / (sampling.oversample * sampling.points))))
        points = torch.cat([self._uncertain_points(piece) for piece in pieces])
        at_points, truth = sample_points(logits, points), sample_points(masks, points, padded, which)
        mask = functional.binary_cross_entropy_with_logits(at_points, truth, reduction="none").mean(dim=1)
        return mask, plain_dice_loss(at_points.sigmoid(), truth)

    def _uncertain_points(self, logits: Float[Tensor, "masks height width"]) -> Float[Tensor, "masks points 2"]:
        sampling = self.config.sampling
        return uncertain_points(
            lambda points: sample_points(logits, points),
            len(logits),
            sampling.points,
            sampling.oversample,
            sampling.importance,
            like=logits,
        )

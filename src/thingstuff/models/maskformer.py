"""MaskFormer (Cheng et al., 2021, arXiv:2107.06278, figure 2): a class and a mask from each query, for semantic segmentation too.

image -> backbone C2..C5 -+-> pixel decoder: top-down from C5 to C2, as FPN -> pixel embeddings (stride 4)
                          +-> C5, or C5 after an encoder of self-attention -> memory
queries, which begin as zeros with learned positions -> decoder layers: self-attention, attention on the memory, feed-forward
    -> after each layer: class logits, mask embeddings

class logits, mask embeddings x pixel embeddings -> panoptic, instance or semantic segments (mask_classification.py)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thingstuff.errors import ConfigError
from thingstuff.models import mask2former
from thingstuff.models.backbone import Backbone
from thingstuff.models.fpn import ConvNorm, Norm
from thingstuff.models.mask_classification import STRIDE, MaskClassifier, MaskClassifierConfig, PostProcessing, Predictions
from thingstuff.models.transformer import Attention, FeedForward, Perceptron, Residual, sine_positions
from thingstuff.ops.losses import focal_loss, pairwise_focal, pairwise_plain_dice, plain_dice_loss
from thingstuff.ops.shrink import shrink_masks


@dataclass(frozen=True)
class MaskFormerConfig(MaskClassifierConfig):
    """Architecture of a MaskFormer; the defaults are the paper's R50 network for COCO panoptic but for its encoder.

    Raises:
        ConfigError: a value that no network can be built from.
    """

    encoder_layers: int = 0  # on C5; the paper's R50 for panoptic segmentation has 6 (appendix A)
    encoder_width: int = 2048  # of their feed-forward blocks
    decoder_layers: int = 6
    decoder_width: int = 2048
    dropout: float = 0.1  # in encoder and decoder
    post_processing: PostProcessing = PostProcessing(only_sure=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.demand(1, "encoder_width", "decoder_layers", "decoder_width")
        self.demand(0, "encoder_layers")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie from 0 to below 1, got {self.dropout}")


class EncoderLayer(nn.Module):
    """Every cell attends to every other (DETR, figure 10, left)."""

    def __init__(self, config: MaskFormerConfig):
        super().__init__()
        self.self_attention = Attention(config.channels, config.heads, config.dropout)
        self.after_self_attention = Residual(config.channels, config.dropout)
        self.feed_forward = FeedForward(config.channels, config.encoder_width, config.dropout)
        self.after_feed_forward = Residual(config.channels, config.dropout)

    def forward(
        self, x: Float[Tensor, "batch cells channels"], positions: Float[Tensor, "1 cells channels"]
    ) -> Float[Tensor, "batch cells channels"]:
        placed = x + positions
        x = self.after_self_attention(x, self.self_attention(placed, placed, x))
        return self.after_feed_forward(x, self.feed_forward(x))


class PixelDecoder(nn.Module):
    """C2..C5 to pixel embeddings at stride 4 and the decoder's memory (section 3.3, "pixel-level module")."""

    def __init__(self, channels_in: Sequence[int], config: MaskFormerConfig):
        super().__init__()
        width = config.channels
        if config.encoder_layers:
            self.input = nn.Conv2d(channels_in[-1], width, 1)
            self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.memory_channels = width if config.encoder_layers else channels_in[-1]
        self.top = ConvNorm(self.memory_channels, width, 3, Norm.GROUP)
        self.lateral = nn.ModuleList(ConvNorm(level, width, 1, Norm.GROUP) for level in channels_in[:-1])  # C2..C4
        self.output = nn.ModuleList(ConvNorm(width, width, 3, Norm.GROUP) for _ in channels_in[:-1])
        self.pixel_embeddings = nn.Conv2d(width, config.mask_channels, 3, padding=1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_uniform_(part.weight, a=1)

    def forward(
        self, levels: Sequence[Float[Tensor, "batch _ _ _"]]
    ) -> tuple[Float[Tensor, "batch embedding height width"], Float[Tensor, "batch memory _ _"]]:
        *finer, memory = levels
        if hasattr(self, "layers"):
            memory = self.input(memory)
            x, positions = memory.flatten(2).transpose(1, 2), sine_positions(memory, memory.shape[1])
            for layer in self.layers:
                x = layer(x, positions)
            memory = x.transpose(1, 2).unflatten(2, memory.shape[2:])  # batch channels rows columns
        mixed = functional.relu(self.top(memory))
        for level, lateral, output in zip(finer[::-1], self.lateral[::-1], self.output[::-1], strict=True):
            beside = lateral(level)
            mixed = functional.relu(output(beside + functional.interpolate(mixed, size=beside.shape[-2:], mode="nearest")))
        return self.pixel_embeddings(mixed), memory


class DecoderLayer(mask2former.DecoderLayer):
    """The queries talk to each other first, then look at all of the memory (DETR, figure 10, right)."""

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        query_positions: Float[Tensor, "queries channels"],
        pixels: Float[Tensor, "batch cells channels"],
        pixel_positions: Float[Tensor, "1 cells channels"],
        seen: Bool[Tensor, "batch queries cells"] | None = None,
    ) -> Float[Tensor, "batch queries channels"]:
        queries = self.talk(queries, query_positions)
        queries = self.look(queries, query_positions, pixels, pixel_positions, seen)
        return self.think(queries)


class Decoder(nn.Module):
    def __init__(self, memory_channels: int, config: MaskFormerConfig):
        super().__init__()
        width = config.query_channels
        self.query_positions = nn.Parameter(torch.randn(config.queries, width))
        as_it_is = memory_channels == width and not config.input_convs
        self.input = nn.Identity() if as_it_is else nn.Conv2d(memory_channels, width, 1)
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.heads, config.decoder_width, config.dropout) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, config.classes + 1)
        self.masks = Perceptron(width, width, width, config.mask_channels)

    def forward(
        self, pixel_embeddings: Float[Tensor, "batch embedding height width"], memory: Float[Tensor, "batch memory _ _"]
    ) -> Predictions:
        memory = self.input(memory)
        pixels, positions = memory.flatten(2).transpose(1, 2), sine_positions(memory, memory.shape[1])
        queries = torch.zeros_like(self.query_positions).expand(memory.shape[0], -1, -1)
        class_logits, mask_embeddings = [], []
        for layer in self.layers:
            queries = layer(queries, self.query_positions, pixels, positions)
            normed = self.norm(queries)
            class_logits.append(self.classes(normed))
            mask_embeddings.append(self.masks(normed))
        return Predictions(torch.stack(class_logits), torch.stack(mask_embeddings), pixel_embeddings)


class MaskFormer(MaskClassifier):
    """See the module's figure."""

    config: MaskFormerConfig
    divides_images = True  # by the positions that its attention is told
    loss_weights: Mapping[str, float] = {"class": 1.0, "mask": 20.0, "dice": 1.0}  # section 4.2, "training settings"
    last_layers = ("decoder.classes", "decoder.masks.layers.2", "pixel_decoder.pixel_embeddings")

    def __init__(self, config: MaskFormerConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone)
        self.pixel_decoder = PixelDecoder(self.backbone.channels, config)
        self.decoder = Decoder(self.pixel_decoder.memory_channels, config)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Predictions:
        return self.decoder(*self.pixel_decoder(self.backbone(images)))

    # Losses (section 3.3, "mask-classification loss"): focal and dice loss of whole masks. They are compared at the stride of the
    # predictions with the share of each cell that a target covers; the authors enlarge predictions to the image's size, which
    # takes 16 times the memory, and sample targets in matching, which loses those smaller than a cell.

    def mask_costs(
        self, predictions: Predictions, image: int, masks: Bool[Tensor, "targets _ _"], padded: tuple[int, int]
    ) -> tuple[Float[Tensor, "layers queries targets"], Float[Tensor, "layers queries targets"]]:
        truth = shrink_masks(masks, predictions.pixel_embeddings.shape[2:], STRIDE).flatten(1)
        focal, dice = [], []
        for layer in range(len(predictions.mask_embeddings)):  # one by one: every pixel of every query
            logits = self.mask_logits(predictions, image, layer=layer).flatten(1)
            focal.append(pairwise_focal(logits, truth))
            dice.append(pairwise_plain_dice(logits.sigmoid(), truth))
        return torch.stack(focal), torch.stack(dice)

    def mask_losses(
        self,
        logits: Float[Tensor, "matched height width"],
        masks: Bool[Tensor, "targets _ _"],
        which: Int[Tensor, " matched"],
        padded: tuple[int, int],
    ) -> tuple[Float[Tensor, " matched"], Float[Tensor, " matched"]]:
        truth = shrink_masks(masks, logits.shape[1:], STRIDE)[which]
        as_positive, as_negative = focal_loss(logits, torch.ones_like(truth)), focal_loss(logits, torch.zeros_like(truth))
        focal = truth * as_positive + (1 - truth) * as_negative  # of a cell covered in part, so much of each
        return focal.flatten(1).mean(dim=1), plain_dice_loss(logits.sigmoid(), truth)

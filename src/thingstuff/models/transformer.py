"""What the networks with queries are made of: attention, feed-forward blocks and sine positions (Vaswani et al., 2017,
arXiv:1706.03762, sections 3.2, 3.3 and 3.5), with the norm after each residual sum as in DETR (Carion et al., 2020,
arXiv:2005.12872, figure 10).
"""

import math
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from thingstuff.errors import ConfigError


class Attention(nn.Module):
    """Multi-head attention; queries and keys may carry positions that values do not.

    The three projections of the inputs lie in one kernel, queries first, then keys, then values.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.inputs = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)
        for layer in (self.inputs, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        keys: Float[Tensor, "batch keys channels"],
        values: Float[Tensor, "batch keys channels"],
        seen: Bool[Tensor, "batch queries keys"] | None = None,
    ) -> Float[Tensor, "batch queries channels"]:
        kernels, biases = self.inputs.weight.chunk(3), self.inputs.bias.chunk(3)
        projected = [
            functional.linear(x, kernel, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # batch heads positions channels
            for x, kernel, bias in zip((queries, keys, values), kernels, biases, strict=True)
        ]
        mixed = functional.scaled_dot_product_attention(
            *projected,
            attn_mask=None if seen is None else seen[:, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(mixed.transpose(1, 2).flatten(2))


class Residual(nn.Module):
    """norm(x + change), what every block of these networks ends with."""

    def __init__(self, channels: int, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch positions channels"], change: Float[Tensor, "batch positions channels"]
    ) -> Float[Tensor, "batch positions channels"]:
        return self.norm(x + self.dropout(change))


class FeedForward(nn.Module):
    """Two layers with ReLU between them, the same at every position."""

    def __init__(self, channels: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.widen, self.narrow = nn.Linear(channels, width), nn.Linear(width, channels)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.widen, self.narrow):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Float[Tensor, "batch positions channels"]) -> Float[Tensor, "batch positions channels"]:
        return self.narrow(self.dropout(functional.relu(self.widen(x))))


class Perceptron(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, x: Float[Tensor, "*positions _"]) -> Float[Tensor, "*positions _"]:
        for number, layer in enumerate(self.layers):
            x = layer(functional.relu(x) if number else x)
        return x


def sine_positions(like: Float[Tensor, "batch _ height width"], channels: int) -> Float[Tensor, "1 cells channels"]:
    """Where each cell of a map lies, row by row: sines and cosines of 2 pi y, then of 2 pi x, at wavelengths that grow (DETR,
    appendix A.4). y and x count from the first cell as 1 and end at 1 as shares of the map.
    """
    height, width = like.shape[-2:]
    half = channels // 2
    exponent = torch.arange(half, device=like.device, dtype=torch.float32).div(2, rounding_mode="floor") * (2 / half)
    wavelength = 10000.0**exponent
    parts = []
    for count, axis in ((height, 0), (width, 1)):
        share = torch.arange(1, count + 1, device=like.device, dtype=torch.float32) / (count + 1e-6)
        angle = share[:, None] * (2 * math.pi) / wavelength
        waves = torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)  # positions half
        parts.append(waves[:, None] if axis == 0 else waves[None])
    grid = [part.expand(height, width, half) for part in parts]
    return torch.cat(grid, dim=2).flatten(0, 1)[None].to(like.dtype)  # 1 (height width) channels


def demand_heads(config: Any, *names: str) -> None:
    """Widths that heads share evenly and that sine positions fill: y and x, sine and cosine."""
    heads = config.heads
    for name in names:
        width = getattr(config, name)
        if width < 1 or width % heads or width % 4:
            raise ConfigError(f"{name} must be a multiple of 4 and of the {heads} heads, got {width}")

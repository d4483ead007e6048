"""What a file of SOLO's family is: every size of the network, read from its arrays once they carry our names."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from thingstuff.checkpoints.recognise import count, deformable_kind, resnet_config
from thingstuff.errors import CheckpointError
from thingstuff.models.solo import SOLO, DecoupledSOLO, DecoupledSOLOConfig, GridConfig, GridModel, SOLOConfig
from thingstuff.models.solov2 import SOLOv2, SOLOv2Config

# Patterns of our names and what they give away; the libraries' names become ours first, so that one table serves them all.
UNSUPPORTED = (
    (r"backbone\.stem\..+", "a ResNet with a deep stem"),
    (r"backbone\.(patch_embed|stages|downsample_layers|norm\d)\..+", "a backbone other than ResNet"),
    (r"backbone\.layer\d\.\d+\.(context_block|gen_attention_block|conv_att).*", "a backbone with attention blocks"),
)

# The light networks are trained and tested at 448 or 512 pixels, with ranges of scales to go with it.
_Ranges = tuple[tuple[float, float], ...]
_RANGES_448: _Ranges = ((1.0, 56.0), (28.0, 112.0), (56.0, 224.0), (112.0, 448.0), (224.0, 2048.0))
_RANGES_512: _Ranges = ((1.0, 64.0), (32.0, 128.0), (64.0, 256.0), (128.0, 512.0), (256.0, 2048.0))


_OFFSETS = re.compile(r"category_branch\.convs\.(\d+)\.conv\.offset\.weight")


def grid_model(tensors: Mapping[str, Tensor], name: str, library: str) -> tuple[type[GridModel], GridConfig]:
    """The network and the config that these arrays, under our names, fit; what no array shows keeps its default.

    Raises:
        CheckpointError: an array that every such network has is missing, or it is of a kind that is not supported.
    """

    def shape(key: str) -> Sequence[int]:
        if key not in tensors:
            raise CheckpointError(f"{name}: looks like a SOLO ({library}) but lacks what becomes {key} here")
        return tensors[key].shape

    if len(shape("categories.weight")) != 4:
        raise CheckpointError(f"{name}: its category branch ({library}) does not end in a convolution")
    if "category_branch.convs.0.norm.weight" not in tensors or "category_branch.convs.0.norm.running_mean" in tensors:
        raise CheckpointError(f"{name}: branches without group norm ({library}) are not supported yet")
    classes, head_channels = shape("categories.weight")[:2]
    deformable = sorted(int(match[1]) for key in tensors if (match := _OFFSETS.fullmatch(key)))
    sizes: dict[str, Any] = {
        "backbone": resnet_config(tensors, name),
        "classes": classes,
        "channels": shape("neck.output.0.conv.weight")[0],
        "head_channels": head_channels,
        "head_convs": count(tensors, r"category_branch\.convs\.(\d+)\.conv\.weight", name),
        "drop_empty": False,
    }
    if deformable:
        kind, _ = deformable_kind(tensors, f"category_branch.convs.{deformable[-1]}.conv", name)
        sizes |= {"deformable_convs": len(deformable), "deformable_kind": kind}
    if "mask_feature.output.conv.weight" in tensors:
        kernel_channels, mask_channels = shape("mask_feature.output.conv.weight")[:2]
        if shape("kernels.weight")[0] != kernel_channels:
            raise CheckpointError(
                f"{name}: has kernels of {shape('kernels.weight')[0]} numbers for a mask feature of {kernel_channels} channels "
                f"({library}): dynamic convolutions larger than 1 x 1 are not supported yet"
            )
        sizes |= {"mask_channels": mask_channels, "kernel_channels": kernel_channels}
        sizes["deformable_masks"], _ = deformable_kind(tensors, "mask_feature.output.conv", name)
        sizes |= {2: {"scale_ranges": _RANGES_448}, 3: {"scale_ranges": _RANGES_512}}.get(sizes["head_convs"], {})
        return SOLOv2, SOLOv2Config(**sizes)
    if "columns.0.weight" in tensors:
        shared = "mask_branch.convs.0.conv.weight" in tensors
        sizes["grids"] = tuple(shape(f"columns.{level}.weight")[0] for level in range(5))
        if shared:
            sizes["scale_ranges"] = _RANGES_512
        return DecoupledSOLO, DecoupledSOLOConfig(**sizes, shared_convs=shared)
    sizes["grids"] = tuple(math.isqrt(shape(f"kernels.{level}.weight")[0]) for level in range(5))
    return SOLO, SOLOConfig(**sizes)


def usual_image_size(config: GridConfig) -> tuple[int, int]:
    """Short and long side that the published networks of such a config are tested at."""
    return {_RANGES_448: (448, 768), _RANGES_512: (512, 852)}.get(config.scale_ranges, (800, 1333))

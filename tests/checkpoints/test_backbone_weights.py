"""Backbones filled from a file: EfficientNet-Lite's own names, and files that do not fit."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from thingstuff.checkpoints.backbone_weights import load_backbone_weights
from thingstuff.errors import CheckpointError
from thingstuff.models.backbone import Backbone, BackboneConfig

SEPARABLE = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
INVERTED = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


def _lite_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A timm EfficientNet-Lite under the names of the published files, which number the blocks through."""
    blocks = sorted({tuple(map(int, re.findall(r"\d+", key)[:2])) for key in state if key.startswith("blocks")})
    result = {"_conv_head.weight": torch.ones(1), "_bn1.weight": torch.ones(1), "_fc.weight": torch.ones(1)}
    for key, value in state.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(\w+)\.(.+)", key):
            number = blocks.index((int(match[1]), int(match[2])))
            part = SEPARABLE[match[3]] if number == 0 else INVERTED[match[3]]
            result[f"_blocks.{number}.{part}.{match[4]}"] = value
        else:
            result[{"conv_stem.weight": "_conv_stem.weight"}.get(key) or key.replace("bn1.", "_bn0.")] = value
    return {key: value.contiguous() for key, value in result.items()}


@pytest.mark.parametrize("size", [0, 2])
def test_efficientnet_lite_files_of_each_size_fill_their_backbone(size: int, tmp_path: Path) -> None:
    torch.manual_seed(size)
    there, here = (Backbone(BackboneConfig(f"tf_efficientnet_lite{size}")) for _ in range(2))
    save_file(_lite_names(there.body.state_dict()), tmp_path / "lite.safetensors")
    load_backbone_weights(here, tmp_path / "lite.safetensors")
    for key, value in there.body.state_dict().items():
        assert torch.equal(here.body.state_dict()[key], value), key


@pytest.mark.parametrize(("file", "backbone"), [(1, 0), (0, 1)])
def test_another_size_is_refused(file: int, backbone: int, tmp_path: Path) -> None:
    save_file(
        _lite_names(Backbone(BackboneConfig(f"tf_efficientnet_lite{file}")).body.state_dict()), tmp_path / "lite.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"has no place in a backbone of 16 such blocks|is missing"):
        load_backbone_weights(Backbone(BackboneConfig(f"tf_efficientnet_lite{backbone}")), tmp_path / "lite.safetensors")

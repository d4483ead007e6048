"""Networks of other depths, widths and class counts, built by the installed torchvision and loaded here from what it saves.

Both run the same image at the same thresholds. The weights are drawn from the parameters' names as in the reference cases, with
gains that keep a random network lively: with torchvision's own initial weights all scores would be equal.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops.misc import FrozenBatchNorm2d

import thingstuff
from thingstuff.structures.images import read_image
from thingstuff.structures.masks import Mask

# small images and few regions, so that a network runs in a second
SETTINGS = {
    **{"min_size": 160, "max_size": 240, "rpn_pre_nms_top_n_test": 200, "rpn_post_nms_top_n_test": 100},
    **{"box_detections_per_img": 30, "box_score_thresh": 0.05, "box_nms_thresh": 0.4},
}
GAINS = {
    "backbone.body.conv1.weight": 2,
    "backbone.body.layer*.conv3.weight": 0.4,  # the end of a bottleneck block
    "backbone.fpn.*.0.weight": 1.4,
    "rpn.head.cls_logits.*": 4,
    "rpn.head.bbox_pred.*": 0.6,
    "roi_heads.box_head.*.bias": 10,
    "roi_heads.box_predictor.cls_score.weight": 3,
    "roi_heads.mask_head.*.0.weight": 1.4,
    "roi_heads.mask_predictor.mask_fcn_logits.weight": 4,
}


def with_backbone(name, classes, **options):
    return MaskRCNN(resnet_fpn_backbone(backbone_name=name, weights=None), classes, **SETTINGS, **options)


def first_version(classes):
    return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=classes, **SETTINGS)


def fine_tuned(classes):
    """The published network as torchvision's tutorial changes it: frozen norms without epsilon, other heads."""
    model = with_backbone("resnet50", classes)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
    model.roi_heads.mask_predictor = MaskRCNNPredictor(256, 256, classes)
    return model


def second_version(classes):
    return maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=classes, **SETTINGS)


NETWORKS = {
    "first version, trainable norms": lambda: first_version(5),
    "fine-tuned, frozen norms": lambda: fine_tuned(3),
    "second version": lambda: second_version(4),
    "resnet18": lambda: with_backbone("resnet18", 2),
    "resnet34": lambda: with_backbone("resnet34", 11),
    "resnext50": lambda: with_backbone("resnext50_32x4d", 6),
    "wide resnet50": lambda: with_backbone("wide_resnet50_2", 6),
    "resnet101": lambda: with_backbone("resnet101", 91),
}


def fill(parity, model):
    weights = parity.recipe("weights")
    basic_blocks = not any("conv3" in name for name in model.state_dict())
    gains = {"backbone.body.layer*.conv2.weight": 0.4} | GAINS if basic_blocks else GAINS
    state = {
        name: torch.from_numpy(weights.fill(name, tuple(tensor.shape), weights.gain_of(name, gains)))
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model.eval()


@torch.inference_mode()
def expected(model, image):
    """torchvision's own result, in the form that compare.py reads."""
    [found] = model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
    masks = [Mask.from_dense(mask[0].numpy() > 0.5) for mask in found["masks"]]
    return {
        "size": np.array(image.shape[:2]),
        "boxes": found["boxes"].numpy(),
        "scores": found["scores"].numpy(),
        "labels": found["labels"].numpy() - 1,
        "masks_rle": np.array([mask.to_coco()["counts"] for mask in masks], dtype=str),
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_torchvision_built_gives_the_same_result_here(parity, reference, tmp_path, name):
    # from the image whose size is no multiple of anything
    image = read_image(reference / "images" / "chelsea.png")[40:260, 100:391].copy()
    model = fill(parity, NETWORKS[name]())
    torch.save(model.state_dict(), tmp_path / "model.pth")

    segmenter = thingstuff.load(tmp_path / "model.pth", "cpu")
    limits = replace(segmenter.thresholds(), score=0.05, nms=0.4, detections=30, proposals_per_level=200, proposals=100)
    segmenter.preprocessing = replace(segmenter.preprocessing, short_side=160, long_side=240)
    [segments] = segmenter.segment(segmenter.preprocessing.batch([image]), thresholds=limits)

    want = expected(model, image)
    assert len(want["scores"]) > 3, "a test of nothing"
    # torchvision's own float32 and float64 results differ as much: 1e-4, 0.02 pixels, one pixel of a mask of twenty
    tolerance = {"score_abs": 1e-3, "box_px": 0.05, "mask_iou": 0.95}
    _, problems = parity.recipe("compare").compare_instances(want, parity.prediction(segments), tolerance)
    assert problems == []

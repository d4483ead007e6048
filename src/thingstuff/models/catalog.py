"""Every architecture by name: its class, its config, and the images it expects. Click through any entry."""

from dataclasses import replace

from thingstuff.models.backbone import BackboneConfig
from thingstuff.models.mask_rcnn import MaskRCNN, MaskRCNNConfig, Sampling, Thresholds
from thingstuff.structures.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

_IMAGENET = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, short_side=800, long_side=1333)

MASK_RCNN_R50 = MaskRCNNConfig(BackboneConfig("resnet50", frozen_norms=True))

# Small enough for a CPU: a light backbone and neck, narrow heads, anchors for small objects.
MASK_RCNN_LITE0 = MaskRCNNConfig(
    BackboneConfig("tf_efficientnet_lite0"),
    channels=80,
    anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0),
    box_width=256,
    mask_convs=3,
    mask_channels=80,
    roi_sampling=2,
    thresholds=Thresholds(proposals_per_level=500, proposals=500),
    sampling=Sampling(proposals_per_level=500, proposals=500, rois=256),
)
_LITE0_IMAGES = Preprocessing((127.0, 127.0, 127.0), (128.0, 128.0, 128.0), short_side=384, long_side=2048, shrink=False)

MASK_RCNN_TINY = MaskRCNNConfig(
    BackboneConfig("resnet18", options=(("layers", (1, 1, 1, 1)), ("channels", (8, 16, 24, 32)))),
    classes=3,
    channels=16,
    anchor_sizes=(8.0, 16.0, 32.0, 64.0, 128.0),
    box_width=32,
    mask_convs=1,
    mask_channels=16,
    thresholds=Thresholds(proposals_per_level=100, proposals=100, detections=50),
)

CATALOG: dict[str, tuple[type[MaskRCNN], MaskRCNNConfig, Preprocessing]] = {
    "mask-rcnn-r50": (MaskRCNN, MASK_RCNN_R50, _IMAGENET),
    "mask-rcnn-r101": (MaskRCNN, replace(MASK_RCNN_R50, backbone=BackboneConfig("resnet101", frozen_norms=True)), _IMAGENET),
    "mask-rcnn-convnext-tiny": (MaskRCNN, replace(MASK_RCNN_R50, backbone=BackboneConfig("convnext_tiny")), _IMAGENET),
    "mask-rcnn-swin-tiny": (
        MaskRCNN,
        replace(MASK_RCNN_R50, backbone=BackboneConfig("swin_tiny_patch4_window7_224")),
        _IMAGENET,
    ),
    "mask-rcnn-lite0": (MaskRCNN, MASK_RCNN_LITE0, _LITE0_IMAGES),
    "mask-rcnn-tiny": (MaskRCNN, MASK_RCNN_TINY, replace(_IMAGENET, short_side=128, long_side=256)),
}

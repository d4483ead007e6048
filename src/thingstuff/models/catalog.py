"""Every architecture by name: its class, its config, and the images it expects. Click through any entry."""

from dataclasses import replace
from typing import Any

from thingstuff.models.backbone import BackboneConfig
from thingstuff.models.contract import Model
from thingstuff.models.mask2former import Mask2Former, Mask2FormerConfig
from thingstuff.models.mask2former import Sampling as PointSampling
from thingstuff.models.mask_rcnn import MaskRCNN, MaskRCNNConfig, Sampling, Thresholds
from thingstuff.models.maskformer import MaskFormer, MaskFormerConfig
from thingstuff.models.panoptic_fpn import PanopticFPN, PanopticFPNConfig
from thingstuff.models.panoptic_fpn import Thresholds as PanopticThresholds
from thingstuff.models.solo import SOLO, DecoupledSOLO, DecoupledSOLOConfig, SOLOConfig
from thingstuff.models.solov2 import SOLOv2, SOLOv2Config
from thingstuff.models.yolact import Sampling as YolactSampling
from thingstuff.models.yolact import Thresholds as YolactThresholds
from thingstuff.models.yolact import Yolact, YolactConfig
from thingstuff.structures.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

_R50 = BackboneConfig("resnet50", frozen_norms=True)
_R101 = BackboneConfig("resnet101", frozen_norms=True)
_EFFICIENTNET_LITE0 = BackboneConfig("tf_efficientnet_lite0")
_EFFICIENTNET_LITE2 = BackboneConfig("tf_efficientnet_lite2")
_TINY_RESNET = BackboneConfig("resnet18", options=(("layers", (1, 1, 1, 1)), ("channels", (8, 16, 24, 32))))

_IMAGENET = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, short_side=800, long_side=1333)

MASK_RCNN_R50 = MaskRCNNConfig(_R50)

# Small enough for a CPU: a light backbone and neck, narrow heads, anchors for small objects.
_LITE0_SIZES: dict[str, Any] = {
    "backbone": _EFFICIENTNET_LITE0,
    "channels": 80,
    "anchor_sizes": (16.0, 32.0, 64.0, 128.0, 256.0),
    "box_width": 256,
    "mask_convs": 3,
    "mask_channels": 80,
    "roi_sampling": 2,
    "sampling": Sampling(proposals_per_level=500, proposals=500, rois=256),
}
_LITE0_LIMITS: dict[str, Any] = {"proposals_per_level": 500, "proposals": 500}
MASK_RCNN_LITE0 = MaskRCNNConfig(**_LITE0_SIZES, thresholds=Thresholds(**_LITE0_LIMITS))
_LITE0_IMAGES = Preprocessing((127.0, 127.0, 127.0), (128.0, 128.0, 128.0), short_side=384, long_side=2048, shrink=False)
# in photographs what is near is large; microscopes are made for one scale
_LITE0_PHOTOS = replace(_LITE0_IMAGES, long_side=640, shrink=True)

_MASK_RCNN_TINY_SIZES: dict[str, Any] = {
    "backbone": _TINY_RESNET,
    "classes": 3,
    "channels": 16,
    "anchor_sizes": (8.0, 16.0, 32.0, 64.0, 128.0),
    "box_width": 32,
    "mask_convs": 1,
    "mask_channels": 16,
}
_TINY_LIMITS: dict[str, Any] = {"proposals_per_level": 100, "proposals": 100, "detections": 50}
MASK_RCNN_TINY = MaskRCNNConfig(**_MASK_RCNN_TINY_SIZES, thresholds=Thresholds(**_TINY_LIMITS))

PANOPTIC_FPN_R50 = PanopticFPNConfig(_R50)
PANOPTIC_FPN_LITE0 = PanopticFPNConfig(
    **_LITE0_SIZES, semantic_channels=64, thresholds=PanopticThresholds(**_LITE0_LIMITS, stuff_area=1024)
)
PANOPTIC_FPN_TINY = PanopticFPNConfig(
    **_MASK_RCNN_TINY_SIZES,
    is_thing=(True, False, True),
    semantic_channels=64,
    thresholds=PanopticThresholds(**_TINY_LIMITS, stuff_area=64),
)

SOLO_R50 = SOLOConfig(_R50)
DECOUPLED_SOLO_R50 = DecoupledSOLOConfig(_R50)
SOLOV2_R50 = SOLOv2Config(_R50)
_448 = replace(_IMAGENET, short_side=448, long_side=768)
_512_RANGES = ((1.0, 64.0), (32.0, 128.0), (64.0, 256.0), (128.0, 512.0), (256.0, 2048.0))  # of light networks at 512 pixels
SOLOV2_LIGHT_R50 = SOLOv2Config(
    _R50,
    head_channels=256,
    head_convs=2,
    kernel_channels=128,
    scale_ranges=((1.0, 56.0), (28.0, 112.0), (56.0, 224.0), (112.0, 448.0), (224.0, 2048.0)),
)

# Small enough for a CPU: a light backbone and neck, narrow and short heads, coarser grids. The ranges of scales stay the
# paper's although images are half as large: each range's masks have a stride of their own, which an object must be large for.
_LITE0_GRIDS: dict[str, Any] = {"backbone": _EFFICIENTNET_LITE0, "channels": 64, "grids": (32, 24, 18, 12, 8)}
SOLO_LITE0 = SOLOConfig(**_LITE0_GRIDS, head_channels=64, head_convs=4)
DECOUPLED_SOLO_LITE0 = DecoupledSOLOConfig(
    **_LITE0_GRIDS, head_channels=SOLO_LITE0.head_channels, head_convs=SOLO_LITE0.head_convs, shared_convs=True
)
SOLOV2_LITE0 = SOLOv2Config(
    **_LITE0_GRIDS,
    head_channels=128,
    head_convs=2,
    scale_ranges=((1.0, 48.0), (24.0, 96.0), (48.0, 192.0), (96.0, 384.0), (192.0, 2048.0)),
    mask_channels=64,
    kernel_channels=64,
)
SOLOV2_LITE2 = replace(
    SOLOV2_LITE0,
    backbone=_EFFICIENTNET_LITE2,
    channels=96,
    head_channels=160,
    mask_channels=96,
    kernel_channels=96,
)

_TINY_GRIDS: dict[str, Any] = {
    "backbone": _TINY_RESNET,
    "classes": 3,
    "channels": 32,
    "head_channels": 64,
    "head_convs": 2,
    "grids": (10, 8, 6, 4, 3),
    "scale_ranges": ((1.0, 24.0), (12.0, 48.0), (24.0, 96.0), (48.0, 192.0), (96.0, 384.0)),
}
SOLO_TINY = SOLOConfig(**_TINY_GRIDS)
DECOUPLED_SOLO_TINY = DecoupledSOLOConfig(**_TINY_GRIDS)
SOLOV2_TINY = SOLOv2Config(**_TINY_GRIDS, mask_channels=64, kernel_channels=64)
_TINY = replace(_IMAGENET, short_side=128, long_side=256)

YOLACT_R50 = YolactConfig(_R50, square_anchors=False)
_550 = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, short_side=550, long_side=550, pad_multiple=1, square=True)

# Small enough for a CPU: a light backbone, narrow neck and heads. Images keep their aspect ratio. Smaller anchors than the
# original's, and three times as many: in everyday photographs of 384 pixels, half of the people are smaller than 60.
# The original's anchors divide the input by the cells of a level, which for sides that aren't 550 puts those of P6 and P7 up to a
# quarter of a cell from where the convolutions look, at other places for each size of input: boxes of large objects suffer.
_STRIDES = (8.0, 16.0, 32.0, 64.0, 128.0)

YOLACT_LITE0 = replace(
    YOLACT_R50,
    backbone=_EFFICIENTNET_LITE0,
    channels=80,
    prototypes=24,
    prototype_channels=64,
    prototype_convs=2,
    head_channels=80,
    anchor_sizes=MASK_RCNN_LITE0.anchor_sizes,
    anchor_scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)),  # Lin et al., 2017, arXiv:1708.02002, section 4
    anchor_strides=_STRIDES,
)
YOLACT_LITE2 = replace(
    YOLACT_LITE0,
    backbone=_EFFICIENTNET_LITE2,
    channels=112,
    prototypes=32,
    prototype_channels=96,
    head_channels=112,
)

YOLACT_TINY = YolactConfig(
    _TINY_RESNET,
    classes=3,
    channels=16,
    prototypes=8,
    prototype_channels=16,
    prototype_convs=1,
    head_channels=16,
    square_anchors=False,
    anchor_strides=_STRIDES,
    thresholds=YolactThresholds(detections=50),
    sampling=YolactSampling(masks=50),
)

MASK2FORMER_R50 = Mask2FormerConfig(_R50)


def _swin(name: str) -> BackboneConfig:
    return BackboneConfig(name, original_windows=True, level_norms=True)


# Small enough for a CPU: a light backbone, narrow layers and few of them.
MASK2FORMER_LITE0 = Mask2FormerConfig(
    _EFFICIENTNET_LITE0,
    channels=96,
    mask_channels=96,
    query_channels=96,
    queries=60,
    encoder_layers=3,
    encoder_width=384,
    decoder_layers=6,
    decoder_width=512,
    sampling=PointSampling(points=2048),  # near the paper's share, a fifth, of 80 x 80 to 96 x 128 cells
)
_TINY_QUERIES: dict[str, Any] = {
    "backbone": _TINY_RESNET,
    "classes": 3,
    "channels": 64,
    "mask_channels": 16,
    "query_channels": 32,
    "queries": 12,
    "heads": 4,
    "decoder_width": 32,
}
MASK2FORMER_TINY = Mask2FormerConfig(
    **_TINY_QUERIES,
    points=2,
    encoder_layers=1,
    encoder_width=32,
    decoder_layers=3,
    sampling=PointSampling(points=256),
)

MASKFORMER_R50 = MaskFormerConfig(_R50, encoder_layers=6)
MASKFORMER_TINY = MaskFormerConfig(**_TINY_QUERIES, decoder_layers=2)

CATALOG: dict[str, tuple[type[Model], Any, Preprocessing]] = {
    "mask-rcnn-r50": (MaskRCNN, MASK_RCNN_R50, _IMAGENET),
    "mask-rcnn-r101": (MaskRCNN, replace(MASK_RCNN_R50, backbone=_R101), _IMAGENET),
    "mask-rcnn-convnext-tiny": (MaskRCNN, replace(MASK_RCNN_R50, backbone=BackboneConfig("convnext_tiny")), _IMAGENET),
    "mask-rcnn-swin-tiny": (
        MaskRCNN,
        replace(MASK_RCNN_R50, backbone=BackboneConfig("swin_tiny_patch4_window7_224")),
        _IMAGENET,
    ),
    "mask-rcnn-lite0": (MaskRCNN, MASK_RCNN_LITE0, _LITE0_IMAGES),
    "mask-rcnn-tiny": (MaskRCNN, MASK_RCNN_TINY, _TINY),
    "panoptic-fpn-r50": (PanopticFPN, PANOPTIC_FPN_R50, _IMAGENET),
    "panoptic-fpn-r101": (PanopticFPN, replace(PANOPTIC_FPN_R50, backbone=_R101), _IMAGENET),
    "panoptic-fpn-lite0": (PanopticFPN, PANOPTIC_FPN_LITE0, _LITE0_PHOTOS),
    "panoptic-fpn-tiny": (PanopticFPN, PANOPTIC_FPN_TINY, _TINY),
    "solo-r50": (SOLO, SOLO_R50, _IMAGENET),
    "solo-lite0": (SOLO, SOLO_LITE0, _LITE0_PHOTOS),
    "solo-tiny": (SOLO, SOLO_TINY, _TINY),
    "decoupled-solo-r50": (DecoupledSOLO, DECOUPLED_SOLO_R50, _IMAGENET),
    "decoupled-solo-light-r50": (
        DecoupledSOLO,
        replace(DECOUPLED_SOLO_R50, head_convs=4, shared_convs=True, scale_ranges=_512_RANGES),
        replace(_IMAGENET, short_side=512, long_side=852),
    ),
    "decoupled-solo-lite0": (DecoupledSOLO, DECOUPLED_SOLO_LITE0, _LITE0_PHOTOS),
    "decoupled-solo-tiny": (DecoupledSOLO, DECOUPLED_SOLO_TINY, _TINY),
    "solov2-r50": (SOLOv2, SOLOV2_R50, _IMAGENET),
    "solov2-r101": (SOLOv2, replace(SOLOV2_R50, backbone=_R101), _IMAGENET),
    "solov2-light-r18": (SOLOv2, replace(SOLOV2_LIGHT_R50, backbone=BackboneConfig("resnet18", frozen_norms=True)), _448),
    "solov2-light-r34": (SOLOv2, replace(SOLOV2_LIGHT_R50, backbone=BackboneConfig("resnet34", frozen_norms=True)), _448),
    "solov2-light-r50": (SOLOv2, SOLOV2_LIGHT_R50, _448),
    "solov2-lite0": (SOLOv2, SOLOV2_LITE0, _LITE0_PHOTOS),
    "solov2-lite2": (SOLOv2, SOLOV2_LITE2, _LITE0_PHOTOS),
    "solov2-tiny": (SOLOv2, SOLOV2_TINY, _TINY),
    "yolact-r50": (Yolact, YOLACT_R50, _550),
    "yolact-r101": (Yolact, replace(YOLACT_R50, backbone=_R101), _550),
    "yolact-lite0": (Yolact, YOLACT_LITE0, _LITE0_PHOTOS),
    "yolact-lite2": (Yolact, YOLACT_LITE2, _LITE0_PHOTOS),
    "yolact-tiny": (Yolact, YOLACT_TINY, _TINY),
    "mask2former-r50": (Mask2Former, MASK2FORMER_R50, _IMAGENET),
    "mask2former-r101": (Mask2Former, replace(MASK2FORMER_R50, backbone=_R101), _IMAGENET),
    "mask2former-swin-t": (Mask2Former, replace(MASK2FORMER_R50, backbone=_swin("swin_tiny_patch4_window7_224")), _IMAGENET),
    "mask2former-swin-s": (Mask2Former, replace(MASK2FORMER_R50, backbone=_swin("swin_small_patch4_window7_224")), _IMAGENET),
    "mask2former-swin-b": (Mask2Former, replace(MASK2FORMER_R50, backbone=_swin("swin_base_patch4_window12_384")), _IMAGENET),
    "mask2former-swin-l": (
        Mask2Former,
        replace(MASK2FORMER_R50, backbone=_swin("swin_large_patch4_window12_384"), queries=200),
        _IMAGENET,
    ),
    "mask2former-lite0": (Mask2Former, MASK2FORMER_LITE0, _LITE0_PHOTOS),
    "mask2former-tiny": (Mask2Former, MASK2FORMER_TINY, _TINY),
    "maskformer-r50": (MaskFormer, MASKFORMER_R50, _IMAGENET),
    "maskformer-swin-t": (
        MaskFormer,
        replace(MASKFORMER_R50, backbone=_swin("swin_tiny_patch4_window7_224"), encoder_layers=0),
        _IMAGENET,
    ),
    "maskformer-tiny": (MaskFormer, MASKFORMER_TINY, _TINY),
}

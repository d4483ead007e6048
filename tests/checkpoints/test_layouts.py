"""Each layout finds the network from names and shapes, for every size that its library builds, and refuses what it is not."""

import json
import re
from dataclasses import replace
from functools import cache

import pytest
import torch

from thingstuff.checkpoints import LAYOUTS, detectron2, load_foreign, mmdetection, torchvision
from thingstuff.checkpoints.files import shapes_of
from thingstuff.checkpoints.mmdetection_config import UNLIMITED
from thingstuff.checkpoints.rules import convert, rename
from thingstuff.errors import CheckpointError
from thingstuff.models.deformable import Deformable
from thingstuff.models.fpn import Norm
from thingstuff.models.mask_rcnn import MaskRCNN
from thingstuff.structures.categories import COCO_THINGS, COCO_THINGS_WITH_GAPS
from thingstuff.structures.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Resize

from .layouts import Network, detectron2_shapes, mmdetection_shapes, torchvision_shapes

SHAPES = {torchvision: torchvision_shapes, detectron2: detectron2_shapes, mmdetection: mmdetection_shapes}


def hollow(shapes, value=0.5):
    """Arrays of these shapes that take no memory."""
    return {name: torch.tensor(value).expand(shape) for name, shape in shapes.items()}


@cache  # a network of many layers takes a while even without memory
def our_shapes(config):
    return shapes_of(MaskRCNN, config)


def described(layout, shapes, meta=None, **changed):
    """What the layout says of a file with these arrays, which must then fit exactly."""
    tensors = hollow(shapes) | changed
    assert [other for other in LAYOUTS if other.detect(tensors)] == [layout]
    description = layout.describe(tensors, meta or {}, "model.pth")
    convert(tensors, description.rules, our_shapes(description.config), "model.pth")
    assert len(description.categories) == description.config.classes
    return description


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_is_found(layout, depth):
    found = described(layout, SHAPES[layout](Network(depth=depth))).config.backbone
    assert (found.name, found.options) == (f"resnet{depth}", ())


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize(
    ("depth", "groups", "width", "options"),
    [
        (50, 32, 4, (("cardinality", 32), ("base_width", 4))),
        (101, 32, 8, (("cardinality", 32), ("base_width", 8))),
        (101, 64, 4, (("cardinality", 64), ("base_width", 4))),
        (50, 1, 128, (("base_width", 128),)),
    ],
)
def test_groups_and_widths_are_found(layout, depth, groups, width, options):
    found = described(layout, SHAPES[layout](Network(depth=depth, groups=groups, group_width=width))).config.backbone
    assert (found.name, found.options) == (f"resnet{depth}", options)


DEFORMABLE = [
    ("detectron2", {}),  # Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml
    ("mmdetection", {}),
    ("mmdetection", {"offset": ".conv_offset_mask"}),  # the names of older versions
    ("mmdetection", {"offset": "_offset"}),
]


@pytest.mark.parametrize(("library", "names"), DEFORMABLE)
@pytest.mark.parametrize(
    ("network", "kind", "groups"),
    [
        (Network(offsets=18), Deformable.V1, 1),
        (Network(depth=101, groups=32, group_width=4, offsets=27), Deformable.V2, 1),
        (Network(offsets=4 * 27), Deformable.V2, 4),
    ],
)
def test_deformable_convolutions_of_the_backbone_are_found(library, names, network, kind, groups):
    layout = {"detectron2": detectron2, "mmdetection": mmdetection}[library]
    found = described(layout, SHAPES[layout](network, **names)).config.backbone
    blocks = {50: (4, 6, 3), 101: (4, 23, 3)}[network.depth]
    assert found.deformable == tuple(f"layer{2 + stage}.{block}" for stage in range(3) for block in range(blocks[stage]))
    assert (found.deformable_kind, found.deformable_groups, found.deformable_bias) == (kind, groups, False)


def test_offsets_that_do_not_go_with_the_kernel_are_named():
    with pytest.raises(CheckpointError, match=r"layer2\.0\.conv2 is deformable but predicts 20 numbers for 9 taps"):
        described(detectron2, detectron2_shapes(Network(offsets=20)))


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"classes": 1},
        {"channels": 48, "box_channels": 48},
        {"box_width": 512, "box_fcs": 1, "box_convs": 4, "box_channels": 8},
        {"box_convs": 2, "box_fcs": 3},
        {"mask_convs": 2, "mask_channels": 40},
        {"mask_convs": 0, "mask_channels": 24},
        {"rpn_convs": 2},
        {"rpn_convs": 3},
    ],
)
def test_every_size_of_neck_and_heads_is_found(layout, sizes):
    network = Network(depth=18, **sizes)
    if layout is torchvision and network.box_fcs != 2 and network.box_convs == 0:
        network = replace(network, box_fcs=2)
    config = described(layout, SHAPES[layout](network)).config
    for name in ("classes", "channels", "rpn_convs", "box_convs", "box_fcs", "box_width", "mask_convs", "mask_channels"):
        assert getattr(config, name) == getattr(network, name), name
    assert (config.neck_norm, config.head_norm) == (Norm.NONE, Norm.NONE)
    assert not config.class_agnostic_boxes
    assert not config.class_agnostic_masks


@pytest.mark.parametrize("layout", SHAPES)
def test_widths_of_the_rpn_and_after_the_masks_transposed_convolution_are_their_own(layout):
    network = Network(depth=18, rpn_convs=2, rpn_channels=24, mask_channels=40, mask_upsampled_channels=12)
    config = described(layout, SHAPES[layout](network)).config
    assert (config.channels, config.rpn_channels) == (16, 24)
    assert (config.mask_channels, config.mask_upsampled_channels) == (40, 12)
    usual = described(layout, SHAPES[layout](Network(depth=18))).config
    assert (usual.rpn_channels, usual.mask_upsampled_channels) == (None, None)


def test_only_detectron2_drops_boxes_without_area():
    drops = {layout: described(layout, SHAPES[layout](Network(depth=18))).config.drop_empty_boxes for layout in SHAPES}
    assert drops == {torchvision: False, detectron2: True, mmdetection: False}


@pytest.mark.parametrize("layout", [detectron2, mmdetection])
def test_class_agnostic_heads_are_found(layout):
    config = described(layout, SHAPES[layout](Network(depth=18, agnostic_boxes=True, agnostic_masks=True))).config
    assert config.class_agnostic_boxes
    assert config.class_agnostic_masks
    assert config.classes == 7


@pytest.mark.parametrize("layout", [detectron2, mmdetection])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_in_backbone_neck_and_heads_are_found(layout, norm):
    # 32 groups need widths that 32 divides
    network = Network(
        norm=norm, neck_norm=norm, head_norm=norm, channels=64, box_convs=4, box_channels=64, box_fcs=1, mask_channels=32
    )
    config = described(layout, SHAPES[layout](network)).config
    assert (config.neck_norm, config.head_norm) == (Norm(norm), Norm(norm))
    assert config.backbone.options == ((("norm_layer", "groupnorm"),) if norm == "group" else ())


def test_numbers_of_classes_name_coco():
    assert described(detectron2, detectron2_shapes(Network(depth=18, classes=80))).categories == COCO_THINGS
    assert described(torchvision, torchvision_shapes(Network(depth=18, classes=90))).categories == COCO_THINGS_WITH_GAPS
    assert described(torchvision, torchvision_shapes(Network(depth=18, classes=2))).categories.names == ("class 0", "class 1")


# torchvision


def test_torchvisions_preprocessing_and_region_details():
    description = described(torchvision, torchvision_shapes(Network()))
    preprocessing, config = description.preprocessing, description.config
    assert (preprocessing.mean, preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (preprocessing.short_side, preprocessing.long_side, preprocessing.resize) == (800, 1333, Resize.TORCHVISION)
    assert (config.roi_aligned, config.roi_sampling, config.anchors_rounded) == (False, 2, True)
    assert not config.backbone.stride_in_1x1


def test_torchvisions_old_and_new_names_are_the_same_network():
    old = described(torchvision, torchvision_shapes(Network(), old_names=True)).config
    assert old == described(torchvision, torchvision_shapes(Network())).config
    assert old.backbone.norm_eps == 0.0


def test_torchvisions_second_version_is_found():
    network = Network(
        norm="batch", neck_norm="batch", head_norm="batch", rpn_convs=2, box_convs=4, box_fcs=1, classes=90, mask_channels=16
    )
    config = described(torchvision, torchvision_shapes(network)).config
    assert (config.neck_norm, config.head_norm, config.rpn_convs, config.box_convs, config.box_fcs) == (
        *(Norm.BATCH, Norm.BATCH),
        *(2, 4, 1),
    )
    assert config.backbone.norm_eps == 1e-5
    assert not config.backbone.frozen_norms


@pytest.mark.parametrize(
    ("network", "old_names", "eps"),
    [
        (Network(), True, 0.0),  # the published file
        (Network(), False, 0.0),  # the same, fine-tuned and saved by the current version
        (Network(norm="batch"), False, 1e-5),
        (Network(depth=18), False, 1e-5),
        (Network(groups=32, group_width=4), False, 1e-5),
    ],
)
def test_the_epsilon_of_torchvisions_frozen_norms(network, old_names, eps):
    config = described(torchvision, torchvision_shapes(network, old_names)).config
    assert config.backbone.norm_eps == eps
    assert config.backbone.frozen_norms == (network.norm == "frozen")


def test_a_variance_of_zero_rules_out_an_epsilon_of_zero():
    dead = {"backbone.body.layer1.0.bn1.running_var": torch.tensor([0.0] + [1.0] * 63)}
    assert described(torchvision, torchvision_shapes(Network()), **dead).config.backbone.norm_eps == 1e-5


# detectron2


def test_detectron2s_zoo_reads_bgr_and_moves_the_stride():
    tensors = hollow(detectron2_shapes(Network()))
    description = described(detectron2, detectron2_shapes(Network()))
    # RGB here: the mean in that order, and the first kernel flipped
    assert description.preprocessing.mean == IMAGENET_MEAN
    assert description.preprocessing.std == (1.0, 1.0, 1.0)
    assert description.preprocessing.resize is Resize.PILLOW
    assert description.config.backbone.stride_in_1x1
    stem = "backbone.bottom_up.stem.conv1.weight"
    kernel = torch.arange(64 * 3 * 49.0).reshape(64, 3, 7, 7)
    fitted = convert(tensors | {stem: kernel}, description.rules, our_shapes(description.config), "a")
    torch.testing.assert_close(fitted["backbone.body.conv1.weight"], kernel[:, [2, 1, 0]])


@pytest.mark.parametrize(
    ("network", "stated", "mean", "std", "stride_in_1x1"),
    [
        # COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml, from a later file without the buffers
        (Network(depth=101, groups=32, group_width=8), None, IMAGENET_MEAN, IMAGENET_STD, False),
        # the same with the buffers
        (Network(101, 32, 8), ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)), IMAGENET_MEAN, IMAGENET_STD, False),
        # torchvision's R-50 as a start: RGB
        (Network(), ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)), IMAGENET_MEAN, IMAGENET_STD, False),
        # Misc/mask_rcnn_R_50_FPN_3x_gn.yaml
        (Network(norm="group"), None, IMAGENET_MEAN, (1.0, 1.0, 1.0), False),
        # new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py keeps BGR and stride_in_1x1 of common/models/mask_rcnn_fpn.py
        (Network(norm="batch", rpn_convs=2, box_convs=4, box_fcs=1), None, IMAGENET_MEAN, (1.0, 1.0, 1.0), True),
        # Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn.yaml
        (Network(norm="batch"), ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)), IMAGENET_MEAN, IMAGENET_STD, False),
        # basic blocks have no 1x1
        (Network(depth=18), None, IMAGENET_MEAN, (1.0, 1.0, 1.0), False),
    ],
)
def test_detectron2s_configs_are_told_apart(network, stated, mean, std, stride_in_1x1):
    buffers = {}
    if stated:
        buffers = {
            f"pixel_{name}": torch.tensor(values).reshape(3, 1, 1) for name, values in zip(("mean", "std"), stated, strict=True)
        }
    description = described(detectron2, detectron2_shapes(network), **buffers)
    assert description.preprocessing.mean == pytest.approx(mean)
    assert description.preprocessing.std == pytest.approx(std)
    assert description.config.backbone.stride_in_1x1 == stride_in_1x1
    flips = any(rule.transform is not None for rule in description.rules)
    assert flips == (stated is None or stated[0][0] < stated[0][2])


def cells(sizes, ratios):
    """detectron2's stored anchors: one array a level, rows of x1 y1 x2 y2 around the origin; ratio is height over width."""
    arrays = {}
    for level, size in enumerate(sizes):
        rows = [[-size / r**0.5 / 2, -size * r**0.5 / 2, size / r**0.5 / 2, size * r**0.5 / 2] for r in ratios]
        arrays[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = torch.tensor(rows)
    return arrays


def test_stored_anchors_give_their_sizes_and_ratios():
    network = Network(depth=18)
    usual = described(detectron2, detectron2_shapes(network), **cells((32, 64, 128, 256, 512), (0.5, 1, 2))).config
    assert usual == described(detectron2, detectron2_shapes(network)).config
    other = described(
        detectron2, detectron2_shapes(replace(network, anchors=4)), **cells((16, 32, 64, 128, 300), (0.3, 1, 2, 3))
    ).config
    assert other.anchor_sizes == (16, 32, 64, 128, 300)
    assert other.anchor_ratios == pytest.approx((0.3, 1, 2, 3))


def test_several_anchor_sizes_on_a_level_are_refused():
    anchors = cells((32, 64, 128, 256, 512), (1, 1, 1))
    anchors["proposal_generator.anchor_generator.cell_anchors.0"] *= torch.tensor([[1.0], [1.3], [1.6]])
    with pytest.raises(CheckpointError, match="anchors of several sizes on one level"):
        described(detectron2, detectron2_shapes(Network(depth=18)), **anchors)


@pytest.mark.parametrize("layout", SHAPES)
def test_another_number_of_anchors_without_their_shapes_is_refused(layout):
    with pytest.raises(CheckpointError, match=r"model\.pth: has 5 anchors a cell where this layout has 3"):
        described(layout, SHAPES[layout](Network(depth=18, anchors=5)))


def test_lvis_keeps_more_and_fainter_detections():
    limits = described(detectron2, detectron2_shapes(Network(depth=18, classes=1230))).config.thresholds
    assert (limits.score, limits.detections) == (1e-4, 300)


# MMDetection

VERSION_2 = """
model = dict(backbone=dict(type='ResNet', style='caffe'))
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
"""
VERSION_3 = """
data_preprocessor = dict(bgr_to_rgb=False, mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], type='DetDataPreprocessor')
model = dict(
    backbone=dict(depth=50, style='caffe', type='ResNet'),
    data_preprocessor=dict(bgr_to_rgb=False, mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0]),
    roi_head=dict(
        bbox_head=dict(bbox_coder=dict(target_stds=[0.05, 0.05, 0.1, 0.1])),
        bbox_roi_extractor=dict(roi_layer=dict(output_size=7, sampling_ratio=2, type='RoIAlign'))),
    rpn_head=dict(anchor_generator=dict(ratios=[0.5, 1.0, 2.0], scales=[4], strides=[4, 8, 16, 32, 64])),
    test_cfg=dict(
        rcnn=dict(mask_thr_binary=0.4, max_per_img=50, nms=dict(iou_threshold=0.6, type='nms'), score_thr=0.1),
        rpn=dict(max_per_img=800, min_bbox_size=0, nms=dict(iou_threshold=0.8, type='nms'), nms_pre=900)))
test_pipeline = [dict(type='LoadImageFromFile'), dict(keep_ratio=True, scale=(1000, 600), type='Resize')]
"""


def test_mmdetections_default_is_pytorch_style():
    description = described(mmdetection, mmdetection_shapes(Network(norm="batch")))
    assert (description.preprocessing.mean, description.preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert description.preprocessing.resize is Resize.OPENCV
    assert not description.config.backbone.stride_in_1x1
    assert not any(rule.transform for rule in description.rules)


@pytest.mark.parametrize("meta", [{"config": VERSION_2}, {"cfg": VERSION_3}])
def test_mmdetections_config_text_tells_caffe_style(meta):
    description = described(mmdetection, mmdetection_shapes(Network(norm="batch")), {"meta": meta})
    assert (description.preprocessing.mean, description.preprocessing.std) == (IMAGENET_MEAN, (1.0, 1.0, 1.0))
    assert description.config.backbone.stride_in_1x1
    assert any(rule.transform for rule in description.rules)


def test_mmdetections_config_text_tells_anchors_thresholds_and_image_size():
    description = described(mmdetection, mmdetection_shapes(Network(norm="batch")), {"meta": {"cfg": VERSION_3}})
    config, limits = description.config, description.config.thresholds
    assert config.anchor_sizes == (16, 32, 64, 128, 256)
    assert config.box_weights == (20, 20, 10, 10)
    assert config.roi_sampling == 2
    assert (limits.proposals_per_level, limits.proposals, limits.proposal_nms) == (900, 800, 0.8)
    assert (limits.score, limits.nms, limits.detections, limits.mask) == (0.1, 0.6, 50, 0.4)
    assert (description.preprocessing.short_side, description.preprocessing.long_side) == (600, 1000)


def test_caffe_style_is_seen_by_its_folded_norms_where_the_config_text_is_gone():
    shapes = mmdetection_shapes(Network(norm="batch"))
    folded = {
        name: torch.zeros(shape) if name.endswith("running_mean") else torch.ones(shape)
        for name, shape in shapes.items()
        if "running" in name
    }
    assert described(mmdetection, shapes, **folded).config.backbone.stride_in_1x1
    fresh = {name: torch.ones(shape) for name, shape in shapes.items() if re.search(r"(bn\d|downsample\.1)\.weight", name)}
    assert not described(mmdetection, shapes, **folded, **fresh).config.backbone.stride_in_1x1


def test_mmdetections_class_names_become_categories():
    shapes = mmdetection_shapes(Network(depth=18, classes=2))
    for meta in (
        {"CLASSES": ("cat", "dog")},
        {"dataset_meta": {"classes": ("cat", "dog")}},
        {"dataset_meta": {"CLASSES": ["cat", "dog"]}},
    ):
        assert described(mmdetection, shapes, {"meta": meta}).categories.names == ("cat", "dog")
    # names that do not go with the classes are somebody else's
    assert described(mmdetection, shapes, {"meta": {"CLASSES": ("cat",)}}).categories.names == ("class 0", "class 1")
    coco = mmdetection_shapes(Network(depth=18, classes=80))
    assert described(mmdetection, coco, {"meta": {"CLASSES": COCO_THINGS.names}}).categories == COCO_THINGS


def test_a_config_text_that_is_no_python_is_said_and_left_aside():
    with pytest.warns(UserWarning, match=r"model\.pth: the config text in it can't be read"):
        described(mmdetection, mmdetection_shapes(Network(depth=18)), {"meta": {"config": "model = dict(("}})


def test_soft_nms_in_the_config_text_is_said():
    text = "model = dict(test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))))"
    with pytest.warns(UserWarning, match="was tested with soft_nms"):
        described(mmdetection, mmdetection_shapes(Network(depth=18)), {"meta": {"config": text}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rpn_head=dict(anchor_generator=dict(center_offset=0.5))", r"rpn_head\.anchor_generator\.center_offset is 0\.5"),
        ("rpn_head=dict(anchor_generator=dict(scales=[4, 8]))", r"anchor_generator\.scales is \[4, 8\]"),
        ("rpn_head=dict(anchor_generator=dict(octave_base_scale=4, scales_per_octave=3))", "scales_per_octave is 3"),
        ("rpn_head=dict(anchor_generator=dict(strides=[8, 16, 32, 64, 128]))", "strides is"),
        ("rpn_head=dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2]))", r"rpn_head\.bbox_coder\.target_stds is \[0\.1"),
        ("roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(type='RoIPool')))", r"roi_layer\.type is 'RoIPool'"),
        (
            "roi_head=dict(mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=2)))",
            "sampling_ratio of RoI Align is 0 for boxes and 2 for masks",
        ),
        ("roi_head=dict(mask_roi_extractor=dict(roi_layer=dict(aligned=False)))", "aligned of RoI Align is True for boxes"),
        ("neck=dict(type='PAFPN')", r"neck\.type is 'PAFPN'"),
        ("neck=dict(act_cfg=dict(type='ReLU'))", r"neck\.act_cfg is \{'type': 'ReLU'\}"),
        ("roi_head=dict(type='GridRoIHead')", r"roi_head\.type is 'GridRoIHead'"),
        ("roi_head=dict(bbox_head=dict(with_avg_pool=True))", r"with_avg_pool is True"),
        ("roi_head=dict(mask_head=dict(norm_cfg=dict(type='GN', num_groups=16)))", r"mask_head\.norm_cfg\.num_groups is 16"),
    ],
)
def test_settings_that_have_no_counterpart_here_are_refused_by_name_and_value(text, message):
    with pytest.raises(CheckpointError, match=message):
        described(mmdetection, mmdetection_shapes(Network(depth=18)), {"meta": {"config": f"model = dict({text})"}})


def test_usual_settings_are_taken():
    text = (
        "model = dict(neck=dict(type='mmdet.FPN', num_outs=5), rpn_head=dict(bbox_coder=dict(target_stds=[1.0, 1.0, 1.0, 1.0])),"
        "roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0)),"
        "mask_roi_extractor=dict(roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0))),"
        "test_cfg=dict(rpn=dict(min_bbox_size=3)))"
    )
    config = described(mmdetection, mmdetection_shapes(Network(depth=18)), {"meta": {"config": text}}).config
    assert (config.roi_sampling, config.roi_aligned, config.thresholds.proposal_min_size) == (0, True, 3.0)


def with_config(text):
    return described(mmdetection, mmdetection_shapes(Network(depth=18)), {"meta": {"cfg": text}})


def test_the_one_scale_of_an_octave_is_the_scale_of_the_anchors():
    text = "model = dict(rpn_head=dict(anchor_generator=dict(octave_base_scale=4, scales_per_octave=1)))"
    assert with_config(text).config.anchor_sizes == (16, 32, 64, 128, 256)


def test_a_limit_below_one_is_none():
    text = "model = dict(test_cfg=dict(rpn=dict(nms_pre=-1), rcnn=dict(max_per_img=-1, score_thr=0.0)))"
    limits = with_config(text).config.thresholds
    assert min(limits.proposals_per_level, limits.detections) == UNLIMITED
    assert limits.proposals == 1000


@pytest.mark.parametrize(
    ("text", "multiple"),
    [
        ("", 32),
        ("model = dict(data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=64))", 64),
        ("data = dict(test=dict(pipeline=[dict(type='Pad', size_divisor=16)]))", 16),
    ],
)
def test_the_config_text_tells_what_images_are_padded_to(text, multiple):
    assert with_config(text).preprocessing.pad_multiple == multiple


def test_images_that_were_stretched_to_a_square_are_and_to_another_shape_are_refused():
    text = "test_pipeline = [dict(type='Resize', scale=({}, 640), keep_ratio=False)]"
    assert with_config(text.format(640)).preprocessing.input_size(480, 320) == (640, 640)
    with pytest.raises(CheckpointError, match=r"model\.pth: was tested on images stretched to 800 x 640 pixels"):
        with_config(text.format(800))


@pytest.mark.parametrize(
    ("text", "reads_bgr"),
    [
        ("model = dict(data_preprocessor=dict({}))", True),
        ("model = dict(data_preprocessor=dict(rgb_to_bgr=True, {}))", False),
        ("data = dict(test=dict(pipeline=[dict(type='Normalize', {})]))", False),
        ("data = dict(test=dict(pipeline=[dict(type='Normalize', to_rgb=False, {})]))", True),
    ],
)
def test_files_are_read_as_bgr_and_each_version_has_its_own_default_of_what_becomes_of_that(text, reads_bgr):
    found = with_config(text.format("mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0]"))
    assert found.preprocessing.mean == ((3, 2, 1) if reads_bgr else (1, 2, 3))
    assert any(rule.transform for rule in found.rules) is reads_bgr


def swin_shapes(request):
    """Swin-T in the place of a ResNet, by the keys of MMDetection's Mask2Former."""
    keys = request.config.rootpath / "tests" / "reference" / "mmdet-mask2former-swin-t" / "keys.json"
    shapes = {name: tuple(shape) for name, shape in json.loads(keys.read_text()).items() if name.startswith("backbone.")}
    heads = {name: shape for name, shape in mmdetection_shapes(Network()).items() if not name.startswith("backbone.")}
    laterals = {f"neck.lateral_convs.{level}.conv.weight": (16, 96 << level, 1, 1) for level in range(4)}
    return shapes | heads | laterals


def test_a_swin_may_be_the_backbone(request):
    shapes = swin_shapes(request)
    backbone = described(mmdetection, shapes).config.backbone
    assert (backbone.name, backbone.original_windows) == ("swin_tiny_patch4_window7_224", True)
    assert (backbone.level_norms, backbone.frozen_norms, backbone.stride_in_1x1) == (True, False, False)
    # a kernel that reads B, G, R is turned, as a ResNet's is
    text = "model = dict(data_preprocessor=dict(bgr_to_rgb=False, mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0]))"
    patches = torch.arange(3.0)[None, :, None, None].expand(96, 3, 4, 4)
    description = described(mmdetection, shapes, {"meta": {"cfg": text}}, **{"backbone.patch_embed.projection.weight": patches})
    turned = rename({"backbone.patch_embed.projection.weight": patches}, description.rules).tensors
    assert turned["backbone.body.patch_embed.proj.weight"][0, :, 0, 0].tolist() == [2, 1, 0]


def test_weight_standardisation_is_refused():
    text = "model = dict(backbone=dict(conv_cfg=dict(type='ConvWS')))"
    with pytest.raises(CheckpointError, match="weight standardisation"):
        described(mmdetection, mmdetection_shapes(Network(depth=18)), {"meta": {"config": text}})


# What is not a Mask R-CNN on FPN


@pytest.mark.parametrize(
    ("layout", "extra", "what"),
    [
        (torchvision, "roi_heads.keypoint_head.0.weight", "Keypoint R-CNN"),
        (torchvision, "backbone.body.0.0.weight", "a MobileNet backbone"),
        (detectron2, "roi_heads.res5.0.conv1.weight", "Mask R-CNN C4"),
        (detectron2, "backbone.res5.0.conv1.weight", r"Mask R-CNN without FPN \(DC5\)"),
        (detectron2, "roi_heads.box_head.0.fc1.weight", "Cascade R-CNN"),
        (detectron2, "backbone.bottom_up.s1.b1.f.a.weight", "a RegNet backbone"),
        (mmdetection, "backbone.stem.0.weight", "a ResNet with a deep stem"),
        (mmdetection, "backbone.downsample_layers.0.0.weight", "a backbone other than ResNet and Swin"),
        (mmdetection, "roi_head.bbox_head.0.fc_cls.weight", "Cascade R-CNN"),
        (mmdetection, "bbox_head.fc_cls.weight", "a network of MMDetection 1, which has background first,"),
    ],
)
def test_networks_of_other_families_are_named(layout, extra, what):
    tensors = hollow(SHAPES[layout](Network(depth=18))) | {extra: torch.zeros(1)}
    with pytest.raises(CheckpointError, match=f"{what}.*is not supported yet"):
        layout.describe(tensors, {}, "model.pth")


def test_a_deep_stem_of_mmdetection_is_not_taken_for_detectron2s():
    tensors = hollow(mmdetection_shapes(Network(depth=18))) | {"backbone.stem.0.weight": torch.zeros(1)}
    assert next(layout for layout in LAYOUTS if layout.detect(tensors)) is mmdetection


@pytest.mark.parametrize("layout", SHAPES)
def test_a_detector_without_a_mask_head_is_named(layout):
    shapes = {name: shape for name, shape in SHAPES[layout](Network(depth=18)).items() if "mask" not in name}
    with pytest.raises(CheckpointError, match="is a Faster R-CNN, which has no mask head"):
        layout.describe(hollow(shapes), {}, "model.pth")


def test_a_backbone_that_is_no_resnet_is_said():
    shapes = mmdetection_shapes(Network(depth=50))
    shapes["backbone.conv1.weight"] = (32, 3, 3, 3)
    with pytest.raises(CheckpointError, match="a stem of 32 channels where a ResNet has 64"):
        mmdetection.describe(hollow(shapes), {}, "model.pth")


def test_blocks_numbered_with_gaps_are_said():
    shapes = torchvision_shapes(Network(depth=18))
    shapes["backbone.body.layer1.999999999.conv1.weight"] = (64, 64, 3, 3)
    with pytest.raises(CheckpointError, match="with gaps"):
        torchvision.describe(hollow(shapes), {}, "model.pth")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["attn_mask_probs", "class_head.weight"], "EoMT, which is not supported yet"),
        (
            ["proto_net.0.weight", "backbone.layers.0.0.conv1.weight"],
            r"its pyramid has 0 levels from the backbone; YOLACT's has 3",
        ),
        (["conv1.weight", "layer1.0.conv1.weight"], "holds a backbone alone"),
        (
            ["some.weight"],
            r"its 1 arrays \(some\.weight \.\.\.\) are of no layout known here \(.*torchvision, detectron2\)",
        ),
    ],
)
def test_files_of_no_known_layout_are_named_from_the_front(tmp_path, names, message):
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=rf"model\.pth: .*{message}"):
        load_foreign(tmp_path / "model.pth")


@pytest.mark.parametrize("layout", SHAPES)
def test_a_reference_keys_file_is_recognised(layout, request):
    case = {
        torchvision: "torchvision-maskrcnn-r50-fpn",
        detectron2: "detectron2-mask-rcnn-r50-fpn",
        mmdetection: "mmdet-mask-rcnn-r50-fpn",
    }[layout]
    keys = request.config.rootpath / "tests" / "reference" / case / "keys.json"
    shapes = {name: tuple(shape) for name, shape in json.loads(keys.read_text()).items()}
    classes = 90 if layout is torchvision else 80
    network = Network(
        norm="batch" if layout is mmdetection else "frozen",
        **{"channels": 256, "box_channels": 256, "box_width": 1024, "mask_channels": 256, "classes": classes},
    )
    # what the table of this file spells out is what the original's own file has
    spelled = torchvision_shapes(network, old_names=True) if layout is torchvision else SHAPES[layout](network)
    assert spelled == shapes

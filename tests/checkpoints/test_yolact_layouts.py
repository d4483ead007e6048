"""YOLACT in its authors' layout and in MMDetection's: sizes of the network from keys and shapes, and what no array shows."""

import re
import warnings

import pytest
import torch

from thingstuff.checkpoints import LAYOUTS, load_foreign, mmdetection_yolact, yolact
from thingstuff.checkpoints.files import build, shapes_of
from thingstuff.checkpoints.rules import convert
from thingstuff.errors import CheckpointError
from thingstuff.models.backbone import BackboneConfig
from thingstuff.models.fpn import Extra
from thingstuff.models.yolact import Yolact, YolactConfig
from thingstuff.structures.preprocessing import Resize

from .yolact_names import PLUS, RESNET50, authors, of_mmdetection


def hollow(shapes):
    """Arrays of these shapes that take no memory; norms and biases are real."""
    return {
        name: torch.empty(tuple(shape), device="meta") if len(shape) > 1 else torch.ones(tuple(shape))
        for name, shape in shapes.items()
    }


def described(layout, shapes, name="model.pth", meta=None):
    """The file's description; what it describes fits exactly."""
    tensors = hollow(shapes)
    assert next(other for other in LAYOUTS if other.detect(tensors)) is layout
    description = layout.describe(tensors, meta or {}, name)
    assert description.model is Yolact
    convert(tensors, description.rules, shapes_of(Yolact, description.config), name)
    return description


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        ({}, {"classes": 80, "prototypes": 32, "anchor_scales": (1.0,), "square_anchors": True}),
        ({"backbone": BackboneConfig("resnet101"), "classes": 3, "prototypes": 16}, {"classes": 3, "prototypes": 16}),
        ({"backbone": BackboneConfig("resnet18"), "width": 64, "classes": 1}, {"channels": 64, "classes": 1}),
        ({"backbone": BackboneConfig("darknet53")}, {"square_anchors": True}),
        (PLUS, {"square_anchors": False, "mask_rating_channels": (8, 16, 32, 64, 128)}),
    ],
)
def test_the_authors_networks_are_recognised(network, wanted):
    found = described(yolact, authors(**network)).config
    for name, value in wanted.items():
        assert getattr(found, name) == value
    assert found.backbone.name == network.get("backbone", RESNET50).name
    assert found.anchor_sizes == (24, 48, 96, 192, 384)


def test_yolact_plus_has_deformable_blocks_and_nine_anchors():
    blocks = ("layer2.0", "layer2.3", "layer3.0", "layer3.3", "layer3.21", "layer4.0")
    backbone = BackboneConfig("resnet101", deformable=blocks, deformable_bias=True)
    found = described(yolact, authors(backbone, **PLUS)).config
    assert sorted(found.backbone.deformable) == sorted(blocks)
    assert found.anchor_scales == pytest.approx((1, 1.26, 1.587), abs=1e-3)


def test_the_files_name_tells_the_size_and_pascals_anchors():
    found = described(yolact, authors(), "weights/yolact_im700_54_800000.pth")
    assert found.preprocessing.input_size(480, 640) == (700, 700)
    assert found.config.anchor_sizes == (30, 61, 122, 244, 488)
    found = described(yolact, authors(classes=20), "yolact_resnet50_pascal_54_120000.pth")
    assert found.config.anchor_sizes == (32, 64, 128, 256, 512)
    assert not found.config.square_anchors


def test_the_authors_images():
    found = described(yolact, authors()).preprocessing
    assert (found.mean, found.std) == ((123.68, 116.78, 103.94), (58.40, 57.12, 57.38))
    assert found.resize is Resize.TORCHVISION
    assert found.input_size(480, 640) == (550, 550)
    assert found.pad_multiple == 1
    found = described(yolact, authors(BackboneConfig("darknet53"))).preprocessing
    assert (found.mean, found.std) == ((0, 0, 0), (255, 255, 255))


def test_what_published_files_hold_besides_is_left_out():
    shapes = authors()
    shapes |= {
        f"fpn.downsample_layers.{index}.{part}": shapes[f"fpn.downsample_layers.1.{part}"]
        for index in (2, 3)
        for part in ("weight", "bias")
    }
    shapes |= {
        name.replace("layers.0", "layer1"): shape for name, shape in shapes.items() if name.startswith("backbone.layers.0")
    }
    assert described(yolact, shapes).config == described(yolact, authors()).config


def test_background_moves_to_the_end_of_each_anchor():
    rows = torch.arange(3 * 5 * 2).reshape(15, 2).float()  # three anchors of background and four classes
    tensors = hollow(authors(classes=4)) | {"prediction_layers.0.conf_layer.bias": rows[:, 0]}
    description = yolact.describe(tensors, {}, "model.pth")
    found = convert(tensors, description.rules, shapes_of(Yolact, description.config), "model.pth")["head.classes.bias"]
    assert (found / 2).tolist() == [1, 2, 3, 4, 0, 6, 7, 8, 9, 5, 11, 12, 13, 14, 10]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchors": 5}, "has 5 anchors a cell where YOLACT has 3 and YOLACT"),
        (
            {"extra": {"prediction_layers.1.bbox_layer.weight": (12, 256, 3, 3)}},
            "a head of its own on every level.* not supported yet",
        ),
        ({"extra": {"surprise.weight": (4,)}}, r"surprise\.weight: no rule knows it"),
        ({"without": "proto_net.10.weight"}, "lacks what becomes prototype_net.prototypes|do not fit|which is not"),
        ({"without": "fpn.lat_layers.2.weight"}, "its pyramid has 2 levels"),
    ],
)
def test_other_networks_of_the_repository_are_named(change, message):
    shapes = authors(anchors=change.get("anchors", 3)) | change.get("extra", {})
    shapes.pop(change.get("without", ""), None)
    with pytest.raises(CheckpointError, match=message):
        described(yolact, shapes)


CONFIG = """
model = dict(
    type='YOLACT',
    backbone=dict(type='ResNet', depth=50, style='pytorch'),
    neck=dict(type='FPN', start_level=1, add_extra_convs='on_input', num_outs=5, upsample_cfg=dict(mode='bilinear')),
    bbox_head=dict(
        type='YOLACTHead',
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, base_sizes=[8, 16, 32, 64, 128],
            ratios=[0.25, 1.0, 4.0], strides=[8.0, 16.0, 32.0, 64.0, 128.0],
            centers=[(4.0, 4.0), (8.0, 8.0), (16.0, 16.0), (32.0, 32.0), (64.0, 64.0)]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.2, 0.2, 0.4, 0.4])),
    mask_head=dict(type='YOLACTProtonet'),
    test_cfg=dict(nms_pre=500, score_thr=0.1, iou_thr=0.6, top_k=150, max_per_img=20, mask_thr=0.4))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(400, 400), keep_ratio=False)]
"""


def test_mmdetections_network_is_recognised():
    found = described(mmdetection_yolact, of_mmdetection(classes=7))
    assert (found.config.classes, found.config.extra_levels) == (7, Extra.FROM_BACKBONE)
    assert found.config.anchor_sizes == (24, 48, 96, 192, 384)
    assert found.config.anchor_strides == pytest.approx((550 / 69, 550 / 35, 550 / 18, 550 / 9, 110))
    assert found.config.thresholds.anchors_per_level == 1000
    assert found.preprocessing.input_size(480, 640) == (550, 550)
    assert found.preprocessing.mean == (123.68, 116.78, 103.94)
    assert found.preprocessing.resize is Resize.OPENCV


def test_mmdetections_config_says_what_arrays_do_not():
    found = described(mmdetection_yolact, of_mmdetection(), meta={"meta": {"cfg": CONFIG}})
    assert found.config.anchor_sizes == (32, 64, 128, 256, 512)
    assert found.config.anchor_ratios == (0.25, 1, 4)
    assert found.config.anchor_strides == (8, 16, 32, 64, 128)
    assert found.config.box_weights == (5, 5, 2.5, 2.5)
    limits = found.config.thresholds
    assert (limits.anchors_per_level, limits.score, limits.nms, limits.class_candidates) == (500, 0.1, 0.6, 150)
    assert (limits.detections, limits.mask) == (20, 0.4)
    assert found.preprocessing.input_size(480, 640) == (400, 400)


def test_older_names_and_other_places_of_mmdetection():
    assert described(mmdetection_yolact, of_mmdetection(semantic="segm_head.segm_conv")).config.classes == 80
    assert described(mmdetection_yolact, of_mmdetection(extra_from=256)).config.extra_levels is Extra.FROM_PYRAMID


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mode='bilinear'", "mode='nearest'", "model.neck.upsample_cfg.mode is 'nearest'"),
        ("upsample_cfg=dict(mode='bilinear')", "norm_cfg=None", "its pyramid (MMDetection) is enlarged by repeating cells"),
        ("(4.0, 4.0)", "(0.0, 0.0)", "centres are not those of their cells"),
        ("scale=(400, 400)", "scale=(400, 300)", "a square is all that is supported"),
        ("type='YOLACTHead'", "type='YOLACTHead', use_sigmoid_cls=True", "use_sigmoid_cls is True"),
    ],
)
def test_settings_without_a_counterpart_are_refused(old, new, message):
    assert old in CONFIG
    with pytest.raises(CheckpointError, match=re.escape(message)):
        described(mmdetection_yolact, of_mmdetection(), meta={"meta": {"cfg": CONFIG.replace(old, new)}})


def test_a_file_of_yolact_plus_gives_a_network_that_runs(tmp_path):
    torch.manual_seed(0)
    backbone = BackboneConfig("resnet18", deformable=("layer2.0", "layer4.1"), deformable_bias=True)
    shapes = authors(backbone, classes=2, prototypes=4, width=16, **PLUS)
    state = {name: torch.randn(shape) * 0.05 if len(shape) > 1 else torch.ones(shape) for name, shape in shapes.items()}
    torch.save(state, tmp_path / "yolact_plus_im64_1_2.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, categories, preprocessing = load_foreign(tmp_path / "yolact_plus_im64_1_2.pth")
    batch = preprocessing.batch([torch.randint(0, 255, (50, 70, 3), dtype=torch.uint8).numpy()])
    with torch.inference_mode():
        (segments,) = model.segments(model(batch.pixels), batch.sizes, categories)
    assert batch.pixels.shape == (1, 3, 64, 64)
    assert segments.size == (50, 70)


def test_what_is_saved_here_is_loaded_here(tmp_path):
    from thingstuff.checkpoints.files import read, save
    from thingstuff.models.catalog import CATALOG
    from thingstuff.structures.categories import Categories

    kind, config, preprocessing = CATALOG["yolact-tiny"]
    model = kind(config)
    save(tmp_path / "tiny.safetensors", model, Categories.numbered(3), preprocessing)
    again, _, images = read(tmp_path / "tiny.safetensors")
    assert isinstance(again.config, YolactConfig)
    assert (again.config, images) == (config, preprocessing)
    rebuilt = build(kind, config, model.state_dict())
    torch.testing.assert_close(again.state_dict(), rebuilt.state_dict(), rtol=0, atol=0)

"""SOLO's family in the layouts of MMDetection, AdelaiDet and the authors: sizes found, settings read, variants refused."""

import json
import re
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch

import thingstuff
from thingstuff.checkpoints import LAYOUTS, adelaidet, mmdetection_solo
from thingstuff.checkpoints.files import shapes_of
from thingstuff.checkpoints.mmdetection_config import UNLIMITED
from thingstuff.checkpoints.rules import convert
from thingstuff.errors import CheckpointError
from thingstuff.models.backbone import BackboneConfig
from thingstuff.models.deformable import Deformable
from thingstuff.models.solo import SOLO, DecoupledSOLO, DecoupledSOLOConfig, SOLOConfig, Thresholds
from thingstuff.models.solov2 import SOLOv2, SOLOv2Config

REFERENCE = Path(__file__).parents[1] / "reference"

# From our names to each library's, spelled out the other way round than the tables that are tested.
_BODY = [
    (r"backbone\.body\.", "backbone."),
    (r"neck\.lateral\.(\d)\.conv", r"neck.lateral_convs.\1.conv"),
    (r"neck\.output\.(\d)\.conv", r"neck.fpn_convs.\1.conv"),
    (r"\.norm\.", ".gn."),
    (r"\.offset\.", ".conv_offset."),
]
_COUNTED = r"mask_feature\.levels\.(\d)\.(\d)"
NAMES = {
    "mmdetection": [
        *_BODY,
        (r"category_branch\.convs", "mask_head.cls_convs"),
        (r"mask_branch\.convs", "mask_head.mask_convs"),
        (r"column_branch\.convs", "mask_head.mask_convs_x"),
        (r"row_branch\.convs", "mask_head.mask_convs_y"),
        (r"kernel_branch\.convs", "mask_head.kernel_convs"),
        (r"^categories", "mask_head.conv_cls"),
        (r"^kernels\.(\d)", r"mask_head.conv_mask_list.\1"),
        (r"^kernels", "mask_head.conv_kernel"),
        (r"^columns", "mask_head.conv_mask_list_x"),
        (r"^rows", "mask_head.conv_mask_list_y"),
        (_COUNTED, r"mask_head.mask_feature_head.convs_all_levels.\1.conv\2"),
        (r"mask_feature\.output", "mask_head.mask_feature_head.conv_pred"),
    ],
    "authors": [
        *_BODY,
        (r"category_branch\.convs", "bbox_head.cate_convs"),
        (r"mask_branch\.convs", "bbox_head.ins_convs"),
        (r"column_branch\.convs", "bbox_head.ins_convs_x"),
        (r"row_branch\.convs", "bbox_head.ins_convs_y"),
        (r"kernel_branch\.convs", "bbox_head.kernel_convs"),
        (r"^categories", "bbox_head.solo_cate"),  # dsolo_cate where masks are decoupled
        (r"^kernels\.(\d)", r"bbox_head.solo_ins_list.\1"),
        (r"^kernels", "bbox_head.solo_kernel"),
        (r"^columns", "bbox_head.dsolo_ins_list_x"),
        (r"^rows", "bbox_head.dsolo_ins_list_y"),
        (_COUNTED, r"mask_feat_head.convs_all_levels.\1.conv\2"),
        (r"mask_feature\.output", "mask_feat_head.conv_pred.0"),
    ],
    "adelaidet": [
        (r"backbone\.body\.conv1\.weight", "backbone.bottom_up.stem.conv1.weight"),
        (r"backbone\.body\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
        (r"conv2\.offset", "conv2_offset"),
        (r"downsample\.0\.", "shortcut."),
        (r"downsample\.1\.", "shortcut.norm."),
        (r"\.bn(\d)\.", r".conv\1.norm."),
        *((rf"backbone\.body\.layer{stage}\.", f"backbone.bottom_up.res{stage + 1}.") for stage in (1, 2, 3, 4)),
        *((rf"neck\.lateral\.{level}\.conv", f"backbone.fpn_lateral{level + 2}") for level in range(4)),
        *((rf"neck\.output\.{level}\.conv", f"backbone.fpn_output{level + 2}") for level in range(4)),
        *((rf"_branch\.convs\.{number}\.conv\.", f"_tower.{3 * number}.") for number in range(4)),
        *((rf"_branch\.convs\.{number}\.norm\.", f"_tower.{3 * number + 1}.") for number in range(4)),
        (r"^category_tower", "ins_head.cate_tower"),
        (r"^kernel_tower", "ins_head.kernel_tower"),
        (r"^categories", "ins_head.cate_pred"),
        (r"^kernels", "ins_head.kernel_pred"),
        (_COUNTED + r"\.conv\.", r"mask_head.convs_all_levels.\1.conv\2.0."),
        (_COUNTED + r"\.norm\.", r"mask_head.convs_all_levels.\1.conv\2.1."),
        (r"mask_feature\.output\.conv\.", "mask_head.conv_pred.0."),
        (r"mask_feature\.output\.norm\.", "mask_head.conv_pred.1."),
    ],
}

_SIZES = {"classes": 7, "channels": 32, "head_channels": 64, "drop_empty": False}
_GRIDS = (10, 9, 6, 4, 3)
_SHORT = (("layers", (1, 2, 1, 1)),)
_448 = ((1.0, 56.0), (28.0, 112.0), (56.0, 224.0), (112.0, 448.0), (224.0, 2048.0))
_512 = ((1.0, 64.0), (32.0, 128.0), (64.0, 256.0), (128.0, 512.0), (256.0, 2048.0))
_DEFORMABLE = ("layer2.0", "layer2.1", "layer3.0", "layer4.0")
CONFIGS = {
    "solo": SOLOConfig(BackboneConfig("resnet34"), head_convs=3, grids=_GRIDS, **_SIZES),
    "decoupled": DecoupledSOLOConfig(BackboneConfig("resnet18"), head_convs=2, grids=_GRIDS, **_SIZES),
    "decoupled light": DecoupledSOLOConfig(
        BackboneConfig("resnet50", _SHORT), head_convs=2, grids=_GRIDS, scale_ranges=_512, shared_convs=True, **_SIZES
    ),
    "decoupled light dcn": DecoupledSOLOConfig(
        BackboneConfig("resnet50", _SHORT, deformable=_DEFORMABLE, deformable_kind=Deformable.V1),
        head_convs=2,
        deformable_convs=1,
        deformable_kind=Deformable.V1,
        grids=_GRIDS,
        scale_ranges=_512,
        shared_convs=True,
        **_SIZES,
    ),
    "solov2": SOLOv2Config(BackboneConfig("resnet50", _SHORT), head_convs=4, mask_channels=32, kernel_channels=96, **_SIZES),
    "solov2 light": SOLOv2Config(
        BackboneConfig("resnet18"), head_convs=2, mask_channels=32, kernel_channels=32, scale_ranges=_448, **_SIZES
    ),
    "solov2 light dcn": SOLOv2Config(
        BackboneConfig("resnet50", _SHORT, deformable=_DEFORMABLE, deformable_kind=Deformable.V1),
        head_convs=3,
        deformable_convs=1,
        deformable_kind=Deformable.V1,
        mask_channels=32,
        kernel_channels=32,
        scale_ranges=_512,
        **_SIZES,
    ),
    "solov2 v1": SOLOv2Config(  # in the backbone alone
        BackboneConfig("resnet50", _SHORT, deformable=_DEFORMABLE, deformable_kind=Deformable.V1),
        head_convs=4,
        mask_channels=32,
        kernel_channels=96,
        **_SIZES,
    ),
    "solov2 dcn": SOLOv2Config(
        BackboneConfig("resnet50", (*_SHORT, ("cardinality", 32), ("base_width", 4)), deformable=_DEFORMABLE),
        head_convs=4,
        deformable_convs=4,
        deformable_masks=Deformable.V2,
        mask_channels=32,
        kernel_channels=96,
        **_SIZES,
    ),
}
MODELS = {SOLOConfig: SOLO, DecoupledSOLOConfig: DecoupledSOLO, SOLOv2Config: SOLOv2}
PAIRS = [
    *((layout, kind) for layout in ("mmdetection", "authors") for kind in CONFIGS),
    ("adelaidet", "solov2"),
    ("adelaidet", "solov2 light"),
    ("adelaidet", "solov2 v1"),
]


def theirs(layout, kind, name):
    for pattern, replacement in NAMES[layout]:
        name = re.sub(pattern, replacement, name)
    return name.replace("solo_cate", "dsolo_cate") if kind.startswith("decoupled") else name


@cache
def shapes_here(kind):
    config = CONFIGS[kind]
    return shapes_of(MODELS[type(config)], config)


def hollow(layout, kind):
    """A file's arrays, without memory."""
    return {theirs(layout, kind, name): torch.tensor(0.5).expand(shape) for name, shape in shapes_here(kind).items()}


def described(tensors, meta=None):
    layout = next(layout for layout in LAYOUTS if layout.detect(tensors))
    return layout.describe(tensors, meta or {}, "model.pth")


def with_config(text):
    return {"meta": {"cfg": text}}


@pytest.mark.parametrize("case", ["mmdet-solo-r50", "mmdet-solov2-r50", "mmdet-solov2-light-r50"])
def test_the_names_of_mmdetection_are_those_of_the_cases(case):
    keys = json.loads((REFERENCE / case / "keys.json").read_text())
    tensors = {name: torch.tensor(0.5).expand(shape) for name, shape in keys.items()}
    found = described(tensors)
    shapes = shapes_of(found.model, found.config)
    assert {theirs("mmdetection", "", name) for name in shapes} == set(keys)
    convert(tensors, found.rules, shapes, case)


@pytest.mark.parametrize(("layout", "kind"), PAIRS)
def test_every_size_is_found_and_every_array_has_its_place(layout, kind):
    tensors = hollow(layout, kind)
    found = described(tensors)
    expected = CONFIGS[kind]
    in_1x1 = layout == "adelaidet" and expected.backbone.name == "resnet50"
    backbone = replace(expected.backbone, frozen_norms=True, stride_in_1x1=in_1x1)
    assert found.model is MODELS[type(expected)]
    assert found.config == replace(expected, backbone=backbone)
    assert len(found.categories) == 7
    assert set(convert(tensors, found.rules, shapes_here(kind), "model.pth")) == set(shapes_here(kind))


def lively(kind):
    """A network in which every array matters: norms have statistics, kernels move their taps, masks have shapes."""
    torch.manual_seed(0)
    config = CONFIGS[kind]
    model = MODELS[type(config)](config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_mean"):  # without statistics these would be taken for caffe's
                tensor.normal_(std=0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif "bn" in name or "norm" in name or "downsample.1" in name:
                tensor.normal_(mean=0.5 if name.endswith("weight") else 0.0, std=0.3)
            elif ".offset." in name:
                tensor.normal_(std=0.1)
            elif name.startswith(("categories", "kernels", "columns", "rows")) and name.endswith("weight"):
                tensor.mul_(20)
    return model


def flat(predictions):
    """All arrays of a network's predictions, by the field's name and the level."""
    for field in fields(predictions):
        value = getattr(predictions, field.name)
        for level, array in enumerate(value if isinstance(value, tuple) else (value,)):
            yield f"{field.name} {level}", array


@pytest.mark.parametrize(("layout", "kind"), PAIRS)
def test_a_network_answers_alike_from_every_layout(layout, kind, tmp_path):
    model = lively(kind)
    image = torch.randn(1, 3, 64, 96)
    state = {theirs(layout, kind, name): tensor for name, tensor in model.state_dict().items()}
    expected = model
    if layout == "adelaidet":
        stem = "backbone.bottom_up.stem.conv1.weight"
        state[stem] = state[stem].flip(1)  # reads BGR
        if "50" in model.config.backbone.name:
            backbone = replace(model.config.backbone, stride_in_1x1=True)
            expected = SOLOv2(replace(model.config, backbone=backbone)).eval()
            expected.load_state_dict(model.state_dict())
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    loaded = thingstuff.load(tmp_path / "model.pth", device="cpu").model
    with torch.inference_mode():
        for (name, found), (_, wanted) in zip(flat(loaded(image)), flat(expected(image)), strict=True):
            assert wanted.std() > 1e-3, name
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_the_images_are_those_of_the_published_networks():
    sizes = {
        (layout, kind): (found.preprocessing.short_side, found.preprocessing.long_side)
        for layout, kind in PAIRS
        if (found := described(hollow(layout, kind)))
    }
    assert sizes["mmdetection", "solo"] == sizes["authors", "solov2"] == sizes["adelaidet", "solov2"] == (800, 1333)
    assert sizes["mmdetection", "solov2 light"] == sizes["authors", "solov2 light"] == (448, 768)
    assert sizes["authors", "decoupled light"] == sizes["authors", "solov2 light dcn"] == (512, 852)
    assert described(hollow("adelaidet", "solov2")).preprocessing.std == (1.0, 1.0, 1.0)
    assert described(hollow("authors", "solov2")).preprocessing.std == (58.395, 57.12, 57.375)


@pytest.mark.parametrize(
    ("layout", "head", "centre", "score"),
    [("mmdetection", "mask_head", "pos_scale", "filter_thr"), ("authors", "bbox_head", "sigma", "update_thr")],
)
def test_the_config_text_decides_what_no_array_shows(layout, head, centre, score):
    text = f"""
model = dict({head}=dict(num_grids=[30, 24, 16, 12, 8], {centre}=0.3,
    scale_ranges=((1, 50), (25, 100), (50, 200), (100, 400), (200, 900))))
test_cfg = dict(nms_pre=300, score_thr=0.2, mask_thr=0.4, {score}=0.1, kernel='linear', sigma=1.5, max_per_img=50)
test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(852, 512))]
"""
    found = described(hollow(layout, "solov2"), with_config(text))
    assert found.config.grids == (30, 24, 16, 12, 8)
    assert found.config.centre == 0.3
    assert found.config.scale_ranges == ((1.0, 50.0), (25.0, 100.0), (50.0, 200.0), (100.0, 400.0), (200.0, 900.0))
    assert found.config.thresholds == Thresholds(0.1, 50, 0.2, 0.4, 300, "linear", 1.5)
    assert (found.preprocessing.short_side, found.preprocessing.long_side) == (512, 852)


def test_limits_of_mmdetection_that_leave_nothing_out():
    text = "model = dict(test_cfg=dict(nms_pre=-1, filter_thr=-1, max_per_img=-1))"
    limits = described(hollow("mmdetection", "solov2"), with_config(text)).config.thresholds
    assert (limits.score, limits.detections, limits.candidates) == (0.0, UNLIMITED, UNLIMITED)


@pytest.mark.parametrize(
    ("layout", "extra", "what"),
    [
        ("mmdetection", "backbone.stem.0.weight", "a ResNet with a deep stem"),
        ("adelaidet", "ins_head.cate_tower.0.bias", "SOLOv2 without group norm"),
        ("adelaidet", "backbone.bottom_up.stem.conv1_1.weight", "a ResNet with a deep stem"),
    ],
)
def test_variants_that_are_not_supported_are_named(layout, extra, what):
    with pytest.raises(CheckpointError, match=rf"model\.pth: {what}.* is not supported yet"):
        described(hollow(layout, "solov2") | {extra: torch.zeros(1)})


def test_batch_norm_in_the_branches_is_named():
    tensors = {name.replace(".gn.", ".bn."): tensor for name, tensor in hollow("mmdetection", "solov2").items()}
    tensors |= {name.replace("weight", "running_mean"): tensor for name, tensor in tensors.items() if name.endswith(".bn.weight")}
    with pytest.raises(CheckpointError, match="branches without group norm"):
        described(tensors)


def test_larger_dynamic_convolutions_are_named():
    tensors = hollow("mmdetection", "solov2")
    tensors["mask_head.conv_kernel.weight"] = torch.zeros(()).expand(9 * 96, 64, 3, 3)
    with pytest.raises(CheckpointError, match="dynamic convolutions larger than 1 x 1 are not supported"):
        described(tensors)


@pytest.mark.parametrize("setting", ["cls_down_index=2", "strides=[4, 8, 16, 32, 64]", "norm_cfg=dict(type='GN', num_groups=16)"])
def test_settings_that_change_the_result_are_named(setting):
    meta = with_config(f"model = dict(mask_head=dict({setting}))")
    with pytest.raises(CheckpointError, match=rf"model\.mask_head\.{setting.partition('=')[0]}.* is not supported yet"):
        described(hollow("mmdetection", "solo"), meta)


@pytest.mark.parametrize("old", [".conv_offset_mask.", "_offset.", "_offset_mask."])
def test_older_names_of_offsets_are_the_same_network(old):
    tensors = {name.replace(".conv_offset.", old): tensor for name, tensor in hollow("authors", "solov2 dcn").items()}
    assert described(tensors).config == described(hollow("authors", "solov2 dcn")).config
    convert(tensors, described(tensors).rules, shapes_here("solov2 dcn"), "model.pth")


def test_deformable_convolutions_must_be_the_last_of_their_branches():
    tensors = hollow("authors", "solov2 light dcn")
    for part in ("weight", "bias"):
        tensors[f"bbox_head.kernel_convs.0.conv.conv_offset.{part}"] = tensors.pop(
            f"bbox_head.kernel_convs.2.conv.conv_offset.{part}"
        )
    found = described(tensors)
    with pytest.raises(CheckpointError, match=r"bbox_head\.kernel_convs\.0\.conv\.conv_offset\.weight .*no such parameter"):
        convert(tensors, found.rules, shapes_of(found.model, found.config), "model.pth")


def test_a_missing_array_is_named():
    tensors = hollow("authors", "solo")
    del tensors["bbox_head.solo_ins_list.3.weight"]
    with pytest.raises(CheckpointError, match=r"looks like a SOLO .* but lacks what becomes kernels\.3\.weight"):
        described(tensors)


def test_each_layout_detects_its_own_files_alone():
    for layout in ("mmdetection", "authors", "adelaidet"):
        tensors = hollow(layout, "solov2")
        assert mmdetection_solo.detect(tensors) == (layout != "adelaidet")
        assert adelaidet.detect(tensors) == (layout == "adelaidet")

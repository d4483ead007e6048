"""detectron2's and MMDetection's Panoptic FPN of every size, found from names and shapes, and what is refused."""

import json

import pytest
import torch

from thingstuff.checkpoints import LAYOUTS, detectron2, load_foreign, mmdetection
from thingstuff.checkpoints.files import shapes_of
from thingstuff.checkpoints.rules import convert
from thingstuff.errors import CheckpointError
from thingstuff.models.contract import Task
from thingstuff.models.fpn import Norm
from thingstuff.models.mask_rcnn import MaskRCNN
from thingstuff.models.panoptic_fpn import PanopticFPN, Thresholds
from thingstuff.structures.categories import COCO_PANOPTIC

from .layouts import Network, detectron2_shapes, mmdetection_shapes, norm_of
from .test_layouts import hollow

LAYOUT_SHAPES = {detectron2: detectron2_shapes, mmdetection: mmdetection_shapes}


def panoptic_shapes(layout, net, stuff=4, width=64, norm="group"):
    """A Mask R-CNN's names and shapes with those of a semantic branch."""
    shapes = LAYOUT_SHAPES[layout](net)
    for level in range(4):
        for number in range(max(level, 1)):
            if layout is detectron2:  # an upsampling after each convolution takes a number, too
                name = f"sem_seg_head.p{level + 2}.{2 * number}"
                conv, norm_name = name, f"{name}.norm"
            else:
                name = f"semantic_head.conv_upsample_layers.{level}.conv.{number}"
                conv, norm_name = f"{name}.conv", f"{name}.{'gn' if norm == 'group' else 'bn'}"
            shapes[f"{conv}.weight"] = (width, width if number else net.channels, 3, 3)
            shapes |= norm_of(norm_name, width, norm) if norm else {f"{conv}.bias": (width,)}
    logits = "sem_seg_head.predictor" if layout is detectron2 else "semantic_head.conv_logits"
    return shapes | {f"{logits}.weight": (stuff + 1, width, 1, 1), f"{logits}.bias": (stuff + 1,)}


def described(layout, shapes, meta=None, **changed):
    """What the layout says of a file with these arrays, which must then fit exactly."""
    tensors = hollow(shapes) | changed
    assert [other for other in LAYOUTS if other.detect(tensors)] == [layout]
    description = layout.describe(tensors, meta or {}, "model.pth")
    assert description.model is PanopticFPN
    convert(tensors, description.rules, shapes_of(PanopticFPN, description.config), "model.pth")
    assert len(description.categories) == description.config.classes
    return description


@pytest.mark.parametrize("layout", LAYOUT_SHAPES)
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_is_found(layout, depth):
    found = described(layout, panoptic_shapes(layout, Network(depth=depth))).config.backbone
    assert (found.name, found.options) == (f"resnet{depth}", ())


@pytest.mark.parametrize("layout", LAYOUT_SHAPES)
def test_resnext_is_found(layout):
    config = described(layout, panoptic_shapes(layout, Network(depth=101, groups=32, group_width=8))).config
    assert config.backbone.options == (("cardinality", 32), ("base_width", 8))
    assert not config.backbone.stride_in_1x1


@pytest.mark.parametrize("layout", LAYOUT_SHAPES)
@pytest.mark.parametrize(("things", "stuff", "width"), [(80, 53, 128), (8, 11, 64), (1, 1, 32), (7, 1, 256)])
def test_things_are_counted_in_the_box_head_and_stuff_in_the_semantic_head(layout, things, stuff, width):
    shapes = panoptic_shapes(layout, Network(depth=18, classes=things, channels=32), stuff, width)
    description = described(layout, shapes)
    config = description.config
    assert (config.things, config.stuff, config.classes) == (things, stuff, things + stuff)
    assert config.is_thing == (True,) * things + (False,) * stuff
    assert (config.semantic_channels, config.channels) == (width, 32)
    assert tuple(category.is_thing for category in description.categories) == config.is_thing


@pytest.mark.parametrize("layout", LAYOUT_SHAPES)
def test_numbers_of_classes_name_cocos_panoptic_categories(layout):
    of_coco = panoptic_shapes(layout, Network(depth=18, classes=80), stuff=53)
    assert described(layout, of_coco).categories == COCO_PANOPTIC
    # as many classes, but of other kinds
    others = described(layout, panoptic_shapes(layout, Network(depth=18, classes=79), stuff=54)).categories
    assert others.names[132] == "class 132"
    assert [category.is_thing for category in others] == [True] * 79 + [False] * 54


@pytest.mark.parametrize("layout", LAYOUT_SHAPES)
@pytest.mark.parametrize("norm", ["", "batch", "group"])
def test_norms_of_the_semantic_head_are_found(layout, norm):
    config = described(layout, panoptic_shapes(layout, Network(depth=18), norm=norm)).config
    assert config.semantic_norm is (Norm(norm) if norm else Norm.NONE)


@pytest.mark.parametrize("layout", LAYOUT_SHAPES)
def test_without_a_semantic_head_it_is_a_mask_rcnn(layout):
    assert layout.describe(hollow(LAYOUT_SHAPES[layout](Network(depth=18))), {}, "model.pth").model is MaskRCNN


def test_detectron2_has_things_first_and_here_they_are_last():
    shapes = panoptic_shapes(detectron2, Network(depth=18), stuff=4, width=32)
    rows = torch.arange(5.0)
    changed = {
        "sem_seg_head.predictor.weight": rows.reshape(5, 1, 1, 1).expand(5, 32, 1, 1),
        "sem_seg_head.predictor.bias": rows,
    }
    description = described(detectron2, shapes, **changed)
    fitted = convert(hollow(shapes) | changed, description.rules, shapes_of(PanopticFPN, description.config), "a")
    assert fitted["semantic_branch.logits.bias"].tolist() == [1, 2, 3, 4, 0]
    assert fitted["semantic_branch.logits.weight"][:, 0, 0, 0].tolist() == [1, 2, 3, 4, 0]


def test_mmdetections_things_are_last_there_too():
    shapes = panoptic_shapes(mmdetection, Network(depth=18), stuff=4)
    changed = {"semantic_head.conv_logits.bias": torch.arange(5.0)}
    description = described(mmdetection, shapes, **changed)
    fitted = convert(hollow(shapes) | changed, description.rules, shapes_of(PanopticFPN, description.config), "a")
    assert fitted["semantic_branch.logits.bias"].tolist() == [0, 1, 2, 3, 4]


def test_detectron2s_numbers_of_the_merge():
    limits = described(detectron2, panoptic_shapes(detectron2, Network(depth=18))).config.thresholds
    assert limits == Thresholds(box_min_size=-1.0)
    assert (limits.task, limits.score, limits.cross_class) == (Task.PANOPTIC, 0.05, False)
    assert (limits.merge_score, limits.overlap, limits.stuff_area) == (0.5, 0.5, 4096)


def test_mmdetections_numbers_without_a_config_text_are_those_of_its_configs():
    limits = described(mmdetection, panoptic_shapes(mmdetection, Network(depth=18))).config.thresholds
    assert limits == Thresholds(box_min_size=-1.0, score=0.6, cross_class=True, merge_score=0.0)


VERSION_3 = """
model = dict(
    panoptic_fusion_head=dict(num_stuff_classes=4, num_things_classes=7, type='HeuristicFusionHead'),
    semantic_head=dict(end_level=4, inner_channels=64, num_things_classes=7, start_level=0, type='PanopticFPNHead'),
    test_cfg=dict(
        panoptic=dict(mask_overlap=0.4, stuff_area_limit=0),
        rcnn=dict(
            mask_thr_binary=0.4,
            max_per_img=50,
            nms=dict(class_agnostic=True, iou_threshold=0.7, type='nms'),
            score_thr=0.3)),
    type='PanopticFPN')
"""
VERSION_2 = """
model = dict(
    type='PanopticFPN',
    test_cfg=dict(
        rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5),
        panoptic=dict(
            score_thr=0.3, max_per_img=50, mask_thr_binary=0.4, mask_overlap=0.4,
            nms=dict(type='nms', iou_threshold=0.7, class_agnostic=True), stuff_area_limit=0)))
"""


@pytest.mark.parametrize("text", [VERSION_3, VERSION_2])
def test_mmdetections_config_text_tells_the_numbers_of_boxes_and_of_the_merge(text):
    shapes = panoptic_shapes(mmdetection, Network(depth=18))
    limits = described(mmdetection, shapes, {"meta": {"config": text}}).config.thresholds
    assert (limits.score, limits.nms, limits.cross_class, limits.detections, limits.mask) == (0.3, 0.7, True, 50, 0.4)
    assert (limits.merge_score, limits.overlap, limits.stuff_area) == (0.0, 0.4, 0)


def test_nms_within_classes_in_a_config_text_is_that():
    text = "model = dict(test_cfg=dict(rcnn=dict(nms=dict(type='nms', iou_threshold=0.5))))"
    shapes = panoptic_shapes(mmdetection, Network(depth=18))
    assert not described(mmdetection, shapes, {"meta": {"config": text}}).config.thresholds.cross_class


def test_mmdetections_names_become_categories_things_first():
    shapes = panoptic_shapes(mmdetection, Network(depth=18, classes=2), stuff=1)
    found = described(mmdetection, shapes, {"meta": {"dataset_meta": {"classes": ("cat", "dog", "sky")}}}).categories
    assert [(category.name, category.is_thing) for category in found] == [("cat", True), ("dog", True), ("sky", False)]
    coco = panoptic_shapes(mmdetection, Network(depth=18, classes=80), stuff=53)
    meta = {"meta": {"CLASSES": COCO_PANOPTIC.names}}
    assert described(mmdetection, coco, meta).categories == COCO_PANOPTIC


@pytest.mark.parametrize(
    ("layout", "extra", "what"),
    [
        # panoptic_fpn_R_101_dconv_cascade_gn_3x
        (detectron2, "roi_heads.box_head.0.fc1.weight", "Cascade R-CNN"),
        (detectron2, "sem_seg_head.decoder.res2.project_conv.weight", "DeepLab or Panoptic-DeepLab"),
        (detectron2, "sem_seg_head.point_head.fc1.weight", "PointRend"),
        (mmdetection, "roi_head.semantic_head.conv_logits.weight", "HTC or SCNet"),
        (mmdetection, "roi_head.bbox_head.0.fc_cls.weight", "Cascade R-CNN or HTC"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(layout, extra, what):
    tensors = hollow(panoptic_shapes(layout, Network(depth=18))) | {extra: torch.zeros(1)}
    with pytest.raises(CheckpointError, match=f"model.pth: .*{what}.*is not supported yet"):
        layout.describe(tensors, {}, "model.pth")


@pytest.mark.parametrize("layout", LAYOUT_SHAPES)
def test_a_semantic_branch_alone_is_refused_by_name(layout):
    shapes = {
        name: shape
        for name, shape in panoptic_shapes(layout, Network(depth=18)).items()
        if not name.startswith(("proposal_generator.", "roi_heads.", "rpn_head.", "roi_head."))
    }
    with pytest.raises(CheckpointError, match="is a Semantic FPN, which finds no things, and is not supported yet"):
        layout.describe(hollow(shapes), {}, "model.pth")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("semantic_head=dict(type='OtherHead')", r"semantic_head\.type is 'OtherHead'"),
        ("semantic_head=dict(start_level=1)", r"semantic_head\.start_level is 1"),
        ("panoptic_fusion_head=dict(type='MaskFormerFusionHead')", r"panoptic_fusion_head\.type is"),
    ],
)
def test_settings_that_have_no_counterpart_here_are_refused(text, message):
    with pytest.raises(CheckpointError, match=message):
        described(mmdetection, panoptic_shapes(mmdetection, Network(depth=18)), {"meta": {"config": f"model = dict({text})"}})


@pytest.mark.parametrize("layout", LAYOUT_SHAPES)
def test_every_misfit_is_in_one_error(layout):
    shapes = panoptic_shapes(layout, Network(depth=18))
    convs = [name for name in shapes if name.startswith(("sem_seg_head.", "semantic_head.")) and shapes[name][1:] == (64, 3, 3)]
    assert len(convs) == 3  # the second and third of the two coarsest levels
    shapes[convs[0]] = (64, 60, 3, 3)
    del shapes[convs[1]]
    tensors = hollow(shapes)
    description = layout.describe(tensors, {}, "model.pth")
    with pytest.raises(CheckpointError) as caught:
        convert(tensors, description.rules, shapes_of(PanopticFPN, description.config), "model.pth")
    message = str(caught.value)
    assert message.startswith("model.pth: 2 parameters of the file and of the model it describes do not fit:")
    assert (
        f"{convs[0]} (here semantic_branch.levels.2.1.conv.weight): shape (64, 60, 3, 3), the model needs (64, 64, 3, 3)"
        in message
    )
    assert "semantic_branch.levels.3.1.conv.weight: missing from the file" in message


def test_a_file_loads_with_its_categories(tmp_path):
    shapes = panoptic_shapes(mmdetection, Network(depth=18, channels=32), stuff=2)
    torch.save({"state_dict": {name: torch.zeros(shape) for name, shape in shapes.items()}}, tmp_path / "model.pth")
    model, categories, _ = load_foreign(tmp_path / "model.pth")
    assert isinstance(model, PanopticFPN)
    assert [category.is_thing for category in categories] == [True] * 7 + [False] * 2


@pytest.mark.parametrize("layout", LAYOUT_SHAPES)
def test_a_reference_keys_file_is_what_is_spelled_out_here(layout, request):
    case = {detectron2: "detectron2-panoptic-fpn-r50", mmdetection: "mmdet-panoptic-fpn-r50"}[layout]
    keys = request.config.rootpath / "tests" / "reference" / case / "keys.json"
    shapes = {name: tuple(shape) for name, shape in json.loads(keys.read_text()).items()}
    network = Network(
        norm="batch" if layout is mmdetection else "frozen",
        **{"channels": 256, "box_channels": 256, "box_width": 1024, "mask_channels": 256, "classes": 80},
    )
    assert panoptic_shapes(layout, network, stuff=53, width=128) == shapes

"""Parts of the training loop that can be checked by hand; whole runs are in tests/end_to_end/test_train.py."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from thingstuff.errors import TrainingError
from thingstuff.models.catalog import CATALOG
from thingstuff.models.contract import Model
from thingstuff.models.yolact import Yolact
from thingstuff.structures.preprocessing import Targets
from thingstuff.training import Recipe, loop, run_folder


def _target(image_id: int) -> Targets:
    return Targets(
        image_id=image_id,
        size=(4, 4),
        boxes=torch.zeros(0, 4),
        classes=torch.zeros(0, dtype=torch.int64),
        masks=torch.zeros(0, 4, 4, dtype=torch.bool),
        is_crowd=torch.zeros(0, dtype=torch.bool),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_images(value: float) -> None:
    terms = {"class": torch.tensor(1.0), "mask": torch.tensor(value)}
    with pytest.raises(TrainingError, match=rf"step 7: loss mask is {value} on the images with id 31, 42"):
        loop._finite(terms, [_target(31), _target(42)], step=7)


def test_finite_losses_come_back_as_numbers() -> None:
    assert loop._finite({"class": torch.tensor(1.5), "mask": torch.tensor(0.25)}, [], 0) == {"class": 1.5, "mask": 0.25}


def test_the_average_moves_by_what_the_decay_leaves() -> None:
    model, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average.weight.fill_(0.0)
    loop._move_average(average, model, decay=0.9, step=10_000)
    assert average.weight.item() == pytest.approx(0.1)


def test_a_young_average_forgets_faster() -> None:
    model, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average.weight.fill_(0.0)
    loop._move_average(average, model, decay=0.9, step=1)  # (1 + 1) / (10 + 1) stays
    assert average.weight.item() == pytest.approx(1 - 2 / 11)


def test_the_average_takes_over_counters_as_they_are() -> None:
    model, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    model.num_batches_tracked.fill_(5)  # type: ignore[union-attr]
    loop._move_average(average, model, decay=0.9, step=100)
    assert average.num_batches_tracked == 5


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "device", "own"),
    [
        (8, 1, 2, "cpu", True),
        (16, 1, 2, "cpu", False),
        (8, 1, 1, "cpu", False),
        (8, 3, 2, "cpu", False),
        (8, 1, 2, "cuda", False),
    ],
)
def test_narrow_networks_keep_clear_of_kernels_that_crash(
    channels: int, kernel: int, stride: int, device: str, own: bool
) -> None:
    before = torch.backends.mkldnn.enabled
    with loop._kernels(nn.Sequential(nn.Conv2d(channels, 16, kernel, stride)), torch.device(device)):
        assert torch.backends.mkldnn.enabled is (False if own else before)
    assert torch.backends.mkldnn.enabled is before


NARROW_STEPS = """
import torch
from thingstuff.models.backbone import Backbone
from thingstuff.models.catalog import MASK_RCNN_TINY
from thingstuff.training import loop

network = Backbone(MASK_RCNN_TINY.backbone).train().to(memory_format=torch.channels_last)
images = torch.randn(4, 3, 384, 576).to(memory_format=torch.channels_last)
for _ in range(3):
    with loop._kernels(network, images.device):
        sum(level.sum() for level in network(images)).backward()
"""


def test_the_gradient_of_a_narrow_network_does_not_crash_where_onednn_does() -> None:
    # in a process of its own, which the fault would end: at this size it does, by oneDNN 3.12 with AVX-512
    done = subprocess.run([sys.executable, "-c", NARROW_STEPS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_norms_and_biases_are_not_decayed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    decayed, free = loop._parameter_groups(model, 0.05)
    assert decayed["weight_decay"] == 0.05
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert free["weight_decay"] == 0.0
    assert len(free["params"]) == 4


def test_a_log_resumed_drops_the_rows_after_the_state(tmp_path: Path) -> None:
    log = run_folder.Log(tmp_path, 0)
    for step in (1, 2, 3):
        log.add({"step": step, "loss": float(step)})
    log.flush()
    resumed = run_folder.Log(tmp_path, 2)
    resumed.add({"step": 3, "loss": 9.0, "mask_AP": 0.5})
    resumed.flush()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [1.0, 2.0, 9.0]
    assert (tmp_path / "log.csv").read_text().splitlines() == ["step,loss,mask_AP", "1,1.0,", "2,2.0,", "3,9.0,0.5"]


@pytest.mark.parametrize("line", ['{"step": 2, "lo', "[]", '{"loss": 1.0}', "\xff"])
def test_a_damaged_log_is_an_error_with_its_line(tmp_path: Path, line: str):
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(TrainingError, match=r"log\.jsonl, line 2 is damaged"):
        run_folder.Log(tmp_path, 5)


@pytest.mark.parametrize("content", ["", "[]", '{"box": {}}', "null"])
def test_a_damaged_validation_is_an_error_with_its_file(tmp_path: Path, content: str):
    (tmp_path / "validation.json").write_text(content)
    with pytest.raises(TrainingError, match=r"validation\.json is damaged"):
        run_folder.read_validation(tmp_path, ("box", "mask", "per_class"))


def test_weight_decay_spares_biases_norms_queries_and_positions():
    model_class, config, _ = CATALOG["mask2former-tiny"]
    model = model_class(config)
    decayed, free = loop._parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = {names[id(parameter)] for parameter in free["params"]}
    assert {"decoder.queries", "decoder.query_positions", "decoder.level_embeddings"} <= spared
    assert all(names[id(parameter)].endswith("weight") for parameter in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_the_backbone_has_groups_of_its_own_where_its_rate_differs():
    model = nn.Module()
    model.backbone, model.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
    groups = loop._parameter_groups(model, 0.05, backbone_rate=0.1)
    assert [(group["factor"], group["weight_decay"]) for group in groups] == [(1.0, 0.05), (1.0, 0.0), (0.1, 0.05), (0.1, 0.0)]
    shapes = [[tuple(parameter.shape) for parameter in group["params"]] for group in groups]
    assert shapes == [[(2, 4)], [(2,)], [(4, 3, 1, 1)], [(4,)]]
    assert len(loop._parameter_groups(model, 0.05, backbone_rate=1.0)) == 2  # as in the states of runs from before


def _tiny(name: str) -> Model:
    model_class, config, _ = CATALOG[name]
    return model_class(config)


def _yolact_plus() -> Model:
    _, config, _ = CATALOG["yolact-tiny"]
    backbone = replace(config.backbone, deformable=("layer2.0",))
    return Yolact(replace(config, backbone=backbone, mask_rating_channels=(8, 16)))


MASK_RCNN_LAST = ["rpn.objectness", "rpn.deltas", "box_head.classes", "box_head.deltas", "mask_head.logits"]
YOLACT_LAST = ["head.classes", "head.deltas", "head.coefficients", "prototype_net.prototypes", "semantic"]
QUERIES_LAST = ["decoder.classes", "decoder.masks.layers.2", "pixel_decoder.pixel_embeddings"]
SAMPLING = [f"pixel_decoder.layers.0.attention.{name}" for name in ("offsets", "weights")]
LAST_LAYERS = {
    "mask-rcnn-tiny": MASK_RCNN_LAST,
    "panoptic-fpn-tiny": [*MASK_RCNN_LAST, "semantic_branch.logits"],
    "yolact-tiny": YOLACT_LAST,
    "solo-tiny": ["categories", *(f"kernels.{level}" for level in range(5))],
    "decoupled-solo-tiny": ["categories", *(f"{side}.{level}" for side in ("columns", "rows") for level in range(5))],
    "solov2-tiny": ["categories", "kernels"],
    "maskformer-tiny": QUERIES_LAST,
    "mask2former-tiny": [*QUERIES_LAST, *SAMPLING],
}


def test_the_last_layers_of_every_tiny_network_are_known() -> None:
    tiny = {name for name in CATALOG if name.endswith("-tiny") and not name.endswith(("-swin-tiny", "-convnext-tiny"))}
    assert LAST_LAYERS.keys() == tiny


@pytest.mark.parametrize("name", LAST_LAYERS)
def test_muon_leaves_the_first_kernel_and_the_last_layers_and_what_is_no_kernel_to_nadamw(name: str) -> None:
    model = _tiny(name)
    assert _left_to_nadamw(model) == {"backbone.body.conv1.weight", *(f"{layer}.weight" for layer in LAST_LAYERS[name])}


def test_muon_leaves_what_says_where_a_convolution_looks_and_how_good_a_mask_is_to_nadamw() -> None:
    model = _yolact_plus()
    offsets = {name for name, _ in model.named_parameters() if name.endswith(".offset.weight")}
    assert offsets
    # of one input channel, as depthwise ones are: the rating's first looks at a mask
    last = {f"{layer}.weight" for layer in (*YOLACT_LAST, "mask_rating.classes", "mask_rating.convs.0")}
    assert _left_to_nadamw(model) == {"backbone.body.conv1.weight"} | last | offsets


def _left_to_nadamw(model: Model) -> set[str]:
    """The kernels and matrices that a step of Muon left to NAdamW; all else that a step moved was left to it, too."""
    optimizer = loop._optimizer(Recipe(data="", model="", out="", optimizer="muon", backbone_rate=0.1), model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter in names:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {names[parameter]: parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert moved.keys() == set(names.values())
    kernels = {name for name, parameter in moved.items() if parameter.ndim >= 2 and name.endswith("weight")}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.05 if names[parameter] in kernels else 0.0)
            assert group["factor"] == (0.1 if names[parameter].startswith("backbone.") else 1.0)
    by_muon = {name for name, parameter in moved.items() if optimizer.state[parameter]["use_muon"]}
    assert by_muon <= kernels
    return kernels - by_muon

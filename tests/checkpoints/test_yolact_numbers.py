"""YOLACT++ and YOLACT on Darknet-53 as their papers have them, computed from a file's arrays by their names there, function by
function: what this library makes of the same file must give the same numbers."""

import pytest
import torch
from torch.nn import functional
from torchvision.ops import deform_conv2d

import thingstuff
from thingstuff.models.backbone import BackboneConfig

from .yolact_names import PLUS, authors

CLASSES, PROTOTYPES, SIZE = 3, 8, 96


def conv(state, name, x, **options):
    return functional.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)


def norm(state, name, x):
    mean, variance, scale, shift = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return functional.batch_norm(x, mean, variance, scale, shift, eps=1e-5)


def deformable(state, name, x, stride):
    """Zhu et al., 2018, section 3.2: y x y x ... of nine taps, then their nine weights."""
    predicted = conv(state, f"{name}.conv_offset_mask", x, stride=stride, padding=1)
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return deform_conv2d(x, predicted[:, :18], weight, bias, stride, padding=1, mask=predicted[:, 18:].sigmoid())


def resnet(state, x):
    """He et al., 2015, table 1, with torchvision's place of the stride; the convolutions that predict offsets are deformable."""
    x = functional.max_pool2d(norm(state, "backbone.bn1", conv(state, "backbone.conv1", x, stride=2, padding=3)).relu(), 3, 2, 1)
    levels = []
    for stage in range(4):
        for block in range((3, 4, 6, 3)[stage]):
            here, stride = f"backbone.layers.{stage}.{block}", 2 if stage and not block else 1
            y = norm(state, f"{here}.bn1", conv(state, f"{here}.conv1", x)).relu()
            if f"{here}.conv2.conv_offset_mask.weight" in state:
                y = deformable(state, f"{here}.conv2", y, stride)
            else:
                y = conv(state, f"{here}.conv2", y, stride=stride, padding=1)
            y = norm(state, f"{here}.bn3", conv(state, f"{here}.conv3", norm(state, f"{here}.bn2", y).relu()))
            if not block:
                x = norm(state, f"{here}.downsample.1", conv(state, f"{here}.downsample.0", x, stride=stride))
            x = (x + y).relu()
        levels.append(x)
    return levels[1:]


def darknet(state, x):
    """Redmon and Farhadi, 2018, table 1: each stage halves the size, then adds pairs of 1x1 and 3x3 convolutions."""

    def layer(name, x, **options):
        return functional.leaky_relu(norm(state, f"{name}.1", conv(state, f"{name}.0", x, **options)), 0.1)

    x = layer("backbone._preconv", x, padding=1)
    levels = []
    for stage, blocks in enumerate((1, 2, 8, 8, 4)):
        x = layer(f"backbone.layers.{stage}.0", x, stride=2, padding=1)
        for block in range(1, blocks + 1):
            here = f"backbone.layers.{stage}.{block}"
            x = x + layer(f"{here}.conv2", layer(f"{here}.conv1", x), padding=1)
        levels.append(x)
    return levels[2:]


def pyramid(state, levels):
    """P3..P7: laterals and outputs are numbered from C5 down."""
    mixed = None
    result = []
    for index, level in enumerate(levels[::-1]):
        lateral = conv(state, f"fpn.lat_layers.{index}", level)
        if mixed is not None:
            lateral = lateral + functional.interpolate(mixed, lateral.shape[-2:], mode="bilinear", align_corners=False)
        mixed = lateral
        result.insert(0, conv(state, f"fpn.pred_layers.{index}", mixed, padding=1).relu())
    for index in range(2):
        result.append(conv(state, f"fpn.downsample_layers.{index}", result[-1], stride=2, padding=1))
    return result


def network(state, image, anchors):
    """Class probabilities (background first), box deltas and coefficients of all anchors, and the prototypes."""
    levels = pyramid(state, (darknet if "backbone._preconv.0.weight" in state else resnet)(state, image))
    rows = {"conf": [], "bbox": [], "mask": []}
    for level in levels:
        x = conv(state, "prediction_layers.0.upfeature.0", level, padding=1).relu()
        for kind, parts in rows.items():
            y = conv(state, f"prediction_layers.0.{kind}_layer", x, padding=1)
            parts.append(y[0].permute(1, 2, 0).reshape(-1, y.shape[1] // anchors))
    conf, box, mask = (torch.cat(parts) for parts in rows.values())
    x = levels[0]
    for index in (0, 2, 4):
        x = conv(state, f"proto_net.{index}", x, padding=1).relu()
    x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False).relu()
    x = conv(state, "proto_net.10", conv(state, "proto_net.8", x, padding=1).relu()).relu()
    return conf.softmax(dim=1), box, mask.tanh(), x[0]


def rating(state, masks):
    """YOLACT++, figure 4: five convolutions of stride 2 without padding, one 1x1, each with a ReLU; then the largest."""
    x = masks[:, None]
    for index in (0, 2, 4, 6, 8):
        x = conv(state, f"maskiou_net.maskiou_net.{index}", x, stride=2).relu()
    return conv(state, "maskiou_net.maskiou_net.10", x).relu().amax(dim=(2, 3))


def weights(shapes):
    random = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1)
        elif len(shape) == 4:
            state[name] = torch.randn(shape, generator=random) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
            if "conv_offset_mask" in name:
                state[name] *= 2  # of about a cell
        elif name.endswith(("running_var", "weight")):
            state[name] = 0.5 + torch.rand(shape, generator=random)
        else:
            state[name] = 0.2 * torch.randn(shape, generator=random)
    return state


DEFORMABLE = ("layer2.0", "layer2.3", "layer3.0", "layer3.5", "layer4.1")
NETWORKS = {
    "plus": authors(
        BackboneConfig("resnet50", deformable=DEFORMABLE, deformable_bias=True), CLASSES, prototypes=PROTOTYPES, width=32, **PLUS
    ),
    "darknet": authors(BackboneConfig("darknet53"), CLASSES, prototypes=PROTOTYPES, width=32),
}


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request, tmp_path_factory):
    """A file's arrays, and the network that this library makes of the file, both in float64."""
    state = weights(NETWORKS[request.param])
    path = tmp_path_factory.mktemp(request.param) / f"yolact_{request.param}_im{SIZE}_1_2.pth"
    torch.save(state, path)
    model = thingstuff.load(path, device="cpu").model.double()
    return {name: array.double() if array.is_floating_point() else array for name, array in state.items()}, model


@torch.no_grad()
def test_every_array_of_the_predictions_is_the_papers(pair):
    state, model = pair
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    anchors = state["prediction_layers.0.bbox_layer.weight"].shape[0] // 4
    confidences, boxes, coefficients, prototypes = network(state, image, anchors)
    assert min(wanted.std() for wanted in (confidences, boxes, coefficients, prototypes)) > 0.05
    found = model(image)
    torch.testing.assert_close(found.class_logits[0].softmax(dim=1).roll(1, dims=1), confidences)
    torch.testing.assert_close(found.box_deltas[0], boxes)
    torch.testing.assert_close(found.coefficients[0], coefficients)
    torch.testing.assert_close(found.prototypes[0], prototypes)


@pytest.mark.parametrize("pair", ["plus"], indirect=True)
@torch.no_grad()
def test_masks_are_rated_as_in_yolact_plus(pair):
    state, model = pair
    masks = torch.rand(5, 138, 138, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert rating(state, masks).max() > 0.05
    torch.testing.assert_close(model.mask_rating(masks), rating(state, masks))

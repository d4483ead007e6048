"""timm networks cut into C2..C5."""

from copy import deepcopy

import pytest
import torch

from thingstuff.errors import ConfigError
from thingstuff.models.backbone import Backbone, BackboneConfig
from thingstuff.models.deformable import Deformable, DeformableConv

SMALL = (("layers", (1, 1, 1, 1)), ("channels", (8, 16, 24, 32)))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "efficientnet_lite0",
        "convnext_atto",
        "regnetx_002",
        "mobilenetv3_small_050",
        "pvt_v2_b0",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_levels_have_strides_4_to_32_and_the_announced_widths(name: str) -> None:
    backbone = Backbone(BackboneConfig(name)).eval()
    with torch.no_grad():
        levels = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == [
        (1, width, 64 // stride, 96 // stride) for width, stride in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]


def test_a_network_without_fine_levels_is_refused_with_its_strides() -> None:
    with pytest.raises(ConfigError, match=r"vit_tiny_patch16_224 gives the strides \[16, 16, 16\] and lacks \[4, 8, 32\]"):
        Backbone(BackboneConfig("vit_tiny_patch16_224"))


def test_an_unknown_network_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no_such_net"):
        Backbone(BackboneConfig("no_such_net"))


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no_such_option"):
        Backbone(BackboneConfig("resnet18", options=(("no_such_option", 1),)))


def test_stride_in_1x1_moves_the_stride_and_nothing_else() -> None:
    options = (*SMALL, ("layers", (1, 2, 1, 1)))
    plain = Backbone(BackboneConfig("resnet50", options)).body
    moved = Backbone(BackboneConfig("resnet50", options, stride_in_1x1=True)).body
    assert plain.get_submodule("layer2.0.conv2").stride == (2, 2)
    assert moved.get_submodule("layer2.0.conv1").stride == (2, 2)
    assert moved.get_submodule("layer2.0.conv2").stride == (1, 1)
    assert moved.get_submodule("layer1.0.conv1").stride == (1, 1)  # the first stage has no stride to move
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in moved.state_dict().items()}


def test_stride_in_1x1_needs_bottlenecks() -> None:
    with pytest.raises(ConfigError, match="resnet18 has none"):
        Backbone(BackboneConfig("resnet18", SMALL, stride_in_1x1=True))


def test_frozen_norms_keep_statistics_and_scales_through_training() -> None:
    backbone = Backbone(BackboneConfig("resnet18", SMALL, frozen_norms=True, norm_eps=0.0)).train()
    norm = backbone.body.get_submodule("bn1")
    assert isinstance(norm, torch.nn.BatchNorm2d)
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    backbone(torch.randn(2, 3, 32, 32))
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
    assert not norm.weight.requires_grad
    assert 0 < norm.eps < 1e-37  # torch 2.11 refuses 0
    assert backbone.body.get_submodule("conv1").weight.requires_grad


@pytest.mark.parametrize("name", ["hiera_tiny_224", "coatnet_0_rw_224", "maxvit_tiny_tf_224"])
def test_a_transformer_for_one_image_size_is_refused_with_words(name: str):
    with pytest.raises(ConfigError, match=rf"backbone {name} can't take an image of 96 x 160 pixels"):
        Backbone(BackboneConfig(name))


def test_the_levels_are_those_of_the_strides_where_timm_leaves_levels_out():
    levels = Backbone(BackboneConfig("dla34"))(torch.zeros(1, 3, 64, 96))  # timm lists dla's stride 1, too
    assert [tuple(level.shape[-2:]) for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_deformable_blocks_are_those_named_and_no_others() -> None:
    backbone = Backbone(BackboneConfig("resnet18", SMALL, deformable=("layer3.0",)))
    found = [name for name, module in backbone.body.named_modules() if isinstance(module, DeformableConv)]
    assert found == ["layer3.0.conv2"]
    assert [level.shape[-1] for level in backbone(torch.zeros(1, 3, 64, 96))] == [24, 12, 6, 3]
    for wrong in ("layer9.0", "conv1"):
        with pytest.raises(ConfigError, match=f"no block {wrong}"):
            Backbone(BackboneConfig("resnet18", SMALL, deformable=(wrong,)))


def test_a_deformable_convolution_replaces_one_with_groups_and_a_moved_stride() -> None:
    options = (*SMALL, ("cardinality", 4), ("base_width", 16), ("layers", (1, 2, 1, 1)))
    config = BackboneConfig(
        "resnet50", options, stride_in_1x1=True, deformable=("layer2.0",), deformable_kind=Deformable.V1, deformable_groups=2
    )
    plain = Backbone(BackboneConfig("resnet50", options, stride_in_1x1=True)).body.get_submodule("layer2.0.conv2")
    conv = Backbone(config).body.get_submodule("layer2.0.conv2")
    assert isinstance(conv, DeformableConv)
    assert conv.weight.shape == plain.weight.shape  # (16 out, 4 of 16 in, 3, 3)
    assert conv.stride == 1
    assert conv.offset.weight.shape[0] == 2 * 2 * 9  # parts, y and x, taps


def test_deformable_convolutions_that_can_not_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="deformable_kind"):
        BackboneConfig("resnet50", deformable=("layer2.0",), deformable_kind=Deformable.NO)
    with pytest.raises(ConfigError, match="not 3 equal parts"):
        Backbone(BackboneConfig("resnet18", SMALL, deformable=("layer2.0",), deformable_groups=3)).eval()
    with pytest.raises(ConfigError, match="at least 1"):
        BackboneConfig("resnet50", deformable_groups=0)


def test_leaky_relus_take_the_slope_stated() -> None:
    backbone = Backbone(BackboneConfig("darknet53", leaky_slope=0.1))
    slopes = {module.negative_slope for module in backbone.body.modules() if isinstance(module, torch.nn.LeakyReLU)}
    assert slopes == {0.1}


_SMALL_SWIN = (("embed_dim", 16), ("depths", (1, 2, 2, 1)), ("num_heads", (1, 1, 2, 2)), ("window_size", 4))


def test_windows_of_the_authors_are_padded_before_they_are_shifted() -> None:
    """Where they divide every level there is nothing to pad, and timm's own windows of full size answer alike."""
    torch.manual_seed(0)
    theirs = Backbone(BackboneConfig("swin_tiny_patch4_window7_224", _SMALL_SWIN, original_windows=True)).eval()
    for name, weight in theirs.named_parameters():
        if "attn" in name:
            weight.data.mul_(20)  # fresh ones hardly attend
    own = Backbone(BackboneConfig("swin_tiny_patch4_window7_224", (*_SMALL_SWIN, ("always_partition", True)))).eval()
    own.load_state_dict(theirs.state_dict())
    whole, ragged = torch.randn(1, 3, 128, 256), torch.randn(1, 3, 112, 144)
    with torch.no_grad():
        for ours, timms in zip(theirs(whole), own(whole), strict=True):
            torch.testing.assert_close(ours, timms)
        different = [not torch.allclose(ours, timms) for ours, timms in zip(theirs(ragged), own(ragged), strict=True)]
    # the third level's 7 x 9 cells are the first of those shifted that lack other than half a window
    assert different == [False, False, True, True]


def test_an_image_that_ends_within_a_patch_is_padded_to_whole_ones() -> None:
    backbone = Backbone(BackboneConfig("swin_tiny_patch4_window7_224", _SMALL_SWIN, original_windows=True)).eval()
    with torch.no_grad():
        levels = backbone(torch.randn(1, 3, 61, 90))
    assert [tuple(level.shape[2:]) for level in levels] == [(16, 23), (8, 12), (4, 6), (2, 3)]  # each half of the last, upwards


def test_windows_of_the_authors_need_a_swin() -> None:
    with pytest.raises(ConfigError, match="original_windows needs a Swin transformer; resnet18 is none"):
        BackboneConfig("resnet18", original_windows=True)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_level_norms_leave_each_cell_with_mean_0_and_variance_1(name: str) -> None:
    options = _SMALL_SWIN if name.startswith("swin") else ()
    levels = Backbone(BackboneConfig(name, options, level_norms=True)).eval()(torch.randn(1, 3, 64, 96))
    for level in levels:
        torch.testing.assert_close(level.mean(dim=1), torch.zeros_like(level[:, 0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(level.var(dim=1, correction=0), torch.ones_like(level[:, 0]), atol=0.02, rtol=0)


SWIN = BackboneConfig("swin_tiny_patch4_window7_224", original_windows=True, level_norms=True)


@pytest.mark.parametrize("config", [BackboneConfig("resnet18"), BackboneConfig("tf_efficientnet_lite0"), SWIN])
def test_frozen_levels_and_no_others_stay_as_they_are(config: BackboneConfig) -> None:
    backbone = Backbone(config).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.freeze(2)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())  # looking changes nothing
    assert backbone.training
    optimizer = torch.optim.SGD([weight for weight in backbone.parameters() if weight.requires_grad], lr=1.0)
    levels = backbone(torch.rand(2, 3, 64, 64))
    assert [level.requires_grad for level in levels] == [False, False, True, True]
    sum(level.square().mean() + level[:, 0].mean() for level in levels[2:]).backward()
    optimizer.step()

    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        in_training = backbone.train()(image)[:2]
        now = backbone.eval()(image)
        backbone.load_state_dict(before)
        then = backbone(image)
    assert [torch.equal(old, new) for old, new in zip(then, now, strict=True)] == [True, True, False, False]
    for trained, tested in zip(in_training, now, strict=False):  # no path is dropped
        torch.testing.assert_close(trained, tested, rtol=1e-3, atol=1e-4)


def test_freezing_what_is_frozen_changes_nothing() -> None:
    backbone = Backbone(BackboneConfig("resnet18", SMALL)).requires_grad_(False)
    backbone.freeze(1)
    backbone.freeze(0)
    assert backbone.training
    assert backbone.body.get_submodule("layer2").training


def test_frozen_levels_keep_frozen_norms_frozen() -> None:
    backbone = Backbone(BackboneConfig("resnet18", SMALL, frozen_norms=True))
    backbone.freeze(1)
    assert not any(norm.training for norm in backbone.train().modules() if isinstance(norm, torch.nn.BatchNorm2d))
    copy = deepcopy(Backbone(BackboneConfig("resnet18", SMALL)))
    copy.freeze(1)
    modes = {
        name: norm.training for name, norm in deepcopy(copy).train().named_modules() if isinstance(norm, torch.nn.BatchNorm2d)
    }
    parts = ("bn1", "layer1.0.bn1", "layer1.0.bn2", "layer1.0.downsample.1")
    assert {name for name, mode in modes.items() if not mode} == {f"body.{part}" for part in parts}


@pytest.mark.parametrize("levels", [-1, 5])
def test_levels_that_are_not_there_can_not_be_frozen(levels: int) -> None:
    with pytest.raises(ConfigError, match=f"from 0 to 4, got {levels}"):
        Backbone(BackboneConfig("resnet18", SMALL)).freeze(levels)


def test_depthwise_convolutions_trained_in_16_bits_work_in_32() -> None:
    """Their gradients are then as exact as in float32; what is not trained keeps 16 bits."""
    backbone = Backbone(BackboneConfig("tf_efficientnet_lite0")).train()
    depthwise = [conv for conv in backbone.modules() if isinstance(conv, torch.nn.Conv2d) and conv.groups > 1]
    assert len(depthwise) == 16
    for conv in depthwise:
        x = torch.randn(2, conv.in_channels, 12, 12)
        with torch.autocast("cpu", torch.bfloat16):
            made = conv(x)
        assert made.dtype == torch.bfloat16
        grad = torch.randn(made.shape).bfloat16()
        [found] = torch.autograd.grad(made, conv.weight, grad)
        [exact] = torch.autograd.grad(conv(x), conv.weight, grad.float())
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                in_inference = conv(x)
            conv.weight.requires_grad_(False)
            assert torch.equal(conv(x), in_inference)

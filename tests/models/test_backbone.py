"""timm networks cut into C2..C5."""

import pytest
import torch

from thingstuff.errors import ConfigError
from thingstuff.models.backbone import Backbone, BackboneConfig, DeformableConv

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
    assert norm.eps == 0.0
    assert backbone.body.get_submodule("conv1").weight.requires_grad


@pytest.mark.parametrize("name", ["hiera_tiny_224", "coatnet_0_rw_224", "maxvit_tiny_tf_224"])
def test_a_transformer_for_one_image_size_is_refused_with_words(name: str):
    with pytest.raises(ConfigError, match=rf"backbone {name} can't take an image of 96 x 160 pixels"):
        Backbone(BackboneConfig(name))


def test_the_levels_are_those_of_the_strides_where_timm_leaves_levels_out():
    levels = Backbone(BackboneConfig("dla34"))(torch.zeros(1, 3, 64, 96))  # timm lists dla's stride 1, too
    assert [tuple(level.shape[-2:]) for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_a_deformable_convolution_without_offsets_is_half_a_plain_one() -> None:
    # a weight of 0 before the sigmoid halves every sample
    conv = DeformableConv(3, 5, stride=2, bias=True)
    x = torch.randn(2, 3, 9, 11)
    plain = torch.nn.functional.conv2d(x, conv.weight, stride=2, padding=1)
    assert conv.bias is not None
    torch.testing.assert_close(conv(x), 0.5 * plain + conv.bias[:, None, None])


def test_a_deformable_convolution_samples_where_its_offsets_say() -> None:
    conv = DeformableConv(1, 1, stride=1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1.0  # the tap in the middle, number 4
        assert conv.offset.bias is not None
        conv.offset.bias[2 * 4 + 1] = 1.5  # one and a half to the right
        conv.offset.bias[18 + 4] = 100.0  # weight 1
    row = torch.tensor([[[[0.0, 2.0, 4.0, 8.0, 0.0, 0.0]]]])
    # between cells 1 and 2, 2 and 3, 3 and 4, 4 and 5; beyond the last cell there is nothing
    torch.testing.assert_close(conv(row), torch.tensor([[[[3.0, 6.0, 4.0, 0.0, 0.0, 0.0]]]]))


def test_deformable_blocks_are_those_named_and_no_others() -> None:
    backbone = Backbone(BackboneConfig("resnet18", SMALL, deformable=("layer3.0",)))
    found = [name for name, module in backbone.body.named_modules() if isinstance(module, DeformableConv)]
    assert found == ["layer3.0.conv2"]
    assert [level.shape[-1] for level in backbone(torch.zeros(1, 3, 64, 96))] == [24, 12, 6, 3]
    for wrong in ("layer9.0", "conv1"):
        with pytest.raises(ConfigError, match=f"no block {wrong}"):
            Backbone(BackboneConfig("resnet18", SMALL, deformable=(wrong,)))


def test_leaky_relus_take_the_slope_stated() -> None:
    backbone = Backbone(BackboneConfig("darknet53", leaky_slope=0.1))
    slopes = {module.negative_slope for module in backbone.body.modules() if isinstance(module, torch.nn.LeakyReLU)}
    assert slopes == {0.1}

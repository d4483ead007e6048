"""Names and shapes of Mask R-CNN's parameters as torchvision, detectron2 and MMDetection write them, spelled out one by one."""

from dataclasses import dataclass

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
RPN_STRIDES = 5


@dataclass(frozen=True)
class Network:
    """Sizes of a Mask R-CNN, small where nothing depends on them."""

    depth: int = 50
    groups: int = 1
    group_width: int = 64
    norm: str = "frozen"  # of the backbone: frozen, batch or group
    neck_norm: str = ""  # "", batch or group
    head_norm: str = ""
    channels: int = 16
    rpn_convs: int = 1
    anchors: int = 3
    box_convs: int = 0
    box_channels: int = 16
    box_fcs: int = 2
    box_width: int = 24
    mask_convs: int = 4
    mask_channels: int = 16
    rpn_channels: int = 0  # 0: as `channels`
    mask_upsampled_channels: int = 0  # 0: as `mask_channels`
    classes: int = 7  # without background
    agnostic_boxes: bool = False
    agnostic_masks: bool = False
    offsets: int = 0  # numbers that the 3x3 convolutions of C3..C5 predict where they are deformable: 18 or 27

    @property
    def bottleneck(self) -> bool:
        return self.depth >= 50


def norm_of(name, width, kind):
    shapes = {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    if kind in ("frozen", "batch"):
        shapes |= {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    if kind == "batch":
        shapes[f"{name}.num_batches_tracked"] = ()
    return shapes


def layer_of(name, *shape):
    """A convolution or linear layer with bias."""
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}


def conv_norm(conv, norm, kind, *shape):
    """A convolution of a neck or head: with bias, or with a norm in its place."""
    if not kind:
        return layer_of(conv, *shape)
    return {f"{conv}.weight": shape} | norm_of(norm, shape[0], kind)


def backbone(net, conv, norm, shortcut, offset=""):
    """The ResNet, given how a library names convolution and norm `i` of (stage, block), and the parts of a shortcut.

    The stem is convolution 1 of stage 0. `offset` follows the name of a deformable convolution.
    """
    shapes = {f"{conv(0, 0, 1)}.weight": (64, 3, 7, 7)} | norm_of(norm(0, 0, 1), 64, net.norm)
    before = 64
    for stage, count in enumerate(BLOCKS[net.depth], start=1):
        planes = 32 << stage
        after = planes * 4 if net.bottleneck else planes
        width = planes * net.group_width // 64 * net.groups
        for block in range(count):
            if net.bottleneck:
                kernels = [(width, before, 1, 1), (width, width // net.groups, 3, 3), (after, width, 1, 1)]
            else:
                kernels = [(planes, before, 3, 3), (planes, planes, 3, 3)]
            for number, kernel in enumerate(kernels, start=1):
                shapes[f"{conv(stage, block, number)}.weight"] = kernel
                shapes |= norm_of(norm(stage, block, number), kernel[0], net.norm)
                if net.offsets and stage > 1 and number == 2:
                    shapes |= layer_of(f"{conv(stage, block, 2)}{offset}", net.offsets, kernel[0], 3, 3)
            if block == 0 and before != after:
                names = shortcut(stage)
                shapes[f"{names[0]}.weight"] = (after, before, 1, 1)
                shapes |= norm_of(names[1], after, net.norm)
            before = after
    return shapes


def widths_of(net):
    return [(256 if net.bottleneck else 64) << level for level in range(4)]


def rpn_kernel(net, number):
    width = net.rpn_channels or net.channels
    return width, width if number else net.channels, 3, 3


def upsampled(net):
    return net.mask_upsampled_channels or net.mask_channels


def torchvision_shapes(net, old_names=False):
    def part(kind):
        return lambda stage, block, number: (
            f"backbone.body.layer{stage}.{block}.{kind}{number}" if stage else f"backbone.body.{kind}{number}"
        )

    zero = "" if old_names else ".0"
    shapes = backbone(
        net, part("conv"), part("bn"), lambda stage: [f"backbone.body.layer{stage}.0.downsample.{i}" for i in (0, 1)]
    )
    for level, width in enumerate(widths_of(net)):
        inner, layer = f"backbone.fpn.inner_blocks.{level}", f"backbone.fpn.layer_blocks.{level}"
        shapes |= conv_norm(inner + zero, inner + ".1", net.neck_norm, net.channels, width, 1, 1)
        shapes |= conv_norm(layer + zero, layer + ".1", net.neck_norm, net.channels, net.channels, 3, 3)
    for number in range(net.rpn_convs):
        conv = "rpn.head.conv" if old_names else f"rpn.head.conv.{number}.0"
        shapes |= layer_of(conv, *rpn_kernel(net, number))
    shapes |= layer_of("rpn.head.cls_logits", net.anchors, net.rpn_channels or net.channels, 1, 1)
    shapes |= layer_of("rpn.head.bbox_pred", 4 * net.anchors, net.rpn_channels or net.channels, 1, 1)
    before = net.channels
    for number in range(net.box_convs):
        conv = f"roi_heads.box_head.{number}"
        shapes |= conv_norm(conv + ".0", conv + ".1", net.head_norm, net.box_channels, before, 3, 3)
        before = net.box_channels
    before *= 49
    for number in range(net.box_fcs):
        name = f"box_head.{net.box_convs + 1 + 2 * number}" if net.box_convs else f"box_head.fc{6 + number}"
        shapes |= layer_of(f"roi_heads.{name}", net.box_width, before)
        before = net.box_width
    shapes |= layer_of("roi_heads.box_predictor.cls_score", net.classes + 1, before)
    shapes |= layer_of("roi_heads.box_predictor.bbox_pred", 4 * (net.classes + 1), before)
    before = net.channels
    for number in range(net.mask_convs):
        name = f"roi_heads.mask_head.{number}"
        conv = f"roi_heads.mask_head.mask_fcn{number + 1}" if old_names else name + ".0"
        shapes |= conv_norm(conv, name + ".1", net.head_norm, net.mask_channels, before, 3, 3)
        before = net.mask_channels
    shapes["roi_heads.mask_predictor.conv5_mask.weight"] = (before, upsampled(net), 2, 2)
    shapes["roi_heads.mask_predictor.conv5_mask.bias"] = (upsampled(net),)
    return shapes | layer_of("roi_heads.mask_predictor.mask_fcn_logits", net.classes + 1, upsampled(net), 1, 1)


def detectron2_shapes(net):
    def conv(stage, block, number):
        return "backbone.bottom_up." + (f"res{stage + 1}.{block}.conv{number}" if stage else "stem.conv1")

    def shortcut(stage):
        return [f"backbone.bottom_up.res{stage + 1}.0.shortcut{end}" for end in ("", ".norm")]

    shapes = backbone(net, conv, lambda *place: conv(*place) + ".norm", shortcut, offset="_offset")
    for level, width in enumerate(widths_of(net), start=2):
        lateral, output = f"backbone.fpn_lateral{level}", f"backbone.fpn_output{level}"
        shapes |= conv_norm(lateral, lateral + ".norm", net.neck_norm, net.channels, width, 1, 1)
        shapes |= conv_norm(output, output + ".norm", net.neck_norm, net.channels, net.channels, 3, 3)
    for number in range(net.rpn_convs):
        name = "conv" if net.rpn_convs == 1 else f"conv.conv{number}"
        shapes |= layer_of(f"proposal_generator.rpn_head.{name}", *rpn_kernel(net, number))
    shapes |= layer_of("proposal_generator.rpn_head.objectness_logits", net.anchors, net.rpn_channels or net.channels, 1, 1)
    shapes |= layer_of("proposal_generator.rpn_head.anchor_deltas", 4 * net.anchors, net.rpn_channels or net.channels, 1, 1)
    before = net.channels
    for number in range(1, net.box_convs + 1):
        name = f"roi_heads.box_head.conv{number}"
        shapes |= conv_norm(name, name + ".norm", net.head_norm, net.box_channels, before, 3, 3)
        before = net.box_channels
    before *= 49
    for number in range(1, net.box_fcs + 1):
        shapes |= layer_of(f"roi_heads.box_head.fc{number}", net.box_width, before)
        before = net.box_width
    shapes |= layer_of("roi_heads.box_predictor.cls_score", net.classes + 1, before)
    shapes |= layer_of("roi_heads.box_predictor.bbox_pred", 4 * (1 if net.agnostic_boxes else net.classes), before)
    before = net.channels
    for number in range(1, net.mask_convs + 1):
        name = f"roi_heads.mask_head.mask_fcn{number}"
        shapes |= conv_norm(name, name + ".norm", net.head_norm, net.mask_channels, before, 3, 3)
        before = net.mask_channels
    shapes["roi_heads.mask_head.deconv.weight"] = (before, upsampled(net), 2, 2)
    shapes["roi_heads.mask_head.deconv.bias"] = (upsampled(net),)
    return shapes | layer_of("roi_heads.mask_head.predictor", 1 if net.agnostic_masks else net.classes, upsampled(net), 1, 1)


def mmdetection_shapes(net, offset=".conv_offset"):
    def short(kind):
        return {"frozen": "bn", "batch": "bn", "group": "gn"}.get(kind, "")

    def conv(stage, block, number):
        return f"backbone.layer{stage}.{block}.conv{number}" if stage else "backbone.conv1"

    def norm(stage, block, number):
        name = f"{short(net.norm)}{number}"
        return f"backbone.layer{stage}.{block}.{name}" if stage else f"backbone.{name}"

    shapes = backbone(net, conv, norm, lambda stage: [f"backbone.layer{stage}.0.downsample.{i}" for i in (0, 1)], offset)
    for level, width in enumerate(widths_of(net)):
        for name, before, kernel in ((f"neck.lateral_convs.{level}", width, 1), (f"neck.fpn_convs.{level}", net.channels, 3)):
            norm_name = f"{name}.{short(net.neck_norm)}"
            shapes |= conv_norm(name + ".conv", norm_name, net.neck_norm, net.channels, before, kernel, kernel)
    for number in range(net.rpn_convs):
        name = "rpn_conv" if net.rpn_convs == 1 else f"rpn_conv.{number}.conv"
        shapes |= layer_of(f"rpn_head.{name}", *rpn_kernel(net, number))
    shapes |= layer_of("rpn_head.rpn_cls", net.anchors, net.rpn_channels or net.channels, 1, 1)
    shapes |= layer_of("rpn_head.rpn_reg", 4 * net.anchors, net.rpn_channels or net.channels, 1, 1)
    before = net.channels
    for number in range(net.box_convs):
        name = f"roi_head.bbox_head.shared_convs.{number}"
        shapes |= conv_norm(name + ".conv", f"{name}.{short(net.head_norm)}", net.head_norm, net.box_channels, before, 3, 3)
        before = net.box_channels
    before *= 49
    for number in range(net.box_fcs):
        shapes |= layer_of(f"roi_head.bbox_head.shared_fcs.{number}", net.box_width, before)
        before = net.box_width
    shapes |= layer_of("roi_head.bbox_head.fc_cls", net.classes + 1, before)
    shapes |= layer_of("roi_head.bbox_head.fc_reg", 4 * (1 if net.agnostic_boxes else net.classes), before)
    before = net.channels
    for number in range(net.mask_convs):
        name = f"roi_head.mask_head.convs.{number}"
        shapes |= conv_norm(name + ".conv", f"{name}.{short(net.head_norm)}", net.head_norm, net.mask_channels, before, 3, 3)
        before = net.mask_channels
    shapes["roi_head.mask_head.upsample.weight"] = (before, upsampled(net), 2, 2)
    shapes["roi_head.mask_head.upsample.bias"] = (upsampled(net),)
    return shapes | layer_of("roi_head.mask_head.conv_logits", 1 if net.agnostic_masks else net.classes, upsampled(net), 1, 1)

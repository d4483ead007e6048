import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from thingstuff.errors import ConfigError, SizeError
from thingstuff.structures.images import read_image
from thingstuff.structures.preprocessing import IMAGENET_MEAN, IMAGENET_STD, ImageBatch, ImageSize, Preprocessing, Resize, Targets


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


# --- network input sizes ---


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        # 451 x 300 (width x height), short side 400, long side 667: scale 400 / 300, and 451 * 4 / 3 = 601.33
        (Resize.TORCHVISION, (400, 601)),
        (Resize.PILLOW, (400, 601)),
        (Resize.OPENCV, (400, 601)),
        (Resize.ANTIALIASED, (400, 601)),
    ],
)
def test_the_short_side_is_brought_to_its_length(resize: Resize, expected: tuple[int, int]):
    preprocessing = Preprocessing(short_side=400, long_side=667, resize=resize)
    assert preprocessing.input_size(300, 451) == expected
    assert preprocessing.input_size(451, 300) == expected[::-1]


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        # 1000 x 301, long side 667: scale 0.667, and 301 * 0.667 = 200.767
        (Resize.TORCHVISION, (200, 667)),  # rounded down
        (Resize.PILLOW, (201, 667)),
        (Resize.OPENCV, (201, 667)),
        (Resize.ANTIALIASED, (201, 667)),
    ],
)
def test_the_long_side_is_a_limit(resize: Resize, expected: tuple[int, int]):
    assert Preprocessing(short_side=400, long_side=667, resize=resize).input_size(301, 1000) == expected


@pytest.mark.parametrize("resize", Resize)
def test_a_long_thin_image_keeps_a_side_of_one_pixel(resize: Resize):
    preprocessing = Preprocessing(resize=resize)
    assert preprocessing.input_size(1, 20_000) == (1, 1333)
    batch = preprocessing.batch([np.zeros((1, 20_000, 3), np.uint8)])
    assert batch.pixels.shape == (1, 3, 32, 1344)


@pytest.mark.parametrize("resize", Resize)
def test_a_short_side_of_0_keeps_the_images_own_size(resize: Resize):
    preprocessing = Preprocessing(short_side=0, long_side=10, resize=resize)
    assert preprocessing.input_size(37, 1999) == (37, 1999)


def test_a_stretched_image_needs_no_padding():
    stretched = Preprocessing(short_side=480, long_side=800, stretch=True)
    assert stretched.input_size(300, 451) == (480, 736)  # 480 x 721, each side up to a multiple of 32
    assert stretched.input_size(100, 1000) == (96, 800)  # the long side at most 800: 80 x 800
    assert stretched.batch([np.zeros((300, 451, 3), np.uint8)]).pixels.shape == (1, 3, 480, 736)


def test_an_image_without_pixels_has_no_input_size():
    with pytest.raises(SizeError, match="0 x 5 pixels has no input size"):
        Preprocessing().input_size(0, 5)


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 90), st.integers(3, 90), st.integers(20, 60), st.integers(20, 120))
def test_torchvision_mode_is_torchvisions_own_transform(height: int, width: int, short_side: int, long_side: int):
    theirs = GeneralizedRCNNTransform(short_side, long_side, [v / 255 for v in IMAGENET_MEAN], [v / 255 for v in IMAGENET_STD])
    preprocessing = Preprocessing(short_side=short_side, long_side=long_side, resize=Resize.TORCHVISION)
    images = [noise(height, width), noise(24, 31)]
    if min(side for image in images for side in preprocessing.input_size(*image.shape[:2])) < 2:
        return  # theirs fails where a side would round down to 0
    expected = theirs([torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images])[0]
    ours = preprocessing.batch(images)
    assert [size.input for size in ours.sizes] == expected.image_sizes
    # theirs divides by 255 first: a few units in the last place of values up to 2.6
    torch.testing.assert_close(ours.pixels, expected.tensors, rtol=0, atol=2e-6)


def resized_by_a_peer(case: Path, resize: Resize) -> tuple[np.ndarray, np.ndarray]:
    """The 8-bit network input that the peer stored, and ours for the same image."""
    facts = json.loads((case / "case.json").read_text())
    stored = read_image(case / "input.png")
    image = read_image(case.parent / facts["image"])
    as_they_are = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), short_side=400, long_side=667, resize=resize)
    batch = as_they_are.batch([image])
    height, width = batch.sizes[0].input
    assert [height, width] == facts["preprocessing"]["unpadded_input_size"]
    return stored, batch.pixels[0, :, :height, :width].permute(1, 2, 0).numpy().astype(np.uint8)


def test_pillow_mode_is_detectron2s_own_resize(shared_reference: Path):
    theirs, ours = resized_by_a_peer(shared_reference / "detectron2-panoptic-fpn-r50", Resize.PILLOW)
    np.testing.assert_array_equal(ours, theirs)


def test_opencv_mode_is_mmdets_own_resize_bit_for_bit(shared_reference: Path):
    theirs, ours = resized_by_a_peer(shared_reference / "mmdet-mask-rcnn-r50-fpn", Resize.OPENCV)
    np.testing.assert_array_equal(ours, theirs)


def unit(short_side: int, long_side: int, resize: Resize) -> Preprocessing:
    """Pixels come out as they are after the resize."""
    return Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), short_side, long_side, 1, resize)


def test_opencv_mode_halves_by_the_mean_of_four():
    quad = np.repeat(np.array([[1, 2], [3, 5]], np.uint8)[:, :, None], 3, axis=2)
    assert unit(1, 10, Resize.OPENCV).batch([quad]).pixels.flatten().tolist() == [3, 3, 3]  # 11 / 4 = 2.75


def test_opencv_mode_interpolates_without_antialias():
    # 1 x 6 to 1 x 2: centres fall on positions 1 and 4, whatever lies between
    row = np.repeat(np.array([[0, 90, 0, 0, 60, 0]], np.uint8)[:, :, None], 3, axis=2)
    assert unit(1, 2, Resize.OPENCV).batch([row]).pixels[0, 0].tolist() == [[90, 60]]
    # antialias spreads each centre over its neighbours
    for resize in (Resize.PILLOW, Resize.ANTIALIASED):
        assert unit(1, 2, resize).batch([row]).pixels[0, 0].max() < 50


def test_antialiased_mode_stays_within_one_level_of_pillows():
    image = noise(61, 83)
    ours, pillows = (unit(40, 100, resize).batch([image]).pixels for resize in (Resize.ANTIALIASED, Resize.PILLOW))
    assert ours.shape == pillows.shape
    assert (ours - pillows).abs().max() <= 1


# --- batches ---


def test_a_batch_is_normalised_and_padded_with_zeros_at_the_right_and_the_bottom():
    preprocessing = Preprocessing(mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 4.0), short_side=0, pad_multiple=4)
    wide, tall = np.full((2, 5, 3), 50, np.uint8), np.full((6, 3, 3), 30, np.uint8)
    batch = preprocessing.batch([wide, tall])
    assert batch.pixels.shape == (2, 3, 8, 8)  # 6 and 5, rounded up to multiples of 4
    assert batch.pixels.dtype == torch.float32
    assert batch.sizes == (ImageSize((2, 5), (2, 5)), ImageSize((6, 3), (6, 3)))
    assert len(batch) == 2
    assert batch.pixels[0, :, 0, 0].tolist() == [40, 15, 5]  # (50 - 10) / 1, (50 - 20) / 2, (50 - 30) / 4
    assert batch.pixels[1, :, 5, 2].tolist() == [20, 5, 0]
    assert batch.pixels[0, :, 2:].abs().sum() == batch.pixels[0, :, :, 5:].abs().sum() == 0


@pytest.mark.parametrize("resize", Resize)
def test_a_batch_is_made_on_the_device_where_the_network_is(resize: Resize):
    assert unit(4, 20, resize).batch([noise(8, 9)], device="meta").pixels.device.type == "meta"


def test_images_resized_before_are_taken_as_they_are():
    batch = Preprocessing(short_side=800).batch([np.zeros((20, 30, 3), np.uint8)], resize=False, original_sizes=[(200, 300)])
    assert batch.sizes == (ImageSize(input=(20, 30), original=(200, 300)),)
    assert batch.pixels.shape == (1, 3, 32, 32)


def test_read_only_and_flipped_images_are_accepted():
    image = noise(8, 9)[:, ::-1]
    image.flags.writeable = False
    for resize in Resize:
        assert unit(4, 20, resize).batch([image]).sizes[0].original == (8, 9)


def test_an_empty_batch_and_missing_sizes_are_refused():
    with pytest.raises(SizeError, match="at least one image"):
        Preprocessing().batch([])
    with pytest.raises(SizeError, match="2 images need as many original sizes, got 1"):
        Preprocessing().batch([noise(2, 3), noise(2, 3)], original_sizes=[(2, 3)])
    with pytest.raises(SizeError, match="a batch of 2 images needs as many sizes, got 1"):
        ImageBatch(torch.zeros(2, 3, 4, 4), (ImageSize((4, 4), (4, 4)),))
    with pytest.raises(SizeError, match="uint8 arrays"):
        Preprocessing().batch([np.zeros((0, 5, 3), np.uint8)])


def test_a_batch_moves_between_devices_as_a_whole():
    batch = Preprocessing(short_side=0).batch([noise(2, 3)])
    moved = batch.to("meta")
    assert moved.pixels.device.type == "meta"
    assert moved.sizes == batch.sizes


@pytest.mark.parametrize(
    "settings_",
    [
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (float("nan"), 0.0, 0.0)},
        {"mean": (1e39, 0.0, 0.0)},  # float32 ends at 3.4e38
        {"std": (1e39, 1.0, 1.0)},
        {"std": (1e-46, 1.0, 1.0)},  # 0 in float32
        {"short_side": -1},
        {"long_side": 0},
        {"pad_multiple": 0},
    ],
)
def test_impossible_preprocessing_is_refused(settings_: dict[str, object]):
    with pytest.raises(ConfigError):
        Preprocessing(**settings_)  # type: ignore[arg-type]


def test_preprocessing_is_a_value():
    assert Preprocessing() == Preprocessing()
    assert hash(Preprocessing()) == hash(Preprocessing())
    assert Resize("torchvision") is Resize.TORCHVISION  # the name it has in a checkpoint


# --- targets ---


def targets(count: int, size: tuple[int, int] = (4, 5)) -> Targets:
    return Targets(
        image_id=7,
        size=size,
        boxes=torch.zeros(count, 4),
        classes=torch.zeros(count, dtype=torch.int64),
        masks=torch.zeros(count, 4, 5, dtype=torch.bool),
        is_crowd=torch.zeros(count, dtype=torch.bool),
    )


@pytest.mark.parametrize("count", [0, 2])
def test_targets_move_between_devices_as_a_whole(count: int):
    moved = targets(count).to("meta")
    assert len(moved) == count
    assert (moved.image_id, moved.size) == (7, (4, 5))
    assert {t.device.type for t in (moved.boxes, moved.classes, moved.masks, moved.is_crowd)} == {"meta"}


def test_targets_whose_masks_have_another_size_are_refused():
    with pytest.raises(SizeError, match="targets of image 7 disagree"):
        targets(2, size=(5, 4))


def test_without_shrinking_a_large_image_keeps_its_size_and_a_small_one_grows():
    preprocessing = Preprocessing(short_side=480, long_side=1000, shrink=False)
    assert preprocessing.input_size(240, 320) == (480, 640)
    assert preprocessing.input_size(600, 800) == (600, 800)
    assert preprocessing.input_size(1000, 2000) == (500, 1000)  # the long side's bound holds


def test_square_images_lose_their_aspect_ratio():
    preprocessing = Preprocessing(short_side=550, long_side=550, pad_multiple=1, square=True)
    assert preprocessing.input_size(300, 451) == preprocessing.input_size(2000, 3) == (550, 550)
    batch = preprocessing.batch([np.zeros((3, 7, 3), np.uint8)])
    assert batch.pixels.shape == (1, 3, 550, 550)
    assert batch.sizes[0] == ImageSize((550, 550), (3, 7))
    assert Preprocessing(short_side=0, square=True).input_size(300, 451) == (300, 451)  # 0 is still the image's own size


def test_a_batch_falls_apart_into_images_that_are_padded_alike_alone():
    sizes = tuple(ImageSize(input=size, original=size) for size in ((60, 90), (96, 70), (64, 96), (64, 50)))
    batch = ImageBatch(torch.arange(4.0)[:, None, None, None].expand(4, 3, 96, 96), sizes)
    parts = batch.by_padded_size(32)
    assert [(images, tuple(part.pixels.shape[-2:])) for images, part in parts] == [
        ((0, 2), (64, 96)),
        ((1,), (96, 96)),
        ((3,), (64, 64)),
    ]
    assert parts[0][1].sizes == (sizes[0], sizes[2])
    assert parts[0][1].pixels[:, 0, 0, 0].tolist() == [0, 2]
    # never beyond the batch
    assert [tuple(part.pixels.shape[-2:]) for _, part in batch.by_padded_size(80)] == [(80, 96), (96, 80), (80, 80)]

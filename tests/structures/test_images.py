import io
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from thingstuff.errors import BitDepthWarning, ConfigError, ImageError, PagesWarning
from thingstuff.structures.images import DEFAULT_MAX_PIXELS, read_image

RED, GREEN, BLUE, WHITE, BLACK = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]
FLAG = np.array([[RED, GREEN, BLUE], [BLACK, WHITE, RED]], np.uint8)  # 2 rows, 3 columns


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)


# --- files ---


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path, format_: str):
    path = tmp_path / "flag.bin"  # the content says what a file is, not its suffix
    path.write_bytes(encoded(Image.fromarray(FLAG), format_))
    for source in (
        path,
        str(path),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        memoryview(path.read_bytes()),
        Image.open(path),
    ):
        pixels = read_image(source)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable
        np.testing.assert_array_equal(pixels, FLAG)


def test_jpeg_and_webp_are_read(tmp_path: Path):
    smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (48, 64, 3)).copy()
    for format_ in ("JPEG", "WEBP"):
        pixels = read_image(encoded(Image.fromarray(smooth), format_, quality=95))
        assert np.abs(pixels.astype(int) - smooth).max() < 16  # lossy


def test_an_image_of_one_pixel_is_read():
    assert read_image(encoded(Image.new("RGB", (1, 1), "red"), "PNG")).tolist() == [[RED]]


# what a file of each EXIF orientation (TIFF 6.0, tag 274) stores for the upright FLAG
STORED = {
    1: FLAG,
    2: FLAG[:, ::-1],
    3: FLAG[::-1, ::-1],
    4: FLAG[::-1],
    5: FLAG.transpose(1, 0, 2),
    6: np.rot90(FLAG, 1),
    7: np.rot90(FLAG.transpose(1, 0, 2), 2),
    8: np.rot90(FLAG, -1),
}


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied_once(orientation: int, format_: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    data = encoded(stored, format_, exif=exif, **({"lossless": True} if format_ == "WEBP" else {}))
    np.testing.assert_array_equal(read_image(data), FLAG)
    np.testing.assert_array_equal(read_image(Image.open(io.BytesIO(data))), FLAG)


def test_an_orientation_that_does_not_exist_and_a_broken_exif_block_change_nothing():
    exif = Image.Exif()
    exif[0x0112] = 9
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(FLAG), "PNG", exif=exif)), FLAG)
    np.testing.assert_array_equal(
        read_image(encoded(Image.fromarray(FLAG), "PNG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")), FLAG
    )


def test_grey_and_black_and_white_images_become_rgb():
    assert read_image(encoded(Image.new("L", (1, 1), 77), "PNG")).tolist() == [[[77, 77, 77]]]
    assert read_image(encoded(Image.fromarray(np.array([[False, True]])), "PNG")).tolist() == [[BLACK, WHITE]]


def test_16_bit_samples_lose_their_lower_8_bits():
    deep = np.array([[0, 255, 256, 0x1234, 65535]], np.uint16)
    shifted = [[[v] * 3 for v in (0, 0, 1, 0x12, 255)]]
    for format_ in ("PNG", "TIFF", "PPM"):
        assert read_image(encoded(Image.fromarray(deep), format_)).tolist() == shifted
    assert read_image(deep).tolist() == shifted
    assert read_image(torch.from_numpy(deep)).tolist() == shifted


def test_16_bit_rgb_png_loses_its_lower_8_bits_too():
    row = b"\0" + struct.pack(">3H", 0x1234, 0xFFFF, 0x00FF)
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b"")
    assert read_image(PNG_SIGNATURE + b"".join(png_chunk(*chunk) for chunk in chunks)).tolist() == [[[0x12, 0xFF, 0x00]]]


# --- bit depths ---


def deep_rgb_png(samples: np.ndarray) -> bytes:
    height, width, _ = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return PNG_SIGNATURE + b"".join(png_chunk(*chunk) for chunk in chunks)


def deep_rgb_tiff(samples: np.ndarray, *, order: str = "<", more: tuple[tuple[int, int], ...] = ()) -> bytes:
    """Uncompressed, with BitsPerSample of 16 three times and these short tags besides."""
    height, width, _ = samples.shape
    pixels = samples.astype(f"{order}u2").tobytes()
    bits = struct.pack(f"{order}3H", 16, 16, 16)
    entries = {256: width, 257: height, 259: 1, 262: 2, 273: 8, 277: 3, 278: height, 279: len(pixels), **dict(more)}
    directory = b""
    for tag in sorted([*entries, 258]):
        if tag == 258:
            directory += struct.pack(f"{order}HHII", 258, 3, 3, 8 + len(pixels))
        else:
            directory += struct.pack(f"{order}HHIHH", tag, 3, 1, entries[tag], 0)
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(pixels) + len(bits))
    return start + pixels + bits + struct.pack(f"{order}H", len(entries) + 1) + directory + bytes(4)


@pytest.mark.parametrize(
    ("largest", "bits", "white"),
    # the largest of 10 bits, 1023, drops 2 bits: 255; 1024 needs 12 bits and drops 4: 64
    [(1, 8, 1), (255, 8, 255), (256, 10, 64), (1023, 10, 255), (1024, 12, 64), (4095, 12, 255), (4096, 14, 64), (16383, 14, 255)],
)
def test_data_of_fewer_bits_in_16_bit_samples_is_read_by_its_largest(largest: int, bits: int, white: int):
    deep = np.array([[0, largest]], np.uint16)
    colour = np.array([[[0, 0, 0], [0, largest, 0]]], np.uint16)
    message = f"no 16-bit sample exceeds {largest}, so it is read as {bits}-bit data"
    for source in (deep, torch.from_numpy(deep), *(encoded(Image.fromarray(deep), f) for f in ("PNG", "TIFF"))):
        with pytest.warns(BitDepthWarning, match=message):
            assert read_image(source).tolist() == [[BLACK, [white] * 3]]
    for source in (
        colour,
        deep_rgb_png(colour),
        deep_rgb_tiff(colour),
        deep_rgb_tiff(colour, order=">"),
    ):
        with pytest.warns(BitDepthWarning, match=message):
            assert read_image(source).tolist() == [[BLACK, [0, white, 0]]]


def test_16_bit_samples_above_16383_are_of_the_full_range():
    deep = np.array([[0, 255, 16384]], np.uint16)
    expected = [[BLACK, BLACK, [64] * 3]]  # 16384 / 256
    colour = np.repeat(deep[..., None], 3, axis=2)
    for source in (deep, encoded(Image.fromarray(deep), "PNG"), deep_rgb_png(colour), deep_rgb_tiff(colour)):
        assert read_image(source).tolist() == expected


def test_the_bit_depth_given_is_the_one_read_by_without_a_warning():
    deep = np.array([[0, 255, 4095]], np.uint16)
    colour = np.repeat(deep[..., None], 3, axis=2)
    for source in (deep, torch.from_numpy(deep), encoded(Image.fromarray(deep), "TIFF"), deep_rgb_png(colour)):
        assert read_image(source, bit_depth=16).tolist() == [[BLACK, BLACK, [15] * 3]]
        assert read_image(source, bit_depth=12).tolist() == [[BLACK, [15] * 3, WHITE]]
        assert read_image(source, bit_depth=13).tolist() == [[BLACK, [7] * 3, [127] * 3]]
        with pytest.raises(ImageError, match="has 16-bit samples up to 4095, more than the 1023 of 10 bits; give the bit depth"):
            read_image(source, bit_depth=10)
    np.testing.assert_array_equal(read_image(FLAG, bit_depth=12), FLAG)  # 8-bit samples are not asked
    with pytest.raises(ConfigError, match="from 8 to 16; got 17"):
        read_image(FLAG, bit_depth=17)


def test_a_black_image_needs_no_depth():
    assert read_image(np.zeros((1, 1), np.uint16)).tolist() == [[BLACK]]


@pytest.mark.parametrize("tag", [281, 341])  # MaxSampleValue, SMaxSampleValue
def test_a_tiff_that_states_its_largest_sample_is_read_by_it(tag: int):
    deep = np.array([[0, 255, 256]], np.uint16)
    colour = np.repeat(deep[..., None], 3, axis=2)
    # 256 of 12 bits is 16, of 16 bits 1
    assert read_image(encoded(Image.fromarray(deep), "TIFF", tiffinfo={tag: 4095})).tolist() == [[BLACK, [15] * 3, [16] * 3]]
    assert read_image(deep_rgb_tiff(colour, more=((tag, 4095),))).tolist() == [[BLACK, [15] * 3, [16] * 3]]
    assert read_image(encoded(Image.fromarray(deep), "TIFF", tiffinfo={tag: 65535})).tolist() == [[BLACK, BLACK, [1] * 3]]


def test_a_largest_sample_that_ends_no_range_or_is_not_true_is_left_aside():
    deep = np.array([[0, 256]], np.uint16)
    for stated in (256, 255):
        with pytest.warns(BitDepthWarning, match="exceeds 256, so it is read as 10-bit data"):
            assert read_image(encoded(Image.fromarray(deep), "TIFF", tiffinfo={281: stated})).tolist() == [[BLACK, [64] * 3]]


def test_a_dim_ppm_is_read_by_the_range_that_it_states():
    # 255 of 4095 is 15 of 255, whatever the largest sample is
    dim = b"P5 2 1 4095\n" + struct.pack(">2H", 0, 255)
    assert read_image(dim).tolist() == read_image(dim, bit_depth=12).tolist() == [[BLACK, [15] * 3]]
    with pytest.raises(ImageError, match="says that its samples have 12 bits, the bit depth asked for is 16; give 12 for this"):
        read_image(dim, bit_depth=16)


def test_a_ppm_whose_maximum_is_65535_has_16_bits_however_dim_it_is():
    samples = struct.pack(">3H", 0, 1023, 4095)  # 1023 / 256 is 3, 4095 / 256 is 15
    for dim in (b"P5 3 1 65535\n" + samples, b"P2 3 1 65535\n0 1023 4095\n"):
        assert read_image(dim).tolist() == [[BLACK, [3] * 3, [15] * 3]]
        assert read_image(dim, bit_depth=12).tolist() == [[BLACK, [63] * 3, WHITE]]  # what is said counts more


def test_alpha_of_16_bit_arrays_does_not_change_their_colours():
    for opaque in (4095, 65535):  # of as many bits as the colours, or of all
        deep = np.array([[[0, 1000, 4095, opaque]]], np.uint16)
        with pytest.warns(BitDepthWarning, match="exceeds 4095, so it is read as 12-bit data"):
            assert read_image(deep).tolist() == [[[0, 62, 255]]]  # 1000 / 16
        assert read_image(deep, bit_depth=12).tolist() == [[[0, 62, 255]]]
        black = np.array([[[0, 0, 0, opaque], [0, 0, 0, 0]]], np.uint16)
        assert read_image(black).tolist() == [[BLACK, WHITE]]
    half = np.array([[[0, 0, 4095, 2048], [0, 0, 0, 4095]]], np.uint16)
    assert read_image(half, bit_depth=12).tolist() == [[[127, 127, 255], BLACK]]  # 2048 is 128 of 255


def test_a_warning_points_at_the_line_that_asked_for_the_image(tmp_path: Path):
    script = tmp_path / "scan.py"
    script.write_text(
        "import numpy as np\nfrom thingstuff.structures.images import read_image\nread_image(np.array([[9]], np.uint16))\n"
    )
    told = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stderr
    assert "scan.py:3: BitDepthWarning: array uint16 (1, 1): no 16-bit sample exceeds 9" in told


def test_deep_colours_are_turned_upright_and_compressed_ones_read():
    colour = (np.arange(18, dtype=np.uint16) * 200).reshape(2, 3, 3)  # up to 3400: 12 bits
    with pytest.warns(BitDepthWarning, match="12-bit"):
        np.testing.assert_array_equal(read_image(deep_rgb_tiff(colour)), colour >> 4)
    with pytest.warns(BitDepthWarning, match="12-bit"):
        np.testing.assert_array_equal(read_image(deep_rgb_tiff(colour, more=((274, 3),))), colour[::-1, ::-1] >> 4)


def test_a_12_bit_tiff_drops_4_bits():
    # one row of two samples, 0xABC and 0x123, packed into three bytes
    entries = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    tiff = b"II*\0" + struct.pack("<I", 12) + bytes([0xAB, 0xC1, 0x23, 0]) + directory + bytes(4)
    assert read_image(tiff).tolist() == read_image(tiff, bit_depth=12).tolist() == [[[0xAB] * 3, [0x12] * 3]]
    assert read_image(tiff, bit_depth=16).tolist() == [[[0x0A] * 3, [0x01] * 3]]  # 8, of 16
    with pytest.raises(ImageError, match="samples up to 2748, more than the 1023 of 10 bits"):
        read_image(tiff, bit_depth=10)


def test_32_bit_integers_are_refused_and_floats_must_lie_in_0_to_1():
    with pytest.raises(ImageError, match="32-bit integer samples have no agreed range; convert"):
        read_image(encoded(Image.fromarray(np.array([[70000]], np.int32)), "TIFF"))
    assert read_image(encoded(Image.fromarray(np.array([[0.5]], np.float32)), "TIFF")).tolist() == [[[128] * 3]]
    with pytest.raises(ImageError, match=r"float samples must lie in 0\.\.1, these span 0\.5\.\.7"):
        read_image(encoded(Image.fromarray(np.array([[0.5, 7]], np.float32)), "TIFF"))


def test_palettes_and_cmyk_become_rgb():
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(FLAG).quantize(8), "PNG")), FLAG)
    cyan = Image.new("CMYK", (1, 1), (255, 0, 0, 0))
    assert read_image(encoded(cyan, "TIFF")).tolist() == [[[0, 255, 255]]]
    assert read_image(cyan).tolist() == [[[0, 255, 255]]]


def test_transparency_is_shown_on_white_whatever_colour_hides_under_it():
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    shown = [[RED, WHITE, [127] * 3]]  # half black on white: 255 - 128
    assert read_image(encoded(Image.fromarray(rgba), "PNG")).tolist() == shown
    assert read_image(rgba).tolist() == shown
    assert read_image(torch.from_numpy(rgba.repeat(5, axis=0))).tolist() == shown * 5
    grey_alpha = Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), "LA")
    assert read_image(encoded(grey_alpha, "PNG")).tolist() == [[[9] * 3, WHITE]]


def test_a_transparent_palette_entry_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    assert read_image(encoded(image, "PNG", transparency=1)).tolist() == [[RED, WHITE]]
    assert read_image(encoded(image, "PNG", transparency=b"\xff\x00")).tolist() == [[RED, WHITE]]
    assert read_image(encoded(image, "GIF", transparency=1)).tolist() == [[RED, WHITE]]


def test_a_transparent_grey_value_is_white():
    grey = Image.fromarray(np.array([[10, 20]], np.uint8))
    assert read_image(encoded(grey, "PNG", transparency=20)).tolist() == [[[10] * 3, WHITE]]


@pytest.mark.parametrize("format_", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(format_: str):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(PagesWarning, match=r"has more than one page \(or frame\); the first is read, save each as a file"):
        assert read_image(data).tolist() == [[RED, RED], [RED, RED]]


def test_pages_of_a_stack_are_not_walked_through(monkeypatch: pytest.MonkeyPatch):
    page = Image.new("RGB", (2, 2), "red")
    data = encoded(page, "TIFF", save_all=True, append_images=[page] * 20)
    monkeypatch.setattr(TiffImageFile, "n_frames", property(lambda image: pytest.fail("counts its pages")))
    with pytest.warns(PagesWarning, match="has more than one page"):
        assert read_image(data).tolist() == [[RED, RED], [RED, RED]]


def test_a_phones_photo_with_a_picture_beside_it_is_one_image():
    # MPO: a JPEG with another behind it, of the other eye or of its brightness
    data = encoded(Image.fromarray(noise(16, 16)), "MPO", save_all=True, append_images=[Image.new("L", (4, 4))])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert read_image(data).shape == (16, 16, 3)


def test_a_broken_later_page_leaves_the_first_one_whole():
    frames = [Image.fromarray(noise(16, 16)), Image.fromarray(255 - noise(16, 16))]
    for format_ in ("TIFF", "GIF"):
        data = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PagesWarning)
            assert read_image(data[:-40]).shape == (16, 16, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_large_images_are_converted_in_strips_without_a_seam(monkeypatch: pytest.MonkeyPatch, mode: str):
    image = Image.fromarray(noise(41, 23)).convert("L" if mode == "I;16" else mode).convert(mode)
    whole = read_image(image, bit_depth=8)
    monkeypatch.setattr("thingstuff.structures.images._STRIP_PIXELS", 5 * 23)  # 8 strips of 5 rows, and one of 1
    np.testing.assert_array_equal(read_image(image, bit_depth=8), whole)


# --- what can't be read ---


def test_a_missing_file_a_folder_and_an_empty_file_are_named(tmp_path: Path):
    with pytest.raises(ImageError, match=r"nowhere\.jpg: no such file"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match=r"empty\.jpg: is empty \(0 bytes\)"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match="can't be opened"):
        read_image("nul\0byte.png")


def test_a_pipe_and_a_device_are_named_without_waiting_for_them(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")  # which nobody will ever write to
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    for name in ("pipe.png", "link.png"):
        with pytest.raises(ImageError, match=rf"{name}: is a named pipe, not an image file; save the image as a file"):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match="/dev/zero: is a device, not an image file"):
        read_image("/dev/zero")  # which never ends


@pytest.mark.parametrize(
    "content", [b"hello, world, this is text", b"\x00" * 64, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "notes.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"notes\.jpg: not an image that can be read") as error:
        read_image(tmp_path / "notes.jpg")
    assert "TGA" not in str(error.value)  # a format that any file might be says nothing


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP"])
def test_a_truncated_file_is_named(tmp_path: Path, format_: str):
    data = encoded(Image.fromarray(noise(64, 64)), format_)
    for kept in (4, 20, len(data) // 2):
        (tmp_path / "half.img").write_bytes(data[:kept])
        with pytest.raises(ImageError, match=r"half\.img: "):
            read_image(tmp_path / "half.img")


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM"]), st.integers(0, 400), st.binary(min_size=1, max_size=8)
)
def test_a_damaged_file_is_an_image_or_an_image_error(format_: str, position: int, damage: bytes):
    data = bytearray(encoded(Image.fromarray(noise(8, 8)), format_))
    position %= len(data)
    data[position : position + len(damage)] = damage
    try:
        pixels = read_image(bytes(data), max_pixels=10_000)
    except ImageError:
        return
    assert pixels.shape[2] == 3


def test_what_is_no_source_is_refused_by_its_type():
    with pytest.raises(ImageError, match="not NoneType"):
        read_image(None)
    with pytest.raises(ImageError, match="not list"):
        read_image([[1, 2], [3, 4]])


# --- size limits ---


def test_an_image_over_the_limit_is_refused_by_its_header_alone(tmp_path: Path):
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    (tmp_path / "huge.png").write_bytes(PNG_SIGNATURE + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b""))  # nothing to decode
    begin = time.perf_counter()
    with pytest.raises(
        ImageError,
        match=r"huge\.png: 20,000 x 20,000 = 400,000,000 pixels is over the limit of 200,000,000; raise the limit \(--max",
    ):
        read_image(tmp_path / "huge.png")
    assert time.perf_counter() - begin < 1


def test_an_image_over_pillows_own_limit_is_read_without_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for format_ in ("PNG", "TIFF", "GIF", "WEBP", "JPEG", "PPM"):
        for side in (12, 20):  # 144 pixels make Pillow warn, 400 make it refuse
            if (format_, side) == ("WEBP", 20):
                continue  # the decoder of newer Pillows can't be talked out of it: see below
            data = encoded(Image.fromarray(noise(side, side)), format_)
            assert read_image(data).shape == (side, side, 3)
            assert Image.MAX_IMAGE_PIXELS == 100
            with pytest.raises(ImageError, match="over the limit of 99"):
                read_image(data, max_pixels=99)
    assert read_image(Image.fromarray(noise(20, 20))).shape == (20, 20, 3)
    try:
        assert read_image(encoded(Image.fromarray(noise(20, 20)), "WEBP")).shape == (20, 20, 3)
    except ImageError as error:
        assert "raise PIL.Image.MAX_IMAGE_PIXELS" in str(error)  # noqa: PT017 (Pillow 12 reads it, 13 does not)


def test_pillows_limit_survives_failures_and_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    good = encoded(Image.fromarray(noise(64, 64)), "TIFF")
    outcomes: list[object] = []

    def read_many() -> None:
        for data in (good, good[: len(good) // 2]) * 10:
            try:
                outcomes.append(read_image(data).shape)
            except ImageError:
                outcomes.append(None)

    threads = [threading.Thread(target=read_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outcomes.count((64, 64, 3)), outcomes.count(None)) == (40, 40)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_large_scan_within_the_limit_is_read():
    # 9,500 x 9,500 = 90 megapixels: over the count at which Pillow warns, under ours
    data = encoded(Image.new("1", (9_500, 9_500), 1), "PNG")
    assert DEFAULT_MAX_PIXELS > 9_500 * 9_500
    pixels = read_image(data)
    assert pixels.shape == (9_500, 9_500, 3)
    assert pixels[-1, -1].tolist() == WHITE


# --- arrays and tensors ---


def test_numpy_arrays_of_every_accepted_shape_and_type():
    grey = np.array([[0, 255]], np.uint8)
    expected = [[BLACK, WHITE]]
    assert read_image(grey).tolist() == expected
    assert read_image(grey[:, :, None]).tolist() == expected
    assert read_image(grey.astype(np.bool_)).tolist() == expected
    assert read_image(grey / 255).tolist() == expected
    assert read_image((grey / 255).astype(np.float16)).tolist() == expected
    assert read_image(np.array([[0.5]])).tolist() == [[[128] * 3]]  # 127.5, to even
    np.testing.assert_array_equal(read_image(FLAG), FLAG)
    np.testing.assert_array_equal(read_image(FLAG[::-1, ::-1]), FLAG[::-1, ::-1])


def test_the_result_shares_no_memory_with_the_array():
    frame = FLAG.copy()
    pixels = read_image(frame)
    frame[:] = 0  # a video reader reuses its buffer
    np.testing.assert_array_equal(pixels, FLAG)
    tensor = torch.from_numpy(FLAG.copy())
    pixels = read_image(tensor)
    tensor.zero_()
    np.testing.assert_array_equal(pixels, FLAG)


def test_tensors_are_read_channels_first_or_last():
    tensor = torch.from_numpy(FLAG.copy())
    for source in (tensor, tensor.permute(2, 0, 1), tensor / 255, (tensor / 255).permute(2, 0, 1).bfloat16()):
        np.testing.assert_array_equal(read_image(source), FLAG)
    assert read_image(torch.zeros(5, 7)).shape == (5, 7, 3)
    assert read_image(torch.zeros(1, 5, 7)).shape == (5, 7, 3)
    assert read_image(torch.zeros(3, 5, 3)).shape == (5, 3, 3)  # both readings fit: torch's own order
    assert read_image((tensor / 255).requires_grad_()).shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 2, 3), np.nan), "holds NaN"),
        (np.full((2, 2), np.inf), r"0\.\.1, these span inf\.\.inf"),
        (np.full((2, 2), 255.0), r"float samples must lie in 0\.\.1, these span 255\.\.255; divide by 255"),
        (np.full((2, 2), -0.5), "undo the normalisation"),
        (np.zeros((2, 2), np.int64), "uint8, uint16, bool or float"),
        (np.zeros((3, 8, 9), np.uint8), r"channels come last in numpy, use array\.transpose\(1, 2, 0\)"),
        (np.zeros((8, 9, 2), np.uint8), r"array uint8 \(8, 9, 2\): an image has shape"),
        (np.zeros((1, 8, 9, 3), np.uint8), "an image has shape"),
        (np.zeros(3, np.uint8), "an image has shape"),
        (np.zeros((0, 5, 3), np.uint8), "has no pixels"),
        (np.array([["a"]]), "uint8, uint16, bool or float"),
    ],
)
def test_an_array_that_is_no_image_is_refused_with_the_reason(array: np.ndarray, message: str):
    with pytest.raises(ImageError, match=message):
        read_image(array)


def test_float_noise_around_0_and_1_is_forgiven():
    assert read_image(np.array([[-1e-5, 1 + 1e-5]])).tolist() == [[BLACK, WHITE]]


def test_a_tensor_that_is_no_image_is_refused_by_its_shape():
    with pytest.raises(ImageError, match=r"tensor float32 \(2, 3, 5, 5\)"):
        read_image(torch.zeros(2, 3, 5, 5))

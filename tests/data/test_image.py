# SPDX-License-Identifier: Apache-2.0
"""Image files: every kind of pixel, orientation, damage."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pydet.data import ImageError, read_image, read_image_size

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def as_tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def save(tmp_path, image, name="a.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_rgb_is_read_as_it_is(tmp_path):
    image = read_image(save(tmp_path, Image.fromarray(RGB)))
    assert image.dtype == torch.uint8
    assert image.shape == (3, 5, 7)
    assert image.permute(1, 2, 0).is_contiguous()
    assert torch.equal(image, as_tensor(RGB))


def test_the_result_owns_its_memory_and_can_be_written_to(tmp_path):
    path = save(tmp_path, Image.fromarray(RGB))
    image = read_image(path)
    image.zero_()
    assert torch.equal(read_image(path), as_tensor(RGB))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_becomes_three_equal_channels(tmp_path, mode):
    grey = Image.fromarray(RGB).convert(mode)
    image = read_image(save(tmp_path, grey))
    expected = torch.from_numpy(np.array(grey.convert("L")))
    assert torch.equal(image, expected.expand(3, -1, -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 32768, 65535, 65406, 65407]], dtype=np.uint16)
    image = read_image(save(tmp_path, Image.fromarray(values), f"a.{suffix}"))
    expected = np.round(values.astype(np.float64) * 255 / 65535)
    assert expected.tolist() == [[0, 0, 1, 1, 128, 255, 254, 255]]
    assert image[0].tolist() == expected.tolist()
    assert torch.equal(image[0], image[2])


def test_32_bit_grey_beyond_16_bits_is_refused(tmp_path):
    path = save(tmp_path, Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif .*0\.\.70000, outside of 0\.\.65535"):
        read_image(path)


def test_floating_pixels_are_refused_with_the_files_name(tmp_path):
    path = save(tmp_path, Image.fromarray(np.ones((2, 2), np.float32)), "depth.tif")
    with pytest.raises(ImageError, match=r"depth\.tif .* floating point"):
        read_image(path)


def test_palette(tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    image = read_image(save(tmp_path, palette))
    assert torch.equal(image, as_tensor(np.array(palette.convert("RGB"))))


def test_transparent_palette_entries_are_white(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 0, 0, 0, 0, 200])
    picture.putdata([0, 1])
    image = read_image(save(tmp_path, picture, transparency=0))
    assert image[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 200]]


def test_colour_key_of_rgb_is_white(tmp_path):
    picture = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    image = read_image(save(tmp_path, picture, transparency=(1, 2, 3)))
    assert image[:, 0].T.tolist() == [[255, 255, 255], [4, 5, 6]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(tmp_path, mode):
    picture = Image.new(mode, (3, 1))
    color = (100, 100, 100) if mode == "RGBA" else (100,)
    picture.putdata([(*color, 0), (*color, 255), (*color, 128)])
    image = read_image(save(tmp_path, picture))
    assert image[0, 0].tolist() == [255, 100, round(100 * 128 / 255 + 255 * 127 / 255)]


def test_cmyk(tmp_path):
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    image = read_image(save(tmp_path, picture, "a.jpg", quality=95))
    assert (image[0] > 240).all()
    assert (image[1:] < 15).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = np.zeros((24, 40, 3), dtype=np.uint8)
    upright[:12, :20] = (250, 250, 250)  # the top left quarter
    upright[:12, 20:] = (120, 120, 120)  # the top right quarter
    # Row 0 and column 0 of the stored image are these sides of the upright one (EXIF 2.3, 4.6.4).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    picture = Image.fromarray(np.ascontiguousarray(stored))
    path = save(tmp_path, picture, f"a.{suffix}", exif=exif, **options)
    image = read_image(path)
    assert image.shape == (3, 24, 40)
    assert (image.int() - as_tensor(upright).int()).abs().max() <= 3
    assert read_image_size(path) == (24, 40)


def test_size_of_a_png_is_read_without_its_pixels(tmp_path):
    path = save(tmp_path, Image.fromarray(RGB))
    head = path.read_bytes()
    path.write_bytes(head[: head.index(b"IDAT") + 4])
    assert read_image_size(path) == (5, 7)
    with pytest.raises(ImageError):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "tif", "webp"])
def test_files_that_are_cut_off_are_named(tmp_path, suffix):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path, Image.fromarray(noise), f"cut.{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=rf"cut\.{suffix}"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"no image at all", b"<svg/>"])
def test_files_that_are_no_images_are_named(tmp_path, content):
    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"odd\.jpg"):
        read_image(path)
    with pytest.raises(ImageError, match=r"odd\.jpg"):
        read_image_size(path)


def test_a_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError):
        read_image(tmp_path)


def png_of(width, height):
    """A PNG file whose head promises width x height white pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b""))


def test_a_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(60_000, 60_000))
    for read in (read_image, read_image_size):
        with pytest.raises(ImageError, match=r"bomb\.png.*decompression bomb"):
            read(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["jpeg", "png", "gif", "bmp", "tiff", "webp"])
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_an_image_error(tmp_path_factory, suffix, data):
    noise = np.random.default_rng(2).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, suffix)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    path.write_bytes(content)
    try:
        image = read_image(path)
    except ImageError as error:
        assert path.name in str(error)
    else:
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3

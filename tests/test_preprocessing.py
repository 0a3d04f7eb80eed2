# SPDX-License-Identifier: Apache-2.0
"""Resize rules, padding, normalisation, and boxes that move with their image."""

import dataclasses

import pytest
import torch

from pydet.preprocessing import Preprocessing
from pydet.structures import ImageBatch, pack_targets

PLAIN = Preprocessing(size=64, max_size=100, size_divisor=32)


def image(height, width, dtype=torch.float32):
    if dtype == torch.uint8:
        return torch.randint(0, 256, (3, height, width), dtype=dtype)
    return torch.rand(3, height, width, dtype=dtype)


def boxes_of(*boxes):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
    }


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1066)),  # the usual photograph
        ((640, 480), (1066, 800)),
        ((300, 1200), (333, 1333)),  # the long side decides
        ((800, 800), (800, 800)),
    ],
)
def test_short_side_rule(size, expected):
    assert Preprocessing().resized_size(size) == expected


def test_short_side_without_limit():
    assert Preprocessing(size=100, max_size=None).resized_size((10, 1000)) == (100, 10000)


def test_fixed_and_none():
    assert Preprocessing(resize="fixed", size=(30, 50)).resized_size((7, 9)) == (30, 50)
    assert Preprocessing(resize="none").resized_size((7, 9)) == (7, 9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_boxes_move_with_the_image(dtype):
    source = torch.zeros(3, 32, 40, dtype=dtype)
    source[:, 8:16, 4:8] = 200 if dtype == torch.uint8 else 0.8
    target = boxes_of([4, 8, 8, 16]) | {"area": torch.tensor([32.0])}
    resized, moved = PLAIN.resize_sample(source, target)
    assert resized.shape == (3, 64, 80)
    assert resized.dtype == dtype
    assert moved["boxes"].tolist() == [[8, 16, 16, 32]]
    assert moved["area"].tolist() == [32 * 2**2]
    assert moved["original_size"] == (32, 40)
    assert target["boxes"].tolist() == [[4, 8, 8, 16]], "the given target must not change"
    bright = (resized[0].float() > resized.max() / 2).nonzero()
    assert bright.min(0).values.tolist() == [16, 8]
    assert bright.max(0).values.tolist() == [31, 15]


def test_collate_pads_with_zero_to_the_divisor():
    samples = [(image(40, 50) + 0.5, boxes_of([1, 2, 3, 4])), (image(33, 20) + 0.5, boxes_of())]
    batch, targets = PLAIN.collate(samples)
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.sizes == batch.original_sizes == ((40, 50), (33, 20))
    assert torch.equal(batch.images[1, :, :33, :20], samples[1][0])
    assert batch.images[1, :, 33:].count_nonzero() == 0
    assert batch.images[1, :, :, 20:].count_nonzero() == 0
    assert targets.offsets.tolist() == [0, 1, 1]


def test_collate_remembers_the_original_size():
    sample = PLAIN.resize_sample(image(32, 16), None)
    batch, targets = PLAIN.collate([sample])
    assert batch.sizes == ((100, 50),)
    assert batch.original_sizes == ((32, 16),)
    assert targets.boxes.shape == (0, 4)


def test_batch_of_a_list_resizes_images_and_boxes():
    batch, targets = PLAIN.batch([image(32, 16), image(50, 50)], [boxes_of([0, 0, 8, 8])] * 2)
    assert batch.sizes == ((100, 50), (64, 64))
    assert batch.original_sizes == ((32, 16), (50, 50))
    assert targets is not None
    torch.testing.assert_close(targets.boxes, torch.tensor([[0, 0, 25, 25], [0, 0, 10.24, 10.24]]))
    without, none = PLAIN.batch([image(32, 16), image(50, 50)])
    assert none is None
    assert without.sizes == batch.sizes


def test_batch_takes_a_tensor_as_it_is():
    images = torch.rand(2, 3, 33, 47)
    batch, targets = PLAIN.batch(images, [boxes_of([0, 0, 90, 90]), boxes_of()])
    assert batch.images is images
    assert batch.sizes == batch.original_sizes == ((33, 47),) * 2
    assert targets is not None
    assert targets.boxes.tolist() == [[0, 0, 47, 33]]


def test_batch_takes_finished_parts():
    ready = PLAIN.batch([image(10, 10)])[0]
    packed = pack_targets([boxes_of([0, 0, 5, 5])])
    batch, targets = PLAIN.batch(ready, packed)
    assert batch is ready
    assert targets is packed


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalize_is_the_definition_and_padding_is_zero(dtype, device):
    one, two = image(40, 50, dtype), image(33, 64, dtype)
    plain = dataclasses.replace(PLAIN, resize="none", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    batch = plain.batch([one.to(device), two.to(device)])[0]
    values = plain.normalize(batch).cpu()
    scaled = one.double() / (255 if dtype == torch.uint8 else 1)
    expected = (scaled - torch.tensor([0.1, 0.2, 0.3])[:, None, None].double()) / torch.tensor(
        [0.5, 0.6, 0.7]
    )[:, None, None].double()
    torch.testing.assert_close(values[0, :, :40, :50].double(), expected, atol=1e-6, rtol=1e-6)
    assert values[0, :, 40:].count_nonzero() == 0
    assert values[0, :, :, 50:].count_nonzero() == 0
    assert values[1, :, :33].count_nonzero() > 0
    assert values.dtype == torch.float32


def test_uint8_and_float_images_are_resized_alike(device):
    source = image(37, 53, torch.uint8)
    as_bytes = PLAIN.batch([source.to(device)])[0].images.cpu()
    as_floats = PLAIN.batch([source.to(device) / 255])[0].images.cpu()
    assert as_bytes.dtype == torch.uint8
    torch.testing.assert_close(as_bytes / 255, as_floats, atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize("size", [(5, 1), (1, 1), (1, 5)])
def test_bytes_of_an_even_image_stay_even_in_one_pixel(size):
    plain = Preprocessing(resize="fixed", size=size)
    resized, _ = plain.resize_sample(torch.full((3, 40, 30), 77, dtype=torch.uint8))
    assert resized.shape == (3, *size)
    assert (resized == 77).all()


def test_invalid_boxes_raise_where_asked():
    strict = dataclasses.replace(PLAIN, invalid_boxes="raise")
    with pytest.raises(ValueError, match=r"positive width.*in image 1 of \(height, width\)"):
        strict.batch([image(64, 64)] * 2, [boxes_of([0, 0, 5, 5]), boxes_of([9, 9, 9, 12])])
    _, packed = PLAIN.batch([image(64, 64)], [boxes_of([9, 9, 9, 12])])
    assert packed is not None
    assert packed.num_invalid == 1


@pytest.mark.parametrize(
    ("images", "targets", "error", "words"),
    [
        ([], None, ValueError, "at least one image"),
        ("photo.jpg", None, TypeError, r"images\[0\] must be a tensor"),
        (3, None, TypeError, "must be a sequence"),
        ([torch.rand(4, 8, 8)], None, ValueError, r"images\[0\] .*\[3, H, W\], got \[4, 8, 8\]"),
        ([torch.rand(3, 0, 8)], None, ValueError, "at least one pixel"),
        ([torch.zeros(3, 8, 8).long()], None, TypeError, "uint8 .* or floating"),
        ([torch.rand(3, 8, 8), torch.zeros(3, 8, 8).byte()], None, TypeError, "dtype and device"),
        (torch.rand(3, 8, 8), None, ValueError, r"\[B, 3, H, W\], got \[3, 8, 8\]"),
        ([torch.rand(3, 8, 8)], [], ValueError, "each of the 1 images, got 0"),
        ([torch.rand(3, 8, 8)], pack_targets([boxes_of()]), TypeError, "got PackedTargets"),
        ([torch.rand(3, 8, 8)], 7, TypeError, "targets must be a sequence"),
        ([torch.rand(3, 8, 8)], [{"boxes": torch.zeros(1, 4)}], TypeError, "'boxes' and 'labels'"),
    ],
)
def test_wrong_input_is_refused_in_words(images, targets, error, words):
    with pytest.raises(error, match=words):
        PLAIN.batch(images, targets)


def test_images_may_ask_for_gradients():
    images = [torch.rand(3, 5, 7, requires_grad=True), torch.rand(3, 8, 4, requires_grad=True)]
    batch, _ = PLAIN.batch(images)
    PLAIN.normalize(batch).sum().backward()
    assert all(image.grad.abs().min() > 0 for image in images)


def test_packed_targets_must_fit_the_batch():
    batch = ImageBatch(torch.rand(2, 3, 8, 8), ((8, 8),) * 2, ((8, 8),) * 2)
    with pytest.raises(ValueError, match="for the 2 images of the batch, got 1"):
        PLAIN.batch(batch, pack_targets([boxes_of()]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resize", "long_side"),
        ("size", (3, 4)),
        ("size", 0),
        ("max_size", -1),
        ("size_divisor", 0),
        ("mean", (1, 2)),
        ("std", (1.0, 0.0, 1.0)),
        ("invalid_boxes", "ignore"),
    ],
)
def test_wrong_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"Preprocessing: {field} must"):
        Preprocessing(**{field: value})


def interleaved(image):
    """The same image in the memory of a file: the three values of a pixel together."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


@pytest.mark.parametrize("sizes", [((40, 60), (64, 52)), ((64, 64), (64, 64))])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_layout_of_the_images_goes_through_and_changes_no_value(sizes, dtype):
    images = [image(*size, dtype) for size in sizes]
    planar, _ = PLAIN.batch(images)
    files, _ = PLAIN.batch([interleaved(x) for x in images])
    assert planar.images.is_contiguous()
    assert files.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(files.images, planar.images)
    mixed, _ = PLAIN.batch([images[0], interleaved(images[1])])
    assert torch.equal(mixed.images, planar.images)
    values = PLAIN.normalize(files)
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(values, PLAIN.normalize(planar))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("width", [1, 9])
@pytest.mark.parametrize("size", [(40, 1), (5, 1), (20, 2), (70, 30)])
def test_layout_does_not_change_how_an_image_is_resized(dtype, width, size):
    x = image(50, width, dtype)
    to_size = Preprocessing(resize="fixed", size=size)
    planar, _ = to_size.resize_sample(x)
    same, _ = to_size.resize_sample(interleaved(x))
    assert torch.equal(same, planar)

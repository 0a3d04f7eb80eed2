# SPDX-License-Identifier: Apache-2.0
"""What is exported runs without pydet and keeps the same boxes."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pydet import create_model, ops
from pydet.onnx import export_onnx
from tests.ops.test_nms import random_boxes

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxscript", reason="needs onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")

AUTO = torch.export.Dim.DYNAMIC


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def exported(function, tensors, dynamic_shapes, tmp_path):
    """Runs the exported function: a callable on tensors that gives a list of tensors."""
    path = tmp_path / "model.onnx"
    # The arguments of forward are one: *tensors.
    export_onnx(Call(function), tensors, path, dynamic_shapes=(dynamic_shapes,))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs):
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(result) for result in session.run(None, feed)]

    return run


def assert_same(run, function, tensors):
    wanted = function(*tensors)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for got, want in zip(run(*tensors), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)
        if not want.is_floating_point():
            assert torch.equal(got, want)


def special(boxes, scores):
    """NaN, boxes without area and inverted ones, and ties of scores (random_boxes has those)."""
    boxes, scores = boxes.clone(), scores.clone()
    boxes[..., 3, 0] = math.nan
    boxes[..., 4, 2] = boxes[..., 4, 0]
    boxes[..., 5, :] = boxes[..., 5, [2, 3, 0, 1]]
    scores[..., 6] = math.nan
    scores[..., 7] = -math.inf
    return boxes, scores


def test_padded_suppression_of_a_batch(tmp_path):
    """Batches of any size, classes of any int64, ties, NaN: the same rows as pydet's."""

    def select(boxes, scores, idxs):
        return tuple(
            ops.batched_nms(boxes, scores, idxs, 0.375, max_output=20, score_threshold=0.1)
        )

    tensors = random_boxes(3, 40, size=100)
    run = exported(select, tensors, ({0: AUTO, 1: AUTO},) * 3, tmp_path)
    far = torch.iinfo(torch.int64)
    for batch, count in ((3, 40), (1, 10), (5, 200), (2, 1)):
        boxes, scores, idxs = random_boxes(batch, count, size=100, seed=batch)
        if count > 8:
            boxes, scores = special(boxes, scores)
        assert_same(run, select, (boxes, scores, idxs))
        assert_same(run, select, (boxes, scores, torch.where(idxs > 0, far.max, far.min)))
    boxes, scores, idxs = random_boxes(2, 60, size=50)
    assert_same(run, select, (boxes - 200, scores.fill_(0.5), idxs))  # one score for all


def test_padded_suppression_without_classes(tmp_path):
    def select(boxes, scores):
        return tuple(ops.batched_nms(boxes, scores, None, 1 / 3, max_output=50))

    boxes, scores, _ = random_boxes(2, 30, size=60)
    run = exported(select, (boxes, scores), ({0: AUTO, 1: AUTO},) * 2, tmp_path)
    for count in (30, 9, 120):
        boxes, scores, _ = random_boxes(4, count, size=60, seed=count)
        assert_same(run, select, special(boxes, scores))


def test_suppression_of_one_image(tmp_path):
    def select(boxes, scores, idxs):
        return ops.nms(boxes, scores, 0.5), ops.batched_nms(boxes, scores, idxs, 0.5)

    tensors = random_boxes(30, size=60)
    run = exported(select, tensors, ({0: AUTO},) * 3, tmp_path)
    for count in (30, 12, 100):
        boxes, scores, idxs = random_boxes(count, size=60, seed=count)
        assert_same(run, select, (*special(boxes, scores), idxs))


def test_box_ops(tmp_path):
    def decode(deltas, anchors, sizes):
        boxes = ops.decode_boxes(deltas, anchors, (10.0, 10.0, 5.0, 5.0), image_sizes=sizes)
        moved = ops.clip_boxes_to_image(boxes - 5, (40, 50))
        return boxes, ops.box_convert(moved, "xyxy", "cxcywh"), ops.decode_boxes(deltas, anchors)

    anchors = random_boxes(6, size=60)[0]
    sizes = torch.tensor([[50.0, 60.0], [64.0, 48.0]])
    deltas = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)) * 3
    run = exported(decode, (deltas, anchors, sizes), ({0: AUTO}, None, {0: AUTO}), tmp_path)
    assert_same(run, decode, (deltas, anchors, sizes))
    more = (torch.cat([deltas, deltas * 2]), anchors, torch.cat([sizes, sizes + 10]))
    assert_same(run, decode, more)


# Names, settings that make them small, and what takes scores so far apart that rounding in the
# network changes no order.
DETECTORS = [
    (
        "faster_rcnn_resnet18_fpn",
        {
            "fpn_channels": 16,
            "rpn_channels": 16,
            "box_channels": 32,
            "pre_nms": 100,
            "post_nms": 30,
        },
        100,
    ),
    (
        "faster_rcnn_resnet50_c4",
        {
            "depth": 10,
            "anchor_sizes": [[32, 64, 128]],
            "pool_size": 4,
            "rpn_channels": 16,
            "pre_nms": 100,
            "post_nms": 30,
        },
        100,
    ),
    (
        "faster_rcnn_vgg16",
        {
            "width": 1 / 16,
            "anchor_sizes": [[32, 64, 128]],
            "rpn_channels": 16,
            "box_channels": 32,
            "pre_nms": 100,
            "post_nms": 30,
        },
        100,
    ),
    ("fcos_resnet18_fpn", {"fpn_channels": 16, "head_convs": 1}, 100),
    ("retinanet_resnet18_fpn", {"fpn_channels": 16, "head_convs": 1}, 100),
    (
        "ssd300_vgg16",
        {
            "width": 1 / 16,
            "extra_layers": ((256, 512, 3, 2, 1),),
            "anchor_sizes": (12, 24, 40, 60),
            "anchor_ratios": ((2,), (2, 3), (2,)),
            "anchor_strides": (8, 16, 32),
            "candidates_per_class": 20,
            "max_detections": 60,
        },
        0.2,  # of a softmax: greater ones would all score 1
    ),
]


def assert_same_detections(found, wanted):
    """Each is one of the other, of the same label; those that score alike may change places."""
    left = list(range(len(wanted[0])))
    for box, score, label in zip(*found, strict=True):
        twins = [
            k
            for k in left
            if wanted[2][k] == label
            and (wanted[0][k] - box).abs().max() <= 0.01
            and (wanted[1][k] - score).abs() <= 1e-4 * score.abs() + 1e-6
        ]
        assert twins, (box, score, label)
        left.remove(twins[0])


def decided(name, small, factor):
    """A detector whose scores are not all alike."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, score_threshold=0.0, **small).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith("weight") and {"cls_logits", "objectness"} & set(key.split(".")):
                weight.mul_(factor)
    return model


@pytest.mark.parametrize(("name", "small", "factor"), DETECTORS)
def test_a_detector_with_any_batch_and_size(name, small, factor, tmp_path):
    model = decided(name, small, factor)

    def detect(images, sizes):
        with torch.no_grad():
            return tuple(model.detect(images, sizes))

    class Detect(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images, sizes):
            return tuple(self.model.detect(images, sizes))

    path = tmp_path / "detector.onnx"
    images, sizes = torch.rand(2, 3, 256, 384), torch.full((2, 2), 256.0)
    batch = torch.export.Dim("batch", min=1, max=64)
    # Of the stride of P7: where a level has but one location, torch exports that one size alone.
    height, width = (128 * torch.export.Dim(side, min=2, max=16) for side in ("h", "w"))
    export_onnx(
        Detect(),
        (images, sizes),
        path,
        dynamic_shapes={"images": {0: batch, 2: height, 3: width}, "sizes": {0: batch}},
        input_names=["images", "sizes"],
        output_names=["boxes", "scores", "labels", "counts"],
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count, side in ((1, 256), (2, 384), (3, 256)):
        images, sizes = torch.rand(count, 3, side, 256), torch.full((count, 2), 256.0)
        sizes[0, 0] = 248
        results = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        boxes, scores, labels, counts = map(torch.from_numpy, results)
        wanted = detect(images, sizes)
        assert counts.min() > 0
        assert torch.equal(counts, wanted[3])
        torch.testing.assert_close(scores, wanted[1], rtol=1e-4, atol=1e-6)
        for image in range(count):
            ours = (boxes[image], scores[image], labels[image])
            assert_same_detections(ours, [part[image] for part in wanted[:3]])


@pytest.mark.parametrize("place", [0, -2])
def test_a_detector_as_it_is_with_its_preprocessing(place, tmp_path):
    name, small, factor = DETECTORS[place]
    size = {"preprocessing": {"size": 128, "max_size": 192}}
    model = decided(name, {**small, **size}, factor)
    path, image = tmp_path / "detector.onnx", torch.rand(3, 150, 200)
    export_onnx(model, ([image],), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = torch.rand(3, 150, 200)
    results = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        (wanted,) = model([image])
    assert len(wanted["boxes"]) > 9
    assert [len(result) for result in results] == [len(wanted["boxes"])] * 3
    found = list(map(torch.from_numpy, results))
    assert_same_detections(found, [wanted[key] for key in ("boxes", "scores", "labels")])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda b, s, i: ops.batched_soft_nms(b, s, i, max_output=5).scores,
            "soft_nms_padded must be an op that ONNX can express",
        ),
        (lambda b, s, i: ops.matrix_nms(b, s, i, max_output=5).scores, "matrix_nms_padded must be"),
        (
            lambda b, s, i: ops.batched_nms(b, s, i, 0.5, overlap="diou", max_output=5).keep,
            "nms_padded must have overlap='iou', got 'diou'",
        ),
        (
            lambda b, s, i: ops.batched_nms(b.double(), s.double(), i, 0.5, max_output=5).keep,
            "nms_padded must have boxes of float32 or less, got float64",
        ),
        (
            lambda b, s, i: ops.batched_nms(b[None], s[None], i[None], 0.5, max_output=5).keep,
            r"nms_padded must have boxes \[N, 4\] or \[B, N, 4\], got 4 dimensions",
        ),
    ],
)
def test_what_onnx_cannot_say(call, message):
    with pytest.raises(NotImplementedError, match="^export_onnx: " + message):
        export_onnx(Call(call), random_boxes(2, 8))


# --- features of regions -------------------------------------------------------------------------

# The second is the padding of a batch: no image.
_SPECIAL_ROIS = [
    [0, 2, 2, 2, 2],
    [-1, 0, 0, 8, 8],
    [3, 0, 0, 8, 8],
    [math.nan, 0, 0, 8, 8],
    [1, math.nan, 0, 8, 8],
    [0, 0, 0, math.inf, 8],
    [1.75, 6, 6, 3, 3],
    [2, 0, 9, 8, 3],
    [0, -60, -60, -40, -40],
    [1, 60, 60, 90, 90],
    [2, -30, -30, 90, 90],
    [0, -1, -1, 0, 0],
    [1, 0, 0, 1e-20, 1e-30],
    [2, 3.25, 1.5, 3.75, 1.75],
]
_FAR_ROIS = [[0, -3e38, 0, 3e38, 8], [1, 1e30, 1e30, 2e30, 2e30], [1, -1e12, -1e12, 1e12, 1e12]]


@st.composite
def regions(draw):
    """Regions [R, 5] in pixels of maps whose first has 16 x 12 cells of 4 pixels, also none."""
    corner = st.floats(-40, 100, width=32) | st.integers(-8, 24).map(lambda i: float(4 * i))
    row = st.tuples(st.integers(-1, 3).map(float), *[corner] * 4)
    rows = draw(st.lists(row | st.sampled_from(_SPECIAL_ROIS), max_size=12))
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)


@pytest.fixture
def features():
    """Maps of three levels, [3, 2, 12, 16] the largest."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, 12 >> i, 16 >> i, generator=generator) for i in range(3)]


_HEALTH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("sampling_ratio", [-1, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align(aligned, sampling_ratio, features, tmp_path):
    """Any regions, of one map and of a pyramid: what pydet gives."""

    def align(rois, *maps):
        one = ops.roi_align(maps[0], rois, (3, 2), 1 / 3, sampling_ratio, aligned)
        scales = [0.25, 0.125, 0.0625]
        several = ops.multiscale_roi_align(
            maps, rois, 2, scales, sampling_ratio, aligned, canonical_scale=20, canonical_level=3
        )
        return one, several

    shapes = ({0: AUTO}, *[{0: AUTO, 2: AUTO, 3: AUTO}] * 3)
    run = exported(align, (torch.tensor(_SPECIAL_ROIS), *features), shapes, tmp_path)

    @_HEALTH
    @given(regions())
    def agrees(rois):
        assert_same(run, align, (rois, *features))

    agrees()
    if sampling_ratio > 0:
        assert_same(run, align, (torch.tensor(_FAR_ROIS), *features))
    rois = torch.tensor(_SPECIAL_ROIS)
    assert_same(run, align, (rois, *[feature_map[:1] for feature_map in features]))
    assert_same(run, align, (rois, *[torch.zeros(2, 2, 0, size) for size in (5, 3, 1)]))


def test_levels_of_boxes(features, tmp_path):
    """A box goes to the level that pydet takes, next to each limit too."""

    def align(rois, *maps):
        return ops.multiscale_roi_align(maps, rois, 1, [0.25, 0.125, 0.0625], 1)

    maps = [torch.full_like(m, i) for i, m in enumerate(features)]  # the result is the level
    shapes = ({0: AUTO}, None, None, None)
    run = exported(align, (torch.tensor(_SPECIAL_ROIS), *maps), shapes, tmp_path)
    sides = torch.cat([limit + torch.arange(-300, 300) * 2e-6 for limit in (112.0, 224.0)])
    rois = torch.zeros(len(sides), 5)
    rois[:, 1:] = torch.stack([-sides / 2, -sides / 2, sides / 2, sides / 2], 1) + 8
    assert_same(run, align, (rois, *maps))
    assert len(align(rois, *maps).unique()) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_roi_align_of_other_dtypes(dtype, features, tmp_path):
    def align(rois, features):
        return ops.roi_align(features, rois, 2, 1 / 3, 2, aligned=True)

    tensors = torch.tensor(_SPECIAL_ROIS, dtype=dtype), features[0].to(dtype)
    run = exported(align, tensors, ({0: AUTO}, None), tmp_path)
    (got,) = run(*tensors)
    assert got.dtype == dtype
    torch.testing.assert_close(
        got, align(*tensors), rtol=1e-3, atol=1e-3 if dtype.itemsize == 2 else 1e-12
    )


def test_roi_pool(features, tmp_path):
    """Any regions; maps without cells, far corners."""

    def pool(rois, features):
        return ops.roi_pool(features, rois, (3, 2), 0.25)

    shapes = ({0: AUTO}, {0: AUTO, 2: AUTO, 3: AUTO})
    run = exported(pool, (torch.tensor(_SPECIAL_ROIS), features[0]), shapes, tmp_path)

    @_HEALTH
    @given(regions())
    def agrees(rois):
        assert_same(run, pool, (rois, features[0]))

    agrees()
    assert_same(run, pool, (torch.tensor(_FAR_ROIS), features[0]))
    assert_same(run, pool, (torch.tensor(_SPECIAL_ROIS), torch.zeros(2, 2, 0, 3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda rois, m: ops.roi_pool(m.double(), rois, 2),
            "roi_pool must have features of float32 or less, got float64",
        ),
        (
            lambda rois, m: ops.ps_roi_align(m, rois, 1),
            "ps_roi must be an op that ONNX can express",
        ),
    ],
)
def test_features_that_onnx_cannot_say(call, message, features):
    with pytest.raises(NotImplementedError, match="^export_onnx: " + message):
        export_onnx(Call(call), (torch.tensor(_SPECIAL_ROIS), features[0]))

# SPDX-License-Identifier: Apache-2.0
"""What is exported runs without pydet and keeps the same boxes."""

import math

import pytest
import torch
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


def test_a_detector_with_any_batch(tmp_path):
    torch.manual_seed(0)
    model = create_model("retinanet_resnet18_fpn", num_classes=3, score_threshold=0.0).eval()

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
    images, sizes = torch.rand(2, 3, 64, 64), torch.full((2, 2), 64.0)
    batch = torch.export.Dim("batch", min=1, max=64)
    export_onnx(
        Detect(),
        (images, sizes),
        path,
        dynamic_shapes={"images": {0: batch}, "sizes": {0: batch}},
        input_names=["images", "sizes"],
        output_names=["boxes", "scores", "labels", "counts"],
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 2, 3):
        images, sizes = torch.rand(count, 3, 64, 64), torch.full((count, 2), 64.0)
        sizes[0, 0] = 48
        results = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        boxes, scores, labels, counts = map(torch.from_numpy, results)
        wanted = detect(images, sizes)
        assert counts.min() > 0
        assert torch.equal(counts, wanted[3])
        torch.testing.assert_close(scores, wanted[1], rtol=1e-4, atol=1e-6)
        # Scores that are equal up to the rounding of the network may change places.
        same = (labels == wanted[2]).float().mean()
        assert same > 0.95
        close = ((boxes - wanted[0]).abs() < 0.05).all(2).float().mean()
        assert close > 0.95


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

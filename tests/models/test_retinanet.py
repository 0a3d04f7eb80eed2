# SPDX-License-Identifier: Apache-2.0
"""RetinaNet: the numbers of the paper, its assignment, losses and inference."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import pydet
from pydet.models.retinanet import (
    RetinaNet,
    RetinaNetConfig,
    RetinaNetOutput,
    assign_targets,
)
from pydet.ops import box_iou, generalized_box_iou
from tests.models.helpers import assert_detect_alike, assert_trains, packed

SMALL = {"fpn_channels": 16, "head_convs": 1, "preprocessing": {"size": 64, "max_size": 96}}


def small(num_classes=3, **overrides) -> RetinaNet:
    torch.manual_seed(0)
    model = pydet.create_model("retinanet_resnet18_fpn", num_classes, **{**SMALL, **overrides})
    assert isinstance(model, RetinaNet)
    return model


# --- structure -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    # 34 014 999: published by torchvision for its retinanet_resnet50_fpn.
    [("retinanet_resnet50_fpn", 34_014_999 + 2 * 26_560)],
)
def test_parameters_are_as_many_as_published(name, num_parameters):
    with torch.device("meta"):
        model = pydet.create_model(name, 91)
        frozen = pydet.create_model(name, 91, norm="frozen")
    # Batch norms that learn have 2 parameters for each of the trunk's 26 560 channels.
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    assert sum(p.numel() for p in frozen.parameters()) == 34_014_999


def test_hundred_thousand_anchors_nine_a_location():
    with torch.device("meta"):
        model = pydet.create_model("retinanet_resnet50_fpn", 80)
        output = model.predict(torch.empty(1, 3, 800, 1344))  # 1333, padded
    locations = [100 * 168, 50 * 84, 25 * 42, 13 * 21, 7 * 11]
    assert output.num_per_level == tuple(9 * count for count in locations)
    assert sum(output.num_per_level) == 201_600
    assert output.cls_logits.shape == (1, 201_600, 80)
    assert output.box_deltas.shape == (1, 201_600, 4)
    # The paper's figure of ~100 thousand is for its images of 600 pixels (section 3).
    with torch.device("meta"):
        assert 90_000 < model.predict(torch.empty(1, 3, 608, 1024)).anchors.shape[0] < 120_000


def test_anchor_areas_are_the_papers():
    anchors = small().predict(torch.zeros(1, 3, 64, 64)).anchors
    counts = [9 * n for n in (64, 16, 4, 1, 1)]
    for level, part in zip(range(3, 8), anchors.split(counts), strict=True):
        sides = (part[:, 2:] - part[:, :2]).prod(1).sqrt()
        expected = [4 * 2**level * 2 ** (i / 3) for i in range(3)] * 3
        torch.testing.assert_close(sides[:9], torch.tensor(expected), rtol=1e-5, atol=0)


def test_first_scores_are_the_prior():
    model = small(prior=0.02)
    assert torch.all(model.head.cls_logits.bias == -math.log(0.98 / 0.02))
    scores = model.eval().predict(torch.randn(1, 3, 64, 64)).cls_logits.sigmoid()
    assert (scores - 0.02).abs().max() < 0.01


def test_subnets_have_four_convolutions_and_share_no_weights():
    with torch.device("meta"):
        head = pydet.create_model("retinanet_resnet50_fpn", 80).head
    for subnet in (head.cls_convs, head.box_convs):
        assert sum(isinstance(m, torch.nn.Conv2d) for m in subnet) == 4
    assert head.cls_logits.out_channels == 9 * 80
    assert head.box_deltas.out_channels == 9 * 4


class _Copies(TorchDispatchMode):
    """The sizes of tensors that are copied into another layout or dtype."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("clone", "_to_copy", "contiguous", "copy_"):
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_head_in_bfloat16_and_channels_last_copies_only_its_weights():
    model = small().to(memory_format=torch.channels_last)
    features = [
        torch.rand(2, 16, n, n).bfloat16().to(memory_format=torch.channels_last)
        for n in (8, 4, 2, 1, 1)
    ]
    with torch.autocast("cpu", torch.bfloat16), _Copies() as watch:
        logits, deltas = model.head(features)
    assert logits.dtype == deltas.dtype == torch.bfloat16
    assert logits.shape == (2, 9 * 86, 3)
    weights = {tuple(p.shape) for p in model.head.parameters()}
    assert watch.shapes, "autocast copies weights"
    assert set(watch.shapes) <= weights


# --- assignment ----------------------------------------------------------------------------------

ANCHORS = torch.tensor(
    [[0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 3], [50, 50, 60, 60], [100, 100, 110, 110]],
    dtype=torch.float32,
)
PLAIN = RetinaNetConfig(low_quality_matches=False)


def test_assignment_by_two_thresholds():
    targets = packed([([0, 0, 10, 10], 2)], [([50, 50, 60, 60], 1), ([100, 100, 110, 105], 0)])
    assigned = assign_targets(ANCHORS, targets, PLAIN)
    # IoU of the first box with the first three anchors: 1, 0.45, 0.3.
    assert assigned.labels.tolist() == [[2, -2, -1, -1, -1], [-1, -1, -1, 1, 0]]
    assert assigned.foreground.tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert assigned.boxes[0, 0].tolist() == [0, 0, 10, 10]
    assert assigned.boxes[1, 4].tolist() == [100, 100, 110, 105]
    assert torch.equal(assigned.boxes[0, 1:], ANCHORS[1:])


def test_each_box_gets_its_best_anchor_where_wanted():
    targets = packed([([0, 0, 10, 2], 1)])  # IoU 0.2, 0.44, 0.67 -> shrunk to 0.2, 0.44, 0.67
    assert assign_targets(ANCHORS[:2], targets, PLAIN).labels.tolist() == [[-1, -2]]
    low = assign_targets(ANCHORS[:2], targets, RetinaNetConfig())
    assert low.labels.tolist() == [[-1, 1]]


def test_box_that_no_anchor_touches_gets_none():
    targets = packed([([200, 200, 220, 220], 1)])
    assigned = assign_targets(ANCHORS, targets, RetinaNetConfig())
    assert assigned.labels.tolist() == [[-1] * 5]


def test_ignored_boxes_are_neither_foreground_nor_background():
    targets = packed([([45, 45, 65, 65], 0, True), ([0, 0, 10, 10], 1)])
    assigned = assign_targets(ANCHORS, targets, PLAIN)
    assert assigned.labels.tolist() == [[1, -2, -1, -2, -1]]
    assert not assigned.foreground[0, 3]


def test_batch_without_any_object():
    assigned = assign_targets(ANCHORS, packed([], []), RetinaNetConfig())
    assert (assigned.labels == -1).all()
    assert torch.equal(assigned.boxes, ANCHORS.expand(2, 5, 4))


def test_invalid_boxes_are_not_assigned():
    targets = packed(
        [([0, 0, 10, 10], 2), ([5, 5, 5, 9], 0), ([math.nan] * 4, 1)], sizes=[(200, 200)]
    )
    assigned = assign_targets(ANCHORS, targets, RetinaNetConfig())
    assert assigned.labels.tolist() == [[2, -2, -1, -1, -1]]
    assert assigned.boxes.isfinite().all()


# --- losses --------------------------------------------------------------------------------------


def definition(output: RetinaNetOutput, targets, config):
    """Both losses image by image, in double, with loops, from the paper's section 3.2 and 4."""
    totals = [0.0, 0.0]
    anchors = output.anchors.double()
    num_images = len(targets)
    for b in range(num_images):
        rows = slice(int(targets.offsets[b]), int(targets.offsets[b + 1]))
        boxes, labels = targets.boxes[rows].double(), targets.labels[rows]
        logits, deltas = output.cls_logits[b].double(), output.box_deltas[b].double()
        iou = box_iou(anchors, boxes) if len(boxes) else anchors.new_zeros(len(anchors), 1)
        best, which = iou.max(1)
        positive = best >= config.fg_iou_threshold
        ignored = (best >= config.bg_iou_threshold) & ~positive
        one_hot = torch.zeros_like(logits)
        for a in positive.nonzero()[:, 0].tolist():
            one_hot[a, labels[which[a]]] = 1
        p = logits.sigmoid()
        p_t = torch.where(one_hot == 1, p, 1 - p)
        alpha_t = torch.where(one_hot == 1, config.focal_alpha, 1 - config.focal_alpha)
        focal = -alpha_t * (1 - p_t) ** config.focal_gamma * p_t.log()
        normalizer = max(1, int(positive.sum()))
        totals[0] += focal[~ignored].sum() / normalizer / num_images
        for a in positive.nonzero()[:, 0].tolist():
            anchor, box = anchors[a], boxes[which[a]]
            size, box_size = anchor[2:] - anchor[:2], box[2:] - box[:2]
            shift = ((box[:2] + box[2:]) - (anchor[:2] + anchor[2:])) / 2 / size
            code = torch.cat((shift, (box_size / size).log()))
            for difference in (deltas[a] - code).abs().tolist():
                beta = config.smooth_l1_beta
                small_loss = difference**2 / 2 / beta if beta else 0.0
                loss = small_loss if difference < beta else difference - beta / 2
                totals[1] += loss / normalizer / num_images
    return [float(torch.as_tensor(total).detach()) for total in totals]


@pytest.mark.parametrize("beta", [0.0, 0.11, 1.0])
def test_losses_are_the_definition(beta):
    model = small(low_quality_matches=False, smooth_l1_beta=beta, focal_alpha=0.3, focal_gamma=1.5)
    targets = packed(
        [([5, 5, 40, 44], 2), ([20, 10, 60, 50], 0)], [], [([0, 0, 30, 60], 1), ([8, 8, 40, 40], 1)]
    )
    output = model.predict(torch.randn(3, 3, 64, 64))
    torch.nn.init.normal_(output.box_deltas.data)
    torch.nn.init.normal_(output.cls_logits.data)
    losses = model.losses(output, targets)
    expected = definition(output, targets, model.config)
    assert expected[1] > 0
    assert float(losses["loss_cls"]) == pytest.approx(expected[0], rel=1e-4)
    assert float(losses["loss_box"]) == pytest.approx(expected[1], rel=1e-4)


def test_generalised_iou_as_box_loss():
    model = small(box_loss="giou")
    targets = packed([([5, 5, 40, 44], 2), ([20, 10, 60, 50], 0)], [])
    output = model.predict(torch.randn(2, 3, 64, 64))
    torch.nn.init.normal_(output.box_deltas.data, std=0.3)
    assigned = assign_targets(output.anchors, targets, model.config)
    (rows,) = assigned.foreground[0].nonzero(as_tuple=True)
    total = 0.0
    for row in rows.tolist():
        dx, dy, dw, dh = output.box_deltas[0, row].tolist()
        x1, y1, x2, y2 = output.anchors[row].tolist()
        cx, cy = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
        w, h = (x2 - x1) * math.exp(dw), (y2 - y1) * math.exp(dh)
        box = torch.tensor([[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]])
        total += 1 - float(generalized_box_iou(box, assigned.boxes[0, row, None]))
    loss = model.losses(output, targets)["loss_box"]
    assert float(loss) == pytest.approx(total / len(rows) / 2, rel=1e-4)


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_box_loss_touches_foreground_only(box_loss):
    model = small(box_loss=box_loss)
    targets = packed([([5, 5, 40, 44], 2)])
    output = model.predict(torch.randn(1, 3, 64, 64))
    deltas = output.box_deltas.detach().requires_grad_()
    model.losses(output._replace(box_deltas=deltas), targets)["loss_box"].backward()
    foreground = assign_targets(output.anchors, targets, model.config).foreground
    assert 0 < foreground.sum() < 100
    assert torch.equal(deltas.grad.abs().sum(2) > 0, foreground)


def test_weight_of_the_box_loss():
    targets = packed([([5, 5, 40, 44], 2)])
    losses = []
    for weight in (1.0, 2.5):
        model = small(box_loss_weight=weight).eval()
        torch.manual_seed(1)
        losses.append(model.losses(model.predict(torch.randn(1, 3, 64, 64)), targets))
    torch.testing.assert_close(losses[1]["loss_box"], 2.5 * losses[0]["loss_box"])


# --- inference -----------------------------------------------------------------------------------


def test_objects_written_into_the_output_are_found():
    model = small().eval()
    output = model.predict(torch.zeros(2, 3, 64, 64))
    logits = torch.full_like(output.cls_logits, -10)
    deltas = torch.zeros_like(output.box_deltas)
    index = int((output.anchors - torch.tensor([16.0, 16, 48, 48])).abs().sum(1).argmin())
    logits[0, index, 1] = 3.0
    deltas[0, index] = torch.tensor([0.25, 0, math.log(0.5), 0])
    logits[0, index, 2] = 1.0  # another class in the same place is another object
    logits[1, index, 0] = math.log(0.04 / 0.96)  # below the threshold of 0.05
    found = model.decode(
        output._replace(cls_logits=logits, box_deltas=deltas), torch.full((2, 2), 64.0)
    )
    assert found.counts.tolist() == [2, 0]
    assert found.labels[0, :3].tolist() == [1, 2, -1]
    torch.testing.assert_close(found.scores[0, :2], torch.tensor([3.0, 1.0]).sigmoid())
    # anchor (16, 16, 48, 48): centre 32 + 0.25 · 32 = 40, width 16
    expected = torch.tensor([32.0, 16, 48, 48])
    torch.testing.assert_close(found.boxes[0, :2], expected.expand(2, 4))
    assert found.boxes[1].count_nonzero() == 0


def test_detections_are_limited_and_overlapping_ones_removed():
    model = small(score_threshold=0.0, max_detections=7, nms_iou_threshold=0.3).eval()
    torch.nn.init.normal_(model.head.cls_logits.weight)
    with torch.no_grad():
        (found,) = model([torch.rand(3, 64, 64)])
    assert len(found["boxes"]) == 7
    for label in range(3):
        boxes = found["boxes"][found["labels"] == label]
        iou = box_iou(boxes, boxes).fill_diagonal_(0)
        assert iou.numel() == 0 or iou.max() <= 0.3


def test_from_image_to_padded_detections_is_one_graph_for_all_sizes():
    model = small(score_threshold=0.01).eval()
    compiled = torch.compile(model.detect, fullgraph=True, dynamic=True, backend="eager")
    assert_detect_alike(model.detect, compiled, [(2, 3, 64, 96), (3, 3, 128, 64)])


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {"levels": (3, 4, 5), "anchor_sizes": [[16, 24], [32, 48], [64, 96]]},
        {"levels": (2, 3, 4), "anchor_ratios": [1.0], "fpn_norm": "batch"},
        {"extra_from": "c5", "head_norm": "group", "fpn_norm": "group", "norm": "group"},
        {"head_convs": 0, "anchor_offset": 0.5, "levels": (4, 5, 6)},
        {"anchor_strides": "image", "anchor_rounding": True, "extra_from": "pool"},
    ],
)
def test_variants_train(overrides):
    model = small(**overrides)
    # One image of 64 pixels has one location at P6: a batch norm of one value has no gradient.
    assert_trains(model)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"scor_threshold": 0.1}, "'scor_threshold'; the nearest is 'score_threshold'"),
        ({"preprocessing": {"sise": 3}}, r"preprocessing\.sise .*nearest is 'size'"),
        ({"anchor_sizes": ((1,),)}, "be 5 tuples, one for each of the 5 levels, got 1"),
        ({"prior": 0.0}, "prior must be between 0 and 1"),
        ({"head_norm": "batch"}, "head_norm must be"),
        ({"max_detections": 0}, "max_detections must be at least 1"),
        ({"anchor_strides": "p3"}, "anchor_strides must be"),
        ({"box_loss": "iou"}, "box_loss must be"),
    ],
)
def test_wrong_settings_are_refused(overrides, words):
    with pytest.raises(ValueError, match=words):
        small(**overrides)


def test_learns_one_image():
    """A few steps on one image bring the loss down and the object into the detections."""
    model = small(norm="group", fpn_norm="group", head_norm="group", fpn_channels=32)
    image = torch.full((3, 64, 64), 0.2)
    image[:, 16:48, 16:48] = 0.9
    targets = [{"boxes": torch.tensor([[16.0, 16, 48, 48]]), "labels": torch.tensor([1])}]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    first = float(sum(model([image], targets).values()))
    for _ in range(40):
        loss = sum(model([image], targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.3 * first
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert found["labels"][0] == 1
    assert found["scores"][0] > 0.3
    iou = box_iou(found["boxes"][:1], targets[0]["boxes"])
    assert iou > 0.7


def test_smooth_l1_of_torch_is_the_papers_for_beta_one():
    difference = torch.tensor([0.5, 2.0])
    loss = F.smooth_l1_loss(difference, torch.zeros(2), reduction="none", beta=1.0)
    assert loss.tolist() == [0.125, 1.5]


def test_config_can_be_changed_after_building():
    model = small().eval()
    torch.nn.init.constant_(model.head.cls_logits.bias, 0)
    with torch.no_grad():
        assert len(model([torch.rand(3, 64, 64)])[0]["boxes"]) > 0
        model.config = dataclasses.replace(model.config, score_threshold=0.999)
        assert len(model([torch.rand(3, 64, 64)])[0]["boxes"]) == 0

# SPDX-License-Identifier: Apache-2.0
"""Faster R-CNN: the numbers of the papers, its assignments, samples, losses and detections."""

import dataclasses
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

import pydet
from pydet.layers.box_head import RegionTargets, box_losses, detect_in_regions, sample_regions
from pydet.layers.rpn import Proposals, assign_anchors, propose, rpn_losses
from pydet.models.faster_rcnn import FasterRCNN
from pydet.ops import batched_nms, box_iou, decode_boxes, encode_boxes
from pydet.ops.match_anchors import BACKGROUND, IGNORED
from pydet.sampling import Samples
from tests.models import helpers
from tests.models.helpers import Detect, assert_detect_alike, assert_trains, packed

SMALL = {**helpers.SMALL["faster_rcnn"], "preprocessing": {"size": 64, "max_size": 96}}


def small(name="resnet18_fpn", num_classes=3, **overrides) -> FasterRCNN:
    torch.manual_seed(0)
    model = pydet.create_model(f"faster_rcnn_{name}", num_classes, **{**SMALL, **overrides})
    assert isinstance(model, FasterRCNN)
    return model


def random_boxes(*shape, size=60.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, 2, generator=generator) * size
    return torch.cat((corners.amin(-2), corners.amax(-2) + 1), -1)


# --- structure -----------------------------------------------------------------------------------


def test_parameters_are_as_many_as_published():
    """41 755 286: published by torchvision for its fasterrcnn_resnet50_fpn, with 91 classes.

    Of those one is background, which has four useless deltas there: 4 · 1024 weights and 4 biases.
    """
    with torch.device("meta"):
        model = pydet.create_model("faster_rcnn_resnet50_fpn", 90, norm="frozen")
    assert sum(p.numel() for p in model.parameters()) == 41_755_286 - 4 * 1025


def test_second_version_of_torchvision_is_a_config():
    """43 712 278: published for fasterrcnn_resnet50_fpn_v2."""
    with torch.device("meta"):
        model = pydet.create_model(
            "faster_rcnn_resnet50_fpn",
            90,
            fpn_norm="batch",
            rpn_convs=2,
            box_convs=4,
            box_fcs=1,
            box_norm="batch",
        )
    assert sum(p.numel() for p in model.parameters()) == 43_712_278 - 4 * 1025


def test_anchors_of_the_paper():
    """9 a location of stride 16, roughly 20000 in an image of 600 x 1000 (3.1.3).

    The paper has "about 6000" of them within the image. Its code's nine anchors, counted, give 5944
    for 600 x 800 and 8151 for 600 x 1000; pydet's are not rounded.
    """
    with torch.device("meta"):
        model = pydet.create_model("faster_rcnn_vgg16", 20)
        output = model.predict(torch.empty(1, 3, 600, 1000))
    assert model.anchors.num_per_location == 9
    assert output.features[0].shape == (1, 512, 38, 63)  # the paper: "~ 60 x 40"
    assert output.num_per_level == (38 * 63 * 9,)
    anchors = model.anchors([(38, 63)], (600, 1000), torch.device("cpu"))
    sides = (anchors[:9, 2:] - anchors[:9, :2]).prod(1).sqrt()
    torch.testing.assert_close(sides, torch.tensor([128.0, 256, 512] * 3))
    ratios = (anchors[:9, 3] - anchors[:9, 1]) / (anchors[:9, 2] - anchors[:9, 0])
    torch.testing.assert_close(ratios, torch.tensor([0.5, 1, 2]).repeat_interleave(3))
    assert len(anchors) == 21_546
    assigned = assign_anchors(anchors, packed([], [], sizes=[(600, 800), (600, 1000)]))
    background, ignored = assigned.labels == BACKGROUND, assigned.labels == IGNORED
    assert (background | ignored).all()
    inside = background.sum(1).tolist()
    assert inside == pytest.approx([5944, 8151], rel=0.02)


def test_numbers_of_the_papers():
    with torch.device("meta"):
        vgg = pydet.create_model("faster_rcnn_vgg16", 20)
        fpn = pydet.create_model("faster_rcnn_resnet50_fpn", 80)
    assert vgg.rpn.convs[0].out_channels == 512
    assert vgg.rpn.objectness.out_channels == 9  # logistic: one score where the paper has two
    assert vgg.rpn.box_deltas.out_channels == 4 * 9
    assert vgg.box_head.cls_logits.out_features == 21
    assert vgg.box_head.box_deltas.out_features == 4 * 20
    assert vgg.box_head.cls_logits.in_features == 4096
    config = vgg.config
    assert (config.rpn_sample, config.rpn_fg_fraction) == (256, 0.5)
    assert (config.roi_sample, config.roi_fg_fraction) == (128, 0.25)
    assert fpn.config.levels == (2, 3, 4, 5, 6)
    output = fpn.predict(torch.empty(1, 3, 800, 1344, device="meta"))
    assert len(output.features) == 4  # regions come from P2 ... P5
    assert {x.shape[1] for x in output.features} == {256}
    assert output.num_per_level == tuple(
        3 * n for n in (200 * 336, 100 * 168, 50 * 84, 25 * 42, 13 * 21)
    )


def test_heads_of_the_three_trunks():
    with torch.device("meta"):
        c4 = pydet.create_model("faster_rcnn_resnet50_c4", 20)
        output = c4.predict(torch.empty(1, 3, 608, 1024))
        logits, deltas = c4._regions(output.features, torch.empty(1, 5, 4))
    assert [x.shape for x in output.features] == [(1, 1024, 38, 64)]
    assert (logits.shape, deltas.shape) == ((1, 5, 21), (1, 5, 20, 4))
    assert c4.box_head.cls_logits.in_features == 2048


# --- assignment and samples ----------------------------------------------------------------------

ANCHORS = torch.tensor(
    [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [50, 50, 60, 60], [-1, 30, 9, 40]],
    dtype=torch.float32,
)


def test_anchors_by_two_thresholds_and_best_ones():
    targets = packed([([0, 0, 10, 10], 2), ([52, 50, 60, 56], 1)])
    assigned = assign_anchors(ANCHORS, targets, straddle=None)
    # IoU with the first box: 1, 0.8, 0.5, 0, 0; the second is 0.48 of its best anchor.
    assert assigned.foreground.tolist() == [[True, True, False, True, False]]
    assert assigned.labels[0, 2:].tolist() == [IGNORED, 1, BACKGROUND]
    assert assigned.boxes[0, 3].tolist() == [52, 50, 60, 56]


def test_anchors_across_the_border_are_left_out():
    targets = packed([([0, 30, 9, 40], 0)], [([0, 30, 9, 40], 0)], sizes=[(100, 100), (58, 100)])
    assigned = assign_anchors(ANCHORS, targets)
    assert assigned.labels.tolist() == [[-1, -1, -1, -1, -2], [-1, -1, -1, -2, -2]]
    assert assign_anchors(ANCHORS, targets, straddle=1.0).labels[:, 4].tolist() == [0, 0]
    assert assign_anchors(ANCHORS, targets, straddle=2.0).labels[1, 3] == BACKGROUND
    assert torch.equal(assigned.boxes, ANCHORS.expand(2, 5, 4))


def test_box_that_no_inner_anchor_touches_makes_nothing_foreground():
    """By the letter, all anchors tie for being its best."""
    targets = packed(
        [([0, 30, 5, 40], 0), ([0, 0, 10, 7], 1)], [], [([55, 55, 59, 59], 2)], sizes=[(99, 99)] * 3
    )
    assigned = assign_anchors(ANCHORS, targets)
    assert assigned.foreground.int().tolist() == [[1, 1, 1, 0, 0], [0] * 5, [0, 0, 0, 1, 0]]
    assert assigned.labels[:, 4].tolist() == [IGNORED] * 3


def sample(proposals, targets, **changes):
    settings = {
        "count": 8,
        "max_fg_fraction": 0.25,
        "fg_iou_threshold": 0.5,
        "bg_iou_range": (0.1, 0.5),
        "add_gt": False,
    }
    return sample_regions(proposals, targets, **{**settings, **changes})


def test_regions_by_thresholds():
    regions = torch.tensor([[[0, 0, 10, 10], [0, 0, 10, 4], [0, 0, 2, 2], [0, 0, 10, 5.0]]])
    proposals = Proposals(regions, torch.tensor([[True, True, True, False]]))
    targets = packed([([0, 0, 10, 10], 2)])
    drawn = sample(proposals, targets)  # IoU 1, 0.4, 0.04; the last is padding
    assert drawn.taken.sum() == 2
    assert drawn.labels[0, :2].tolist() == [2, BACKGROUND]
    assert drawn.regions[0, :2].tolist() == [[0, 0, 10, 10], [0, 0, 10, 4]]
    assert drawn.foreground.tolist() == [[True, False, False, False]]
    assert sample(proposals, targets, bg_iou_range=(0.0, 0.5)).taken.sum() == 3
    assert sample(proposals, targets, bg_iou_range=(0.0, 0.3)).taken.sum() == 2


def test_boxes_themselves_are_proposals_where_wanted():
    proposals = Proposals(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    boxes = ([0, 0, 10, 10], 2), ([20, 20, 30, 30], 0), ([40, 40, 50, 50], 1, True)
    targets = packed([*boxes, ([5, 5, 5, 5], 0)], [], sizes=[(60, 60)] * 2)
    assert not sample(proposals, targets).taken.any()
    drawn = sample(proposals, targets, add_gt=True)
    assert drawn.taken.sum(1).tolist() == [2, 0]  # neither the ignored nor the invalid one
    assert sorted(drawn.labels[0, :2].tolist()) == [0, 2]
    assert torch.equal(drawn.regions[0, :2], drawn.boxes[0, :2])


def test_a_quarter_is_foreground_at_most():
    regions = random_boxes(1, 400)
    box = regions[0, :1].tolist()
    regions = torch.cat((regions[:, :1].expand(1, 200, 4), regions), 1)
    proposals = Proposals(regions, torch.ones(1, 600, dtype=torch.bool))
    drawn = sample(proposals, packed([(box[0], 1)]), count=128, bg_iou_range=(0.0, 0.5))
    assert drawn.taken.all()
    assert drawn.foreground.sum() == 32
    assert drawn.foreground[0, :32].all()


# --- losses --------------------------------------------------------------------------------------


def smooth_l1(difference, beta):
    size = abs(difference)
    return size * size / 2 / beta if size < beta else size - beta / 2


@pytest.mark.parametrize("normalizers", [None, (256, 40.0)])
def test_losses_of_anchors_are_the_definition(normalizers):
    anchors = random_boxes(30)
    targets = packed([(random_boxes(1, seed=7)[0].tolist(), 0)], [])
    assigned = assign_anchors(anchors, targets, 0.3, 0.1, None)
    assert assigned.foreground[0].any()
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 30, generator=generator)
    deltas = torch.randn(2, 30, 4, generator=generator)
    idxs = torch.stack([torch.randperm(30, generator=generator) for _ in range(2)])[:, :25]
    taken = torch.arange(25).expand(2, 25) < torch.tensor([[25], [17]])
    labels = assigned.labels.gather(1, idxs)
    taken &= labels != IGNORED
    samples = Samples(idxs, taken, taken & (labels >= 0))
    expected = [0.0, 0.0]
    for b in range(2):
        cls = box = 0.0
        for s in range(25):
            if not taken[b, s]:
                continue
            a = idxs[b, s]
            sign = 1 if labels[b, s] >= 0 else -1
            cls += math.log1p(math.exp(-sign * float(logits[b, a])))
            if sign > 0:
                code = encode_boxes(targets.boxes[0].double(), anchors[a].double())
                box += sum(smooth_l1(float(d), 1 / 9) for d in deltas[b, a].double() - code)
        count = int(taken[b].sum())
        num_cls, num_box = (count, count) if normalizers is None else normalizers
        expected[0] += cls / num_cls / 2
        expected[1] += box / num_box / 2
    got = rpn_losses(
        logits, deltas, anchors, assigned, samples, beta=1 / 9, normalizers=normalizers
    )
    assert expected[1] > 0
    assert [float(loss) for loss in got] == pytest.approx(expected, rel=1e-5)


def test_losses_of_regions_are_the_definition():
    generator = torch.Generator().manual_seed(2)
    num_classes, weights, beta = 3, (10.0, 10.0, 5.0, 5.0), 0.5
    regions, boxes = random_boxes(2, 6, seed=3), random_boxes(2, 6, seed=4)
    labels = torch.tensor([[2, 0, -1, -1, -1, -1], [1, -1, -1, -1, -1, -1]])
    taken = torch.tensor([[True] * 5 + [False], [True] * 2 + [False] * 4])
    logits = torch.randn(2, 6, num_classes + 1, generator=generator)
    deltas = torch.randn(2, 6, num_classes, 4, generator=generator).requires_grad_()
    drawn = RegionTargets(regions, labels, boxes, taken, labels >= 0)
    expected = [0.0, 0.0]
    for b in range(2):
        for s in range(int(taken[b].sum())):
            label = int(labels[b, s])
            target = num_classes if label < 0 else label
            cls = -float(logits[b, s].double().log_softmax(0)[target])
            expected[0] += cls / int(taken[b].sum()) / 2
            if label >= 0:
                code = encode_boxes(boxes[b, s].double(), regions[b, s].double(), weights)
                differences = (deltas[b, s, label].double() - code).tolist()
                box = sum(smooth_l1(d, beta) for d in differences)
                expected[1] += box / int(taken[b].sum()) / 2
    got = box_losses(logits, deltas, drawn, weights=weights, beta=beta)
    assert [float(loss.detach()) for loss in got] == pytest.approx(expected, rel=1e-5)
    got[1].backward()
    touched = deltas.grad.abs().sum(3) > 0
    assert touched.nonzero().tolist() == [[0, 0, 2], [0, 1, 0], [1, 0, 1]]


def test_lambda_of_the_paper():
    """10 / 2400 of the sum, for 2400 locations (equation 1)."""
    losses = []
    targets = packed([([10, 10, 50, 45], 0)])
    sampled = {"rpn_sample": 10**6, "anchor_straddle": None, "anchor_sizes": [[16, 32, 64]]}
    for change in ({}, {"rpn_normalizer": "sample", "rpn_box_weight": 1.0}):
        model = small("vgg16", width=0.125, **sampled, **change).eval()
        output = model.predict(torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
        losses.append(model.rpn_losses(output, targets))
        assigned = assign_anchors(output.anchors, targets, straddle=None)
    taken = int((assigned.labels != IGNORED).sum())
    paper, sampled = losses
    torch.testing.assert_close(paper["loss_rpn_box"] * 24 / 10, sampled["loss_rpn_box"] * taken)
    torch.testing.assert_close(paper["loss_objectness"] * 10**6, sampled["loss_objectness"] * taken)


# --- proposals and detections --------------------------------------------------------------------


def test_proposals_are_the_definition():
    """Level by level, image by image: the best, decoded, clipped, large enough, suppressed."""
    num_per_level = (60, 20, 5)
    anchors, sizes = random_boxes(85), torch.tensor([[50.0, 60.0], [64.0, 40.0]])
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 85, generator=generator)
    deltas = torch.randn(2, 85, 4, generator=generator) / 4
    settings = {"pre_nms": 15, "post_nms": 24, "iou_threshold": 0.5, "min_size": 4.0}
    boxes, valid = propose(logits, deltas, anchors, num_per_level, sizes, **settings)
    assert boxes.shape == (2, 24, 4)
    for b in range(2):
        found, scores, levels, first = [], [], [], 0
        for level, count in enumerate(num_per_level):
            part = slice(first, first + count)
            best = logits[b, part].sort(descending=True).indices[:15] + first
            decoded = decode_boxes(deltas[b, best], anchors[best])
            decoded[:, 0::2] = decoded[:, 0::2].clamp(0, float(sizes[b, 1]))
            decoded[:, 1::2] = decoded[:, 1::2].clamp(0, float(sizes[b, 0]))
            large = (decoded[:, 2:] - decoded[:, :2] >= 4.0).all(1)
            found.append(decoded[large])
            scores.append(logits[b, best][large])
            levels.append(torch.full((int(large.sum()),), level))
            first += count
        found, scores = torch.cat(found), torch.cat(scores)
        keep = batched_nms(found, scores, torch.cat(levels), 0.5)[:24]
        assert valid[b].sum() == len(keep)
        assert valid[b, : len(keep)].all()
        torch.testing.assert_close(boxes[b, : len(keep)], found[keep])
        assert boxes[b, len(keep) :].count_nonzero() == 0


def test_detections_are_the_definition():
    """torchvision's way: all pairs of region and class, then suppression."""
    num_classes, count = 30, 12
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(2, count, num_classes + 1, generator=generator)
    deltas = torch.randn(2, count, num_classes, 4, generator=generator)
    sizes = torch.tensor([[50.0, 60.0], [64.0, 40.0]])
    valid = torch.arange(count) < torch.tensor([[12], [9]])
    regions = random_boxes(2, count) * valid[..., None]
    weights = (10.0, 10.0, 5.0, 5.0)
    found = detect_in_regions(
        logits,
        deltas,
        Proposals(regions, valid),
        sizes,
        weights=weights,
        score_threshold=0.05,
        min_size=1.0,
        iou_threshold=0.5,
        max_detections=40,
    )
    for b in range(2):
        own = valid[b]
        scores = logits[b, own].softmax(1)[:, :num_classes]
        many = regions[b, own, None].expand(-1, num_classes, 4)
        boxes = decode_boxes(deltas[b, own], many, weights)
        boxes[..., 0::2] = boxes[..., 0::2].clamp(0, float(sizes[b, 1]))
        boxes[..., 1::2] = boxes[..., 1::2].clamp(0, float(sizes[b, 0]))
        good = (scores > 0.05) & (boxes[..., 2:] - boxes[..., :2] >= 1.0).all(2)
        labels = torch.arange(num_classes).expand_as(scores)[good]
        keep = batched_nms(boxes[good], scores[good], labels, 0.5)[:40]
        assert 5 < len(keep) == found.counts[b]
        torch.testing.assert_close(found.boxes[b, : len(keep)], boxes[good][keep])
        torch.testing.assert_close(found.scores[b, : len(keep)], scores[good][keep])
        assert torch.equal(found.labels[b, : len(keep)], labels[keep])


def test_proposals_do_not_reach_into_the_padding():
    model = small().eval()
    output = model.predict(torch.randn(2, 3, 64, 96))
    sizes = torch.tensor([[40.0, 50.0], [64.0, 96.0]])
    boxes, valid = model._proposals(output, sizes, 100, 30)
    assert valid.any(1).all()
    assert (boxes[0, :, 0::2] <= 50).all()
    assert (boxes[0, :, 1::2] <= 40).all()
    assert boxes[1, :, 2].max() > 50


def test_regions_without_a_proposal_are_never_detected():
    model = small(min_proposal_size=1000.0, score_threshold=0.0).eval()
    with torch.no_grad():
        assert len(model([torch.rand(3, 64, 64)])[0]["boxes"]) == 0


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("resnet18_fpn", {"fpn_norm": "group", "rpn_convs": 2, "norm": "group"}),
        ("resnet18_fpn", {"box_convs": 2, "box_fcs": 1, "box_norm": "group", "aligned": True}),
        ("resnet18_fpn", {"levels": (3, 4), "anchor_sizes": [[16], [32]], "sampling_ratio": -1}),
        ("resnet18_fpn", {"anchor_strides": "image", "anchor_rounding": True}),
        ("resnet18_fpn", {"add_gt_proposals": False, "roi_bg_iou_range": (0.0, 0.3)}),
        ("vgg16", {"width": 0.125, "pooling": "align", "anchor_sizes": [[16, 32]]}),
    ],
)
def test_variants_train(name, overrides):
    model = small(name, **overrides)
    assert_trains(model)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("resnet18_fpn", {"trunk": "resnet"}, "trunk must be one of 'fpn', 'c4', 'vgg'"),
        ("resnet18_fpn", {"anchor_sizes": ((1,),)}, "a tuple for each of the 5 levels"),
        ("resnet18_fpn", {"pooling": "pool"}, "'align' with more than one level"),
        ("resnet18_fpn", {"roi_bg_iou_range": (0.2, 0.6)}, "roi_bg_iou_range must rise"),
        ("resnet18_fpn", {"post_nms": 0}, "post_nms must be at least 1"),
        ("resnet50_c4", {"levels": (5,)}, r"levels must be \(4,\)"),
        ("vgg16", {"pool_size": 14}, "pool_size must be 7"),
    ],
)
def test_wrong_settings_are_refused(name, overrides, words):
    with pytest.raises(ValueError, match=words):
        small(name, **overrides)


def test_learns_one_image():
    """Some steps on one image bring the loss down and the object into the detections."""
    model = small(norm="group", fpn_norm="group", fpn_channels=32)
    image = torch.full((3, 64, 64), 0.2)
    image[:, 16:48, 16:48] = 0.9
    targets = [{"boxes": torch.tensor([[16.0, 16, 48, 48]]), "labels": torch.tensor([1])}]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    first = float(sum(model([image], targets).values()).detach())
    for _ in range(80):
        loss = sum(model([image], targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.25 * first
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert found["labels"][0] == 1
    assert found["scores"][0] > 0.3
    assert box_iou(found["boxes"][:1], targets[0]["boxes"]) > 0.7


TRUNKS = {
    "resnet18_fpn": {"depth": 10},
    "resnet50_c4": {"depth": 10, "pool_size": 4},
    "vgg16": {"width": 1 / 16},
}


def on_trunk(name):
    one_map = {} if name.endswith("fpn") else {"anchor_sizes": [[16, 32, 64]]}
    return small(name, score_threshold=0.01, **TRUNKS[name], **one_map).eval()


@pytest.mark.parametrize("name", TRUNKS)
def test_from_image_to_padded_detections_is_one_graph_for_all_sizes(name):
    model = on_trunk(name)
    counter = CompileCounter()
    compiled = torch.compile(model.detect, fullgraph=True, dynamic=True, backend=counter)
    # Five images first: dimensions that are equal then are taken for one, as 2 or 3 would be. Nor
    # is a side of one cell, as P6 has of 64 pixels, ever another number.
    assert_detect_alike(model.detect, compiled, [(5, 3, 128, 192), (2, 3, 256, 128)])
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", TRUNKS)
def test_exported_with_any_batch_and_size(name):
    model = on_trunk(name)
    batch, height, width = (torch.export.Dim(axis, min=2, max=64) for axis in "bhw")
    shapes = {"images": {0: batch, 2: 64 * height, 3: 64 * width}, "sizes": {0: batch}}
    example = (torch.randn(2, 3, 128, 192), torch.full((2, 2), 60.0))
    program = torch.export.export(Detect(model), example, dynamic_shapes=shapes)
    assert_detect_alike(model.detect, program.module(), [(2, 3, 128, 192), (5, 3, 256, 128)])


def test_config_can_be_changed_after_building():
    model = small(score_threshold=0.0).eval()
    with torch.no_grad():
        assert len(model([torch.rand(3, 64, 64)])[0]["boxes"]) > 0
        model.config = dataclasses.replace(model.config, score_threshold=0.999)
        assert len(model([torch.rand(3, 64, 64)])[0]["boxes"]) == 0


def test_level_of_a_region_is_that_of_equation_1():
    """floor(4 + log2(sqrt(w h) / 224)), held in P2 ... P5 (FPN, section 4.2)."""
    model = small()
    levels = [
        torch.full((1, 1, 512 // 2**level, 512 // 2**level), float(level)) for level in (2, 3, 4, 5)
    ]
    sides = torch.tensor([10.0, 111, 112, 223, 224, 447, 448, 500])
    boxes = F.pad(sides[:, None].expand(-1, 2), (2, 0))[None]
    model.box_features = torch.nn.Flatten(2)
    model.box_head = torch.nn.Module()
    model.box_head.forward = lambda x: (x.mean((1, 2))[:, None], x[:, :1, :1])
    got, _ = model._regions(levels, boxes)
    assert got.flatten().tolist() == [2, 2, 3, 3, 4, 4, 5, 5]

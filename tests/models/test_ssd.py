# SPDX-License-Identifier: Apache-2.0
"""SSD: the numbers of the paper, its assignment, losses, mining and inference."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

import pydet
from pydet.models.ssd import SSD, SSDConfig, SSDOutput, assign_targets, mined_cross_entropy
from pydet.ops import box_iou
from pydet.structures import pack_targets
from tests.models import helpers
from tests.models.helpers import Detect, assert_detect_alike, packed
from tests.reference.match_anchors import match_anchors as matches_by_definition
from tests.strategies import lattice_boxes, tensor_of_boxes

SMALL = {**helpers.SMALL["ssd"], "preprocessing": {"size": (64, 64)}}


def small(num_classes=3, name="ssd300_vgg16", **overrides) -> SSD:
    torch.manual_seed(0)
    model = pydet.create_model(name, num_classes, **{**SMALL, **overrides})
    assert isinstance(model, SSD)
    return model


# --- structure -----------------------------------------------------------------------------------


def test_parameters_are_as_many_as_published():
    with torch.device("meta"):
        model = pydet.create_model("ssd300_vgg16", 90)
    # 35 641 826: published by torchvision for its ssd300_vgg16, 91 classes with the background.
    assert sum(p.numel() for p in model.parameters()) == 35_641_826


@pytest.mark.parametrize(
    ("name", "maps", "channels", "per_location", "total"),
    [
        (
            "ssd300_vgg16",
            (38, 19, 10, 5, 3, 1),
            (512, 1024, 512, 256, 256, 256),
            (4, 6, 6, 6, 4, 4),
            5776 + 2166 + 600 + 150 + 36 + 4,
        ),
        (
            "ssd512_vgg16",
            (64, 32, 16, 8, 4, 2, 1),
            (512, 1024, 512, 256, 256, 256, 256),
            (4, 6, 6, 6, 6, 4, 4),
            24_564,
        ),
    ],
)
def test_maps_and_default_boxes_are_the_papers(name, maps, channels, per_location, total):
    with torch.device("meta"):
        model = pydet.create_model(name, 20)
        size = model.config.preprocessing.size
        features = model.neck(model.backbone(torch.empty(1, 3, *size)))
        output = model.predict(torch.empty(1, 3, *size))
    assert [tuple(x.shape[1:]) for x in features] == [
        (c, side, side) for c, side in zip(channels, maps, strict=True)
    ]
    assert model.anchors.num_per_location == per_location
    assert sum(s**2 * n for s, n in zip(maps, per_location, strict=True)) == total
    assert total in (8732, 24_564)
    assert output.cls_logits.shape == (1, total, 21)
    assert output.box_deltas.shape == output.anchors[None].shape == (1, total, 4)


@pytest.mark.parametrize(
    ("name", "size", "low", "first"), [("ssd300_vgg16", 300, 20, 10), ("ssd512_vgg16", 512, 15, 7)]
)
def test_sizes_of_default_boxes_are_whole_percents(name, size, low, first):
    """The authors' code: steps of floor((90 - low) / (levels - 3 + 1)) percent, and 4_3's own."""
    with torch.device("meta"):
        config = pydet.create_model(name, 20).config
    step = (90 - low) // (len(config.anchor_ratios) - 2)
    percents = [first, *range(low, 91, step)]
    percents.append(percents[-1] + step)
    assert [s * 100 / size for s in config.anchor_sizes] == pytest.approx(percents)


def test_paper_has_scales_from_one_fifth_to_nine_tenths():
    """Equation 4 with m = 5: 0.2, 0.375, 0.55, 0.725, 0.9; the code's are near, see SSDConfig."""
    equation = [0.2 + (0.9 - 0.2) * k / 4 for k in range(5)]
    ours = [size / 300 for size in SSDConfig().anchor_sizes[1:6]]
    assert ours == pytest.approx(equation, abs=0.02 + 1e-9)


def test_default_boxes_of_the_first_location():
    with torch.device("meta"):
        model = pydet.create_model("ssd300_vgg16", 20)
    boxes = model.anchors([(38, 38), *[(1, 1)] * 5], (300, 300), torch.device("cpu"))[:4]
    torch.testing.assert_close((boxes[:, :2] + boxes[:, 2:]) / 2, torch.full((4, 2), 4.0))
    long, short = 30 * math.sqrt(2), 30 / math.sqrt(2)
    between = math.sqrt(30 * 60)
    torch.testing.assert_close(
        boxes[:, 2:] - boxes[:, :2],
        torch.tensor([[30, 30], [between, between], [long, short], [short, long]]),
    )


def test_focal_form_begins_with_the_prior():
    model = small(name="ssd300_focal_vgg16", prior=0.02)
    assert model.config.cls_loss == "focal"
    probs = model.eval().predict(torch.randn(1, 3, 64, 64)).cls_logits.softmax(2)
    assert float(probs[..., 3].detach().mean()) == pytest.approx(0.98, abs=0.005)
    # The mined form begins by chance.
    probs = small().eval().predict(torch.randn(1, 3, 64, 64)).cls_logits.softmax(2)
    assert probs[..., 3].mean() < 0.6


# --- assignment ----------------------------------------------------------------------------------


# Boxes that overlap as in the table of the test.
OBJECTS = [[-62.5, 17.5, 136.5, 142.5], [109.5, 88, 190.5, 145], [184.5, 100.5, 219, 206]]
PRIORS = [
    [-72, 32.5, 147.5, 134.5],
    [-11, 209.5, 51, 310.5],
    [-40, -9.5, -30, 150.5],
    [176.5, -123, 179.5, 247],
    [110, 89.5, 195.5, 143],
    [179, 124, 221, 208],
    [192.5, 99.5, 220, 219],
]


def test_seven_priors_and_three_objects():
    """A worked example of a lecture: best overlaps 0.75, 0.88, 0.65 and 0.68."""
    objects = torch.tensor(OBJECTS)
    priors = torch.tensor(PRIORS)
    table = [
        [0.75, 0.07, 0],
        [0, 0, 0],
        [0.05, 0, 0],
        [0, 0.03, 0],
        [0.05, 0.88, 0.06],
        [0, 0.03, 0.65],
        [0, 0, 0.68],
    ]
    torch.testing.assert_close(box_iou(priors, objects), torch.tensor(table), atol=0.005, rtol=0)
    dog, cat = 1, 0
    targets = packed([(box, label) for box, label in zip(OBJECTS, (dog, dog, cat), strict=True)])
    assigned = assign_targets(priors, targets, SSDConfig())
    assert assigned.labels.tolist() == [[dog, -1, -1, -1, dog, cat, cat]]
    expected = priors.clone()
    expected[[0, 4, 5, 6]] = objects[[0, 1, 2, 2]]
    assert torch.equal(assigned.boxes[0], expected)


@given(
    lattice_boxes(1, 12, degenerate=False),
    st.lists(lattice_boxes(0, 6, 16, degenerate=False), min_size=1, max_size=3),
    st.integers(0, 2**31),
    st.sampled_from([0.5, 0.25]),
)
def test_assignment_is_the_definition(anchors, boxes, seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    ignored = [torch.rand(len(each), generator=generator) < 0.2 for each in boxes]
    labels = [torch.randint(0, 9, (len(each),), generator=generator) for each in boxes]
    targets = [
        {"boxes": tensor_of_boxes(b), "labels": k, "ignored": i}
        for b, k, i in zip(boxes, labels, ignored, strict=True)
    ]
    anchors_tensor = tensor_of_boxes(anchors)
    config = SSDConfig(fg_iou_threshold=threshold)
    assigned = assign_targets(anchors_tensor, pack_targets(targets), config)
    for b, target in enumerate(targets):
        idxs, _ = matches_by_definition(
            anchors, boxes[b], threshold, threshold, False, ignored[b].tolist(), best_anchors=True
        )
        label_of = target["labels"].tolist()
        assert assigned.foreground[b].tolist() == [match >= 0 for match in idxs]
        assert assigned.labels[b].tolist() == [label_of[m] if m >= 0 else m for m in idxs]
        wanted = [
            boxes[b][m] if m >= 0 else anchor for m, anchor in zip(idxs, anchors, strict=True)
        ]
        assert assigned.boxes[b].tolist() == [list(box) for box in wanted]


def test_each_object_has_its_best_default_box_and_an_image_without_objects_none():
    model = small()
    anchors = model.predict(torch.zeros(1, 3, 64, 64)).anchors
    targets = packed([([0, 0, 3, 3], 2), ([2, 2, 60, 9], 0)], [], [([60, 60, 63, 64], 1)])
    assigned = assign_targets(anchors, targets, model.config)
    assert (assigned.foreground.sum(1) >= torch.tensor([2, 0, 1])).all()
    assert (assigned.labels[1] == -1).all()
    for b, boxes in ((0, [[0, 0, 3, 3], [2, 2, 60, 9]]), (2, [[60, 60, 63, 64]])):
        best = box_iou(anchors, torch.tensor(boxes, dtype=torch.float32)).argmax(0)
        torch.testing.assert_close(
            assigned.boxes[b, best], torch.tensor(boxes, dtype=torch.float32)
        )


# --- losses --------------------------------------------------------------------------------------


def mined_by_definition(logits, labels, ratio, least):
    """Plain loops: the foreground's cross entropies, then the highest ones of the background."""
    totals = []
    for rows, wanted in zip(logits.tolist(), labels.tolist(), strict=True):
        positive, negative = [], []
        for row, label in zip(rows, wanted, strict=True):
            top = max(row)
            log_sum = top + math.log(sum(math.exp(x - top) for x in row))
            if label >= 0:
                positive.append(log_sum - row[label])
            elif label == -1:
                negative.append(log_sum - row[-1])
        count = max(math.ceil(ratio * len(positive)), least)
        totals.append(sum(positive) + sum(sorted(negative, reverse=True)[:count]))
    return totals


@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(0, 30),
    st.integers(1, 4),
    st.sampled_from([1.0, 3.0, 0.5]),
    st.integers(0, 5),
)
def test_mining_is_the_definition(seed, batch, anchors, classes, ratio, least):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, anchors, classes + 1, generator=generator).double()
    kinds = torch.rand(batch, anchors, generator=generator)
    labels = torch.randint(0, classes, (batch, anchors), generator=generator)
    labels = torch.where(kinds < 0.2, labels, torch.where(kinds < 0.9, -1, -2))
    loss = mined_cross_entropy(logits, labels, ratio, least)
    expected = mined_by_definition(logits, labels, ratio, least)
    assert loss.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_only_the_foreground_and_the_hardest_background_learn():
    """Two images: one foreground box and three negatives of five; none at all."""
    hard = torch.tensor([0.0, 5, 1, 4, 2, 3, 9, 0])  # loss of the background rises with it
    logits = torch.stack((hard, torch.zeros(8)), 1).repeat(2, 1, 1).requires_grad_()
    labels = torch.tensor([[0, -1, -1, -1, -1, -1, -2, -1], [-1] * 8])
    mined_cross_entropy(logits, labels, 3).sum().backward()
    learns = logits.grad.abs().sum(2) > 0
    assert learns.tolist() == [[1, 1, 0, 1, 0, 1, 0, 0], [0] * 8]


def test_of_equal_negatives_the_first_are_taken():
    logits = torch.zeros(1, 6, 2, requires_grad=True)
    mined_cross_entropy(logits, torch.tensor([[-1, -1, 0, -1, -1, -1]]), 2).sum().backward()
    assert (logits.grad.abs().sum(2) > 0).tolist() == [[1, 1, 1, 0, 0, 0]]


def test_nan_in_the_background_is_not_hidden():
    logits = torch.zeros(1, 4, 2)
    logits[0, 3] = math.nan
    assert mined_cross_entropy(logits, torch.tensor([[0, -1, -1, -1]]), 1).isnan().all()


def definition(output: SSDOutput, targets, config):
    """Sums of both losses of each image, and N, from section 2.2, in double, with loops."""
    anchors = output.anchors.double()
    sums = []
    for b in range(len(targets)):
        rows = slice(int(targets.offsets[b]), int(targets.offsets[b + 1]))
        boxes, labels = targets.boxes[rows].double(), targets.labels[rows]
        iou = box_iou(anchors, boxes) if len(boxes) else anchors.new_zeros(len(anchors), 1)
        best, which = iou.max(1)
        matched = {a: int(which[a]) for a in (best >= 0.5).nonzero()[:, 0].tolist()}
        matched |= {int(iou[:, g].argmax()): g for g in range(len(boxes))}
        wanted = torch.full((len(anchors),), -1)
        loss_box = 0.0
        for a, g in matched.items():
            wanted[a] = labels[g]
            size, box_size = anchors[a, 2:] - anchors[a, :2], boxes[g, 2:] - boxes[g, :2]
            center = (anchors[a, :2] + anchors[a, 2:]) / 2
            shift = ((boxes[g, :2] + boxes[g, 2:]) / 2 - center) / size / 0.1
            code = torch.cat((shift, (box_size / size).log() / 0.2))
            for difference in (output.box_deltas[b, a].double() - code).abs().tolist():
                loss_box += difference**2 / 2 if difference < 1 else difference - 0.5
        logits = output.cls_logits[b, None].double()
        if config.cls_loss == "mining":
            (loss_cls,) = mined_by_definition(logits, wanted[None], 3, 0)
        else:
            p = logits[0].softmax(1)[torch.arange(len(wanted)), wanted]  # -1: the last column
            alpha = torch.where(wanted >= 0, config.focal_alpha, 1 - config.focal_alpha)
            loss_cls = float((-alpha * (1 - p) ** config.focal_gamma * p.log()).sum())
        sums.append((loss_cls, loss_box, len(matched)))
    return sums


@pytest.mark.parametrize("normalizer", ["image", "batch"])
@pytest.mark.parametrize("cls_loss", ["mining", "focal"])
def test_losses_are_the_definition(cls_loss, normalizer):
    model = small(cls_loss=cls_loss, normalizer=normalizer, focal_alpha=0.3, box_loss_weight=2.0)
    targets = packed(
        [([5, 5, 40, 44], 2), ([20, 10, 60, 50], 0)], [], [([0, 0, 30, 60], 1), ([8, 8, 40, 40], 1)]
    )
    with torch.no_grad():
        output = model.predict(torch.randn(3, 3, 64, 64))
        torch.nn.init.normal_(output.box_deltas, std=2)
        torch.nn.init.normal_(output.cls_logits)
        losses = model.losses(output, targets)
    sums = definition(output, targets, model.config)
    for index, (key, weight) in enumerate((("loss_cls", 1.0), ("loss_box", 2.0))):
        if normalizer == "image":
            expected = sum(s[index] / max(1, s[2]) for s in sums) / 3
        else:
            expected = sum(s[index] for s in sums) / sum(s[2] for s in sums)
        assert expected > 0
        assert float(losses[key]) == pytest.approx(expected * weight, rel=1e-4)


def test_box_loss_touches_foreground_only():
    model = small()
    targets = packed([([5, 5, 40, 44], 2)])
    output = model.predict(torch.randn(1, 3, 64, 64))
    deltas = output.box_deltas.detach().requires_grad_()
    model.losses(output._replace(box_deltas=deltas), targets)["loss_box"].backward()
    foreground = assign_targets(output.anchors, targets, model.config).foreground
    assert 0 < foreground.sum() < 100
    assert torch.equal(deltas.grad.abs().sum(2) > 0, foreground)


def test_image_without_objects_teaches_where_wanted():
    empty = packed([])
    for least, learns in ((0, False), (5, True)):
        model = small(min_negatives=least)
        with torch.no_grad():
            losses = model.losses(model.predict(torch.randn(1, 3, 64, 64)), empty)
        assert (float(losses["loss_cls"]) > 0) == learns
        assert float(losses["loss_box"]) == 0


# --- inference -----------------------------------------------------------------------------------


def test_objects_written_into_the_output_are_found():
    model = small().eval()
    output = model.predict(torch.zeros(2, 3, 64, 64))
    logits = torch.full_like(output.cls_logits, -10)
    logits[..., 3] = 0  # background
    deltas = torch.zeros_like(output.box_deltas)
    center = torch.tensor([20.0, 20, 20, 20])
    index = int(
        (output.anchors - center - torch.tensor([-12.0, -12, 12, 12])).abs().sum(1).argmin()
    )
    anchor = output.anchors[index]
    side = float(anchor[2] - anchor[0])
    logits[0, index, 1] = 3.0
    deltas[0, index] = torch.tensor([2.5, 0, 5 * math.log(0.5), 0])
    logits[0, index, 2] = 1.0  # another class in the same place is another object
    logits[1, index, 0] = math.log(0.009 / 0.991)  # below the threshold of 0.01
    found = model.decode(
        output._replace(cls_logits=logits, box_deltas=deltas), torch.full((2, 2), 64.0)
    )
    assert found.counts.tolist() == [2, 0]
    assert found.labels[0, :3].tolist() == [1, 2, -1]
    both = 1 + math.exp(3) + math.exp(1) + math.exp(-10)
    torch.testing.assert_close(
        found.scores[0, :2], torch.tensor([math.exp(3) / both, math.exp(1) / both])
    )
    # The centre moves by 2.5 · 0.1 of the width, which then becomes a half.
    x, y = float(anchor[0] + anchor[2]) / 2 + side / 4, float(anchor[1] + anchor[3]) / 2
    expected = torch.tensor([x - side / 4, y - side / 2, x + side / 4, y + side / 2])
    torch.testing.assert_close(found.boxes[0, :2], expected.expand(2, 4))
    assert found.boxes[1].count_nonzero() == 0


def test_detections_are_limited_and_overlapping_ones_removed():
    model = small(score_threshold=0.0, max_detections=7, nms_iou_threshold=0.3).eval()
    with torch.no_grad():
        (found,) = model([torch.rand(3, 64, 64)])
        assert len(found["boxes"]) == 7
        for label in range(3):
            boxes = found["boxes"][found["labels"] == label]
            iou = box_iou(boxes, boxes).fill_diagonal_(0)
            assert iou.numel() == 0 or iou.max() <= 0.3
        model.config = dataclasses.replace(model.config, candidates_per_class=1)
        (found,) = model([torch.rand(3, 64, 64)])
        assert found["labels"].sort().values.tolist() == [0, 1, 2]  # one of each class


def test_from_image_to_padded_detections_is_one_graph_for_all_sizes():
    model = small(score_threshold=0.01, anchor_strides=None, anchor_clip=True).eval()
    counter = CompileCounter()
    compiled = torch.compile(model.detect, fullgraph=True, dynamic=True, backend=counter)
    # Five images first: dimensions that are equal then are taken for one, as 2 or 3 would be.
    assert_detect_alike(model.detect, compiled, [(5, 3, 64, 96), (2, 3, 128, 64)])
    assert counter.frame_count == 1


def test_exported_with_any_batch_and_size():
    model = small(score_threshold=0.01, anchor_strides=None, anchor_clip=True).eval()
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in "bhw")
    shapes = {"images": {0: batch, 2: 32 * height, 3: 32 * width}, "sizes": {0: batch}}
    example = (torch.randn(2, 3, 64, 96), torch.full((2, 2), 60.0))
    program = torch.export.export(Detect(model), example, dynamic_shapes=shapes)
    assert_detect_alike(model.detect, program.module(), [(2, 3, 64, 96), (5, 3, 128, 64)])


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {"extra_layers": [], "anchor_ratios": [[2], [2]], "anchor_sizes": [12, 24, 40]}
        | {"anchor_strides": [8, 16]},
        {"norm": "batch", "extra_norm": "batch", "frozen_stages": 2},
        {"norm": "group", "extra_norm": "group", "anchor_clip": True, "anchor_strides": None},
        {"cls_loss": "focal", "norm": "frozen"},
        {"normalizer": "batch", "min_negatives": 10, "negatives_per_positive": 1.5},
    ],
)
def test_variants_train(overrides):
    model = small(**overrides)
    targets = [{"boxes": torch.tensor([[5.0, 5, 40, 44]]), "labels": torch.tensor([2])}]
    sum(model([torch.rand(3, 64, 64)] * 2, targets * 2).values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"scor_threshold": 0.1}, "'scor_threshold'; the nearest is 'score_threshold'"),
        ({"anchor_sizes": (1, 2)}, "anchor_sizes must be 4 for the 3 levels conv4_3, .*, got 2"),
        ({"anchor_strides": (8,)}, "anchor_strides must be 3 for the 3 levels .*, got 1"),
        ({"anchor_ratios": ((2,),)}, "anchor_ratios must be 3 for the 3 levels .*, got 1"),
        ({"extra_layers": ((256, 512, 3),)}, "extra_layers must be five numbers each, got"),
        ({"prior": 1.0}, "prior must be between 0 and 1"),
        ({"cls_loss": "ohem"}, "cls_loss must be 'mining' or 'focal', got 'ohem'"),
        ({"normalizer": "none"}, "normalizer must be 'image' or 'batch'"),
        ({"negatives_per_positive": -1}, "negatives_per_positive must be between 0 and inf"),
        ({"min_negatives": -1}, "min_negatives must be at least 0"),
        ({"candidates_per_class": 0}, "candidates_per_class must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(overrides, words):
    with pytest.raises(ValueError, match=words):
        small(**overrides)


@pytest.mark.parametrize("name", ["ssd300_vgg16", "ssd300_focal_vgg16"])
def test_learns_one_image(name):
    """A few steps on one image bring the loss down and the object into the detections."""
    model = small(name=name, norm="group", extra_norm="group", width=1 / 8)
    image = torch.full((3, 64, 64), 0.2)
    image[:, 16:48, 16:48] = 0.9
    targets = [{"boxes": torch.tensor([[16.0, 16, 48, 48]]), "labels": torch.tensor([1])}]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    first = float(sum(model([image], targets).values()))
    for _ in range(60):
        loss = sum(model([image], targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.3 * first
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert found["labels"][0] == 1
    assert found["scores"][0] > 0.3
    assert box_iou(found["boxes"][:1], targets[0]["boxes"]) > 0.7


def test_smooth_l1_of_torch_is_the_papers():
    loss = F.smooth_l1_loss(torch.tensor([0.5, 2.0]), torch.zeros(2), reduction="none")
    assert loss.tolist() == [0.125, 1.5]


def test_a_tensor_must_have_the_size_that_images_are_resized_to():
    model = pydet.create_model("ssd300_vgg16", 2, width=0.0625, score_threshold=0.0).eval()
    images = torch.rand(1, 3, 90, 100)
    with pytest.raises(ValueError, match=r"SSD: images must have .* \(300, 300\) .* \(90, 100\)"):
        model(images)
    with torch.no_grad():
        (listed,) = model(list(images))
        resized = model.preprocessing.batch(list(images))[0]
        (whole,) = model(resized.images)
        (ready,) = model(resized)
    assert torch.equal(whole["scores"], listed["scores"])
    assert torch.equal(ready["boxes"], listed["boxes"])

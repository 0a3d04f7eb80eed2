# SPDX-License-Identifier: Apache-2.0
"""FCOS: the numbers of the paper, its targets, losses and inference."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

import pydet
from pydet.models.fcos import FCOS, FCOSOutput, assign_targets, centerness
from pydet.ops import box_iou, generalized_box_iou
from tests.models.helpers import assert_detect_alike, assert_trains, packed

SMALL = {"fpn_channels": 16, "head_convs": 1, "preprocessing": {"size": 64, "max_size": 96}}
FIRST_VERSION = {
    "centerness_on": "cls",
    "center_radius": 0.0,
    "box_loss": "iou",
    "distances": "pixels",
}


def small(num_classes=3, **overrides) -> FCOS:
    torch.manual_seed(0)
    model = pydet.create_model("fcos_resnet18_fpn", num_classes, **{**SMALL, **overrides})
    assert isinstance(model, FCOS)
    return model


# --- structure -----------------------------------------------------------------------------------


def test_parameters_are_as_many_as_published():
    with torch.device("meta"):
        frozen = pydet.create_model("fcos_resnet50_fpn", 91, norm="frozen")
    # 32 269 600: published by torchvision for its fcos_resnet50_fpn, which has no scales.
    assert sum(p.numel() for p in frozen.parameters()) == 32_269_600 + 5


def test_one_prediction_a_location_at_strides_8_to_128():
    with torch.device("meta"):
        output = pydet.create_model("fcos_resnet50_fpn", 80).predict(torch.empty(1, 3, 800, 1344))
    assert [grid[:4] for grid in output.grids] == [
        (100, 168, 8, 8),
        (50, 84, 16, 16),
        (25, 42, 32, 32),
        (13, 21, 64, 64),
        (7, 11, 128, 128),
    ]
    assert output.cls_logits.shape == (1, 22_400, 80)
    assert output.distances.shape == (1, 22_400, 4)
    assert output.centerness.shape == (1, 22_400)


def test_ranges_and_radius_are_the_papers():
    grids = small().predict(torch.zeros(1, 3, 64, 64)).grids
    limits = [0, 64, 128, 256, 512, math.inf]
    assert [(grid.low, grid.high) for grid in grids] == list(pairwise(limits))
    assert [grid.radius for grid in grids] == [12, 24, 48, 96, 192]
    whole = small(center_radius=0.0, range_limits=(32, 99, 200, 400)).predict(
        torch.zeros(1, 3, 64, 64)
    )
    assert [grid.high for grid in whole.grids] == [32, 99, 200, 400, math.inf]
    assert all(grid.radius == math.inf for grid in whole.grids)


def test_locations_are_the_middle_of_their_cells():
    anchors = small().predict(torch.zeros(1, 3, 64, 96)).anchors
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    # Section 3.1: (floor(s / 2) + x s, floor(s / 2) + y s)
    assert centers[:3].tolist() == [[4, 4], [12, 4], [20, 4]]
    assert centers[12].tolist() == [4, 12]
    assert centers[8 * 12].tolist() == [8, 8]
    assert (anchors[:, 2:] - anchors[:, :2])[[0, 96, -1]].tolist() == [[8, 8], [16, 16], [128, 128]]


def test_first_scores_are_the_prior():
    model = small(prior=0.02)
    assert torch.all(model.head.cls_logits.bias == -math.log(0.98 / 0.02))


@pytest.mark.parametrize("branch", ["box", "cls"])
def test_centerness_is_on_the_branch_that_is_wanted(branch):
    model = small(centerness_on=branch)
    output = model.predict(torch.rand(1, 3, 64, 64))
    output.centerness.sum().backward()
    other = {"box": model.head.cls_convs, "cls": model.head.box_convs}[branch]
    own = {"cls": model.head.cls_convs, "box": model.head.box_convs}[branch]
    assert all(p.grad is None for p in other.parameters())
    assert all(p.grad.abs().sum() > 0 for p in own.parameters())


def test_each_level_has_a_scale():
    model = small(distances="pixels")
    with torch.no_grad():
        before = model.predict(torch.ones(1, 3, 64, 64)).distances.log()
        model.head.scales.copy_(torch.tensor([1.0, 2, 3, 4, 5]))
        after = model.predict(torch.ones(1, 3, 64, 64)).distances.log()
    model.eval()
    for scale, a, b in zip(
        range(1, 6), before.split([64, 16, 4, 1, 1], 1), after.split([64, 16, 4, 1, 1], 1),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(b, a * scale, rtol=1e-4, atol=1e-6)
    assert small(level_scales=False).head.scales is None


# --- targets -------------------------------------------------------------------------------------


def test_centerness_is_the_formula():
    # l, t, r, b = 2, 3, 8, 3; at the centre; at the border.
    anchors = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 8, 8]])
    boxes = torch.tensor([[2.0, 1, 12, 7], [0, 0, 8, 8], [4, 1, 12, 7]])
    assert centerness(boxes, anchors).tolist() == pytest.approx([math.sqrt(2 / 8), 1, 0])


def test_targets_of_labels_and_boxes():
    model = small()
    output = model.predict(torch.zeros(2, 3, 64, 64))
    assigned = assign_targets(
        output, packed([([16, 16, 48, 48], 2)], [([0, 0, 64, 64], 1, True)]), 0.5
    )
    foreground = assigned.labels[0].nonzero().flatten().tolist()
    labels = assigned.labels[0, :64].view(8, 8)
    # Centres 4, 12, ...; near 32 by less than 12: 28 and 36.
    assert (labels == 2).nonzero().tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]
    assert (assigned.labels[0] == 2).sum() == 4  # by its sides it is of P3 alone
    assert len(foreground) == 86
    assert (assigned.boxes[0][assigned.labels[0] == 2] == torch.tensor([16, 16, 48, 48])).all()
    assert torch.equal(assigned.boxes[0, 0], output.anchors[0])
    # The location of P7, at 64, is on the border of the image and of the box.
    assert assigned.labels[1].tolist() == [-2] * 85 + [-1]


# --- losses --------------------------------------------------------------------------------------


def definition(model: FCOS, output: FCOSOutput, targets):
    """The losses location by location, in double, from the paper's sections 3.1 and 3.3."""
    config = model.config
    labels = assign_targets(output, targets, config.location_offset).labels
    owner = assign_targets(output, targets, config.location_offset).boxes.double()
    sums = torch.zeros(len(targets), 3, dtype=torch.float64)
    for b in range(len(targets)):
        for a, label in enumerate(labels[b].tolist()):
            if label == -2:
                continue
            for k, logit in enumerate(output.cls_logits[b, a].double().detach()):
                p = logit.sigmoid()
                p_t, alpha = (p, 0.25) if k == label else (1 - p, 0.75)
                sums[b, 0] -= alpha * (1 - p_t) ** 2 * p_t.log()
            if label < 0:
                continue
            x1, y1, x2, y2 = output.anchors[a].double()
            x, y, stride = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1
            left, top, right, bottom = output.distances[b, a].double().detach() * (
                stride if config.distances == "strides" else 1
            )
            pred = torch.stack((x - left, y - top, x + right, y + bottom))[None]
            box = owner[b, a, None]
            sums[b, 1] += (
                1 - generalized_box_iou(pred, box)[0, 0]
                if config.box_loss == "giou"
                else -box_iou(pred, box)[0, 0].clamp(min=1e-7).log()
            )
            near, far = zip(
                *(sorted(pair) for pair in ((x - box[0, 0], box[0, 2] - x),
                                            (y - box[0, 1], box[0, 3] - y))),
                strict=True,
            )  # fmt: skip
            wanted = (near[0] / far[0] * near[1] / far[1]).sqrt()
            p = output.centerness[b, a].double().detach().sigmoid()
            sums[b, 2] -= wanted * p.log() + (1 - wanted) * (1 - p).log()
    positives = (labels >= 0).sum(1)
    if config.normalizer == "batch":
        return sums.sum(0) / positives.sum().clamp(min=1)
    return (sums / positives.clamp(min=1)[:, None]).mean(0)


@pytest.mark.parametrize(
    "overrides", [{}, {"normalizer": "batch"}, FIRST_VERSION, {"level_scales": False}]
)
def test_losses_are_the_definition(overrides):
    model = small(**overrides)
    targets = packed(
        [([5, 5, 40, 44], 2), ([20, 10, 60, 50], 0), ([0, 50, 30, 64], 1, True)],
        [],
        [([0, 0, 30, 60], 1), ([8, 8, 40, 40], 1)],
    )
    output = model.predict(torch.randn(3, 3, 64, 64))
    generator = torch.Generator().manual_seed(0)
    output.cls_logits.data.normal_(generator=generator)
    output.centerness.data.normal_(generator=generator)
    output.distances.data.uniform_(0.2, 20, generator=generator)
    losses = model.losses(output, targets)
    expected = definition(model, output, targets)
    for key, value in zip(("loss_cls", "loss_box", "loss_centerness"), expected, strict=True):
        assert value > 0
        assert float(losses[key].detach()) == pytest.approx(float(value), rel=1e-4)


def test_weights_of_losses():
    targets = packed([([5, 5, 40, 44], 2)])
    losses = []
    for weight in (1.0, 2.5):
        model = small(box_loss_weight=weight, centerness_loss_weight=2 * weight).eval()
        torch.manual_seed(1)
        losses.append(model.losses(model.predict(torch.randn(1, 3, 64, 64)), targets))
    for key in ("loss_box", "loss_centerness"):
        torch.testing.assert_close(losses[1][key], 2.5 * losses[0][key])


def test_losses_of_boxes_and_centerness_touch_foreground_only():
    model = small()
    targets = packed([([5, 5, 40, 44], 2)])
    output = model.predict(torch.randn(1, 3, 64, 64))
    distances = torch.rand_like(output.distances).requires_grad_()
    logits = output.centerness.detach().requires_grad_()
    losses = model.losses(output._replace(distances=distances, centerness=logits), targets)
    (losses["loss_box"] + losses["loss_centerness"]).backward()
    foreground = assign_targets(output, targets, 0.5).foreground
    assert 0 < foreground.sum() < 50
    assert torch.equal(distances.grad.abs().sum(2) > 0, foreground)
    assert torch.equal(logits.grad != 0, foreground)


# --- inference -----------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["product", "sqrt"])
def test_objects_written_into_the_output_are_found(score):
    model = small(score=score).eval()
    output = model.predict(torch.zeros(2, 3, 64, 64))
    logits = torch.full_like(output.cls_logits, -20)
    quality = torch.full_like(output.centerness, 1.0)
    distances = torch.zeros_like(output.distances)
    index = 8 * 3 + 4  # of P3: (36, 28)
    distances[:, index] = torch.tensor([1.0, 2, 0.5, 9])  # in strides of 8; the last leaves
    logits[0, index, 1] = 3.0
    logits[0, index, 2] = 1.0  # another class in the same place is another object
    found = model.decode(
        output._replace(cls_logits=logits, distances=distances, centerness=quality),
        torch.tensor([[60.0, 64.0], [64.0, 64.0]]),
    )
    assert found.counts.tolist() == [2, 0]
    assert found.labels[0, :3].tolist() == [1, 2, -1]
    scores = torch.tensor([3.0, 1.0]).sigmoid() * torch.tensor(1.0).sigmoid()
    torch.testing.assert_close(found.scores[0, :2], scores.sqrt() if score == "sqrt" else scores)
    torch.testing.assert_close(found.boxes[0, :2], torch.tensor([28.0, 12, 40, 60]).expand(2, 4))


def test_centerness_decides_which_duplicate_stays():
    model = small().eval()
    output = model.predict(torch.zeros(1, 3, 64, 64))
    logits = torch.full_like(output.cls_logits, -20)
    quality = torch.full_like(output.centerness, -2.0)
    distances = torch.full_like(output.distances, 2.0)
    logits[0, [9, 10], 0] = torch.tensor([2.0, 1.0])
    quality[0, 10] = 2.0
    found = model.decode(
        output._replace(cls_logits=logits, distances=distances, centerness=quality),
        torch.full((1, 2), 64.0),
    )
    torch.testing.assert_close(found.boxes[0, 0], torch.tensor([4.0, 0, 36, 28]))  # of 10


def test_from_image_to_padded_detections_is_one_graph_for_all_sizes():
    model = small(score_threshold=0.01).eval()
    compiled = torch.compile(model.detect, fullgraph=True, dynamic=True, backend="eager")
    assert_detect_alike(model.detect, compiled, [(2, 3, 64, 96), (3, 3, 128, 64)])


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {**FIRST_VERSION, "head_norm": "none"},
        {"levels": (3, 4, 5, 6), "normalizer": "batch", "norm": "group", "fpn_norm": "group"},
        {"location_strides": "image", "location_offset": 0.0, "level_scales": False},
    ],
)
def test_variants_train(overrides):
    model = small(**overrides)
    assert_trains(model)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"center_radios": 1.0}, "nearest is 'center_radius'"),
        ({"range_limits": (64, 128)}, "range_limits must be 4 numbers"),
        ({"range_limits": (64, 128, 256, 99)}, "range_limits must rise"),
        ({"box_loss": "ciou"}, "box_loss must be 'giou' or 'iou', got 'ciou'"),
        ({"centerness_on": "both"}, "centerness_on must be"),
        ({"head_norm": "batch"}, "head_norm must be 'group' or 'none'"),
        ({"prior": 1.0}, "prior must be between 0 and 1"),
        ({"center_radius": -1.0}, "center_radius must be at least 0"),
    ],
)
def test_wrong_settings_are_refused(overrides, words):
    with pytest.raises(ValueError, match=words):
        small(**overrides)


def test_config_can_be_changed_after_building():
    model = small(score_threshold=0.0).eval()
    with torch.no_grad():
        assert len(model([torch.rand(3, 64, 64)])[0]["boxes"]) > 0
        model.config = dataclasses.replace(model.config, score_threshold=0.999)
        assert len(model([torch.rand(3, 64, 64)])[0]["boxes"]) == 0


@pytest.mark.parametrize("overrides", [{}, FIRST_VERSION])
def test_learns_one_image(overrides):
    """A few steps on one image bring the loss down and the object into the detections."""
    model = small(norm="group", fpn_norm="group", fpn_channels=32, **overrides)
    image = torch.full((3, 64, 64), 0.2)
    image[:, 16:48, 16:48] = 0.9
    targets = [{"boxes": torch.tensor([[16.0, 16, 48, 48]]), "labels": torch.tensor([1])}]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(40):
        loss = sum(model([image], targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert found["labels"][0] == 1
    assert found["scores"][0] > 0.3
    assert box_iou(found["boxes"][:1], targets[0]["boxes"]) > 0.7

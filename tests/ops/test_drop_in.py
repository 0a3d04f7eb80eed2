# SPDX-License-Identifier: Apache-2.0
"""torchvision.ops and pydet.ops called alike: the same results and the same gradients.

What differs on purpose stands in docs/torchvision.md, each line with its test here (last section).
"""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pydet import ops
from tests.ops.cases import Random

theirs = pytest.importorskip(
    "torchvision.ops",
    reason="needs torchvision, whose results are compared with",
    exc_type=ImportError,
)

# What torchvision.ops has for detection; layers of networks are no business of pydet.ops.
FUNCTIONS = (
    "batched_nms",
    "box_area",
    "box_convert",
    "box_iou",
    "clip_boxes_to_image",
    "complete_box_iou",
    "complete_box_iou_loss",
    "deform_conv2d",
    "distance_box_iou",
    "distance_box_iou_loss",
    "generalized_box_iou",
    "generalized_box_iou_loss",
    "masks_to_boxes",
    "nms",
    "ps_roi_align",
    "ps_roi_pool",
    "remove_small_boxes",
    "roi_align",
    "roi_pool",
    "sigmoid_focal_loss",
)
MODULES = ("DeformConv2d", "MultiScaleRoIAlign", "PSRoIAlign", "PSRoIPool", "RoIAlign", "RoIPool")
# Not for detection: parts of networks, and regularisation.
OTHERS = {
    "Conv2dNormActivation",
    "Conv3dNormActivation",
    "DropBlock2d",
    "DropBlock3d",
    "FeaturePyramidNetwork",
    "FrozenBatchNorm2d",
    "MLP",
    "Permute",
    "SqueezeExcitation",
    "StochasticDepth",
    "drop_block2d",
    "drop_block3d",
    "stochastic_depth",
}

randoms = st.integers(0, 2**32 - 1).map(Random)
dtypes = st.sampled_from([torch.float32, torch.float64])
counts = st.integers(0, 12)
reductions = st.sampled_from(["none", "mean", "sum"])


def test_all_that_both_have_is_compared():
    assert set(theirs.__all__) <= {*FUNCTIONS, *MODULES, *OTHERS}


@pytest.mark.parametrize("name", [*FUNCTIONS, *MODULES])
def test_signatures(name):
    """Names, order and defaults of the arguments; what pydet adds comes after them."""
    wanted = list(inspect.signature(getattr(theirs, name)).parameters.values())
    found = list(inspect.signature(getattr(ops, name)).parameters.values())
    for ours, other in zip(found, wanted, strict=False):
        assert (ours.name, ours.default, ours.kind) == (other.name, other.default, other.kind)
    assert len(found) >= len(wanted)
    assert all(extra.kind == inspect.Parameter.KEYWORD_ONLY for extra in found[len(wanted) :])


def leaves_of(value):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def compare(our_function, their_function, *args, dtype=torch.float64, gradient=True, **kwargs):
    """Both give the same, and the same gradient for each floating tensor of the arguments."""
    error = 1e-9 if dtype == torch.float64 else 2e-4
    found = []
    for function in (our_function, their_function):
        fresh = torch.utils._pytree.tree_map_only(
            Tensor,
            lambda t: t.detach().clone().requires_grad_(gradient and t.is_floating_point()),
            args,
        )
        result = function(*fresh, **kwargs)
        leaves = [leaf for leaf in leaves_of(fresh) if leaf.requires_grad]
        grads = ()
        if result.requires_grad:
            weights = torch.linspace(0.25, 1, result.numel(), dtype=torch.float64)
            total = (result.double() * weights.reshape(result.shape)).sum()
            grads = torch.autograd.grad(total, leaves, allow_unused=True)
        found.append((result.detach(), grads))
    (ours, our_grads), (wanted, wanted_grads) = found
    assert ours.dtype == wanted.dtype and ours.shape == wanted.shape
    if not wanted.is_floating_point():
        assert torch.equal(ours, wanted)
    torch.testing.assert_close(ours, wanted, rtol=error, atol=error)
    for grad, other in zip(our_grads, wanted_grads, strict=False):
        # torchvision gives None where it has no gradient though there is one.
        if other is not None and grad is not None:
            scale = max(1.0, other.abs().max().item() if other.numel() else 0.0)
            torch.testing.assert_close(grad, other, rtol=error, atol=error * scale)


def compare_function(name, *args, **kwargs):
    compare(getattr(ops, name), getattr(theirs, name), *args, **kwargs)


# --- boxes -------------------------------------------------------------------------------------


@given(randoms, dtypes, counts, st.sampled_from(["xyxy", "xywh", "cxcywh"]))
def test_box_area(random, dtype, count, fmt):
    compare_function("box_area", random.boxes(count).to(dtype), fmt, dtype=dtype)
    compare_function("box_area", random.boxes(2, count).to(dtype), fmt=fmt, dtype=dtype)


@given(
    randoms,
    dtypes,
    counts,
    st.sampled_from(["xyxy", "xywh", "cxcywh"]),
    st.sampled_from(["xyxy", "xywh", "cxcywh"]),
)
def test_box_convert(random, dtype, count, in_fmt, out_fmt):
    boxes = random.boxes(3, count).to(dtype)
    compare_function("box_convert", boxes, in_fmt, out_fmt, dtype=dtype)


@given(randoms, dtypes, counts, st.integers(1, 64), st.integers(1, 64))
def test_clip_boxes_to_image(random, dtype, count, height, width):
    boxes = random.boxes(count).to(dtype) - 9
    compare_function("clip_boxes_to_image", boxes, (height, width), dtype=dtype)


@given(randoms, dtypes, counts, st.floats(0, 40))
def test_remove_small_boxes(random, dtype, count, min_size):
    boxes = random.boxes(count).to(dtype)
    compare_function("remove_small_boxes", boxes, min_size, gradient=False)


@given(randoms, counts, st.integers(1, 20), st.integers(1, 20), st.floats(0, 0.5))
def test_masks_to_boxes(random, count, height, width, share):
    masks = random.uniform(count, height, width) < share
    compare_function("masks_to_boxes", masks, gradient=False)
    compare_function("masks_to_boxes", masks.to(torch.uint8) * 3, gradient=False)
    compare_function("masks_to_boxes", masks.float(), gradient=False)


@given(randoms, dtypes, counts, counts, st.sampled_from(["xyxy", "xywh", "cxcywh"]))
def test_box_iou(random, dtype, n, m, fmt):
    compare_function(
        "box_iou", random.boxes(n).to(dtype), random.boxes(m).to(dtype), fmt, dtype=dtype
    )


@pytest.mark.parametrize("name", ["generalized_box_iou", "distance_box_iou", "complete_box_iou"])
@given(randoms, dtypes, counts, counts)
def test_other_overlaps(name, random, dtype, n, m):
    compare_function(name, random.boxes(n).to(dtype), random.boxes(m).to(dtype), dtype=dtype)
    boxes1, boxes2 = random.boxes(2, 1, n).to(dtype), random.boxes(2, 1, m).to(dtype)
    compare_function(name, boxes1, boxes2, dtype=dtype)


@pytest.mark.parametrize(
    "name", ["generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"]
)
@given(randoms, dtypes, counts, reductions, st.sampled_from([1e-7, 1e-3]))
def test_box_losses(name, random, dtype, count, reduction, eps):
    boxes1, boxes2 = random.boxes(count).to(dtype), random.boxes(count).to(dtype)
    compare_function(name, boxes1, boxes2, reduction, eps, dtype=dtype)


# --- suppression -------------------------------------------------------------------------------


@given(randoms, dtypes, st.integers(0, 40), st.integers(0, 8))
def test_nms(random, dtype, count, eighths):
    boxes, scores = random.boxes(count).round().to(dtype), random.scores(count).to(dtype)
    compare_function("nms", boxes, scores, eighths / 8, gradient=False)


@given(randoms, dtypes, st.integers(0, 40), st.integers(0, 8), st.integers(1, 5))
def test_batched_nms(random, dtype, count, eighths, classes):
    boxes, scores = random.boxes(count).round().to(dtype), random.scores(count).to(dtype)
    idxs = random.integers(count, high=classes)
    compare_function("batched_nms", boxes, scores, idxs, eighths / 8, gradient=False)


# --- focal loss --------------------------------------------------------------------------------


@given(
    randoms,
    dtypes,
    st.lists(st.integers(1, 5), max_size=3),
    st.sampled_from([-1, 0, 0.25, 1]),
    st.sampled_from([0, 0.5, 1, 1.5, 2, 3]),
    reductions,
)
def test_sigmoid_focal_loss(random, dtype, shape, alpha, gamma, reduction):
    inputs, targets = 3 * random.normal(*shape), random.uniform(*shape, low=0.05, high=0.95)
    compare_function(
        "sigmoid_focal_loss",
        inputs.to(dtype),
        targets.to(dtype),
        alpha,
        gamma,
        reduction,
        dtype=dtype,
    )
    hard = (targets > 0.5).to(dtype)
    found = ops.sigmoid_focal_loss(inputs.to(dtype), hard, alpha, gamma, reduction)
    wanted = theirs.sigmoid_focal_loss(inputs.to(dtype), hard, alpha, gamma, reduction)
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=1e-6)


# --- regions of interest -----------------------------------------------------------------------

sizes = st.integers(1, 4)
pooled = st.one_of(sizes, st.tuples(sizes, sizes))
scales = st.sampled_from([1.0, 0.5, 0.25])


def features_and_rois(random, dtype, count, channels=3):
    """[2, C, 13, 16] and [R, 5] of boxes within and beyond a 32 x 32 image."""
    features = random.normal(2, channels, 13, 16).to(dtype)
    rois = torch.cat([random.integers(count, 1, high=2).double(), random.boxes(count) - 6], dim=1)
    return features, rois.to(dtype)


def as_list(rois):
    """The same boxes as a list, one an image."""
    order = rois[:, 0].argsort(stable=True)
    return [rois[order][rois[order, 0] == image, 1:] for image in range(2)]


@given(randoms, dtypes, counts, pooled, scales, st.integers(-1, 3), st.booleans())
def test_roi_align(random, dtype, count, output_size, scale, sampling_ratio, aligned):
    features, rois = features_and_rois(random, dtype, count)
    for boxes in (rois, as_list(rois)):
        arguments = (output_size, scale, sampling_ratio, aligned)
        compare_function("roi_align", features, boxes, *arguments, dtype=dtype)
    modules = [
        library.RoIAlign(output_size, scale, sampling_ratio, aligned) for library in (ops, theirs)
    ]
    compare(*modules, features, rois, dtype=dtype)
    assert repr(modules[0]) == repr(modules[1])


@given(randoms, dtypes, counts, pooled, scales)
def test_roi_pool(random, dtype, count, output_size, scale):
    features, rois = features_and_rois(random, dtype, count)
    for boxes in (rois, as_list(rois)):
        compare_function("roi_pool", features, boxes, output_size, scale, dtype=dtype)
    modules = [library.RoIPool(output_size, scale) for library in (ops, theirs)]
    compare(*modules, features, rois, dtype=dtype)
    assert repr(modules[0]) == repr(modules[1])


@given(randoms, dtypes, counts, sizes, scales, st.integers(-1, 3))
def test_ps_roi_align(random, dtype, count, output_size, scale, sampling_ratio):
    features, rois = features_and_rois(random, dtype, count, channels=2 * output_size**2)
    for boxes in (rois, as_list(rois)):
        arguments = (output_size, scale, sampling_ratio)
        compare_function("ps_roi_align", features, boxes, *arguments, dtype=dtype)
    modules = [library.PSRoIAlign(output_size, scale, sampling_ratio) for library in (ops, theirs)]
    compare(*modules, features, rois, dtype=dtype)
    assert repr(modules[0]) == repr(modules[1])


@given(randoms, dtypes, counts, sizes, scales)
def test_ps_roi_pool(random, dtype, count, output_size, scale):
    features, rois = features_and_rois(random, dtype, count, channels=2 * output_size**2)
    for boxes in (rois, as_list(rois)):
        compare_function(
            "ps_roi_pool", features, boxes, output_size, scale, dtype=dtype, gradient=False
        )
    # torchvision pools all but the last row and column, and gives those a gradient all the same.
    inside = rois.clamp(max=10 / scale)
    compare_function("ps_roi_pool", features, inside, output_size, scale, dtype=dtype)
    modules = [library.PSRoIPool(output_size, scale) for library in (ops, theirs)]
    compare(*modules, features, inside, dtype=dtype)
    assert repr(modules[0]) == repr(modules[1])


@given(randoms, dtypes, st.integers(1, 9), pooled, st.integers(1, 3), st.sampled_from([56, 224]))
def test_multiscale_roi_align(random, dtype, count, output_size, sampling_ratio, canonical):
    image = 128
    levels = {
        name: random.normal(2, 3, image // stride, image // stride).to(dtype)
        for name, stride in (("p2", 4), ("p3", 8), ("p4", 16), ("unused", 32))
    }
    boxes = [random.boxes(count, image=200).to(dtype), random.boxes(2, image=30).to(dtype)]
    names = ["p2", "p3", "p4"]
    modules = [
        library.MultiScaleRoIAlign(
            names, output_size, sampling_ratio, canonical_scale=canonical, canonical_level=4
        )
        for library in (ops, theirs)
    ]
    assert repr(modules[0]) == repr(modules[1])
    compare(*modules, levels, boxes, [(image, image), (image - 8, image - 30)], dtype=dtype)
    one_level = [library.MultiScaleRoIAlign(["p3"], output_size, 2) for library in (ops, theirs)]
    compare(*one_level, levels, boxes, [(image, image)] * 2, dtype=dtype)


# --- deformable convolution --------------------------------------------------------------------


@given(
    randoms,
    dtypes,
    st.integers(0, 2),
    st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]),
    st.tuples(sizes, sizes),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.booleans(),
    st.booleans(),
)
def test_deform_conv2d(
    random, dtype, batch, groups, kernel, stride, padding, dilation, with_mask, with_bias
):
    weight_groups, offset_groups = groups
    height, width = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip((9, 11), padding, dilation, kernel, stride, strict=True)
    )
    taps = offset_groups * kernel[0] * kernel[1]
    tensors = (
        random.normal(batch, 4, 9, 11),
        random.normal(batch, 2 * taps, height, width),
        random.normal(6, 4 // weight_groups, *kernel),
        random.normal(6) if with_bias else None,
        stride,
        padding,
        dilation,
        random.uniform(batch, taps, height, width) if with_mask else None,
    )
    tensors = [t.to(dtype) if isinstance(t, Tensor) else t for t in tensors]
    compare_function("deform_conv2d", *tensors, dtype=dtype)


@given(randoms, st.booleans())
def test_deform_conv2d_module(random, bias):
    modules = []
    for library in (ops, theirs):
        torch.manual_seed(0)
        module = library.DeformConv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias)
        modules.append(module.double())
    assert repr(modules[0]) == repr(modules[1])
    states = [module.state_dict() for module in modules]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    x, offset, mask = (
        random.normal(2, 4, 9, 9),
        random.normal(2, 18, 5, 5),
        random.uniform(2, 9, 5, 5),
    )
    compare(*modules, x, offset)
    compare(*modules, x, offset, mask)
    assert isinstance(modules[0], nn.Module)


# --- numbers as tensors and NumPy's -------------------------------------------------------------


@pytest.mark.parametrize("number", [torch.tensor(0.25), np.float32(0.25), torch.tensor(1)])
def test_numbers_may_be_tensors(number):
    boxes, scores = Random(0).boxes(20).float(), Random(1).scores(20).float()
    idxs = Random(2).integers(20, high=2)
    compare_function("nms", boxes, scores, number, gradient=False)
    compare_function("batched_nms", boxes, scores, idxs, number, gradient=False)
    compare_function("remove_small_boxes", boxes, number, gradient=False)
    features, rois = features_and_rois(Random(3), torch.float64, 5)
    compare_function("roi_align", features, rois, 2, float(number))
    assert torch.equal(
        ops.roi_align(features, rois, 2, number), ops.roi_align(features, rois, 2, float(number))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize(
    "size",
    [torch.tensor([5, 7]), torch.tensor([5.5, 7.0]), (torch.tensor(5), torch.tensor(7)), [5, 7]],
)
def test_sizes_may_be_tensors(size, dtype):
    boxes = (Random(0).boxes(20) - 9).to(dtype)
    found = ops.clip_boxes_to_image(boxes, size)
    height, width = (
        float(side) if side.is_floating_point() else int(side)
        for side in map(torch.as_tensor, size)
    )
    assert torch.equal(found, ops.clip_boxes_to_image(boxes, (height, width)))
    assert torch.equal(found.double(), theirs.clip_boxes_to_image(boxes, size).double())


@pytest.mark.parametrize(
    "wrong",
    [
        torch.tensor([0.5]),
        torch.tensor(True),
        torch.tensor(0.5 + 0j),
        torch.empty((), device="meta"),
    ],
)
def test_other_tensors_are_no_numbers(wrong):
    boxes, scores = Random(0).boxes(3), Random(1).scores(3)
    with pytest.raises(TypeError, match=r"nms: iou_threshold must be a number, .* got a tensor"):
        ops.nms(boxes, scores, wrong)
    with pytest.raises(TypeError, match="clip_boxes_to_image: size must"):
        ops.clip_boxes_to_image(boxes, wrong)
    with pytest.raises(ValueError, match=r"iou_threshold must be in \[0, 1\], got"):
        ops.nms(boxes, scores, torch.tensor(float("nan")))


# --- differences on purpose: the rows of docs/torchvision.md ------------------------------------

POINT = torch.tensor([[5.0, 5.0, 5.0, 5.0]])


@pytest.mark.parametrize("name", ["box_iou", "generalized_box_iou", "complete_box_iou"])
def test_overlap_of_two_points(name):
    """0 / 0 is 0 in pydet."""
    assert getattr(theirs, name)(POINT, POINT).isnan().all()
    assert getattr(ops, name)(POINT, POINT).isfinite().all()


def test_loss_of_two_points():
    losses = []
    for library in (ops, theirs):
        point = POINT.clone().requires_grad_()
        loss = library.complete_box_iou_loss(point, POINT, "sum")
        (grad,) = torch.autograd.grad(loss, point)
        losses.append((loss.isfinite().item(), grad.isfinite().all().item()))
    assert losses == [(True, True), (False, False)]


def test_sixteen_bits_are_subtracted_in_float32():
    boxes = torch.tensor([[1.0, 1.0, 1024.0, 1000.0], [0.0, 1.0, 1024.0, 996.0]]).bfloat16()
    exact = theirs.box_iou(boxes.double(), boxes.double())
    assert (ops.box_iou(boxes, boxes) - exact).abs().max() < 1e-6
    assert (theirs.box_iou(boxes, boxes) - exact).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["box_iou", "generalized_box_iou"])
def test_one_box_is_no_row_of_boxes(name):
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 8]])
    with pytest.raises(ValueError, match=rf"{name}: boxes1 must have shape \[..., N, 4\]"):
        getattr(ops, name)(boxes[0], boxes)
    assert torch.equal(
        getattr(theirs, name)(boxes[0], boxes).flatten(),
        getattr(ops, name)(boxes[:1], boxes).flatten(),
    )


@pytest.mark.parametrize("threshold", [1.5, -1.0])
def test_thresholds_that_are_no_overlap(threshold):
    boxes, scores = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9]]), torch.tensor([0.9, 0.8])
    assert len(theirs.nms(boxes, scores, threshold)) == (2 if threshold > 1 else 1)
    with pytest.raises(ValueError, match=r"iou_threshold must be in \[0, 1\]"):
        ops.nms(boxes, scores, threshold)


def test_pooling_of_another_faster_rcnn():
    """Its constructor asks for torchvision's class; in its place pydet's gives the same."""
    detection = pytest.importorskip("torchvision.models.detection")
    pooler = ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    torch.manual_seed(0)
    model = detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
    ).eval()
    with pytest.raises(TypeError, match="MultiScaleRoIAlign"):
        detection.FasterRCNN(model.backbone, 3, box_roi_pool=pooler)
    features = {name: torch.rand(1, 256, 16 >> i, 16 >> i) for i, name in enumerate("0123")}
    boxes = [Random(0).boxes(9, image=60).float()]
    with torch.no_grad():
        wanted = model.roi_heads.box_roi_pool(features, boxes, [(64, 64)])
        model.roi_heads.box_roi_pool = pooler
        torch.testing.assert_close(pooler(features, boxes, [(64, 64)]), wanted)
        assert len(model([torch.rand(3, 60, 60)])) == 1


def test_nan_scores_rank_last():
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 29, 29]])
    scores = torch.tensor([0.5, float("nan")])
    assert ops.nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert theirs.nms(boxes, scores, 0.5).tolist() == [1, 0]


def test_classes_are_no_offsets():
    """torchvision moves class c by c (max + 1): negative coordinates make classes meet."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [-2, -2, -1, -1]])
    scores, idxs = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    assert ops.batched_nms(boxes, scores, idxs, 0.5).tolist() == [0, 1]
    assert theirs.batched_nms(boxes, scores, idxs, 0.5).tolist() == [0]


def test_sixteen_bits_on_the_cpu():
    boxes, scores = torch.tensor([[0.0, 0, 9, 9]]).half(), torch.tensor([0.5]).half()
    assert ops.nms(boxes, scores, 0.5).tolist() == [0]
    with pytest.raises(RuntimeError, match="Half"):
        theirs.nms(boxes, scores, 0.5)


def test_masks_without_pixels():
    masks = torch.zeros(3, 0, 4, dtype=torch.bool)
    assert ops.masks_to_boxes(masks).tolist() == [[0.0] * 4] * 3
    assert theirs.masks_to_boxes(masks).shape == (0, 4)


def test_position_sensitive_bins_without_area():
    features, rois = torch.ones(1, 4, 8, 8), torch.tensor([[0.0, 2, 2, 2, 2]])
    assert ops.ps_roi_align(features, rois, 2).eq(0).all()
    assert theirs.ps_roi_align(features, rois, 2).isnan().all()


def test_position_sensitive_bins_at_the_border():
    """Neither pools the last row and column; only torchvision sends them a gradient."""
    rois = torch.tensor([[0.0, 0, 0, 4, 4]])
    for library, gradient in ((ops, 0.0), (theirs, 1 / 16)):
        features = torch.zeros(1, 1, 4, 4)
        features[0, 0, 3] = features[0, 0, :, 3] = 9
        features.requires_grad_()
        pooled = library.ps_roi_pool(features, rois, 1)
        assert pooled.item() == 0
        pooled.sum().backward()
        assert features.grad[0, 0, 3].eq(gradient).all()


def test_regions_without_a_largest_cell():
    rois = torch.tensor([[0.0, 0, 0, 1, 1]])
    for cell in (float("-inf"), float("nan")):
        features = torch.full((1, 1, 2, 2), cell)
        assert ops.roi_pool(features, rois, 1).item() == float("-inf")
        assert theirs.roi_pool(features, rois, 1).item() == torch.finfo(torch.float32).min


def test_deformed_cells_of_weight_zero():
    """Positions on a cell do not look at its neighbours."""
    features = torch.zeros(1, 1, 3, 3)
    features[0, 0, 0, 1] = float("nan")
    arguments = (features, torch.zeros(1, 2, 3, 3), torch.ones(1, 1, 1, 1))
    assert ops.deform_conv2d(*arguments).isnan().sum() == 1
    assert theirs.deform_conv2d(*arguments).isnan().sum() == 2


@pytest.mark.parametrize("name", ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"])
def test_wrong_regions_are_value_errors(name):
    features, rois = torch.ones(1, 4, 8, 8), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=rf"^{name}: boxes must have shape"):
        getattr(ops, name)(features, rois, 2)
    with pytest.raises(AssertionError):
        getattr(theirs, name)(features, rois, 2)


def test_regions_have_a_gradient():
    """The boxes of RoI align are differentiable in pydet."""
    features = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    grads = []
    for library in (ops, theirs):
        rois = torch.tensor([[0.0, 1.3, 1.7, 6.1, 5.9]], dtype=torch.float64, requires_grad=True)
        pooled = library.roi_align(features.clone().requires_grad_(), rois, 2, 1.0, 2)
        grads += torch.autograd.grad(pooled.sum(), rois, allow_unused=True)
    assert grads[0].isfinite().all() and grads[0][0, 1:].abs().sum() > 0
    assert grads[1] is None

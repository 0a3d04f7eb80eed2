# SPDX-License-Identifier: Apache-2.0
"""One call of every public op: what ``test_contract.py`` runs and ``docs/ops.md`` is made from.

An op has a case for each form of its arguments that takes another way through its code. A case says
how ordinary arguments of any size, dtype and device are made and which of them have a gradient; the
contract test does with it all that is asked of every op alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pydet import ops
from tests.strategies import DTYPES


@dataclass(frozen=True)
class OpCase:
    """One way to call one function or module of ``pydet.ops``.

    Attributes:
        function: Its name in ``pydet.ops``.
        make: ``make(size, random)`` gives the tensors by argument name: float64 (or integers or
            bool) on the CPU, with ``size`` where users have "any number" (boxes, rows, RoIs; 0 must
            do); made with the methods of ``random`` alone. Floating ones are then cast and moved.
        call: ``call(**tensors)`` where the function's own arguments do not do: lists, modules.
        arguments: Further arguments of the function.
        variant: What sets this case apart from the op's others, in a word.
        gradients: Names of the tensors that a gradient is defined for. Values that ``make`` gives
            must keep away from the kinks of the function (ties, borders) for numeric gradients.
        dtypes: Floating dtypes that the tensors may have, float32 first.
        many: A size large enough to be shared by several threads.
        for_threads: The same for the CPU, where that takes more than other tests need; 0: ``many``.
        deterministic: "always", or "switched": on a GPU the same bits run to run only under
            ``torch.use_deterministic_algorithms(True)``.
        tolerance: Relative and absolute error that results in float32 may have against float64;
            0 where only decisions come out. Lesser dtypes may have that of their last bits more.
        export: Whether ``torch.export`` with dynamic sizes takes it.
    """

    function: str
    make: Callable[[int, "Random"], dict[str, Tensor]]
    call: Callable[..., Any] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    gradients: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = DTYPES
    many: int = 3000
    for_threads: int = 0
    deterministic: Literal["always", "switched"] = "always"
    tolerance: float = 1e-4
    export: bool = True

    @property
    def name(self) -> str:
        """The id of the case in tests."""
        return f"{self.function}-{self.variant}" if self.variant else self.function

    def tensors(
        self,
        size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """The tensors of one call; equal for equal arguments."""
        made = self.make(size, Random(seed))
        return {
            name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
            for name, tensor in made.items()
        }

    def run(self, **tensors: Tensor) -> list[Tensor]:
        """Calls the op; its results as a flat list."""
        function = self.call or getattr(ops, self.function)
        return torch.utils._pytree.tree_leaves(function(**tensors, **self.arguments))


class Random:
    """Random tensors from one seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """[*shape] float64 in [low, high)."""
        drawn = torch.rand(shape, generator=self._generator, dtype=torch.float64)
        return low + (high - low) * drawn

    def normal(self, *shape: int) -> Tensor:
        """[*shape] float64, standard normal."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def integers(self, *shape: int, low: int = 0, high: int) -> Tensor:
        """[*shape] int64 in [low, high)."""
        return torch.randint(low, high, shape, generator=self._generator)

    def boxes(self, *shape: int, image: float = 64.0) -> Tensor:
        """[*shape, 4] xyxy float64 with sides from image / 16 to image / 2."""
        corners = self.uniform(*shape, 2, high=image / 2)
        sides = self.uniform(*shape, 2, low=image / 16, high=image / 2)
        return torch.cat([corners, corners + sides], dim=-1)

    def scores(self, *shape: int) -> Tensor:
        """[*shape] float64: distinct multiples of 1/256 (a few equal where there are more)."""
        count = torch.Size(shape).numel()
        return (
            ((torch.randperm(count, generator=self._generator) % 255 + 1) / 256)
            .reshape(shape)
            .double()
        )


def _two_sets(size: int, random: Random) -> dict[str, Tensor]:
    return {"boxes1": random.boxes(size), "boxes2": random.boxes(size + 1)}


def _pairs(size: int, random: Random) -> dict[str, Tensor]:
    boxes = random.boxes(size)
    return {"boxes1": boxes, "boxes2": boxes + random.uniform(size, 4, low=-3, high=3)}


def _squares(count: int, random: Random) -> Tensor:
    """For complete IoU, whose gradient takes a factor as a constant: numeric derivatives know that
    only of boxes of one aspect ratio, for which the factor is 0."""
    centres, sides = random.uniform(count, 2, low=16, high=48), random.uniform(count, 1, low=0.5)
    return torch.cat([centres - 8 * sides, centres + 12 * sides], dim=-1)


def _boxes_and_scores(size: int, random: Random) -> dict[str, Tensor]:
    return {"boxes": random.boxes(size).round(), "scores": random.scores(size)}


def _padded_batch(size: int, random: Random) -> dict[str, Tensor]:
    return {
        "boxes": random.boxes(2, size).round(),
        "scores": random.scores(2, size),
        "idxs": random.integers(2, size, high=3),
    }


def _anchors_and_ground_truth(size: int, random: Random) -> dict[str, Tensor]:
    return {"anchors": random.boxes(size).round(), "gt_boxes": random.boxes(5).round()}


def _rois(size: int, random: Random, image: float = 64.0) -> Tensor:
    """[size, 5] boxes in two images."""
    return torch.cat(
        [random.integers(size, 1, high=2).double(), random.boxes(size, image=image)], 1
    )


def _map_and_rois(size: int, random: Random, channels: int = 3) -> dict[str, Tensor]:
    return {"input": random.normal(2, channels, 16, 12), "boxes": _rois(size, random)}


def _maps_and_boxes(size: int, random: Random) -> dict[str, Tensor]:
    return {
        "features": random.normal(2, 2, 5, 6),
        "boxes": random.boxes(size, image=20.0) - 3,
        "images": random.integers(size, high=2),
    }


def _pyramid_and_boxes(size: int, random: Random) -> dict[str, Tensor]:
    coarse = {"coarse": random.normal(2, 2, 3, 3)}
    return _maps_and_boxes(size, random) | coarse


def _with_images(boxes: Tensor, images: Tensor) -> Tensor:
    return torch.cat([images[:, None].to(boxes), boxes], dim=1)


def _pool_levels(
    features: Tensor, coarse: Tensor, boxes: Tensor, images: Tensor, **arguments: Any
) -> Tensor:
    return ops.multiscale_roi_align(
        [features, coarse], _with_images(boxes, images), 2, [0.5, 0.25], **arguments
    )


def _pool_dict(features: Tensor, coarse: Tensor, boxes: Tensor, images: Tensor) -> Tensor:
    module = ops.MultiScaleRoIAlign(["p1", "p2"], 2, 2, canonical_scale=10, canonical_level=2)
    return module({"p1": features, "p2": coarse}, [boxes, boxes[:1]], [(10, 12), (9, 11)])


def _deformed(size: int, random: Random) -> dict[str, Tensor]:
    """Offsets keep 1/8 away from the integers, where samples bend."""
    return {
        "input": random.normal(size, 4, 5, 4),
        "offset": random.integers(size, 2 * 2 * 6, 5, 4, low=-2, high=2)
        + random.uniform(size, 2 * 2 * 6, 5, 4, low=0.125, high=0.875),
        "weight": random.normal(6, 2, 3, 2),
        "bias": random.normal(6),
        "mask": random.uniform(size, 2 * 6, 5, 4),
    }


def _without_mask(size: int, random: Random) -> dict[str, Tensor]:
    tensors = _deformed(size, random)
    return {name: tensors[name] for name in ("input", "offset", "weight")}


def _filled_deform_module(device: str, dtype: torch.dtype) -> ops.DeformConv2d:
    module = ops.DeformConv2d(4, 6, (3, 2), padding=1, dilation=(1, 2), groups=2)
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 0.25)
    return module.to(device=device, dtype=dtype)


# Made here: torch.compile takes a module as it is, and not its making.
_DEFORM_MODULES = {
    (device, dtype): _filled_deform_module(device, dtype)
    for device in ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())))
    for dtype in DTYPES
}


def _deform_module(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    device = input.device
    name = "cpu" if device.index is None else f"cuda:{device.index}"
    return _DEFORM_MODULES[name, input.dtype](input, offset, mask)


def _module_map_and_rois(size: int, random: Random) -> dict[str, Tensor]:
    return {"input": random.normal(2, 3, 16, 12), "rois": _rois(size, random)}


CASES: tuple[OpCase, ...] = (
    OpCase(
        "batched_nms",
        lambda size, random: (
            _boxes_and_scores(size, random) | {"idxs": random.integers(size, high=3)}
        ),
        arguments={"iou_threshold": 0.5},
        tolerance=0,
    ),
    OpCase(
        "batched_nms",
        _padded_batch,
        variant="DIoU-padded",
        arguments={"iou_threshold": 0.4, "overlap": "diou", "max_output": 1000},
        tolerance=0,
    ),
    OpCase(
        "batched_nms",
        _padded_batch,
        variant="padded",
        arguments={"iou_threshold": 0.5, "max_output": 7, "score_threshold": 0.1},
        tolerance=0,
    ),
    OpCase(
        "batched_soft_nms",
        lambda size, random: (
            _boxes_and_scores(size, random) | {"idxs": random.integers(size, high=3)}
        ),
        arguments={"method": "gaussian"},
    ),
    OpCase(
        "batched_soft_nms",
        _padded_batch,
        variant="padded",
        arguments={"max_output": 7, "score_threshold": 0.1},
    ),
    OpCase(
        "box_area",
        lambda size, random: {"boxes": random.boxes(size)},
        gradients=("boxes",),
    ),
    OpCase(
        "box_convert",
        lambda size, random: {"boxes": random.boxes(size)},
        arguments={"in_fmt": "xyxy", "out_fmt": "cxcywh"},
        gradients=("boxes",),
    ),
    OpCase(
        "box_convert",
        lambda size, random: {"boxes": torch.cat([random.boxes(size), random.uniform(size, 1)], 1)},
        variant="rotated",
        arguments={"in_fmt": "cxcywhr", "out_fmt": "xyxyxyxy"},
        gradients=("boxes",),
    ),
    OpCase("box_iou", _two_sets, gradients=("boxes1", "boxes2"), many=700),
    OpCase(
        "box_iou",
        _two_sets,
        variant="cxcywh",
        arguments={"fmt": "cxcywh"},
        gradients=("boxes1", "boxes2"),
        many=700,
    ),
    OpCase(
        "clip_boxes_to_image",
        lambda size, random: {"boxes": random.boxes(size) - 8},
        arguments={"size": (40, 50)},
        gradients=("boxes",),
    ),
    OpCase(
        "complete_box_iou",
        lambda size, random: {
            "boxes1": _squares(size, random),
            "boxes2": _squares(size + 1, random),
        },
        gradients=("boxes1", "boxes2"),
        many=700,
    ),
    OpCase(
        "complete_box_iou_loss",
        lambda size, random: {
            "boxes1": _squares(size, random),
            "boxes2": _squares(size, random),
        },
        arguments={"reduction": "mean"},
        gradients=("boxes1", "boxes2"),
    ),
    OpCase(
        "decode_boxes",
        lambda size, random: {
            "deltas": random.normal(2, size, 4),
            "anchors": random.boxes(size),
        },
        gradients=("deltas", "anchors"),
    ),
    OpCase(
        "decode_boxes",
        lambda size, random: {
            "deltas": random.normal(2, size, 4),
            "anchors": random.boxes(2, size),
        },
        variant="clipped",
        arguments={"image_sizes": (40, 50), "scale_clamp": 1.0},
        gradients=("deltas", "anchors"),
    ),
    OpCase(
        "decode_boxes",
        lambda size, random: {
            "deltas": random.normal(2, size, 4),
            "anchors": random.boxes(size),
            "image_sizes": torch.tensor([[40.0, 50], [50, 30]]),
        },
        variant="images",
        arguments={"weights": (10, 10, 5, 5)},
        gradients=("deltas", "anchors"),
    ),
    OpCase(
        "deform_conv2d",
        _deformed,
        arguments={"padding": 1, "dilation": (1, 2)},
        gradients=("input", "offset", "weight", "bias", "mask"),
        many=40,
        deterministic="switched",
    ),
    OpCase(
        "deform_conv2d",
        _without_mask,
        arguments={"padding": 1, "dilation": (1, 2)},
        variant="v1",
        gradients=("input", "offset", "weight"),
        many=40,
        deterministic="switched",
    ),
    OpCase(
        "DeformConv2d",
        lambda size, random: {
            name: tensor
            for name, tensor in _deformed(size, random).items()
            if name in ("input", "offset", "mask")
        },
        call=_deform_module,
        gradients=("input", "offset", "mask"),
        many=40,
        deterministic="switched",
    ),
    OpCase("distance_box_iou", _two_sets, gradients=("boxes1", "boxes2"), many=700),
    OpCase(
        "distance_box_iou_loss",
        _pairs,
        arguments={"reduction": "sum"},
        gradients=("boxes1", "boxes2"),
    ),
    OpCase(
        "encode_boxes",
        lambda size, random: {"boxes": random.boxes(size), "anchors": random.boxes(size)},
        gradients=("boxes", "anchors"),
    ),
    OpCase("generalized_box_iou", _two_sets, gradients=("boxes1", "boxes2"), many=700),
    OpCase("generalized_box_iou_loss", _pairs, gradients=("boxes1", "boxes2")),
    OpCase(
        "heatmap_focal_loss",
        lambda size, random: {
            "inputs": random.normal(size, 5) * 4,
            "targets": random.uniform(size, 5, low=0.1, high=0.9),
        },
        gradients=("inputs", "targets"),
    ),
    OpCase(
        "heatmap_focal_loss",
        lambda size, random: {
            "inputs": random.normal(size, 2, 3) * 4,
            "targets": random.integers(size, 2, 3, high=2).double(),
        },
        variant="mean",
        arguments={"reduction": "mean", "alpha": 1.5, "beta": 3},
        gradients=("inputs",),
    ),
    OpCase("iou_loss", _pairs, arguments={"reduction": "mean"}, gradients=("boxes1", "boxes2")),
    OpCase(
        "masks_to_boxes",
        lambda size, random: {"masks": (random.uniform(size, 9, 13) > 0.9).double()},
        many=300,
        tolerance=0,
    ),
    OpCase(
        "match_anchors",
        _anchors_and_ground_truth,
        arguments={"fg_iou_threshold": 0.5, "bg_iou_threshold": 0.4},
        tolerance=1e-6,
    ),
    OpCase(
        "match_anchors",
        lambda size, random: (
            _anchors_and_ground_truth(size, random)
            | {"gt_ignored": torch.arange(5) % 3 == 0, "offsets": torch.tensor([0, 2, 2, 5])}
        ),
        variant="batched",
        arguments={
            "fg_iou_threshold": 0.5,
            "bg_iou_threshold": 0.4,
            "allow_low_quality_matches": True,
        },
        tolerance=1e-6,
    ),
    OpCase(
        "match_anchors",
        _anchors_and_ground_truth,
        variant="SSD",
        arguments={
            "fg_iou_threshold": 0.5,
            "bg_iou_threshold": 0.5,
            "best_anchor_for_each_gt": True,
        },
        tolerance=1e-6,
    ),
    OpCase("matrix_nms", _boxes_and_scores),
    OpCase(
        "matrix_nms",
        lambda size, random: (
            _boxes_and_scores(size, random) | {"idxs": random.integers(size, high=3)}
        ),
        variant="linear",
        arguments={"method": "linear"},
    ),
    OpCase("matrix_nms", _padded_batch, variant="padded", arguments={"max_output": 7}),
    OpCase(
        "multiscale_roi_align",
        _pyramid_and_boxes,
        call=_pool_levels,
        arguments={"sampling_ratio": 2, "canonical_scale": 10, "canonical_level": 2},
        gradients=("features", "coarse", "boxes"),
        deterministic="switched",
        many=1500,
    ),
    OpCase(
        "MultiScaleRoIAlign",
        _pyramid_and_boxes,
        call=_pool_dict,
        gradients=("features", "coarse", "boxes"),
        deterministic="switched",
        many=1500,
    ),
    OpCase("nms", _boxes_and_scores, arguments={"iou_threshold": 0.5}, tolerance=0),
    OpCase(
        "nms",
        _boxes_and_scores,
        variant="DIoU",
        arguments={"iou_threshold": 0.4, "overlap": "diou"},
        tolerance=0,
    ),
    OpCase(
        "ps_roi_align",
        _map_and_rois,
        arguments={"output_size": (3, 1), "spatial_scale": 0.25},
        gradients=("input",),
        many=200,
        for_threads=1500,
        deterministic="switched",
    ),
    OpCase(
        "ps_roi_align",
        lambda size, random: {"input": random.normal(2, 3, 16, 12), "boxes": random.boxes(size)},
        call=lambda input, boxes: ops.ps_roi_align(input, [boxes, boxes[:2]], (1, 3), 0.25, 2),
        variant="list",
        gradients=("input",),
        many=200,
        for_threads=1500,
        deterministic="switched",
    ),
    OpCase(
        "ps_roi_pool",
        _map_and_rois,
        arguments={"output_size": (3, 1), "spatial_scale": 0.25},
        gradients=("input",),
        many=200,
        for_threads=1500,
        deterministic="switched",
    ),
    OpCase(
        "PSRoIAlign",
        _module_map_and_rois,
        call=ops.PSRoIAlign((1, 3), 0.25, 2),
        gradients=("input",),
        many=200,
        for_threads=1500,
        deterministic="switched",
    ),
    OpCase(
        "PSRoIPool",
        _module_map_and_rois,
        call=ops.PSRoIPool((1, 3), 0.25),
        gradients=("input",),
        many=200,
        for_threads=1500,
        deterministic="switched",
    ),
    OpCase(
        "remove_small_boxes",
        lambda size, random: {"boxes": random.boxes(size).round()},
        arguments={"min_size": 10.0},
        tolerance=0,
    ),
    OpCase(
        "roi_align",
        _maps_and_boxes,
        call=lambda features, boxes, images, **arguments: ops.roi_align(
            features, _with_images(boxes, images), (2, 3), 0.5, **arguments
        ),
        arguments={"sampling_ratio": 2},
        gradients=("features", "boxes"),
        deterministic="switched",
    ),
    OpCase(
        "roi_align",
        _maps_and_boxes,
        call=lambda features, boxes, images: ops.roi_align(
            features.contiguous(memory_format=torch.channels_last),
            [boxes, boxes[:1]],
            2,
            0.5,
            aligned=True,
            memory_format=torch.contiguous_format,
        ),
        variant="adaptive",
        gradients=("features", "boxes"),
        deterministic="switched",
    ),
    OpCase(
        "roi_pool",
        _map_and_rois,
        arguments={"output_size": (3, 2), "spatial_scale": 0.25},
        gradients=("input",),
        many=200,
        for_threads=1500,
        deterministic="switched",
        tolerance=1e-6,
    ),
    OpCase(
        "roi_pool",
        lambda size, random: {"input": random.normal(2, 3, 16, 12), "boxes": random.boxes(size)},
        call=lambda input, boxes: ops.roi_pool(input, [boxes, boxes[:2]], 2, 0.25),
        variant="list",
        gradients=("input",),
        many=200,
        for_threads=1500,
        deterministic="switched",
        tolerance=1e-6,
    ),
    OpCase(
        "RoIAlign",
        _maps_and_boxes,
        call=lambda features, boxes, images: ops.RoIAlign(2, 0.5, 1)(
            features, _with_images(boxes, images)
        ),
        gradients=("features", "boxes"),
        deterministic="switched",
        many=1500,
    ),
    OpCase(
        "RoIPool",
        _module_map_and_rois,
        call=ops.RoIPool(2, 0.25),
        gradients=("input",),
        many=200,
        deterministic="switched",
        tolerance=1e-6,
    ),
    OpCase(
        "sigmoid_focal_loss",
        lambda size, random: {
            "inputs": random.normal(size, 5) * 4,
            "targets": random.uniform(size, 5, low=0.1, high=0.9),
        },
        gradients=("inputs", "targets"),
    ),
    OpCase(
        "sigmoid_focal_loss",
        lambda size, random: {
            "inputs": random.normal(size, 5) * 4,
            "targets": random.integers(size, low=-2, high=5),
        },
        variant="labels",
        arguments={"reduction": "mean", "gamma": 1.5},
        gradients=("inputs",),
    ),
    OpCase("soft_nms", _boxes_and_scores),
    OpCase("soft_nms", _boxes_and_scores, variant="gaussian", arguments={"method": "gaussian"}),
    OpCase(
        "softmax_focal_loss",
        lambda size, random: {
            "inputs": random.normal(size, 5) * 4,
            "targets": random.integers(size, low=-2, high=4),
        },
        gradients=("inputs",),
    ),
    OpCase(
        "softmax_focal_loss",
        lambda size, random: {
            "inputs": random.normal(size, 3, 37) * 4,
            "targets": random.integers(size, 3, high=37),
            "alpha": random.uniform(37),
        },
        variant="weights",
        arguments={"reduction": "sum_per_image", "gamma": 1.5, "background_index": None},
        gradients=("inputs",),
    ),
    OpCase(
        "varifocal_loss",
        lambda size, random: {
            "inputs": random.normal(size, 5) * 4,
            "targets": random.uniform(size, 5, low=0.1, high=0.9),
        },
        gradients=("inputs", "targets"),
    ),
    OpCase(
        "varifocal_loss",
        lambda size, random: {
            "inputs": random.normal(size, 5) * 4,
            "targets": random.integers(size, 5, high=2).double(),
        },
        variant="mean",
        arguments={"reduction": "mean", "gamma": 1.5},
        gradients=("inputs",),
    ),
    OpCase(
        "weighted_boxes_fusion",
        lambda size, random: (
            _boxes_and_scores(size, random) | {"idxs": random.integers(size, high=3)}
        ),
        arguments={"num_models": 2},
    ),
    OpCase(
        "weighted_boxes_fusion",
        _padded_batch,
        variant="padded",
        arguments={"num_models": 2, "max_output": 7, "conf_type": "max"},
    ),
)

# SPDX-License-Identifier: Apache-2.0
"""The padded forms wait for nothing, so a CUDA graph can hold them."""

import pytest
import torch

from pydet import ops
from tests.conftest import needs_cuda
from tests.ops.test_nms import random_boxes

CALLS = {
    "batched_nms": lambda b, s, i: ops.batched_nms(b, s, i, 0.5, max_output=50),
    "batched_nms DIoU": lambda b, s, i: ops.batched_nms(
        b, s, i, 0.5, overlap="diou", max_output=50
    ),
    "batched_soft_nms": lambda b, s, i: ops.batched_soft_nms(b, s, i, max_output=50),
    "matrix_nms": lambda b, s, i: ops.matrix_nms(b, s, i, max_output=50),
    "weighted_boxes_fusion": lambda b, s, i: ops.weighted_boxes_fusion(b, s, i, 2, max_output=50),
    "weighted_boxes_fusion with weights": lambda b, s, i: ops.weighted_boxes_fusion(
        b, s, i, 2, weights=[1, 3], models=i % 2, max_output=50
    ),
}


@needs_cuda
@pytest.mark.parametrize("name", CALLS)
def test_padded_forms_in_a_graph(name):
    """Captured with one batch, replayed with others."""
    call = CALLS[name]
    tensors = [tensor.cuda() for tensor in random_boxes(3, 300)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(*tensors)  # warms up: modules are loaded outside of the graph
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call(*tensors)
    for seed in (1, 2):
        other = random_boxes(3, 300, seed=seed)
        for tensor, values in zip(tensors, other, strict=True):
            tensor.copy_(values)
        graph.replay()
        for got, wanted in zip(results, call(*other), strict=True):
            assert torch.equal(got.cpu(), wanted)

# SPDX-License-Identifier: Apache-2.0
"""What is asked of every op alike, run over ``cases.py``; each op has a file of its own beside."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from pydet import ops
from tests.conftest import deterministic_algorithms, is_emulated, needs_cuda
from tests.ops.cases import CASES, OpCase
from tests.ops.recording import record, weights_like, with_gradient
from tests.ops.table import ANY_ORDER, DOCUMENT, markdown
from tests.strategies import layouts

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_gradient = pytest.mark.parametrize(
    "case", [case for case in CASES if case.gradients], ids=lambda case: case.name
)

# Half a unit in the last place of a result, and a few more where a sum was rounded.
LAST_BITS = {torch.float16: 2**-9, torch.bfloat16: 2**-6, torch.float32: 0.0, torch.float64: 0.0}


def run_with_gradients(case: OpCase, tensors: dict[str, Tensor]) -> list[Tensor]:
    """All results and, where there are any, the gradients of a weighted sum of them."""
    leaves = with_gradient(case, tensors)
    results = case.run(**leaves)
    floating = [result for result in results if result.requires_grad]
    if floating:
        total = sum((result.double() * weights_like(result)).sum() for result in floating)
        total.backward()
    return [
        *(result.detach() for result in results),
        *(leaves[name].grad for name in case.gradients),
    ]


def assert_equal(got: list[Tensor], wanted: list[Tensor], note: str = "") -> None:
    """The same shapes, dtypes and values, NaN included, bit for bit up to the sign of 0."""
    assert len(got) == len(wanted)
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(
            x, y, rtol=0, atol=0, equal_nan=True, check_device=False, msg=lambda m: f"{note}: {m}"
        )


def assert_close(case: OpCase, got: list[Tensor], wanted: list[Tensor]) -> None:
    """Within the case's tolerance and the last bits of the lesser dtype; decisions equal."""
    for x, y in zip(got, wanted, strict=True):
        assert x.shape == y.shape
        if not x.is_floating_point():
            assert torch.equal(x.cpu(), y.cpu())
            continue
        scale = y.abs().max().item() if y.numel() else 0.0
        bits = max(LAST_BITS[x.dtype], LAST_BITS[y.dtype])
        error = case.tolerance + bits if case.tolerance else 0.0
        torch.testing.assert_close(
            x.double().cpu(), y.double().cpu(), rtol=error, atol=error * scale, equal_nan=True
        )


# --- the lists ---------------------------------------------------------------------------------


def test_every_public_op_has_a_case():
    public = {
        name
        for name, value in vars(ops).items()
        if not name.startswith("_")
        and (
            inspect.isfunction(value)
            or (inspect.isclass(value) and issubclass(value, torch.nn.Module))
        )
    }
    assert public == {case.function for case in CASES}
    names = [case.name for case in CASES]
    assert names == sorted(names, key=str.lower), "cases.py must be in alphabetical order"
    assert len(set(names)) == len(names)


def test_the_document_is_made_from_the_cases():
    assert DOCUMENT.read_text(encoding="utf-8") == markdown(), (
        "docs/ops.md is not what the cases say: python -m tests.ops.table"
    )


# --- values ------------------------------------------------------------------------------------


@each_case
def test_dtypes(case: OpCase, device: torch.device):
    """Every dtype gives what float64 gives from the same (rounded) values."""
    for dtype in case.dtypes:
        tensors = case.tensors(9, dtype, device)
        wide = {
            name: tensor.double() if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
        assert_close(case, run_with_gradients(case, tensors), run_with_gradients(case, wide))


@each_case
def test_empty(case: OpCase, device: torch.device):
    for dtype in case.dtypes:
        tensors = case.tensors(0, dtype, device)
        for result in run_with_gradients(case, tensors):
            assert result.device.type == device.type


@each_case
def test_layouts(case: OpCase, device: torch.device):
    """Strides, offsets and memory formats change no bit (of what is deterministic)."""
    with deterministic_algorithms():
        tensors = case.tensors(6, device=device)
        wanted = run_with_gradients(case, tensors)
        for name, tensor in tensors.items():
            for layout, same in layouts(tensor):
                leaf = same.detach().requires_grad_(name in case.gradients)
                others = {key: value for key, value in tensors.items() if key != name}
                results = case.run(**others, **{name: leaf})
                for x, y in zip(results, wanted, strict=False):
                    torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
                floating = [result for result in results if result.requires_grad]
                if floating and name in case.gradients:
                    sum((r.double() * weights_like(r)).sum() for r in floating).backward()
                    position = len(results) + case.gradients.index(name)
                    assert leaf.grad is not None
                    assert_equal([leaf.grad], [wanted[position]], f"{name} {layout}")


@needs_cuda
@each_case
def test_cuda_is_as_the_cpu(case: OpCase):
    for dtype in case.dtypes:
        on_cpu = run_with_gradients(case, case.tensors(case.many, dtype))
        on_cuda = run_with_gradients(case, case.tensors(case.many, dtype, "cuda"))
        assert_close(case, on_cuda, on_cpu)


needs_two_devices = pytest.mark.skipif(
    torch.cuda.device_count() < 2,
    reason=f"needs two CUDA devices, got {torch.cuda.device_count()}",
)


@needs_two_devices
@each_case
def test_a_device_that_is_not_the_current_one(case: OpCase):
    with deterministic_algorithms():
        wanted = run_with_gradients(case, case.tensors(9, device="cuda:0"))
        results = run_with_gradients(case, case.tensors(9, device="cuda:1"))
    assert all(result.device.index == 1 for result in results)
    assert torch.cuda.current_device() == 0
    assert_equal([result.cpu() for result in results], [result.cpu() for result in wanted])


@needs_cuda
@each_case
def test_the_current_stream(case: OpCase):
    """What a stream is still about to compute is waited for: all runs on that stream."""
    with deterministic_algorithms():
        tensors = case.tensors(9, device="cuda")
        wanted = run_with_gradients(case, tensors)
        late = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(20_000_000)  # cycles: about 10 ms
            for name, tensor in tensors.items():
                late[name].copy_(tensor)
            results = run_with_gradients(case, late)
        torch.cuda.synchronize()
    assert_equal(results, wanted)


# --- gradients ---------------------------------------------------------------------------------


def function_of_leaves(case: OpCase, tensors: dict[str, Tensor]) -> Any:
    """The case as a function of the tensors with a gradient: its differentiable results."""

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        results = case.run(**(tensors | dict(zip(case.gradients, leaves, strict=True))))
        return tuple(result for result in results if result.requires_grad)

    return function


def gradcheck_options(case: OpCase, device: torch.device) -> dict[str, Any]:
    # Atomic additions of a GPU come in any order, and differ by their rounding. Of emulated kernels
    # one random direction is looked at, not each number by itself.
    atomic = case.deterministic != "always" and (is_emulated or device.type == "cuda")
    return {"nondet_tol": 1e-9 if atomic else 0.0, "fast_mode": is_emulated}


@each_gradient
def test_first_derivative(case: OpCase, device: torch.device):
    tensors = with_gradient(case, case.tensors(3, torch.float64, device))
    leaves = tuple(tensors[name] for name in case.gradients)
    function = function_of_leaves(case, tensors)
    assert torch.autograd.gradcheck(function, leaves, **gradcheck_options(case, device))


@each_gradient
def test_second_derivative(case: OpCase, device: torch.device):
    tensors = with_gradient(case, case.tensors(3, torch.float64, device))
    leaves = tuple(tensors[name] for name in case.gradients)
    options = gradcheck_options(case, device)
    options["fast_mode"] |= sum(leaf.numel() for leaf in leaves) > 2000
    function = function_of_leaves(case, tensors)
    assert torch.autograd.gradgradcheck(function, leaves, **options)


@each_gradient
def test_third_derivative(case: OpCase, device: torch.device):
    """It is there, or asking for it raises: never is it left out in silence."""
    tensors = with_gradient(case, case.tensors(3, torch.float64, device))
    leaves = tuple(tensors[name] for name in case.gradients)
    results = function_of_leaves(case, tensors)(*leaves)
    for _ in range(2):
        total = sum((result.pow(3) * weights_like(result)).sum() for result in results)
        grads = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
        results = [grad for grad in grads if grad is not None]
    total = sum(result.pow(3).sum() for result in results)
    if case.function in ANY_ORDER:
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        assert any(grad is not None and grad.any() for grad in grads)
        return
    with pytest.raises(NotImplementedError, match="derivative of this order is not implemented"):
        torch.autograd.grad(total, leaves, allow_unused=True)


@each_case
def test_results_without_a_gradient_have_none(case: OpCase, device: torch.device):
    if case.gradients:
        return
    tensors = {
        name: tensor.requires_grad_(tensor.is_floating_point())
        for name, tensor in case.tensors(5, device=device).items()
    }
    assert not any(result.requires_grad for result in case.run(**tensors))


# --- the same bits -----------------------------------------------------------------------------


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.large
@each_case
def test_any_number_of_threads_gives_the_same_bits(case: OpCase):
    tensors = case.tensors(case.for_threads or case.many)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(run_with_gradients(case, tensors))
    for other in results[1:]:
        assert_equal(other, results[0])


@each_case
def test_the_same_bits_run_to_run(case: OpCase, device: torch.device):
    size = min(case.many, 64) if is_emulated else case.many
    tensors = case.tensors(size, device=device)
    with deterministic_algorithms():
        first = run_with_gradients(case, tensors)
        for _ in range(3):
            assert_equal(run_with_gradients(case, tensors), first, "switched")
    if case.deterministic == "always":
        for _ in range(3):
            assert_equal(run_with_gradients(case, tensors), first, "not switched")


# --- registration ------------------------------------------------------------------------------


@pytest.mark.large
@each_case
def test_opcheck(case: OpCase, device: torch.device):
    """Schema, fake implementation and registration of all native ops that the case calls."""
    highest = 2 if case.gradients else 0
    for op, (order, args, kwargs) in record(case, device).items():
        leaves = torch.utils._pytree.tree_map_only(
            Tensor,
            lambda t, order=order: (
                t.detach().clone().requires_grad_(t.requires_grad and order < highest)
            ),
            args,
        )
        torch.library.opcheck(op, leaves, kwargs)


@pytest.mark.large
@each_case
def test_compile(case: OpCase, device: torch.device):
    compiled = torch.compile(case.run, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (5, 8, 3):
        tensors = with_gradient(case, case.tensors(size, device=device))
        wanted = run_with_gradients(case, tensors)
        results = compiled(**tensors)
        floating = [result for result in results if result.requires_grad]
        if floating:
            sum((r.double() * weights_like(r)).sum() for r in floating).backward()
        got = [*(r.detach() for r in results), *(tensors[name].grad for name in case.gradients)]
        assert_equal(got, wanted)
    torch.compiler.reset()


class Exported(torch.nn.Module):
    """A module around a case, as torch.export wants one."""

    def __init__(self, case: OpCase) -> None:
        super().__init__()
        self.run = case.run

    def forward(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        return self.run(**tensors)


def dynamic_dimensions(case: OpCase) -> dict[str, dict[int, Any]]:
    """The dimensions of each tensor that depend on the size."""
    a, b = case.tensors(5), case.tensors(8)
    return {
        name: {
            dim: torch.export.Dim.DYNAMIC
            for dim, (x, y) in enumerate(zip(a[name].shape, b[name].shape, strict=True))
            if x != y
        }
        for name in a
    }


@pytest.mark.large
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.export], ids=lambda case: case.name
)
def test_export(case: OpCase, device: torch.device):
    program = torch.export.export(
        Exported(case),
        (case.tensors(5, device=device),),
        dynamic_shapes=(dynamic_dimensions(case),),
    )
    for size in (5, 8):
        tensors = case.tensors(size, device=device, seed=1)
        assert_equal(program.module()(tensors), case.run(**tensors))


@each_case
def test_autocast(case: OpCase, device: torch.device):
    """Under autocast nothing is computed in less than what the tensors have."""
    for dtype in {torch.float32, torch.bfloat16} & set(case.dtypes):
        tensors = case.tensors(6, dtype, device)
        wanted = case.run(**tensors)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            results = case.run(**tensors)
        assert_close(case, results, wanted)


@each_gradient
def test_forward_mode_is_never_wrong(case: OpCase, device: torch.device):
    """A tangent, where torch has one, is that of the gradients; where there is none, it is said."""
    tensors = case.tensors(3, torch.float64, device)
    tangents = {name: weights_like(tensors[name]) for name in case.gradients}
    with forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(tensors[name], t) for name, t in tangents.items()}
        try:
            results = case.run(**{**tensors, **dual})
        except NotImplementedError as error:
            assert "forward-mode derivatives are not implemented" in str(error)
            return
        found = [forward_ad.unpack_dual(result).tangent for result in results]
    leaves = with_gradient(case, tensors)
    for result, tangent in zip(case.run(**leaves), found, strict=True):
        if not result.requires_grad:
            assert tangent is None
            continue
        grads = torch.autograd.grad(
            result, [leaves[name] for name in tangents], weights_like(result), retain_graph=True
        )
        both = sum((g * t).sum() for g, t in zip(grads, tangents.values(), strict=True))
        assert tangent is not None
        torch.testing.assert_close((tangent * weights_like(result)).sum(), both)


@each_case
def test_no_warnings(case: OpCase, device: torch.device):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_with_gradients(case, case.tensors(4, device=device))


BOXES, SCORES = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 8]]), torch.tensor([0.5, 0.25])
NO_NUMBERS = {
    "box_iou": lambda x: ops.box_iou(x, x),
    "distance_box_iou": lambda x: ops.distance_box_iou(x, x),
    "iou_loss": lambda x: ops.iou_loss(x, x),
    "match_anchors": lambda x: ops.match_anchors(x, x, 0.5, 0.4),
    "nms": lambda x: ops.nms(x, x[:, 2], 0.5),
    "box_area": ops.box_area,
    "encode_boxes": lambda x: ops.encode_boxes(x, x),
}


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool])
@pytest.mark.parametrize("name", NO_NUMBERS)
def test_boxes_that_are_no_numbers_are_refused(name, dtype):
    with pytest.raises(TypeError, match=rf"^{name}: \w+ must have a dtype of .*, got {dtype}"):
        NO_NUMBERS[name](BOXES.to(dtype))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("batched_nms", {"iou_threshold": 0.5}),
        ("batched_soft_nms", {}),
        ("matrix_nms", {}),
        ("weighted_boxes_fusion", {"num_models": 1}),
    ],
)
def test_complex_classes_are_refused(name, arguments):
    idxs = SCORES.to(torch.complex64)
    with pytest.raises(TypeError, match=f"^{name}: idxs must be integers or floating, got"):
        getattr(ops, name)(BOXES, SCORES, idxs, **arguments)

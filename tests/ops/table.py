# SPDX-License-Identifier: Apache-2.0
"""Writes docs/ops.md from the cases that the contract test runs: ``python -m tests.ops.table``."""

from itertools import groupby
from pathlib import Path

import torch

from tests.ops.cases import CASES, OpCase
from tests.ops.recording import record

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "ops.md"

HEAD = """# The ops

Made by `python -m tests.ops.table` from `tests/ops/cases.py`; `tests/ops/test_contract.py` runs
every row, so nothing stands here that is not tested. What an op computes, its arguments, errors and
sources are in its docstring: `help(pydet.ops.nms)`.

- *dtypes*: of the floating arguments; arithmetic is in float32 or better.
- *kernels*: the devices that its native parts are registered for.
- *gradient*, *second*: the arguments with a first derivative, and whether they have a second one
  (gradcheck and gradgradcheck in float64); "any": further ones, too. Where there are none, asking
  for them raises `NotImplementedError`, as asking for forward-mode derivatives does.
- *deterministic*: the same bits run to run on one device, and on the CPU for any number of threads:
  always, or on a GPU "switched" by `torch.use_deterministic_algorithms(True)`.
- *compile*: `torch.compile(fullgraph=True, dynamic=True)`; *export*: `torch.export` with dynamic
  sizes; both give the same bits. All pass `torch.library.opcheck`.

| op | dtypes | kernels | gradient | second | deterministic | compile | export |
|---|---|---|---|---|---|---|---|
"""

# Ops that have derivatives of any order.
ANY_ORDER = {
    "box_area",
    "box_convert",
    "clip_boxes_to_image",
    "deform_conv2d",
    "DeformConv2d",
    "ps_roi_align",
    "ps_roi_pool",
    "PSRoIAlign",
    "PSRoIPool",
    "roi_pool",
    "RoIPool",
}

SHORT = {
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
}


def kernels(case: OpCase) -> str:
    """The devices that all native ops of the case have a kernel for."""
    names = [op.name() for op in record(case)]
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    devices = [key for key in ("CPU", "CUDA") if all(has(name, key) for name in names)]
    return ", ".join(devices) if names else "torch's own"


def row(function: str, cases: list[OpCase]) -> str:
    """One line of the table; what differs between the forms of an op is said for each."""

    def column(texts: list[str]) -> str:
        if len(set(texts)) == 1:
            return texts[0]
        forms = [case.variant or "plain" for case in cases]
        return "; ".join(f"{form}: {text}" for form, text in zip(forms, texts, strict=True))

    columns = [
        [
            ", ".join(SHORT[dtype] for dtype in sorted(c.dtypes, key=list(SHORT).index))
            for c in cases
        ],
        [kernels(c) for c in cases],
        [", ".join(c.gradients) or "-" for c in cases],
        [("any" if function in ANY_ORDER else "yes") if c.gradients else "-" for c in cases],
        [c.deterministic for c in cases],
        ["yes" for _ in cases],
        ["yes" if c.export else "no" for c in cases],
    ]
    return f"| `{function}` | " + " | ".join(column(texts) for texts in columns) + " |\n"


def markdown() -> str:
    """The whole document."""
    groups = groupby(CASES, key=lambda case: case.function)
    return HEAD + "".join(row(function, list(cases)) for function, cases in groups)


if __name__ == "__main__":
    DOCUMENT.write_text(markdown(), encoding="utf-8")

# SPDX-License-Identifier: Apache-2.0
"""Fixtures and hypothesis profiles that all tests share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker has one core: threads of its own, and of programs that it starts, would only wait.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# Times of single examples on a shared machine say nothing, so no profile has a deadline.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=50, **_common)
settings.register_profile("ci", max_examples=500, derandomize=True, **_common)
settings.register_profile("thorough", max_examples=20_000, **_common)
# Each example runs all threads of its kernels one after the other (tests/cpp/emulated_tests.py).
settings.register_profile("emulated", max_examples=10, derandomize=True, **_common)
_profile = os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev")
settings.load_profile(_profile)
is_emulated = _profile == "emulated"

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device; none is visible to torch"
)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Gradients on a GPU, emulated or not, are the same bits whatever the order of threads."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that a kernel exists for."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data sets and reference files (``data/``, ``refdata/``).

    Taken from the variable PYDET_SHARED, else the folder ``shared`` beside the checkout.
    """
    root = Path(os.environ.get("PYDET_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "data").is_dir():
        pytest.skip(f"needs the reference data in {root} (set PYDET_SHARED to their folder)")
    return root

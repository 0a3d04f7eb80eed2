# SPDX-License-Identifier: Apache-2.0
"""What a program prints on each path that the CPU kernels have."""

import os
import subprocess
import sys

INSTRUCTION_SETS = ("portable", "avx2", "avx512")


def outputs_by_set(code: str) -> dict[str, str]:
    """Runs Python code once a set, a process each: the choice is made once a process.

    A machine without a set takes the best that it has.
    """
    return {
        isa: subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYDET_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for isa in INSTRUCTION_SETS
    }


def assert_same_digest(code: str) -> None:
    """Asserts that `code`, which prints the set that it ran on and a digest, prints one digest."""
    digests = dict(output.split() for output in outputs_by_set(code).values())
    assert "portable" in digests
    assert len(set(digests.values())) == 1, digests

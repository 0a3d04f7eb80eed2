# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from pydet.ops._library import define


def test_an_op_that_the_compiled_part_lacks():
    """As after an update of the sources without a build."""
    op = define(
        "lacking_in_the_compiled_part(Tensor x) -> Tensor",
        fake=torch.empty_like,
        differentiable=False,
    )
    with pytest.raises(ImportError, match=r"older than this pydet.*pip install"):
        op(torch.zeros(1))

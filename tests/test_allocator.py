# SPDX-License-Identifier: Apache-2.0
import argparse
import os
import subprocess
import sys

import pytest

import pydet
from pydet import keep_freed_memory
from pydet.commands._common import load_detector
from pydet.training import TrainConfig, devices

# Prints whether memory is kept, and the new pages of blocks that are taken and freed in turn.
PROGRAM = """
import resource
import torch
import pydet

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = pydet.keep_freed_memory()
for _ in range(10):  # until the heap has found its places, two to five
    torch.zeros(16 << 20)
before = faults()
for _ in range(5):
    torch.zeros(16 << 20)
print(kept, faults() - before)
"""


def kept_and_pages(**environment):
    """In a process of its own: memory is kept to its end."""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    own = {n: value for n, value in os.environ.items() if not n.startswith(("MALLOC_", "GLIBC_"))}
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**own, **paths, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return output[0] == "True", int(output[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_what_was_freed_is_taken_again():
    kept, pages = kept_and_pages()
    assert not kept or pages < 16_384  # one block's, of five
    assert kept or not os.confstr("CS_GNU_LIBC_VERSION")


@pytest.mark.parametrize(
    "decided", [{"MALLOC_TRIM_THRESHOLD_": "0"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=1000"}]
)
def test_the_environment_decides(decided):
    kept, _ = kept_and_pages(**decided)
    assert not kept


def test_other_systems(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()


def test_training_and_the_commands_keep_it(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(devices, "keep_freed_memory", lambda: called.append("train"))
    monkeypatch.setattr(pydet, "keep_freed_memory", lambda: called.append("command"))
    devices.make_fabric(TrainConfig(device="cpu"))
    pydet.save(pydet.create_model("ssd300_vgg16", num_classes=1), tmp_path / "model.safetensors")
    load_detector(argparse.Namespace(device="cpu", weights=str(tmp_path / "model.safetensors")))
    assert called == ["train", "command"]

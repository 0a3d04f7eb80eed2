# SPDX-License-Identifier: Apache-2.0
"""Killed by SIGKILL at any moment and resumed, a run ends with the bits of an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pydet.training import load_checkpoint
from pydet.training.logging import read_log

ROOT = Path(__file__).parents[2]


def launch(drawn: Path, output: Path, *flags: str) -> subprocess.Popen:
    command = [
        sys.executable, "-m", "pydet", "train", "tiny", "--import", "tests.training.tiny_detector",
        "--data", str(drawn), "--output", str(output), "--epochs", "12", "--batch-size", "4",
        "--learning-rate", "0.02", "--log-every", "3", "--checkpoint-every", "2",
        "--eval-every", "4", "--device", "cpu", "--threads", "1", "--no-tensorboard",
        "--no-progress", *flags,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (output.parent / "log.txt").open("a") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def wait_for(condition, process: subprocess.Popen) -> bool:
    """Wait until the condition holds; False if the process ended before."""
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return True
    return False


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(folder / "last.ckpt")
    found = {f"model.{k}": v for k, v in state["model"].items()}
    found |= {f"average.{k}": v for k, v in state["average"]["model"].items()}
    for i, moments in state["optimizer"]["state"].items():
        found |= {f"optimizer.{i}.{k}": v for k, v in moments.items() if torch.is_tensor(v)}
    found["rng"] = state["processes"][0]["rng"]["torch"]
    return found


def records(folder: Path) -> list[dict]:
    return [
        {key: value for key, value in record.items() if key != "images_per_second"}
        for record in read_log(folder)
    ]


def test_killed_and_resumed_is_undisturbed_to_the_bit(drawn, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    undisturbed = launch(drawn, whole)
    draw = random.Random(time.time_ns())  # other moments each time: all of them must do
    kills = 0
    for attempt, moment in enumerate(("log", "write", "log", "write", "log")):
        process = launch(drawn, parts, "--resume", "--workers", str(attempt % 2))
        begin = len(read_log(parts))
        wanted = begin + draw.randint(1, 3)
        if moment == "write":  # in the middle of a checkpoint, after the first few steps
            wait_for(lambda b=begin: len(read_log(parts)) > b, process)
            alive = wait_for(lambda: any(parts.glob(".last.tmp-*")), process)
        else:
            alive = wait_for(lambda w=wanted: len(read_log(parts)) >= w, process)
            time.sleep(draw.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        kills += alive and process.wait() == -signal.SIGKILL
    assert undisturbed.wait() == 0, (tmp_path / "log.txt").read_text()
    assert kills >= 3, (tmp_path / "log.txt").read_text()
    assert launch(drawn, parts, "--resume").wait() == 0, (tmp_path / "log.txt").read_text()
    expected, found = tensors(whole), tensors(parts)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    for name in ("best.safetensors", "last.safetensors"):
        first, second = load_file(whole / name), load_file(parts / name)
        assert all(torch.equal(first[key], second[key]) for key in first | second)
    assert records(whole) == records(parts)
    assert not list(parts.glob(".*tmp*"))


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_saves_and_stops_cleanly(drawn, tmp_path, workers):
    """To all processes, as service managers send it: readers must not die before their parent."""
    output = tmp_path / "run"
    process = launch(drawn, output, "--workers", str(workers))
    assert wait_for(lambda: len(read_log(output)) >= 2, process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    text = (tmp_path / "log.txt").read_text()
    assert "stopped after step" in text
    assert "Traceback" not in text
    state = load_checkpoint(output / "last.ckpt")
    assert 0 < state["step"] < 45

# SPDX-License-Identifier: Apache-2.0
"""Two processes under torchrun (gloo, CPU) learn as one process with the whole batch.

Batch normalisation would differ: each process has the statistics of its own images. The detectors
here have group or frozen normalisation, and images of one size.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pydet.data import open_dataset
from pydet.training import load_checkpoint
from pydet.training.logging import read_log
from pydet.training.sampler import ImageStream, StreamBatchSampler

ROOT = Path(__file__).parents[2]
SEED, BATCH = 3, 4


@pytest.fixture(scope="module")
def sparse(drawn: Path, tmp_path_factory) -> Path:
    """The drawn data set with objects in every third image only."""
    folder = tmp_path_factory.mktemp("sparse")
    for split in ("train", "val"):
        (folder / split).symlink_to(drawn / split)
        content = json.loads((drawn / "annotations" / f"instances_{split}.json").read_text())
        kept = {image["id"] for image in content["images"][::3]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (folder / "annotations").mkdir(exist_ok=True)
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content))
    return folder


def launch(data: Path, output: Path, processes: int, *flags: str) -> None:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        *launcher, "-m", "pydet", "train", "--import", "tests.training.tiny_detector",
        "--data", str(data), "--output", str(output), "--batch-size", str(BATCH),
        "--seed", str(SEED), "--log-every", "1", "--device", "cpu", "--threads", "1",
        "--no-tensorboard", "--no-progress", *flags,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr[-20000:]


def curve(folder: Path, *names: str) -> torch.Tensor:
    records = [record for record in read_log(folder) if record["kind"] == "train"]
    return torch.tensor([[record[name] for name in names] for record in records])


def boxes_of_ranks(data: Path, steps: int) -> list[list[int]]:
    """Boxes that each of two ranks has in each step."""
    dataset = open_dataset(data, "train")
    stream = ImageStream(len(dataset), SEED)
    counts = []
    for rank in range(2):
        sampler = StreamBatchSampler(stream, BATCH, num_steps=steps, rank=rank, world_size=2)
        counts.append([sum(len(dataset.target(i)["labels"]) for _, i in keys) for keys in sampler])
    return counts


def test_two_processes_learn_as_one(sparse, tmp_path):
    flags = ["tiny", "--option", "dropout=0", "--epochs", "8", "--learning-rate", "0.02"]
    launch(sparse, tmp_path / "one", 1, *flags)
    launch(sparse, tmp_path / "two", 2, *flags)
    names = ("loss", "loss_cls", "loss_box", "gradient_norm", "learning_rate")
    one, two = curve(tmp_path / "one", *names), curve(tmp_path / "two", *names)
    assert len(one) == 30
    first, second = boxes_of_ranks(sparse, 30)
    pairs = list(zip(first, second, strict=True))
    assert any(a > 0 and b == 0 for a, b in pairs)  # a rank without any object ...
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)  # ... changes nothing
    states = [load_checkpoint(tmp_path / name / "last.ckpt") for name in ("one", "two")]
    for key, value in states[0]["model"].items():
        torch.testing.assert_close(value, states[1]["model"][key], rtol=1e-3, atol=1e-5)
    assert len(states[1]["processes"]) == 2
    evaluations = [[r["ap"] for r in read_log(tmp_path / n) if r["kind"] == "eval"] for n in
                   ("one", "two")]  # fmt: skip
    torch.testing.assert_close(*map(torch.tensor, evaluations), rtol=0, atol=0.02)


def test_one_process_goes_on_where_two_stopped(sparse, tmp_path):
    flags = ["tiny", "--option", "dropout=0", "--warmup-epochs", "0", "--schedule", "constant"]
    launch(sparse, tmp_path / "one", 1, *flags, "--epochs", "4")
    launch(sparse, tmp_path / "two", 2, *flags, "--epochs", "2")
    launch(sparse, tmp_path / "two", 1, *flags, "--epochs", "4", "--resume")
    one, two = curve(tmp_path / "one", "loss", "images"), curve(tmp_path / "two", "loss", "images")
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_one_process_saves_what_all_learnt_where_it_cannot_read(sparse, tmp_path):
    flags = ["tiny", "--option", "dropout=0", "--epochs", "1", "--warmup-epochs", "0"]
    dataset = open_dataset(sparse, "train")
    _, index = ImageStream(len(dataset), SEED).keys(9, 10)[0]  # of the third step and second rank
    victim = dataset.image_path(index)
    content = victim.read_bytes()
    launch(sparse, tmp_path / "whole", 2, *flags)
    victim.write_bytes(content[:-100])
    try:
        with pytest.raises(AssertionError, match=str(victim)):
            launch(sparse, tmp_path / "parts", 2, *flags)
    finally:
        victim.write_bytes(content)
    assert load_checkpoint(tmp_path / "parts" / "last.ckpt")["step"] == 2
    launch(sparse, tmp_path / "parts", 2, *flags, "--resume")
    whole, parts = (curve(tmp_path / name, "loss", "images") for name in ("whole", "parts"))
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)


def test_a_batch_that_cannot_be_shared_is_refused(sparse, tmp_path):
    with pytest.raises(AssertionError, match=r"batch_size must be a multiple of devices"):
        launch(sparse, tmp_path, 2, "tiny", "--batch-size", "5")


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_two_processes_learn_as_one_with_retinanet(sparse, tmp_path, norm):
    flags = [
        "retinanet_resnet18_fpn", "--option", f"norm={norm}", "--option", "fpn_channels=16",
        "--option", "head_convs=1", "--option", "levels=[3, 4]", "--option",
        'preprocessing={resize="fixed", size=[64, 64]}', "--epochs", "1", "--warmup-epochs", "0",
        "--learning-rate", "0.001", "--eval-every", "9", "--val-split", "train",
    ]  # fmt: skip
    launch(sparse, tmp_path / "one", 1, *flags)
    launch(sparse, tmp_path / "two", 2, *flags)
    names = ("loss", "loss_cls", "loss_box", "gradient_norm")
    one, two = curve(tmp_path / "one", *names), curve(tmp_path / "two", *names)
    first, second = boxes_of_ranks(sparse, len(one))
    assert any((a > 0) != (b > 0) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(one, two, rtol=2e-3, atol=1e-5)

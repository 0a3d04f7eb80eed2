# SPDX-License-Identifier: Apache-2.0
"""Losses that are not finite are named with their images."""

import pytest
import torch

from pydet.training import logging
from pydet.training.logging import Clock, RunLog, read_log
from pydet.training.watch import LossWatch, NonFiniteLossError


def _describe(key):
    return f"image {key[1]} of epoch {key[0]}"


def _losses(cls: float, box: float, device: str = "cpu") -> dict[str, torch.Tensor]:
    return {
        "loss_cls": torch.tensor(cls, device=device),
        "loss_box": torch.tensor(box, device=device),
    }


NONE = torch.tensor(0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_step_its_images_and_every_loss_are_named(value):
    watch = LossWatch(_describe)
    watch.add(0, [(0, 1)], _losses(1.0, 2.0), NONE)
    with pytest.raises(NonFiniteLossError) as error:
        watch.add(1, [(0, 7), (0, 3)], _losses(0.5, value), NONE)
    text = str(error.value)
    assert "step 1" in text
    assert "loss_cls = 0.5" in text
    assert f"loss_box = {value:g}" in text
    assert "image 7 of epoch 0; image 3 of epoch 0" in text


def test_the_first_bad_step_is_named_when_the_look_comes_late(monkeypatch):
    """As on a GPU, where several steps pass between two looks."""
    watch = LossWatch(_describe)
    with monkeypatch.context() as patch:
        patch.setattr(LossWatch, "look", lambda self: None)
        for step, value in enumerate((1.0, 2.0, float("nan"), float("nan"))):
            watch.add(step, [(0, step)], _losses(value, 1.0), NONE)
    with pytest.raises(NonFiniteLossError, match=r"step 2 .*image 2 of epoch 0"):
        watch.look()


def test_a_gradient_that_is_not_finite_is_named():
    watch = LossWatch(_describe)
    watch.add_gradient(0, [(0, 1)], torch.tensor(3.0))
    with pytest.raises(NonFiniteLossError, match=r"gradient of step 1 .*norm = inf.*image 2"):
        watch.add_gradient(1, [(0, 2)], torch.tensor(float("inf")))


def test_sums_and_invalid_boxes_are_counted():
    watch = LossWatch(_describe)
    for step in range(3):
        watch.add(step, [(0, 0)], _losses(step, 2.0), torch.tensor(step))
    assert watch.take() == ([3.0, 6.0], 3)
    assert watch.take() == ([0.0, 0.0], 0)
    assert watch.invalid_boxes == 3


def test_a_resumed_log_has_each_step_once(tmp_path):
    with RunLog(tmp_path, total=10, tensorboard=False, progress=False) as log:
        for step in (1, 2, 3):
            log.write("train", {"step": step, "loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 4, "lo')  # cut short by a kill
    with RunLog(tmp_path, total=10, step=2, tensorboard=False, progress=False) as log:
        log.write("train", {"step": 3, "loss": float("nan")})
    assert [(r["step"], r["loss"]) for r in read_log(tmp_path)] == [(1, 1.0), (2, 2.0), (3, None)]


def test_an_evaluation_that_will_be_done_again_is_taken_out(tmp_path):
    with RunLog(tmp_path, total=10, tensorboard=False, progress=False) as log:
        for epoch in (1, 2):
            log.write("train", {"step": 2 * epoch, "epoch": float(epoch)})
            log.write("eval", {"step": 2 * epoch, "epoch": epoch})
    options = {"total": 10, "step": 4, "evaluated": 1, "tensorboard": False, "progress": False}
    with RunLog(tmp_path, **options):
        pass
    kinds = [(record["kind"], record["step"]) for record in read_log(tmp_path)]
    assert kinds == [("train", 2), ("eval", 2), ("train", 4)]


def test_the_clock_leaves_its_blocks_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(logging.time, "perf_counter", lambda: now[0])
    clock = Clock(8)
    now[0] += 2
    with clock:
        now[0] += 50
    now[0] += 2
    assert clock.images_per_second(16) == 2.0
    now[0] += 4
    assert clock.images_per_second(32) == 4.0
